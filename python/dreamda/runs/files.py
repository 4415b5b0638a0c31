"""Shared by the run folders: `OutputError`, folders of reports, signals that stop a run cleanly, locks and writing.

    with locked_folder("report"):
        ...  # another process that writes there is refused

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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ..options import ParameterError


# What the folder of a report holds: finished parts of an audit, or its result.
BLOCKS, AUDIT, WITHDRAWAL = ".blocks", "audit.json", "withdrawal.json"
REPORTS = frozenset((BLOCKS, AUDIT, WITHDRAWAL))


class OutputError(OSError):
    """The output folder could no longer be written (disk full, read-only, ...).

    Finished work stays, and the same call resumes it.
    """


def check_report(out: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise ParameterError unless a report can be written into `out`: a new or empty folder, or that of a report.

    Parameters
    ----------
    out : path
    *inputs : path
        Folders of images, which a report must not lie in.
    """
    out = Path(out)
    for folder in map(Path, inputs):
        if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
            raise ParameterError("out", f"{out} lies in the folder of images {folder}; give a folder elsewhere")
    _check_folder(out)
    if out.is_dir():
        there = os.listdir(out)
        if there and not REPORTS.intersection(there):
            raise ParameterError("out", f"{out} holds files but no report of an audit; give a new or an empty folder")


def _check_folder(out: Path) -> None:
    """Raise ParameterError if `out` or what it lies in exists and is no folder."""
    for path in (out, *out.parents):
        if os.path.lexists(path) and not path.is_dir():
            raise ParameterError("out", f"{path} is no folder; give a new or an empty one")


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


@contextlib.contextmanager
def locked_folder(out: str | os.PathLike[str]) -> Iterator[None]:
    """Create the folder `out`, and lock it for one process; at the end, remove new folders that are still empty.

    The lock is on the folder itself, so that it leaves no file behind, and ends with the process, also with a kill.

    Parameters
    ----------
    out : path

    Raises
    ------
    ParameterError
        Another process has locked the folder, or `out` is no folder.
    OutputError
        The folder cannot be created.
    """
    out = Path(out)
    _check_folder(out)
    with contextlib.ExitStack() as stack:
        try:
            new = _lock(out, stack)
        except OSError as error:
            raise OutputError(
                error.errno, f"{out} cannot be written ({error.strerror}); fix that, or give another folder") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty
                for folder in new:
                    folder.rmdir()


def _lock(out: Path, stack: contextlib.ExitStack) -> list[Path]:
    """Create and lock a folder until the stack unwinds; return the folders that were created, the innermost first."""
    new = [path for path in (out, *out.parents) if not path.exists()]
    while True:
        out.mkdir(parents=True, exist_ok=True)
        # another process may be removing the folder
        with contextlib.ExitStack() as attempt, contextlib.suppress(FileNotFoundError):
            folder = open_in(attempt, out, os.O_RDONLY | os.O_DIRECTORY)
            if not try_lock(folder):
                raise ParameterError("out",
                                     f"{out} is being written by another process; wait for it, or give another folder")
            if os.path.samestat(os.fstat(folder), os.stat(out)):
                stack.push(attempt.pop_all())
                return new


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
