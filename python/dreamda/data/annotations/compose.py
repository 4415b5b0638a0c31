"""Objects of some images placed in others: which, where and how large, their pixels, and the annotations after it.

    composer = Composer(labels, Composition(compose=2))
    scene = composer.scene("1.jpg", variant=0, seed=0)
    scene.objects, composer.cutout(scene)

An object is cut out by its mask or polygons. Its size, and its height in the image, are those of a random object of its
category, so large ones stay large, and what stands on the ground is not placed in the sky. What it hides of others is
taken from their annotations. Everything is drawn from the seed, the image's name and the variant, and so does not
depend on the order of work.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...options import Options, documented, option
from ..files import BrokenImageError
from ..images import read_image
from .common import Labels, Placed, Thing
from .outlines import Patch, box_of

GROUP = "Labelled images"
ENLARGED = 1.5      # at most; beyond it, an object looks blurred
LARGEST = 0.8       # share of the image's sides
SMALLEST = 8        # pixels: the shorter side of an object, before and after it is resized
TRIES = 8           # places tried for an object, to hide little of others
WANDER = 0.1        # of the image's height, by which an object may be higher or lower than the one it takes after
OPEN_IMAGES = 32    # images from which objects are taken, kept in memory


@documented
@dataclass(frozen=True)
class Composition(Options):
    """How objects of other images are placed in an image."""

    compose: int = option(
        0,
        "Place this number of objects of other images in each image, cut out by their polygons or masks (16-bit masks, "
        "in which each value is an object).",
        group=GROUP,
        low=0,
        high=100)
    min_visibility: float = option(
        0.25,
        "With `compose`: the share of an object that must remain visible; otherwise its annotation is left out.",
        group=GROUP,
        low=0,
        high=1)


class Cutout(NamedTuple):
    """Pixels to lay over an image, uint8 (H, W, 3), and their weight, float32 (H, W)."""

    pixels: NDArray[np.uint8]
    weight: NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """An image with objects of others.

    Attributes
    ----------
    name : str
    objects : tuple of Placed
        Its annotations.
    placed : tuple
        The objects of others, from the back to the front.
    """

    name: str
    objects: tuple[Placed, ...]
    placed: tuple[_Placement, ...] = ()


class _Donor(NamedTuple):
    """An object that can be placed in other images."""

    name: str
    number: int


class _Size(NamedTuple):
    """The size of an object as the square root of its share of the image's area, and the height of its centre."""

    side: float
    height: float


@dataclass
class _Seen:
    """An object of a scene: its pixels, and those of them that are not hidden."""

    patch: Patch
    visible: NDArray[np.bool_]

    @classmethod
    def of(cls, patch: Patch) -> _Seen:
        return cls(patch, patch.region.copy())

    def hidden_by(self, other: Patch) -> NDArray[np.bool_]:
        """What remains visible behind another object."""
        left = self.visible.copy()
        here, there = self.patch.overlap(other)
        left[here] &= ~other.region[there]
        return left

    def share(self, visible: NDArray[np.bool_]) -> float:
        """The share of the object that is visible; 1 if it has no pixel of its own."""
        pixels = self.patch.region.sum()
        return float(visible.sum() / pixels) if pixels else 1.0

    def remains(self, visible: NDArray[np.bool_], least: float) -> bool:
        """Whether the object keeps its annotation if this is visible."""
        return self.share(visible) >= max(least, 1e-9)


@dataclass
class _Placement(_Seen):
    """An object of another image in its new place; `scale` is that of x and y."""

    donor: _Donor
    thing: Thing
    source: Patch
    scale: tuple[float, float]


class _Draws:
    """Random numbers that are the same everywhere."""

    def __init__(self, *key: object) -> None:
        self._key, self._count = "\n".join(map(str, key)), 0

    def number(self) -> float:
        """A number from 0 to 1 (exclusive)."""
        self._count += 1
        digest = hashlib.sha256(f"{self._key}\n{self._count}".encode()).digest()
        return int.from_bytes(digest[:6], "little") / (1 << 48)

    def below(self, count: int) -> int:
        """A whole number from 0 to `count` (exclusive)."""
        return int(self.number() * count)


