"""Read the importers' files as streams, from folders, archives, and archives inside archives.

Nothing is ever unpacked.
"""
from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import IO, NamedTuple, cast

MAX_ANNOTATION_BYTES = 64 << 20
# The exceptions that gzip, tar, zip and xz readers raise for a damaged file or one of another format.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
           NotImplementedError, RuntimeError)


class _Folder:
    """A folder; names begin with its own name, so that 101_ObjectCategories itself may be given."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.title = str(path)
        self._paths: dict[str, Path] = {}
        for top, folders, files in os.walk(self.root):
            folders[:] = sorted(f for f in folders if _visible(f))
            for name in sorted(files):
                full = Path(top, name)
                if _visible(name):
                    self._paths[full.relative_to(self.root.parent).as_posix()] = full

    def names(self) -> list[str]:
        return list(self._paths)

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for name, path in self._paths.items():
            if name in wanted:
                if not path.is_file():
                    raise ValueError(f"{path} is no regular file; remove it")
                with open(path, "rb") as file:
                    yield name, file


class _Archive:
    """A .tar, .tar.gz, .tgz or .zip, read from the start for every search. Only regular files are considered."""

    def __init__(self, title: str, open_file: Callable[[], IO[bytes]], is_zip: bool) -> None:
        self.title, self.open, self.is_zip = title, open_file, is_zip
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        if self._names is None:
            self._names = [name for name, _ in self._members()]
        return self._names

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for name, open_member in self._members():
            if name in wanted:
                with open_member() as file:
                    yield name, file

    def _members(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        with _whole(self.title), self.open() as file:
            if self.is_zip:
                with zipfile.ZipFile(file) as archive:
                    for info in archive.infolist():
                        if not info.is_dir() and _visible(info.filename):
                            yield info.filename, partial(archive.open, info)
            else:
                with tarfile.open(fileobj=file, mode="r|*") as archive:
                    for member in archive:
                        if member.isreg() and _visible(member.name.removeprefix("./")):
                            # None is not for regular files
                            yield member.name, cast("Callable[[], IO[bytes]]", partial(archive.extractfile, member))


@contextlib.contextmanager
def _whole(what: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise ValueError(
            f"{what} is damaged or no archive ({str(error) or type(error).__name__}); download it again") from error


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class Found(NamedTuple):
    """The place where files were found, and their names, each with its match of the pattern."""

    place: _Folder | _Archive
    matches: dict[str, re.Match[str]]


class Source:
    """The places where files of a data set may be: SRC, official archives in it, and official archives inside those."""

    def __init__(self, path: Path, title: str, archives: tuple[str, ...]) -> None:
        self.path, self.title, self.archives = path, title, archives
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; give a folder that holds {_all(archives)}")
        self.places: list[_Folder | _Archive] = []
        if path.is_dir():
            folder = _Folder(path)
            self.places.append(folder)
            for name in folder.names():
                if _is_archive(name) and os.path.basename(name) in archives:
                    file = folder.root.parent / name
                    self.places.append(_Archive(str(file), partial(_open_file, file), zipfile.is_zipfile(file)))
        else:
            if not path.is_file():
                raise ValueError(f"{path} is neither a file nor a folder")
            if not zipfile.is_zipfile(path) and not _is_archive(path.name):
                raise ValueError(
                    f"{path} is neither a zip nor a tar archive; give a folder that holds {_all(archives)}")
            self.places.append(_Archive(str(path), partial(_open_file, path), zipfile.is_zipfile(path)))

    def find(self, pattern: str) -> Found:
        """The files whose names match, from the first place that has any."""
        known = re.compile(pattern)
        for place in (*self.places, *self._nested):
            matches = {name: match for name in place.names() if (match := known.search(name))}
            if matches:
                return Found(place, matches)
        return Found(self.places[0], {})

    @cached_property
    def _nested(self) -> list[_Archive]:
        return [_Archive(f"{place.title}: {name}", partial(_open_inside, place, name), name.endswith(".zip"))
                for place in self.places if isinstance(place, _Archive) and place.is_zip
                for name in place.names() if _is_archive(name) and os.path.basename(name) in self.archives]

    def require(self, pattern: str, what: str) -> Found:
        """Like `find`, but ValueError if there is none."""
        found = self.find(pattern)
        if not found.matches:
            raise ValueError(
                f"{self.path} has no {what}, so it is not {self.title}, or not all of it; found: {self._summary()}; "
                f"give {_all(self.archives)}, or what they hold")
        return found

    def file(self, pattern: str, what: str) -> bytes | None:
        """The bytes of the small file that matches; None if there is none."""
        found = self.find(pattern)
        for name, file in found.place.read({*list(found.matches)[:1]}):
            return read_member(file, MAX_ANNOTATION_BYTES, f"{found.place.title}: {name}")
        return None

    def required_file(self, pattern: str, what: str) -> bytes:
        """Like `file`, but ValueError if there is none."""
        self.require(pattern, what)
        content = self.file(pattern, what)
        assert content is not None
        return content

    def _summary(self) -> str:
        seen = Counter("/".join(name.split("/")[:-1][:3]) + "/*" + os.path.splitext(name)[1] for place in self.places
                       for name in place.names())
        if not seen:
            return "nothing"
        shown = [f"{name} ({count})" for name, count in seen.most_common(4)]
        return ", ".join(shown) + (", ..." if len(seen) > 4 else "")


def _is_archive(name: str) -> bool:
    return name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def _open_file(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _open_inside(place: _Archive, name: str) -> IO[bytes]:
    """Open a member of a zip archive that is itself an archive."""
    return zipfile.ZipFile(place.open()).open(name)


def _all(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def read_member(file: IO[bytes] | gzip.GzipFile, limit: int, what: str) -> bytes:
    """Read all bytes of an open file; ValueError if there are more than `limit`. `what` names the file in errors."""
    with _whole(what):
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{what} is larger than the {limit >> 20} MiB that are read")
    return content


def records(file: IO[bytes], size: int, what: str) -> Iterator[bytes]:
    """Yield records of `size` bytes; ValueError if the last one is incomplete."""
    while True:
        with _whole(what):
            record = file.read(size)
            while 0 < len(record) < size and (more := file.read(size - len(record))):
                record += more
        if not record:
            return
        if len(record) < size:
            raise ValueError(f"{what} ends within an image; download it again")
        yield record
