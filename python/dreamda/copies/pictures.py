"""Folders of images as thumbnails, read in blocks that are kept on disk so that an interrupted reading goes on.

    pictures = Pictures.read("photos", Blocks("report/.blocks"))
    pictures.names, pictures.thumbnails, pictures.skipped
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.files import BrokenImageError, write_atomically
from ..data.folders import list_images
from ..data.images import read_image
from ..text import counted, in_brackets
from .index import Ints
from .thumbnails import Pixels, SIDE, views

BLOCK = 2048    # images, or queries, that are kept together
VERSION = 3     # of what is kept: thumbnails and matches


class Blocks:
    """Finished parts of a long computation, one file each.

    Parameters
    ----------
    folder : path, optional
        Default: nothing is kept.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._new: list[Path] = []

    def get(self, key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays that were kept under a key; if there are none, they are computed and kept."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{hashlib.sha256(f'{VERSION} {key}'.encode()).hexdigest()[:32]}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except Exception:  # there is none, or a damaged one
            arrays = compute()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type, unused-ignore]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._new.append(path)
        write_atomically(path, buffer.getvalue())
        return arrays

    def remove(self, only_new: bool = False) -> None:
        """Delete what is kept; with `only_new`, only what this object has added."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self._new if only_new else self.folder.glob("*.npz"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # parts of an earlier call stay
            self.folder.rmdir()


@dataclass(frozen=True, repr=False)
class Pictures:
    """The images of a folder as thumbnails.

    Attributes
    ----------
    root : Path
    names : list of str
        The images that were read, relative to the root, sorted.
    digests : list of str
        The SHA-256 of their files.
    thumbnails : uint8 (V, 32, 32)
        One or two of each image; see `dreamda.copies.thumbnails.views`.
    images : int64 (V,)
        The image that each is of.
    skipped : list of (str, str)
        Files that look like images and could not be read, each with the reason.
    key : str
        Changes with the files: with their names, sizes and times.
    """

    root: Path
    names: list[str]
    digests: list[str]
    thumbnails: Pixels
    images: Ints
    skipped: list[tuple[str, str]]
    key: str

    def __repr__(self) -> str:
        return in_brackets("Pictures", f"{str(self.root)!r}: {counted(len(self.names), 'image')}",
                           self.skipped and f"{len(self.skipped):,} skipped")

    @property
    def whole(self) -> Pixels:
        """The thumbnails of the whole images, one for each."""
        return self.thumbnails[np.searchsorted(self.images, np.arange(len(self.names)))]

    def class_of(self, image: int) -> str:
        """The folder of an image directly below the root; empty for an image in the root itself."""
        return self.names[image].rpartition("/")[0].partition("/")[0]

    @classmethod
    def read(cls,
             root: str | os.PathLike[str],
             blocks: Blocks | None = None,
             *,
             without: str = "",
             threads: int = 1,
             progress: Callable[[int, int], None] | None = None) -> Pictures:
        """Read all images of a folder and its subfolders.

        Parameters
        ----------
        root : path
        blocks : Blocks, optional
            Where finished parts are kept.
        without : str
            A folder directly below `root` that does not count.
        threads : int
        progress : callable, optional
            Called with the number of images read and that of all.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            `root` is not a folder.
        ValueError
            There are no images, or none of them can be read.
        """
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such folder; give a folder of images")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; give a folder of images")
        names, ignored = _files(root)
        if without:
            names = [name for name in names if not name.startswith(f"{without}/")]
        if not names:
            raise ValueError(f"{root} holds no images; give a folder of images, with or without folders of classes")
        states = [_state(root, name) for name in names]
        found = []
        for at in range(0, len(names), BLOCK):
            part = names[at: at + BLOCK]
            found.append((blocks or Blocks()).get(f"read {states[at: at + BLOCK]}", lambda: _read(root, part, threads)))
            if progress is not None:
                progress(at + len(part), len(names))
        about = [entry for block in found for entry in json.loads(str(block["about"]))]
        good = [i for i, (problem, _) in enumerate(about) if not problem]
        if not good:
            raise ValueError(f"{root}: none of the images can be read; the first, {names[0]}: {about[0][0]}")
        numbers = np.full(len(names), -1)
        numbers[good] = np.arange(len(good))
        images = np.concatenate([block["images"] + number * BLOCK for number, block in enumerate(found)])
        return cls(root, [names[i] for i in good], [about[i][1] for i in good],
                   np.concatenate([block["thumbnails"] for block in found]), numbers[images],
                   [(names[i], problem) for i, (problem, _) in enumerate(about) if problem] + ignored,
                   hashlib.sha256(json.dumps(states).encode()).hexdigest())


def _files(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The images below a folder; a link directly below it may lead to a folder, as in `ImageFolder`."""
    names, ignored = list_images(root)
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.is_symlink() and entry.is_dir() and not entry.name.startswith("."):
            inner, left_out = list_images(entry.path)
            names += [f"{entry.name}/{name}" for name in inner]
            ignored = [(n, why) for n, why in ignored if n != entry.name] + [(f"{entry.name}/{n}", why)
                                                                            for n, why in left_out]
    return sorted(names), sorted(ignored)


def _state(root: Path, name: str) -> tuple[str, int, int]:
    try:
        state = os.stat(root / name)
    except OSError:
        return name, -1, -1
    return name, state.st_size, state.st_mtime_ns


def _read(root: Path, names: list[str], threads: int) -> dict[str, np.ndarray]:
    def one(name: str) -> tuple[list[Pixels], str, str]:
        try:
            image = read_image(root / name)
        except BrokenImageError as error:
            return [], str(error), ""
        return views(image.pixels), "", image.sha256

    with ThreadPoolExecutor(threads) as pool:
        read = list(pool.map(one, names))
    thumbnails = [view for shown, _, _ in read for view in shown]
    return {
        "thumbnails": np.stack(thumbnails) if thumbnails else np.empty((0, SIDE, SIDE), np.uint8),
        "images": np.array([i for i, (shown, _, _) in enumerate(read) for _ in shown], np.int64),
        "about": np.array(json.dumps([(problem, digest) for _, problem, digest in read])),
    }