class Composer:
    """Places objects of other images in the images of a data set.

    Parameters
    ----------
    labels : Labels
    options : Composition
    excluded : collection of str
        Images that give no objects.

    Attributes
    ----------
    left_out : list of str
        Images that neither get nor give objects: some of theirs have a box alone, so what is hidden of those, and what
        of them is within another object, is not known.

    Raises
    ------
    ValueError
        There is no object that can be cut out.
    """

    def __init__(self, labels: Labels, options: Composition, excluded: Collection[str] = ()) -> None:
        labels.check_objects()
        self.labels, self.options = labels, options
        self.left_out: list[str] = []
        self._donors: dict[str, list[_Donor]] = {}
        self._sizes: dict[str, list[_Size]] = {}
        for name in (name for name in labels.names if name not in excluded):
            height, width = labels.size(name)
            things = labels.things(name)
            with_outlines = all(thing.has_outline for thing in things)
            if not with_outlines:
                self.left_out.append(name)
            for index, thing in enumerate(things):
                if thing.ignored:
                    continue
                category, (x, y, w, h) = self._category(thing), thing.box
                self._sizes.setdefault(category, []).append(
                    _Size(math.sqrt(w * h / (width * height)), (y + h / 2) / height))
                is_whole = x >= 1 and y >= 1 and x + w <= width - 1 and y + h <= height - 1
                if with_outlines and is_whole and min(w, h) >= SMALLEST:
                    self._donors.setdefault(category, []).append(_Donor(name, index))
        if not self._donors:
            raise ValueError(
                f"{labels.path} has no object that can be placed in other images: that takes polygons or masks (not "
                f"boxes alone), of {SMALLEST} pixels or more, that do not touch the edge of their image")
        self._pixels = lru_cache(OPEN_IMAGES)(self._read)
        self._usable: dict[str, bool] = {}

    def scene(self, name: str, variant: int, seed: int) -> Scene:
        """The objects in a variant of an image."""
        shape, things = self.labels.size(name), self.labels.things(name)
        if name in self.left_out:
            return Scene(name, tuple(Placed(name, index) for index in range(len(things))))
        seen = [_Seen.of(thing.patch(shape)) for thing in things]
        placed = self._place(_Draws(seed, name, variant), name, shape, seen)
        objects = []
        for index, (thing, each) in enumerate(zip(things, seen)):
            if not each.remains(each.visible, self.options.min_visibility):
                continue
            whole = np.array_equal(each.visible, each.patch.region)
            objects.append(Placed(name, index, None if whole else _remaining(thing, each.visible, each.patch, shape)))
        for each in placed:
            objects += [Placed(*each.donor, _moved(each, shape)), *self._within(each, shape)]
        return Scene(name, tuple(objects), tuple(placed))

    def mask(self, scene: Scene) -> NDArray[np.bool_]:
        """The image's own objects, without those that are left out, bool (H, W), as in `Labels.mask`."""
        own = {placed.number for placed in scene.objects if placed.name == scene.name}
        return self.labels.mask(scene.name, only=own)

    def cutout(self, scene: Scene) -> Cutout | None:
        """The objects of other images; None if there are none."""
        if not scene.placed:
            return None
        shape = self.labels.size(scene.name)
        colours, weight = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 1), np.float32)
        for each in scene.placed:
            source, patch = each.source, each.patch
            pixels = self._pixels(each.donor.name)[source.place].astype(np.float32) * source.share[..., None]
            front = np.stack([resized(pixels[..., channel], patch.share.shape) for channel in range(3)], 2)
            behind = 1 - patch.share[..., None]
            colours[patch.place] = front + behind * colours[patch.place]
            weight[patch.place] = 1 - behind * (1 - weight[patch.place])
        colours /= np.maximum(weight, 1e-3)
        return Cutout(np.rint(np.clip(colours, 0, 255)).astype(np.uint8), weight[..., 0])

    def _within(self, each: _Placement, shape: tuple[int, int]) -> Iterator[Placed]:
        """The objects that are seen within an object of another image, as fruit in a bowl.

        Of two outlines that overlap, the smaller one is taken to be in front.
        """
        name, size = each.donor.name, each.patch.share.shape
        for index, thing in enumerate(self.labels.things(name)):
            patch = thing.patch(self.labels.size(name))
            here, there = each.source.overlap(patch)
            in_front = patch.region.sum() < each.source.region.sum()
            if index == each.donor.number or not in_front or not patch.share[there].any():
                continue
            inside = np.zeros_like(each.source.share)
            inside[here] = patch.share[there]
            visible = each.visible & (resized(inside, size) >= 0.5)
            whole = patch.region.sum() * each.scale[0] * each.scale[1]
            if visible.any() and visible.sum() >= self.options.min_visibility * whole:
                yield Placed(name, index, _remaining(thing, visible, each.patch, shape))

    def _category(self, thing: Thing) -> str:
        return thing.category if self.labels.has_names else ""

    def _place(self, draws: _Draws, name: str, shape: tuple[int, int], own: list[_Seen]) -> list[_Placement]:
        """Choose objects and their places, from the back to the front, and take what they hide from the others."""
        least = self.options.min_visibility
        placed: list[_Placement] = []
        donors = {category: [donor for donor in of_category if donor.name != name]
                  for category, of_category in sorted(self._donors.items())}
        categories = [category for category, of_category in donors.items() if of_category]
        for _ in range(self.options.compose if categories else 0):
            category = categories[draws.below(len(categories))]
            donor = donors[category][draws.below(len(donors[category]))]
            like = self._sizes[category][draws.below(len(self._sizes[category]))]
            best: _Placement | None = None
            most = -1.0
            for _ in range(TRIES):
                each = self._at(donor, like, shape, draws)
                if each is None:
                    break
                if not all(other.remains(other.hidden_by(each.patch), least) for other in placed):
                    continue  # a part of it would be seen, without an annotation
                shares = [other.share(other.hidden_by(each.patch)) for other in own
                          if other.remains(other.visible, least)]
                if min(shares, default=1.0) > most:
                    best, most = each, min(shares, default=1.0)
                if most >= max(least, 1e-9):
                    break
            if best is not None:
                for other in (*own, *placed):
                    other.visible = other.hidden_by(best.patch)
                placed.append(best)
        return placed

    def _at(self, donor: _Donor, like: _Size, shape: tuple[int, int], draws: _Draws) -> _Placement | None:
        """An object at a random place, as large and about as high in the image as `like`; None if it does not fit."""
        height, width = shape
        across, up = draws.number(), like.height + WANDER * (2 * draws.number() - 1)
        if not self._can_be_read(donor.name):
            return None
        thing = self.labels.things(donor.name)[donor.number]
        source = thing.patch(self.labels.size(donor.name))
        rows, columns = source.share.shape
        wanted = like.side * math.sqrt(height * width) / math.sqrt(rows * columns)
        factor = max(min(wanted, ENLARGED), SMALLEST / min(rows, columns))
        factor = min(factor, LARGEST * width / columns, LARGEST * height / rows)
        size = (round(rows * factor), round(columns * factor))
        if min(size) < SMALLEST or not source.region.any():
            return None
        top = min(max(0, round(up * height - size[0] / 2)), height - size[0])
        left = int(across * (width - size[1] + 1))
        patch = Patch(top, left, np.clip(resized(source.share, size), 0, 1))
        return _Placement(patch, patch.region.copy(), donor, thing, source, (size[1] / columns, size[0] / rows))

    def _can_be_read(self, name: str) -> bool:
        if name not in self._usable:
            try:
                self._pixels(name)
            except BrokenImageError:
                self._usable[name] = False
            else:
                self._usable[name] = True
        return self._usable[name]

    def _read(self, name: str) -> NDArray[np.uint8]:
        pixels = read_image(self.labels.root / name).pixels
        if pixels.shape[:2] != self.labels.size(name):
            raise BrokenImageError("has another size than when its labels were read")
        return pixels


def _remaining(thing: Thing, visible: NDArray[np.bool_], patch: Patch, shape: tuple[int, int]) -> Thing:
    """An object of which only a part of a patch is visible."""
    mask = np.zeros(shape, np.bool_)
    mask[patch.place] = visible
    return Thing(thing.category, box_of(mask), mask=mask, ignored=thing.ignored)


def _moved(each: _Placement, shape: tuple[int, int]) -> Thing:
    """An object of another image in its new place."""
    if not each.thing.polygons or not np.array_equal(each.visible, each.patch.region):
        return _remaining(each.thing, each.visible, each.patch, shape)
    origin, scale = np.array([each.source.left, each.source.top]), np.array(each.scale)
    corner = np.array([each.patch.left, each.patch.top])
    limit = np.array([shape[1], shape[0]], np.float64)
    polygons = tuple(np.clip((points - origin) * scale + corner, 0, limit) for points in each.thing.polygons)
    low, high = (np.concatenate(polygons).min(0), np.concatenate(polygons).max(0))
    return Thing(each.thing.category, (*low.tolist(), *(high - low).tolist()), polygons)


def resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """An array (H, W) at another size."""
    from PIL import Image

    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float32)
