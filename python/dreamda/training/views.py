"""Weak, strong and plain views of images.

    views = Views((32, 32), *channel_statistics(images), seed=0, crop_scale=(0.5, 1.0))
    x = views.weak(image, draw=3, index=17)                      # float32 (3, 32, 32), normalised

A view depends only on (seed, stage, draw, index, kind), the key of a counter-based generator. Workers, the order of
calls, batches and interruptions do not change it.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ..data.images import FITS, fit

WEAK, RANDAUGMENT, STRONG = "weak", "randaugment", "strong"
KINDS = (WEAK, RANDAUGMENT, STRONG)
SMALL = 64                             # up to this many pixels an image is "small": milder crops, and no centre crop
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)
EVAL_CROP = 224 / 256
CUTOUT = 0.5                           # the largest side of the hole, as a share of the image's

Pixels = NDArray[np.uint8]


def keyed(seed: int, key: int, counter: tuple[int, int, int, int]) -> np.random.Generator:
    """A generator of random numbers that depends only on these arguments."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64), counter=counter))


class Views:
    """Makes training and evaluation views of uint8 RGB images.

    Parameters
    ----------
    size : (height, width)
        Of the views.
    mean, std : three floats each
        Of the data set's channels, for values from 0 to 1; see `channel_statistics`.
    seed : int
        0 to 2^64 - 1.
    stage : int
        Part of the key, so that the stages of a training run see different views.
    crop_scale : (low, high), optional
        Area of the random crop, as a share of the image. Default: (0.08, 1), as the authors have it, for views of more
        than 64 pixels; (0.5, 1) for smaller ones (ours: 8 % of a 32 x 32 image is 9 x 9 pixels).
    flip : bool
        Flip half of the views horizontally. Wrong for chest X-rays, digits and the like.
    how : {"crop", "pad", "squash"}
        How images with another aspect ratio than the views are treated. crop: random crops anywhere for training, the
        centre for evaluation. pad: the image is first padded with its mirror image. squash: its aspect ratio is first
        changed to that of the views.
    grey : bool
        The images have no colour: RandAugment's Color, which would have no effect, is left out.
    operations, magnitude : int, float
        RandAugment: number of operations per view, and their maximum strength, 0 to 1. The strength is drawn uniformly
        up to it (as in FixMatch).

    Notes
    -----
    Weak: random resized crop (aspect ratio 3/4 to 4/3), flip. randaugment: the same and RandAugment (Cubuk et al.,
    2019). Strong: the same and Cutout (DeVries & Taylor, 2017), a square of up to half the image's side, centred
    anywhere, filled with the mean.
    """

    def __init__(self,
                 size: tuple[int, int],
                 mean: Sequence[float],
                 std: Sequence[float],
                 *,
                 seed: int = 0,
                 stage: int = 0,
                 crop_scale: tuple[float, float] | None = None,
                 flip: bool = True,
                 how: str = "crop",
                 grey: bool = False,
                 operations: int = 2,
                 magnitude: float = 1.0) -> None:
        if crop_scale is None:
            crop_scale = (0.5, 1.0) if max(size) <= SMALL else (0.08, 1.0)
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two parts of the area with 0 < low <= high <= 1; it is {crop_scale}")
        if how not in FITS:
            raise ValueError(f"how must be one of {', '.join(FITS)}; it is {how!r}")
        self.size, self.how = (int(size[0]), int(size[1])), how
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if self.mean.shape != (3, ) or self.std.shape != (3, ) or not (np.isfinite(self.mean).all() and
                                                                       (self.std > 0).all()):
            raise ValueError(f"mean and std must be three numbers each, std above 0; they are {mean} and {std}")
        self.seed, self.stage = seed, stage
        self.crop_scale, self.flip, self.operations, self.magnitude = crop_scale, flip, operations, magnitude
        self._fill = tuple(int(round(float(m) * 255)) for m in self.mean)
        self._operations = [op for op in OPERATIONS if not (grey and op is _color)]

    def with_stage(self, stage: int) -> Views:
        """The same views, keyed with another stage."""
        other = copy.copy(self)
        other.stage = stage
        return other

    def view(self, kind: str, image: Pixels, draw: int, index: int, stream: int = 0) -> NDArray[np.float32]:
        """One view, float32 (3, height, width), normalised.

        Parameters
        ----------
        kind : {"weak", "randaugment", "strong"}
        image : uint8 (H, W, 3)
        draw, index, stream : int
            How often this image was drawn before, its number in the data set, and the number of the view if there are
            several at the same time.
        """
        # always 64 numbers, so that each choice has its own number
        random = keyed(self.seed, self.stage << 32 | stream, (0, draw, index, KINDS.index(kind))).random(64)
        picture = self._crop(Image.fromarray(self._fitted(image)), random[:4])
        if self.flip and random[4] < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if kind != WEAK:
            for i in range(self.operations):
                which, strength, sign = random[8 + 3 * i: 11 + 3 * i]
                operation = self._operations[int(which * len(self._operations))]
                picture = operation(picture, self.magnitude * strength, sign < 0.5, self._fill)
        pixels = np.asarray(picture)
        if kind == STRONG:
            pixels = self._cutout(pixels, random[5:8])
        return self._normalise(pixels)

    def weak(self, image: Pixels, draw: int, index: int) -> NDArray[np.float32]:
        """`view` of kind "weak"."""
        return self.view(WEAK, image, draw, index)

    def strong(self, image: Pixels, draw: int, index: int) -> NDArray[np.float32]:
        """`view` of kind "strong"."""
        return self.view(STRONG, image, draw, index)

    def plain(self, image: Pixels) -> NDArray[np.float32]:
        """The view for evaluation.

        Up to 64 pixels: the image, resized. Views of more than 64 pixels: the centre 7/8 of the shorter side, as usual
        on ImageNet. Images of another aspect ratio are cropped, padded or squashed. A large photograph is reduced first
        (see `reduce`), as it is for training.
        """
        height, width = self.size
        image = reduce(image, self.size)
        small = max(self.size) <= SMALL
        if small and image.shape[:2] == self.size:
            return self._normalise(image)
        picture = Image.fromarray(self._fitted(image) if self.how == "pad" else image)
        share = 1.0 if small else EVAL_CROP
        if self.how == "squash" or small and picture.width * height == picture.height * width:
            crop_w, crop_h = share * picture.width, share * picture.height
        else:
            scale = share * min(picture.width / width, picture.height / height)
            crop_w, crop_h = min(scale * width, picture.width), min(scale * height, picture.height)
        left, top = (picture.width - crop_w) / 2, (picture.height - crop_h) / 2
        box = (left, top, left + crop_w, top + crop_h)
        return self._normalise(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box)))

    def _fitted(self, image: Pixels) -> Pixels:
        """The image with the aspect ratio of the views, if images are padded or squashed."""
        (rows, columns), (height, width) = image.shape[:2], self.size
        if self.how == "crop" or rows * width == columns * height:
            return image
        wide = columns * height > rows * width
        if wide == (self.how == "pad"):
            return fit(image, (max(1, round(columns * height / width)), columns), self.how, resample="bilinear")
        return fit(image, (rows, max(1, round(rows * width / height))), self.how, resample="bilinear")

    def _crop(self, picture: Image.Image, random: NDArray[np.float64]) -> Image.Image:
        """Random resized crop: a random area and aspect ratio, limited to the image; then a random position."""
        low, high = self.crop_scale
        area = picture.width * picture.height * (low + (high - low) * random[0])
        ratio = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * random[1])
        width = min(picture.width, max(1, round(math.sqrt(area * ratio))))
        height = min(picture.height, max(1, round(math.sqrt(area / ratio))))
        left = int(random[2] * (picture.width - width + 1))
        top = int(random[3] * (picture.height - height + 1))
        return picture.resize((self.size[1], self.size[0]),
                              Image.Resampling.BILINEAR,
                              box=(left, top, left + width, top + height))

    def _cutout(self, pixels: Pixels, random: NDArray[np.float64]) -> Pixels:
        height, width = self.size
        half = random[0] * CUTOUT * min(height, width) / 2
        y, x = random[1] * height, random[2] * width
        top, bottom, left, right = (max(0, round(v)) for v in (y - half, y + half, x - half, x + half))
        holed = pixels.copy()
        holed[top:bottom, left:right] = self._fill
        return holed

    def _normalise(self, pixels: Pixels) -> NDArray[np.float32]:
        scaled = pixels.astype(np.float32) * (1 / (255 * self.std)) - self.mean / self.std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


