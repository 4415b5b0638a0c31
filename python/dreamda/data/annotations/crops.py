"""Crops: the objects of annotated images as pictures of their own, in class folders for `dreamda train`.

    report = write_crops(coco("instances.json", "photos"), "crops")       # crops/<category>/<image>-<number>.png
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...text import counted, in_brackets
from ..files import BrokenImageError
from ..folders import folder_name
from ..images import read_image
from .common import Labels, png_bytes, write_if_other

MARGIN = 0.1    # of the box, on each side
SMALLEST = 8    # pixels: the shorter side of an object


@dataclass(repr=False)
class CropReport:
    """The result of `write_crops`.

    Attributes
    ----------
    counts : dict of str to int
        The number of crops of each category.
    small : int
        Objects that are too small for a crop.
    skipped : list of (str, str)
        Images that cannot be read, and broken annotations, each with the reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    small: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __repr__(self) -> str:
        return in_brackets("CropReport",
                           f"{counted(sum(self.counts.values()), 'object')} of {counted(len(self.counts), 'class')}",
                           self.small and f"{self.small:,} too small",
                           self.skipped and f"{counted(len(self.skipped), 'problem')}")


def crop(pixels: NDArray[np.uint8], box: Sequence[float]) -> NDArray[np.uint8] | None:
    """An object with a margin around it; None if it is smaller than 8 pixels.

    Parameters
    ----------
    pixels : uint8 array (H, W, 3)
    box : (x, y, width, height)
    """
    x, y, width, height = box
    if min(width, height) < SMALLEST:
        return None
    left, top = max(0, round(x - MARGIN * width)), max(0, round(y - MARGIN * height))
    right, bottom = round(x + (1 + MARGIN) * width), round(y + (1 + MARGIN) * height)
    part = pixels[top:bottom, left:right]
    return part if min(part.shape[:2]) >= SMALLEST else None


def class_folders(labels: Labels) -> dict[str, str]:
    """The class folder of each category; ValueError if two have the same one."""
    every = dict.fromkeys(thing.category for name in labels.names for thing in labels.things(name) if not thing.ignored)
    of_folder: dict[str, str] = {}
    for category in every:
        other = of_folder.setdefault(folder_name(category), category)
        if other != category:
            raise ValueError(f"{labels.path}: the categories {other!r} and {category!r} would share the class folder "
                             f"{folder_name(category)!r}; rename one of them")
    return {category: folder for folder, category in of_folder.items()}


def write_crops(labels: Labels, out: str | os.PathLike[str], *,
                progress: Callable[[int, int], None] = lambda done, total: None) -> CropReport:
    """Write a crop of every object to ``out/<category>/<image>-<number>.png``.

    Crowds, ignored regions and objects smaller than 8 pixels have none.

    Parameters
    ----------
    labels : Labels
    out : path
        New or empty.
    progress : callable
        Called with the number of images read, and that of all.

    Raises
    ------
    ValueError
        `out` holds files, or lies among the images or the annotations; two categories would share a folder, or no
        object is large enough.
    OSError
        `out` cannot be written.
    """
    out, report = Path(out), CropReport(skipped=list(labels.problems))
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT {out} is there already; give a new or an empty folder")
    labels.check_out(out)
    folders = class_folders(labels)
    stems: dict[str, str] = {}
    for done, name in enumerate(labels.names, 1):
        try:
            pixels = read_image(labels.root / name).pixels
            if pixels.shape[:2] != labels.size(name):
                raise BrokenImageError("has another size than when its labels were read")
        except BrokenImageError as error:
            report.skipped.append((name, str(error)))
            continue
        stem = name.replace("/", "-")
        if stems.setdefault(stem, name) != name:
            stem += f"-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        for number, thing in enumerate(labels.things(name)):
            if thing.ignored:
                continue
            part = crop(pixels, thing.box)
            if part is None:
                report.small += 1
                continue
            from PIL import Image

            write_if_other(out / folders[thing.category] / f"{stem}-{number}.png",
                           png_bytes(Image.fromarray(np.ascontiguousarray(part))))
            report.counts[thing.category] = report.counts.get(thing.category, 0) + 1
        progress(done, len(labels))
    if not report.counts:
        raise ValueError(f"{labels.path} has no object of {SMALLEST} pixels or more in an image that can be read")
    return report
