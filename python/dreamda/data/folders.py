"""Image folders: classes and the images in them, listed without opening any.

    folder = ImageFolder.scan("photos")                       # photos/<class>/*.jpg
    folder.path(folder.images[0])
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .files import is_utf8
from .images import OTHER_SUFFIXES, SUFFIXES


class ImageRef(NamedTuple):
    """One image of an `ImageFolder`: its class and its file name inside the class folder."""

    label: str
    name: str

    @property
    def key(self) -> str:
        """``label/name``: names the image in manifests and prompt files, and keys its noise."""
        return f"{self.label}/{self.name}"


@dataclass(frozen=True)
class ImageFolder:
    """A data set laid out as ``root/<class>/<image>``.

    Attributes
    ----------
    root : Path
    classes : tuple of str
        Folder names, sorted by code point.
    images : tuple of ImageRef
        Sorted by class, then by file name.
    ignored : tuple of (str, str)
        What looks like data and is not read, each with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    ignored: tuple[tuple[str, str], ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the classes and images of `root`, without opening any image.

        Hidden names (a leading dot) and files that are no images are passed over. Images beside the class folders, folders inside of
        those, images in formats that are not read and empty class folders are listed in `ignored`.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            `root` is no folder.
        ValueError
            There are no class folders or no images, or a class folder has a name that cannot be used.
        """
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such folder; give a folder that holds one folder of images per class")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; give a folder that holds one folder of images per class")
        classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
        if not classes:
            raise ValueError(f"{root} has no class folders; put the images of each class in a folder of its own: {root}/CLASS/image.png")
        images: list[ImageRef] = []
        ignored = [(e.name if is_utf8(e.name) else ascii(e.name), "an image beside the class folders; put it into that of its class")
                   for e in sorted(os.scandir(root), key=lambda e: e.name)
                   if os.path.splitext(e.name)[1].lower() in SUFFIXES and e.name[0] != "." and not e.is_dir()]
        for label in classes:
            if not is_utf8(label):
                raise ValueError(f"the class folder {label!r} in {root} has a name that is not UTF-8; rename it")
            before = len(images)
            for entry in sorted(os.scandir(root / label), key=lambda e: e.name):
                suffix = os.path.splitext(entry.name)[1].lower()
                where = f"{label}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    ignored.append((where, "a folder inside a class folder; only the images directly in it are read"))
                elif suffix in OTHER_SUFFIXES:
                    ignored.append((where, f"{suffix} images are not read; convert it to PNG or JPEG"))
                elif suffix in SUFFIXES and not is_utf8(entry.name):
                    ignored.append((ascii(where), "its name is not UTF-8; rename it"))
                elif suffix in SUFFIXES:
                    images.append(ImageRef(label, entry.name))
            if len(images) == before:
                ignored.append((label, "a class folder without images"))
        if not images:
            raise ValueError(f"{root} has class folders but no images in them; the formats read are {' '.join(s[1:] for s in SUFFIXES)}")
        return cls(root, tuple(classes), tuple(images), tuple(ignored))

    def path(self, image: ImageRef) -> Path:
        """The file of an image."""
        return self.root / image.label / image.name
