"""Divide work into groups and distribute them over threads, so that no image depends on the others.

A call of the U-Net has a fixed number of rows, which depends only on the model and the options; short groups are filled
up. Small images are made in parallel groups of one thread each, large ones in one group at a time with all threads.
"""
from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TypeVar

import numpy as np

G = TypeVar("G")

# Latent positions per call. More are not faster (measured from 1 to 48 rows), and short groups would waste more.
POSITIONS = 1536
SMALL = 1024  # an image with at most this many latent positions is made by one thread


def is_small(height: int, width: int) -> bool:
    """Whether latent images of this size are made in parallel, one per thread."""
    return height * width <= SMALL


def group_size(rows: int, height: int, width: int) -> int:
    """The number of units, each of `rows` U-Net rows, in one call."""
    return max(1, POSITIONS // (rows * height * width))


def filled_up(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with its last row repeated until it has `rows` rows."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


def work_through(groups: Iterable[G], work: Callable[[G, int | None], None], threads: int,
                 latent_size: tuple[int, int]) -> None:
    """Call ``work(group, lane)`` for every group.

    Small images are made in parallel, each thread with its own lane; large ones one by one, with lane None. A group is
    taken when a lane is free, so the iterable may end early. An error in one group is raised when the groups that have
    begun are finished.
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
