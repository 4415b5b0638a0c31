"""Shared by the run folders: `OutputError`, signals that stop a run cleanly, locks and writing.

    with StopOnSignals("finishing the current step and saving") as stop:
        while stop.signal is None:
            ...
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class OutputError(OSError):
    """The output folder could no longer be written (disk full, read-only, ...).

    Finished work stays, and the same call resumes it.
    """


class StopOnSignals:
    """Stores the first SIGINT or SIGTERM in `signal`; the previous handler gets the next one.

    Has no effect outside the main thread, as Python allows signal handlers only there.

    Parameters
    ----------
    words : str
        Printed on stderr at the first signal. They say which work is finished first, and which a second signal loses.
    """

    def __init__(self, words: str) -> None:
        self.signal: int | None = None
        self._words = words
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self,
                 kind: type[BaseException] | None = None,
                 error: BaseException | None = None,
                 trace: TracebackType | None = None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        os.write(2, f"\ndreamda: {self._words}\n".encode())


def try_lock(fd: int) -> bool:
    """Lock an open file; False if another process or open file holds the lock.

    Closing the file releases the lock, and so does a kill.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_in(stack: contextlib.ExitStack, path: str | Path, flags: int, folder: int | None = None) -> int:
    """`os.open`, relative to an open folder. The stack closes the file."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666, dir_fd=folder)
    stack.callback(os.close, fd)
    return fd


def write_all(fd: int, content: bytes) -> None:
    """Call `os.write` until everything is written."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view):]


def model_file(path: str | os.PathLike[str]) -> Path:
    """The model file: the path itself, or model.safetensors in a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a model.safetensors, or the folder of a dreamda train")
    return path
