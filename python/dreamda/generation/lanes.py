"""How work is divided into groups and spread over threads, so that no image depends on the others.

A call of the U-Net has a fixed number of rows, which depends on the model and the options only; short groups are filled
up. Small images are made in single-threaded groups side by side, large ones in one group at a time on all threads.
"""
from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TypeVar

import numpy as np

G = TypeVar("G")

# Latent positions in one call; more rows gain nothing (measured from 1 to 48 rows), and short groups would waste more.
POSITIONS = 1536
SMALL = 1024  # an image with at most this many latent positions is made by one thread


def is_small(height: int, width: int) -> bool:
    """Whether latent images of this size are made side by side, one on each thread."""
    return height * width <= SMALL


def group_size(rows: int, height: int, width: int) -> int:
    """How many units, each of `rows` U-Net rows, go into one call."""
    return max(1, POSITIONS // (rows * height * width))


def filled_up(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with its last row repeated until there are so many."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


def work_through(groups: Iterable[G], work: Callable[[G, int | None], None], threads: int,
                 latent_size: tuple[int, int]) -> None:
    """Call ``work(group, lane)`` for every group: side by side, each thread with its own lane, if images are small;
    else one by one with lane None.

    A group is taken when a lane is free to work on it, so the iterable may end early. An error of one group is raised
    once those that are being worked on have ended.
    """
    if not is_small(*latent_size):
        for group in groups:
            work(group, None)
        return
    lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
    for lane in range(threads):
        lanes.put(lane)

    def run(group: G) -> None:
        lane = lanes.get()
        try:
            work(group, lane)
        finally:
            lanes.put(lane)

    with ThreadPoolExecutor(threads, "dreamda") as pool:
        running: set[Future[None]] = set()
        for group in groups:
            running.add(pool.submit(run, group))
            if len(running) == threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in as_completed(running):
            future.result()