# ---- RandAugment's fourteen operations: (picture, strength 0 to 1, sign, fill) -> picture

def _enhance(kind: type) -> Callable[..., Image.Image]:
    def operation(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
        return kind(picture).enhance(1 + (0.95 if sign else -0.95) * strength)
    return operation


def _affine(coefficients: Callable[[float, Image.Image], tuple[float, ...]]) -> Callable[..., Image.Image]:
    def operation(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
        return picture.transform(picture.size,
                                 Image.Transform.AFFINE,
                                 coefficients(strength if sign else -strength, picture),
                                 Image.Resampling.BILINEAR,
                                 fillcolor=fill)
    return operation


def _identity(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return picture


def _autocontrast(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return ImageOps.equalize(picture)


def _rotate(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return picture.rotate(30 * strength if sign else -30 * strength, Image.Resampling.BILINEAR, fillcolor=fill)


def _solarize(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return ImageOps.solarize(picture, round(256 * (1 - strength)))


def _posterize(picture: Image.Image, strength: float, sign: bool, fill: tuple[int, ...]) -> Image.Image:
    return ImageOps.posterize(picture, 8 - int(4.999 * strength))


_color = _enhance(ImageEnhance.Color)
OPERATIONS = (_identity, _autocontrast, _equalize, _rotate, _solarize, _color, _posterize,
              _enhance(ImageEnhance.Contrast), _enhance(ImageEnhance.Brightness), _enhance(ImageEnhance.Sharpness),
              _affine(lambda s, p: (1, 0.3 * s, -0.15 * s * p.height, 0, 1, 0)),
              _affine(lambda s, p: (1, 0, 0, 0.3 * s, 1, -0.15 * s * p.width)),
              _affine(lambda s, p: (1, 0, 0.3 * s * p.width, 0, 1, 0)),
              _affine(lambda s, p: (1, 0, 0, 0, 1, 0.3 * s * p.height)))


# ---- the data set

def reduce(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Reduce an image whose sides are both more than twice those of the views (Lanczos); return others unchanged.

    It is reduced to twice the size of the views. So a small crop of a photograph is cheap, and training and evaluation
    begin with the same pixels.
    """
    height, width = image.shape[:2]
    scale = max(2 * size[0] / height, 2 * size[1] / width)
    if scale >= 1:
        return image
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(smaller, Image.Resampling.LANCZOS))


def reduced(images: Pixels, size: tuple[int, int]) -> Pixels:
    """`reduce` for an array of images (N, H, W, 3)."""
    if not len(images) or reduce(images[0], size) is images[0]:
        return images
    return np.stack([reduce(image, size) for image in images])


def channel_statistics(images: Iterable[Pixels]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the three channels, for values from 0 to 1; every image has the same weight.

    >>> channel_statistics([np.full((2, 2, 3), 51, np.uint8), np.full((4, 4, 3), 153, np.uint8)])
    ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    """
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for image in images:
        values = image.reshape(-1, 3).astype(np.int64)
        total += values.sum(axis=0) / len(values)
        squares += np.square(values).sum(axis=0) / len(values)
        count += 1
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    return tuple(round(float(m) / 255, 6) for m in mean), tuple(max(round(float(s) / 255, 6), 1e-3) for s in std)


def is_grey(images: Iterable[Pixels]) -> bool:
    """Whether no image has colour."""
    return all(
        np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])
        for image in images)
