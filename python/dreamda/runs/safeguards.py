"""Safeguards for sensitive data: how real images are named in the records, and variants that are too similar to them.

A new image that is too similar to its real image, or to any other, is made again with other noise: `redraw` times at
most, then it is left out. The noise of the n-th redraw has a key of its own, which depends on nothing but the real
image and n (`noise_key`). So the result does not depend on batches, shards or interruptions.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from ..options import Options, ParameterError, documented, option

if TYPE_CHECKING:
    from ..data.folders import ImageFolder, ImageRef

SENSITIVE = "Sensitive data"  # the heading of the options in the help
REDRAWS = 3
DIGITS = 4  # similarities are rounded before they are compared, as they are recorded


@documented
@dataclass(frozen=True)
class Safeguards(Options):
    """How a run treats sensitive real images.

    Raises `dreamda.options.ParameterError` (a ValueError) that names the parameter.
    """

    max_similarity: float | None = option(
        None,
        "Make a new image again, with other noise, if its similarity to any real image is above X, from 0 to 1 (a "
        "copy).",
        group=SENSITIVE,
        above=0,
        high=1,
        shown_default="new images are not compared")
    redraw: int | None = option(
        None,
        "How often an image is made again at most for `max_similarity`, before it is left out.",
        group=SENSITIVE,
        low=0,
        high=1000,
        shown_default=f"{REDRAWS}")
    record_names: Literal["names", "hash", "paths"] = option(
        "names",
        "What run.json, metadata.jsonl and file names say of real images: their names in REAL; a hash instead of each; "
        "or names and the absolute paths of REAL and the model, with which dreamda replay finds them.",
        group=SENSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_similarity is None and self.redraw is not None:
            raise ParameterError("redraw", "has no effect without `max_similarity`; give that too")
        if self.max_similarity is not None and self.redraw is None:
            object.__setattr__(self, "redraw", REDRAWS)


def check_max_similarity(value: float) -> None:
    """Raise ParameterError unless `value` is a valid `Safeguards.max_similarity`."""
    Safeguards(max_similarity=value)


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


class Comparison:
    """A `Judge` that compares new images with all real ones.

    Parameters
    ----------
    safeguards : Safeguards
    similarity : callable
        The highest similarity of an image, uint8 (H, W, 3), to a real image.
    """

    def __init__(self, safeguards: Safeguards, similarity: Callable[[np.ndarray], float]) -> None:
        assert safeguards.max_similarity is not None and safeguards.redraw is not None
        self._most, self._redraws, self._similarity = safeguards.max_similarity, safeguards.redraw, similarity

    @classmethod
    def with_images_of(cls, folder: ImageFolder, safeguards: Safeguards) -> Comparison:
        """Compare with every readable image of a data set, also with those that are excluded."""
        from ..copies.index import CopyIndex
        from ..copies.thumbnails import thumbnail, views
        from ..data.files import BrokenImageError
        from ..data.images import read_image

        def one(image: ImageRef) -> list[np.ndarray]:
            try:
                return views(read_image(folder.path(image)).pixels)
            except BrokenImageError:
                return []  # the run reports it

        with ThreadPoolExecutor(2) as pool:
            found = [view for each in pool.map(one, folder.images + folder.excluded) for view in each]
        if not found:
            raise ValueError(f"{folder.root}: none of the images can be read")
        index = CopyIndex(np.stack(found))
        # one image at a time: in a batch, the last digits of the products would depend on the other images
        return cls(safeguards, lambda pixels: float(index.nearest(thumbnail(pixels)[None]).score[0]))

    def __call__(self, key: str, variant: int, redraw: int, pixels: np.ndarray) -> Judgement:
        """Compare an image."""
        similarity = round(self._similarity(pixels), DIGITS)
        if similarity <= self._most:
            return Judgement(True, None, similarity)
        return Judgement(False, redraw + 1 if redraw < self._redraws else None, similarity)


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
