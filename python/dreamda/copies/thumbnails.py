"""The small grey pictures by which images are compared.

    thumbnail(pixels)                 # uint8 (32, 32), of the whole image
    views(pixels)                     # and of its central square, if it is not square itself
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 32
SQUARE = 1.05   # a longer side, relative to the shorter one, up to which an image counts as square

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def thumbnail(pixels: Pixels) -> Pixels:
    """The whole image in grey, squashed to uint8 (32, 32).

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    """
    from PIL import Image

    image = Image.fromarray(pixels).convert("L")
    filter = Image.Resampling.BOX if min(image.size) >= 2 * SIDE else Image.Resampling.LANCZOS
    return np.asarray(image.resize((SIDE, SIDE), filter))


def views(pixels: Pixels) -> list[Pixels]:
    """The thumbnails by which a real image is found: of the whole image, and of its central square if it is not square.

    A generator of square images has seen either the one or the other.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    if max(height, width) <= SQUARE * side:
        return [thumbnail(pixels)]
    top, left = (height - side) // 2, (width - side) // 2
    return [thumbnail(pixels), thumbnail(pixels[top: top + side, left: left + side])]


def standardized(thumbnails: Pixels) -> Floats:
    """Thumbnails as float32 with mean 0 and, unless they are nearly uniform, standard deviation 1."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    return values / np.maximum(values.std(axis=(1, 2), keepdims=True), 4)
