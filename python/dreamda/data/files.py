"""Read untrusted files, with bounded sizes and clear errors, and write files atomically."""
from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 512 << 20
MAX_LINE_BYTES = 1 << 20          # of JSON Lines


class BrokenImageError(ValueError):
    """An image file that cannot be used: unreadable, truncated, too large, or not in a supported format."""


class LostImageError(BrokenImageError):
    """An image that has disappeared, become unreadable or changed since the run began; the message names it."""


def read_bounded(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file of at most `MAX_FILE_BYTES`; anything else raises `BrokenImageError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block the run
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise BrokenImageError("not a regular file")
            if info.st_size > MAX_FILE_BYTES:
                raise BrokenImageError(f"{info.st_size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
            content = file.read(info.st_size + 1)  # `read` allocates memory for all that it may return
            if len(content) > info.st_size:
                raise BrokenImageError("grew while it was read")
            return content
    except OSError as error:
        raise BrokenImageError(f"cannot be read ({error.strerror})") from error


def read_head(path: str | os.PathLike[str], count: int = 132) -> bytes:
    """The first bytes of a regular file; empty if it is not a regular file or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            return file.read(count) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return b""


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict]]:
    """Yield the objects of a JSON Lines file, each with its line number.

    ValueError names the first line that is not a JSON object.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{path} line {number} is longer than the {MAX_LINE_BYTES >> 20} MiB that are "
                    "read; write one object a line")
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is no JSON object; write one object a line")
            yield number, row


def is_utf8(name: str) -> bool:
    """Whether a text can be written as UTF-8; a file name with other bytes cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def temporary_name(name: str) -> str:
    """The name of a file of `write_atomically` until it is complete; a killed process may leave one behind."""
    return f".{name}.tmp"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a file atomically: a temporary file beside it, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest_of_image(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of an image file, in hexadecimal digits; BrokenImageError as in `read_bounded`."""
    return hashlib.sha256(read_bounded(path)).hexdigest()


def digest_if_readable(path: str | os.PathLike[str]) -> str | None:
    """Like `digest_of_image`, but None for a file that cannot be read."""
    try:
        return digest_of_image(path)
    except BrokenImageError:
        return None


def digest_of_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file of any size, in hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
        return digest.hexdigest()
