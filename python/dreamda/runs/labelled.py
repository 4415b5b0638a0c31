"""Labelled image folders for training and testing: their files, labels, source images and pixels.

A synthetic image's source (a "seed" in the names of this file) is the real image that it was made from.

    found = scan_real("photos")                                      # photos/<class>/*.jpg
    made = scan_labelled("synthetic", found.classes, "SYNTHETIC")    # labels and sources from metadata.jsonl
    found, images = read_folder(found, (224, 224))                   # without unreadable images
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

from ..data.files import BrokenImageError, LostImageError, read_bounded
from ..data.folders import ImageFolder, shown
from ..data.images import decode_image
from ..data.metadata import check_labels, metadata_files, read_rows, rows_of_images
from ..data.prompts import CLASSES_FILE, class_names
from ..text import counted, in_brackets
from ..training.views import reduce

CACHE_BYTES = 1 << 30  # limit of the decoded images that are kept; others are decoded at each use


@dataclass(repr=False)
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
        The true labels, where they are known.
    seeds : list of (str or None, str or None)
        Of each synthetic image: the file that it was made from, relative to the real images' folder, and the SHA-256 of
        that file.
    ignored : list of (str, str)
        Files that look like data but are not read, each with the reason.
    words : dict of str to str
        Names of classes to show to people, if the data set's ``classes.json`` has any.
    """

    root: Path
    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    truth: NDArray[np.int64] | None = None
    seeds: list[tuple[str | None, str | None]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        about = f"{str(self.root)!r}: {counted(len(self.paths), 'image')} of {counted(len(self.classes), 'class')}"
        return in_brackets("LabelledFolder", about, self.ignored and f"{counted(len(self.ignored), 'file')} ignored")

    @property
    def names(self) -> list[str]:
        """The files, relative to the root, with slashes."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def digest(self, hashes: Sequence[str]) -> str:
        """A hash of all files (from their own hashes) and their labels, in order. It does not depend on the root."""
        lines = [
            f"{path.parent.name}/{path.name} {label} {digest}"
            for path, label, digest in zip(self.paths, self.labels, hashes, strict=True)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def made_from(self, names: set[str], hashes: set[str]) -> NDArray[np.bool_]:
        """Whether each image was made from a file with one of these names or one of these hashes."""
        return np.array([name in names or digest in hashes for name, digest in self.seeds] or np.zeros(len(self.paths)),
                        bool)

    def subset(self, which: NDArray[np.int64]) -> LabelledFolder:
        """Some of the images, in this order."""
        chosen = which.tolist()
        return LabelledFolder(self.root, [self.paths[i] for i in chosen], self.labels[which], self.classes,
                              self.truth[which] if self.truth is not None else None,
                              [self.seeds[i] for i in chosen] if self.seeds else [], self.ignored, self.words)


def scan_real(root: str | os.PathLike[str]) -> LabelledFolder:
    """A folder of real images, ``root/<class>/<image>``.

    Raises
    ------
    ValueError
        Fewer than 2 classes, a class without images, labels in a metadata file that contradict the class folders, or
        a damaged ``classes.json``.
    """
    folder = ImageFolder.scan(root)
    there = {image.label for image in folder.images}
    empty = [label for label in folder.classes if label not in there]
    if empty:
        raise ValueError(f"{root}: class {empty[0]!r} has no real image; add some, or remove the folder")
    if len(folder.classes) < 2:
        raise ValueError(f"{root} has 1 class ({folder.classes[0]!r}); a classifier needs 2 or more")
    check_labels(folder)
    found = _from_folders(folder, list(folder.classes), str(root))
    if (folder.root / CLASSES_FILE).exists():
        found.words = class_names(folder)
    return found


def scan_labelled(root: str | os.PathLike[str], classes: Sequence[str], what: str) -> LabelledFolder:
    """A folder of images whose labels must be among `classes`.

    The labels come from a column label in ``metadata.jsonl`` or ``metadata.csv`` (as `dreamda generate` writes it; in
    the root or in class folders), else from the class folders. In the metadata of SYNTHETIC a label may be null, or
    empty in CSV: such an image has no label (-1 here), and AMST may label it.

    Raises
    ------
    ValueError
        A class that is not among `classes`, or a line of a metadata file that names no image.
    """
    folder = ImageFolder.scan(root)
    files = [path for path in metadata_files(folder) if any("label" in row for _, row in read_rows(path))]
    return (_from_metadata if files else _from_folders)(folder, list(classes), what, *files)


def _from_folders(folder: ImageFolder, classes: list[str], what: str) -> LabelledFolder:
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted({image.label for image in folder.images} - number.keys())
    if unknown:
        raise ValueError(
            f"{what} {folder.root} has {_classes(unknown, classes)} that the others lack; "
            "remove them or rename the folders")
    return LabelledFolder(folder.root, [folder.path(i) for i in folder.images],
                          np.array([number[i.label] for i in folder.images]),
                          classes,
                          ignored=_ignored(folder))


def _from_metadata(folder: ImageFolder, classes: list[str], what: str, *files: Path) -> LabelledFolder:
    """The images with a line in the metadata files, and those of folders without metadata. Others are ignored."""
    number = {label: i for i, label in enumerate(classes)}
    there = {image.key: image for image in folder.images}
    chosen: dict[str, tuple[int, int, tuple[str | None, str | None]]] = {}
    unknown: set[str] = set()
    for path, line, row, key in rows_of_images(folder, *files):
        label, truth = row.get("label"), row.get("truth")
        if what == "SYNTHETIC" and ("label" in row and label is None or label == "" and path.suffix == ".csv"):
            label = None
        elif not isinstance(label, str):
            raise ValueError(f'{path} line {line} must have the texts "file_name" and "label"')
        unknown |= {x for x in (label, truth) if isinstance(x, str) and x not in number}
        seed, digest = row.get("seed_file"), row.get("seed_sha256")
        chosen[key] = (number.get(label, -1) if isinstance(label, str) else -1,
                       number.get(truth, -1) if isinstance(truth, str) else -1,
                       (seed if isinstance(seed, str) else None, digest if isinstance(digest, str) else None))
    ignored = _ignored(folder)
    for key, image in there.items():
        file = next((path for path in files if path.parent in folder.path(image).parents), None)
        if key in chosen:
            continue
        if file is not None:
            ignored.append((str(folder.root / key), f"{file.relative_to(folder.root)} has no line for it"))
            continue
        unknown |= {image.label} - number.keys()
        chosen[key] = (number.get(image.label, -1), -1, (None, None))
    if unknown:
        raise ValueError(f"{what} {folder.root} has {_classes(sorted(unknown), classes)} that the others lack; "
                         f"remove them from {files[0].name}, or add real images")
    truths = np.array([truth for _, truth, _ in chosen.values()])
    return LabelledFolder(folder.root, [folder.path(there[key]) for key in chosen],
                          np.array([label for label, _, _ in chosen.values()]), classes, truths if
                          (truths >= 0).all() else None, [seed for _, _, seed in chosen.values()], ignored)


def _classes(names: list[str], known: list[str]) -> str:
    first = ", ".join(shown(name, known)
                      for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"class{'es' if len(names) > 1 else ''} {first}"


def _ignored(folder: ImageFolder) -> list[tuple[str, str]]:
    return [(str(folder.root / name), reason) for name, reason in folder.ignored]


class FolderImages:
    """The images of a folder as uint8 arrays (H, W, 3), decoded on demand.

    Large photographs are reduced (`dreamda.training.views.reduce`). Up to `CACHE_BYTES` of decoded images are kept. If
    an image is lost or changed after `read_all`, reading it raises `LostImageError`.

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
        self.sizes: list[tuple[int, int]] = []

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
        """Read the pixels and the SHA-256 of an image from disk; `BrokenImageError` if it cannot be read."""
        data = read_bounded(self.paths[index])
        return reduce(decode_image(data), self._size), hashlib.sha256(data).hexdigest()

    def load_many(self,
                  indices: Sequence[int],
                  workers: int = 2) -> list[tuple[NDArray[np.uint8], str] | BrokenImageError]:
        """`load` for several images, decoded by threads; at most `workers` are in memory at full size."""
        def load(index: int) -> tuple[NDArray[np.uint8], str] | BrokenImageError:
            try:
                return self.load(index)
            except BrokenImageError as error:
                return error

        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(load, indices))

    def read_all(self, workers: int = 2) -> list[tuple[int, str]]:
        """Decode every image once, and leave out those that cannot be read.

        Fills the cache, `hashes` and `sizes` (height and width after the reduction).

        Returns
        -------
        list of (int, str)
            The positions of the images left out, each with the reason.
        """
        broken: list[tuple[int, str]] = []
        kept: list[Path] = []
        for start in range(0, len(self), 256):
            part = range(start, min(start + 256, len(self)))
            for index, found in zip(part, self.load_many(part, workers), strict=True):
                if isinstance(found, BrokenImageError):
                    broken.append((index, str(found)))
                    continue
                pixels, digest = found
                if self._cached + pixels.nbytes <= CACHE_BYTES:
                    self._cache[len(kept)] = pixels
                    self._cached += pixels.nbytes
                kept.append(self.paths[index])
                self.hashes.append(digest)
                self.sizes.append(pixels.shape[:2])
        self.paths = kept
        return broken

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


def read_folder(folder: LabelledFolder, size: tuple[int, int],
                workers: int = 2) -> tuple[LabelledFolder, FolderImages]:
    """Decode every image once; move those that cannot be read to the folder's `ignored`.

    Raises
    ------
    ValueError
        No image of the folder can be read.
    """
    images = FolderImages(folder.paths, size)
    broken = dict(images.read_all(workers))
    if not broken:
        return folder, images
    ignored = [(str(folder.paths[index]), reason) for index, reason in broken.items()]
    if len(broken) == len(folder.paths):
        raise ValueError(f"{folder.root}: none of the images can be read; the first, {ignored[0][0]}: {ignored[0][1]}")
    found = folder.subset(np.array([i for i in range(len(folder.paths)) if i not in broken]))
    found.ignored = folder.ignored + ignored
    return found, images


def dimensions(path: Path) -> tuple[int, int] | None:
    """Displayed height and width of an image file, read only from its header; None if it cannot be read."""
    from PIL import Image

    from ..data.images import FORMATS

    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the EXIF orientation swaps the sides
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # the file is untrusted, and Pillow may raise anything
        return None
