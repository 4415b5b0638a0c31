"""Decoding image files to pixels.

    pixels = read_image("photos/cat/1.jpg", (512, 512)).pixels      # uint8 (512, 512, 3)

Image files are untrusted: sizes are bounded, only a few formats are opened, and whatever is wrong with one file becomes a
`BrokenImageError`.
"""
from __future__ import annotations

import hashlib
import io
import os
from typing import NamedTuple

import numpy as np

from .files import BrokenImageError, read_bounded

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".svg", ".tga")
MAX_PIXELS = 89_478_485          # Pillow's own limit for decompression bombs: 256 MiB of RGB


class LoadedImage(NamedTuple):
    """Pixels uint8 (H, W, 3), and the SHA-256 (hex) of the file that they come from."""

    pixels: np.ndarray
    sha256: str


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> LoadedImage:
    """Read one image file as RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit gray is scaled to 8 bits, and of several frames the
    first is taken. With `size` the image is resized to it as a whole (bicubic, aspect ratio not kept), as the authors of DreamDA do.

    Parameters
    ----------
    path : path
    size : (height, width), optional

    Raises
    ------
    BrokenImageError
        For whatever is wrong with this file; the message does not repeat its name.
    """
    data = read_bounded(path)
    return LoadedImage(decode_image(data, size), hashlib.sha256(data).hexdigest())


def decode_image(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3); see `read_image`."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            image: Image.Image = file
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} that are read; make it smaller")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise BrokenImageError("32-bit pixels have no defined range; save it with 8 or 16 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            return np.array(image)
    except BrokenImageError:
        raise
    except Exception as error:  # the file is untrusted, and Pillow's decoders raise whatever their format trips over
        if type(error).__name__ == "UnidentifiedImageError":
            raise BrokenImageError("not an image, or not in a format that is read (PNG, JPEG, WebP, BMP, TIFF)") from error
        raise BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
