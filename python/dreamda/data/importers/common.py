"""Shared types and helpers of the importers: pictures, the report, and the description of a data set."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...text import counted, in_brackets
from ..files import MAX_FILE_BYTES
from .source import Found, Source, read_member

UNLABELLED = "unlabelled"


class Picture(NamedTuple):
    """An image to be written: its location, its prompt and its content.

    The content is the bytes of its file, or its pixels, uint8 (H, W) or (H, W, 3).
    """

    split: str
    label: str
    name: str
    text: str | None
    content: bytes | NDArray[np.uint8]


@dataclass(repr=False)
class ImportReport:
    """The result of `import_dataset`.

    Attributes
    ----------
    counts : dict of str to int
        The number of images written for each split.
    classes : int
    split : str
        The origin of the split, in words.
    notes : list of str
        Differences from the published data set, and changes.
    skipped : list of (str, str)
        Images left out, each with the reason.
    complete : bool
        Whether all published images are there.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    split: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        return in_brackets("ImportReport",
                           f"{splits or 'nothing'} of {counted(self.classes, 'class')}",
                           "complete" if self.complete else "incomplete",
                           self.skipped and f"{counted(len(self.skipped), 'file')} skipped",
                           self.notes and counted(len(self.notes), "note"))


@dataclass(frozen=True)
class DataSet:
    """The published facts about a data set.

    Attributes
    ----------
    title : str
    archives : tuple of str
        Names of the official files.
    counts : dict of str to int
        The number of images in each split.
    classes : int
    read : callable
        ``read(source, report)`` yields its pictures.
    split : str
    """

    title: str
    archives: tuple[str, ...]
    counts: dict[str, int]
    classes: int
    read: Callable[[Source, ImportReport], Iterator[Picture]]
    split: str = "the official one"


def image_files(found: Found, place_of: dict[str, tuple[str, str, str, str]]) -> Iterator[Picture]:
    """The image files of `found` with an entry in `place_of`, {name: (split, label, file name, text)}."""
    for name, file in found.place.read(place_of):
        split, label, stem, text = place_of[name]
        yield Picture(split, label, stem, text, read_member(file, MAX_FILE_BYTES, f"{found.place.title}: {name}"))


def drawn(names: Iterable[str], count: int) -> set[str]:
    """`count` of the names, the same everywhere."""
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())[:count])
