"""Labelled image folders for training and testing: files, labels, where synthetic images come from, and pixels read
when they are wanted.

    found = scan_real("photos")                                      # photos/<class>/*.jpg
    made = scan_labelled("synthetic", found.classes, "SYNTHETIC")    # labels and seeds from metadata.jsonl
    images = FolderImages(found.paths, (224, 224))
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.files import BrokenImageError, LostImageError, read_bounded, read_json_lines
from ..data.folders import ImageFolder, ImageRef, shown
from ..data.images import decode_image
from ..options import ParameterError
from ..training.views import reduce

CACHE_BYTES = 1 << 30  # of decoded images kept; the others are decoded whenever they are drawn


@dataclass
class LabelledFolder:
    """A scanned data set.

    Attributes
    ----------
    root : Path
    paths : list of Path
    labels : int64 (N,)
        Positions in `classes`; -1: none given.
    classes : list of str
    truth : int64 (N,) or None
        What is really there, where that is known.
    seeds : list of (str or None, str or None)
        Of each synthetic image: the file that it was made from, relative to the real images, and that file's SHA-256.
    ignored : list of (str, str)
        Files that look like data and are not read, each with the reason.
    """

    root: Path
    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    truth: NDArray[np.int64] | None = None
    seeds: list[tuple[str | None, str | None]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The files, relative to the root, with slashes."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def digest(self, hashes: Sequence[str]) -> str:
        """A hash of all files, given theirs, with their labels, in order; where they lie does not matter."""
        lines = [
            f"{path.parent.name}/{path.name} {label} {digest}"
            for path, label, digest in zip(self.paths, self.labels, hashes, strict=True)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def made_from(self, names: set[str], hashes: set[str]) -> NDArray[np.bool_]:
        """Which images were made from a file of one of these names or with one of these hashes."""
        return np.array([name in names or digest in hashes for name, digest in self.seeds] or np.zeros(len(self.paths)),
                        bool)

    def subset(self, which: NDArray[np.int64]) -> LabelledFolder:
        """Some of the images, in this order."""
        chosen = which.tolist()
        return LabelledFolder(self.root, [self.paths[i] for i in chosen], self.labels[which], self.classes,
                              self.truth[which] if self.truth is not None else None,
                              [self.seeds[i] for i in chosen] if self.seeds else [], self.ignored)


def scan_real(root: str | os.PathLike[str]) -> LabelledFolder:
    """A folder of real images, ``root/<class>/<image>``; ValueError for fewer than 2 classes or a class without
    images."""
    folder = ImageFolder.scan(root)
    there = {image.label for image in folder.images}
    empty = [label for label in folder.classes if label not in there]
    if empty:
        raise ValueError(f"{root}: class {empty[0]!r} has no real image; add some, or remove the folder")
    if len(folder.classes) < 2:
        raise ValueError(f"{root} has 1 class ({folder.classes[0]!r}); a classifier needs 2 or more")
    return _from_folders(folder, list(folder.classes), str(root))


def scan_labelled(root: str | os.PathLike[str], classes: Sequence[str], what: str) -> LabelledFolder:
    """Images whose labels must be among `classes`: an output of `dreamda generate` (labels from metadata.jsonl), or
    class folders.

    In the metadata.jsonl of SYNTHETIC a label may be null: an image without a label, which AMST may label (-1 here).

    Raises
    ------
    ValueError
        A class that is not among `classes`, or a line of metadata.jsonl that names no image.
    """
    folder = ImageFolder.scan(root)
    path = folder.root / "metadata.jsonl"
    if path.is_file() and any("label" in row for _, row in read_json_lines(path)):
        return _from_metadata(folder, path, list(classes), what)
    return _from_folders(folder, list(classes), what)


def _from_folders(folder: ImageFolder, classes: list[str], what: str) -> LabelledFolder:
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted({image.label for image in folder.images} - number.keys())
    if unknown:
        raise ValueError(
            f"{what} {folder.root} has {_classes(unknown, classes)} that the others lack; remove them or rename the folders"
        )
    return LabelledFolder(folder.root, [folder.path(i) for i in folder.images],
                          np.array([number[i.label] for i in folder.images]),
                          classes,
                          ignored=_ignored(folder))


def _from_metadata(folder: ImageFolder, path: Path, classes: list[str], what: str) -> LabelledFolder:
    number = {label: i for i, label in enumerate(classes)}
    there = {image.key: image for image in folder.images}
    chosen: dict[str, tuple[ImageRef, int, int, tuple[str | None, str | None]]] = {}
    unknown: set[str] = set()
    for line, row in read_json_lines(path):
        name, label, truth = row.get("file_name"), row.get("label"), row.get("truth")
        unlabelled = what == "SYNTHETIC" and "label" in row and label is None
        if not isinstance(name, str) or not (isinstance(label, str) or unlabelled):
            raise ValueError(f'{path} line {line} must have the texts "file_name" and "label"')
        if name not in there:
            raise ValueError(
                f"{path} line {line} names {name!r}, which is not there; make it again, or remove the line")
        unknown |= {x for x in (label, truth) if isinstance(x, str) and x not in number}
        seed, digest = row.get("seed_file"), row.get("seed_sha256")
        chosen[name] = (there[name], number.get(label, -1) if isinstance(label, str) else -1,
                        number.get(truth, -1) if isinstance(truth, str) else -1,
                        (seed if isinstance(seed, str) else None, digest if isinstance(digest, str) else None))
    if unknown:
        raise ValueError(
            f"{what} {folder.root} has {_classes(sorted(unknown), classes)} that the others lack; remove them from {path.name}, or add real images"
        )
    truths = np.array([t for _, _, t, _ in chosen.values()])
    ignored = _ignored(folder) + [(str(folder.root / name), f"{path.name} has no line for it")
                                  for name in there if name not in chosen]
    return LabelledFolder(folder.root, [folder.path(i) for i, _, _, _ in chosen.values()],
                          np.array([n for _, n, _, _ in chosen.values()]), classes, truths if
                          (truths >= 0).all() else None, [s for _, _, _, s in chosen.values()], ignored)


def _classes(names: list[str], known: list[str]) -> str:
    first = ", ".join(shown(name, known)
                      for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"class{'es' if len(names) > 1 else ''} {first}"


def _ignored(folder: ImageFolder) -> list[tuple[str, str]]:
    return [(str(folder.root / name), reason) for name, reason in folder.ignored]


class FolderImages:
    """The images of a folder as uint8 arrays (H, W, 3), decoded when they are asked for.

    Large photographs are reduced (`dreamda.training.views.reduce`). Up to `CACHE_BYTES` of decoded images are kept. One
    that is lost or changed after `read_all` is a `LostImageError`.

    Parameters
    ----------
    paths : sequence of Path
    size : (height, width)
        Of the views.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths, self._size = list(paths), size
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._cached = 0
        self.hashes: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        try:
            pixels, digest = self.load(index)
        except BrokenImageError as error:
            raise LostImageError(f"{self.paths[index]}: {error}; put it back as it was") from None
        if self.hashes and digest != self.hashes[index]:
            raise LostImageError(f"{self.paths[index]}: has changed since the run began; put it back as it was")
        return pixels

    def load(self, index: int) -> tuple[NDArray[np.uint8], str]:
        """Pixels and SHA-256 of an image as it is now; `BrokenImageError` if it cannot be read."""
        data = read_bounded(self.paths[index])
        return reduce(decode_image(data), self._size), hashlib.sha256(data).hexdigest()

    def load_many(self,
                  indices: Sequence[int],
                  workers: int = 2) -> list[tuple[NDArray[np.uint8], str] | BrokenImageError]:
        """`load` for several images, decoded by threads: no more than `workers` are in memory at their full size."""
        def load(index: int) -> tuple[NDArray[np.uint8], str] | BrokenImageError:
            try:
                return self.load(index)
            except BrokenImageError as error:
                return error

        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(load, indices))

    def read_all(self, workers: int = 2) -> None:
        """Decode every image once: fills the cache and `hashes`, and finds what is broken.

        Raises
        ------
        ValueError
            Naming the first image that cannot be read.
        """
        broken = []
        for start in range(0, len(self), 256):
            part = range(start, min(start + 256, len(self)))
            for index, found in zip(part, self.load_many(part, workers), strict=True):
                if isinstance(found, BrokenImageError):
                    broken.append(f"{self.paths[index]}: {found}")
                    continue
                pixels, digest = found
                self.hashes.append(digest)
                if self._cached + pixels.nbytes <= CACHE_BYTES:
                    self._cache[index] = pixels
                    self._cached += pixels.nbytes
        if broken:
            more = f" (and {len(broken) - 1} more images)" if len(broken) > 1 else ""
            raise ValueError(f"{broken[0]}{more}; repair or remove it")

    def subset(self, which: NDArray[np.int64]) -> Subset:
        """Some of the images, in this order."""
        return Subset(self, which)


class Subset:
    """Some of the images of a `FolderImages`."""

    def __init__(self, images: FolderImages, which: NDArray[np.int64]) -> None:
        self._images, self._which = images, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self._images[int(self._which[index])]


def dimensions(path: Path) -> tuple[int, int]:
    """Height and width of an image file as it is shown, from its header alone.

    Raises
    ------
    ParameterError
        The file is no image that is read.
    """
    from PIL import Image

    from ..data.images import FORMATS

    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the EXIF orientation swaps the sides
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # the file is untrusted, and Pillow raises whatever its format trips over
        reason = "not an image" if type(
            error).__name__ == "UnidentifiedImageError" else str(error) or type(error).__name__
        raise ParameterError("real", f"{path}: {reason}; repair or remove it") from None
