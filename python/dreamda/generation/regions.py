"""Keep parts of images unchanged: the canvas of an image of any size, and the transition from kept to new pixels.

An image of any size is resized so that its shorter side is the model's, and mirrored at its lower and right edges up to
whole positions of the U-Net's coarsest level. The result is resized to the image's own size. Kept parts stay in the
latents at every step (recursions.py). An object covers every latent position that it touches, so that thin ones
survive. At the end, the image's own pixels are laid over the new ones, with a soft edge around them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..options import ParameterError

Keep = Literal["objects", "background", "none"]
KEEPS = get_args(Keep)
LONGEST = 4  # maximum ratio of an image's longer side to the model's size


@dataclass(frozen=True)
class Canvas:
    """The position of an image of any size on a canvas that a model can process.

    Attributes
    ----------
    image : (int, int)
        Height and width of the image.
    inner : (int, int)
        Of the image on the canvas, in its upper left corner.
    size : (int, int)
        Of the canvas.
    """

    image: tuple[int, int]
    inner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], size: tuple[int, int], multiple: int) -> Canvas:
        """The canvas for an image of this height and width.

        Parameters
        ----------
        image : (height, width)
        size : (height, width)
            The model's size; the image's shorter side gets the length of its shorter side.
        multiple : int
            The sides of the canvas are multiples of it.
        """
        scale = min(min(size) / min(image), LONGEST * min(size) / max(image))
        height, width = inner = (max(1, round(image[0] * scale)), max(1, round(image[1] * scale)))
        return cls(image, inner, (-(-height // multiple) * multiple, -(-width // multiple) * multiple))

    def place(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W, 3) on the canvas."""
        return self._mirrored(_resized(pixels, self.inner))

    def take_back(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels of the image on a canvas, at the size of the image."""
        return _resized(pixels[: self.inner[0], : self.inner[1]], self.image)

    def kept_latents(self, weight: NDArray[np.float32], keep: Keep, factor: int) -> NDArray[np.bool_]:
        """The latent positions, of `factor` pixels a side, that stay the image's own.

        An object counts for every position that it touches. So thin objects are not lost if objects are kept, and not
        kept if they are to be made anew.

        Parameters
        ----------
        weight : float32 array (H, W)
            From `kept_weight`.
        keep : {"objects", "background", "none"}
        factor : int
        """
        objects = weight >= 0.5 if keep == "objects" else weight < 0.5
        touched = self._mirrored(_touched(objects, self.inner))
        touched = _touched(touched, (self.size[0] // factor, self.size[1] // factor))
        return touched if keep == "objects" else ~touched

    @property
    def edge(self) -> int:
        """Half the width of the soft edge, in pixels of the image: one pixel of the canvas."""
        return max(1, round(self.image[0] / self.inner[0]))

    def _mirrored(self, array: np.ndarray) -> np.ndarray:
        below, beside = self.size[0] - self.inner[0], self.size[1] - self.inner[1]
        return np.pad(array, ((0, below), (0, beside), *((0, 0), ) * (array.ndim - 2)), "symmetric")


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _touched(region: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A region on a grid of another size: the positions whose area it touches."""
    rows, columns = ([np.arange(n) * side // n for n, side in zip(size, region.shape)])
    last_rows, last_columns = ([-(-(np.arange(n) + 1) * side // n) for n, side in zip(size, region.shape)])
    sums = np.pad(region, ((1, 0), (1, 0))).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    inside = (sums[last_rows][:, last_columns] - sums[rows][:, last_columns] - sums[last_rows][:, columns] +
              sums[rows][:, columns])
    return inside > 0


def kept_weight(mask: np.ndarray, keep: Keep, edge: int) -> NDArray[np.float32]:
    """The weight of the image's own pixels in the result, float32 (H, W): 1 on all kept pixels.

    Parameters
    ----------
    mask : array (H, W)
        Where the objects are: bool, or float from 0 to 1, which is taken as the weight itself.
    keep : {"objects", "background", "none"}
    edge : int
        Half the width in pixels of the soft edge around a bool region.
    """
    if keep == "none":
        return np.zeros(mask.shape, np.float32)
    if mask.dtype != np.bool_:
        return mask.astype(np.float32) if keep == "objects" else np.float32(1) - mask.astype(np.float32)
    region = mask if keep == "objects" else ~mask
    grown = _window_sums(region, edge) > 0
    return (_window_sums(grown, edge) / np.float32((2 * edge + 1) ** 2)).astype(np.float32)


def _window_sums(region: NDArray[np.bool_], radius: int) -> NDArray[np.int32]:
    """The number of a region's pixels in the square around each pixel; its edge is continued beyond the image."""
    sums = np.pad(region, radius, "edge").cumsum(0, dtype=np.int32)
    sums[2 * radius + 1 :] -= sums[: -2 * radius - 1].copy()
    sums = sums[2 * radius :].cumsum(1, dtype=np.int32)
    sums[:, 2 * radius + 1 :] -= sums[:, : -2 * radius - 1].copy()
    return sums[:, 2 * radius :]


def seam(weight: NDArray[np.float32], width: int) -> NDArray[np.bool_]:
    """The pixels around objects that were placed in an image, up to this distance, bool (H, W).

    Parameters
    ----------
    weight : float32 array (H, W)
        The weight of the objects' pixels.
    width : int
    """
    return (_window_sums(weight > 0, width) > 0) & (weight < 1)


def laid_over(image: NDArray[np.uint8], made: NDArray[np.uint8], weight: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image's own pixels over new ones (..., H, W, 3), by weight; at weight 1, exactly the image's own."""
    result = np.where((weight == 1)[..., None], image, made)
    edge = (0 < weight) & (weight < 1)
    share = weight[edge][:, None]
    result[..., edge, :] = np.rint(share * image[edge].astype(np.float32) + (1 - share) * made[..., edge, :])
    return result


def as_masks(masks: np.ndarray | Sequence[np.ndarray] | None, shapes: Sequence[tuple[int, int]],
             keep: str) -> list[np.ndarray]:
    """The masks of images with these heights and widths, each a bool or float32 array.

    Raises
    ------
    ParameterError
        `keep` is none of the three values; or masks are missing, have another size, or hold other values.
    """
    if keep not in KEEPS:
        raise ParameterError("keep", f"{keep!r} is not possible; use objects, background or none")
    if masks is None:
        if keep != "none":
            raise ParameterError("masks", f"`keep={keep}` needs a mask of each image, bool or float (H, W)")
        return [np.zeros(shape, np.bool_) for shape in shapes]
    every = [np.asarray(mask) for mask in masks]
    if len(every) != len(shapes):
        raise ParameterError("masks", f"expected {len(shapes)}, one an image, got {len(every)}")
    for number, (mask, shape) in enumerate(zip(every, shapes)):
        if mask.shape != shape:
            raise ParameterError(
                "masks", f"number {number} has the shape {mask.shape}, and its image {shape[0]} x {shape[1]} pixels")
        is_float = np.issubdtype(mask.dtype, np.floating)
        if not (mask.dtype == np.bool_ or is_float and np.isfinite(mask).all() and 0 <= mask.min() <= mask.max() <= 1):
            raise ParameterError("masks", f"number {number} is {mask.dtype}; use bool, or float from 0 to 1")
        every[number] = mask.astype(np.float32) if is_float else mask
    return every
