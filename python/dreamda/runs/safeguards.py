"""Safeguards for sensitive data: how real images are named in the records, and variants that are too similar to them.

A new image that is too similar to its real image, or to any other, is made again with other noise: `redraw` times at
most, then it is left out. The noise of the n-th redraw has a key of its own, which depends on nothing but the real
image and n (`noise_key`). So the result does not depend on batches, shards or interruptions.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ..options import Options, documented, option

SENSITIVE = "Sensitive data"  # the heading of the options in the help


@documented
@dataclass(frozen=True)
class Safeguards(Options):
    """How a run treats sensitive real images.

    Raises `dreamda.options.ParameterError` (a ValueError) that names the parameter.
    """

    record_names: Literal["names", "hash", "paths"] = option(
        "names",
        "What run.json, metadata.jsonl and file names say of real images: their names in REAL; a hash instead of each; "
        "or names and the absolute paths of REAL and the model, with which dreamda replay finds them.",
        group=SENSITIVE)


def noise_key(key: str, redraw: int) -> str:
    """The key of the noise of an image's n-th redraw; the first time it is the image's own key."""
    return f"{key}\0{redraw}" if redraw else key  # no file name contains the character


class Judgement(NamedTuple):
    """The decision on a new image.

    Attributes
    ----------
    keep : bool
        Whether it is kept, unless there is a `redraw`; else the variant is left out.
    redraw : int or None
        The number of the redraw to make instead.
    similarity : float or None
        The highest similarity to a real image; None if the image is left out without a record.
    """

    keep: bool
    redraw: int | None
    similarity: float | None


class Judge(Protocol):
    """Decides on the new image of a variant, uint8 (H, W, 3), that is the n-th redraw."""

    def __call__(self, key: str, variant: int, redraw: int, pixels: np.ndarray) -> Judgement: ...


class Recorded:
    """A `Judge` that repeats the decisions of a recorded run, without the real images that it compared with.

    Parameters
    ----------
    kept, left_out : iterables of mappings
        The rows of metadata.jsonl and of left_out.jsonl, with the keys of real images.
    """

    def __init__(self, kept: Iterable[Mapping[str, Any]], left_out: Iterable[Mapping[str, Any]]) -> None:
        self._final: dict[tuple[str, int], tuple[bool, int, float]] = {}
        for keep, rows in ((True, kept), (False, left_out)):
            for row in rows:
                self._final[row["seed_file"], row["variant"]] = (keep, row.get("redraws", 0), row["similarity"])

    def __call__(self, key: str, variant: int, redraw: int, pixels: np.ndarray) -> Judgement:
        """Look an image up."""
        if (key, variant) not in self._final:
            return Judgement(False, None, None)  # the recorded run had not come to it
        keep, redraws, similarity = self._final[key, variant]
        return Judgement(keep, redraws if redraw < redraws else None, similarity)
