"""Decoding image files to pixels.

    pixels = read_image("photos/cat/1.jpg", (512, 512)).pixels      # uint8 (512, 512, 3)

Image files are untrusted: sizes are bounded, only a few formats are opened, and whatever is wrong with one file becomes a
`BrokenImageError`.
"""
from __future__ import annotations

import hashlib
import io
import os
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .files import BrokenImageError, read_bounded

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".ppm", ".pnm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Files with these endings are images in formats that are not read, unless their first bytes are those of one that is.
OTHER_FORMATS = {".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jxl": "JPEG XL", ".npy": "NumPy",
                 ".svg": "SVG", ".tga": "TGA", ".psd": "Photoshop", ".dcm": "DICOM", ".exr": "OpenEXR", ".ico": "ICO", ".pcx": "PCX"}
RAW_SUFFIXES = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")  # TIFF inside, with a thumbnail as its first image
MAX_PIXELS = 89_478_485          # Pillow's own limit for decompression bombs: 256 MiB of RGB
FITS = ("crop", "pad", "squash")


def format_of(head: bytes) -> str | None:
    """The format of an image file that begins with these bytes (132 are enough): one of `FORMATS`, another one, or None.

    >>> format_of(b"GIF89a")
    'GIF'
    """
    for name, magic in _MAGIC:
        if re.match(magic, head, re.DOTALL):
            return name
    return None


_MAGIC = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"), ("JPEG", rb"\xff\xd8\xff"), ("GIF", rb"GIF8[79]a"), ("WEBP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"), ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"), ("PPM", rb"P[1-6]\s+[#\d]"),
    ("AVIF", rb"....ftypavi[fs]"), ("HEIC", rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"), ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), ("Photoshop", rb"8BPS"), ("OpenEXR", rb"\x76\x2f\x31\x01"),
    ("DICOM", rb".{128}DICM"), ("NumPy", rb"\x93NUMPY"))


class LoadedImage(NamedTuple):
    """Pixels uint8 (H, W, 3), and the SHA-256 (hex) of the file that they come from."""

    pixels: np.ndarray
    sha256: str


def fit(image: NDArray[np.uint8], size: tuple[int, int], how: str = "crop", *, resample: str = "bicubic") -> NDArray[np.uint8]:
    """Resize an image to exactly `size`.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    size : (height, width)
    how : {"crop", "pad", "squash"}
        What happens to another aspect ratio. crop: the centre of the image is kept, as large as fits. pad: the whole image is kept, and
        its mirror image fills the rest. squash: the whole image is resized, and its aspect ratio changes (as in the authors' code).
    resample : {"bicubic", "bilinear"}

    Returns
    -------
    uint8 (height, width, 3)
        The image itself where it has this size already.

    Raises
    ------
    ValueError
        `how` is none of the three.
    """
    from PIL import Image

    return image if image.shape[:2] == tuple(size) else _fit(Image.fromarray(image), size, how, resample)


def _fit(image: Image.Image, size: tuple[int, int], how: str, resample: str) -> NDArray[np.uint8]:
    from PIL import Image

    if how not in FITS:
        raise ValueError(f"fit must be crop, pad or squash; it is {how!r}")
    columns, rows = image.size
    height, width = inner = size
    box = (0.0, 0.0, float(columns), float(rows))
    if how == "crop" and columns * height != width * rows:
        kept_w, kept_h = min(columns, rows * width / height), min(rows, columns * height / width)
        left, top = (columns - kept_w) / 2, (rows - kept_h) / 2
        box = (left, top, left + kept_w, top + kept_h)
    elif how == "pad":
        inner = (min(height, max(1, round(rows * width / columns))), min(width, max(1, round(columns * height / rows))))
    pixels = np.array(image.resize((inner[1], inner[0]), Image.Resampling[resample.upper()], box=box))
    if inner != (height, width):
        above, before = (height - inner[0]) // 2, (width - inner[1]) // 2
        pixels = np.pad(pixels, ((above, height - inner[0] - above), (before, width - inner[1] - before), (0, 0)), "symmetric")
    return pixels


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None, how: str = "squash") -> LoadedImage:
    """Read one image file as RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit gray is scaled to 8 bits, and of several frames the
    first is taken. With `size` the image is resized to it; see `fit`.

    Parameters
    ----------
    path : path
    size : (height, width), optional
    how : {"crop", "pad", "squash"}

    Raises
    ------
    BrokenImageError
        For whatever is wrong with this file; the message does not repeat its name.
    """
    data = read_bounded(path)
    return LoadedImage(decode_image(data, size, how), hashlib.sha256(data).hexdigest())


def decode_image(data: bytes, size: tuple[int, int] | None = None, how: str = "squash") -> NDArray[np.uint8]:
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
    except BrokenImageError:
        raise
    except Exception as error:  # the file is untrusted, and Pillow's decoders raise whatever their format trips over
        if type(error).__name__ == "UnidentifiedImageError":
            found = format_of(data[:132])
            if found is not None and found not in FORMATS:
                raise BrokenImageError(f"{found} images are not read; convert it to PNG or JPEG") from error
            raise BrokenImageError(f"not an image, or damaged; the formats read are {', '.join(FORMATS)}") from error
        raise BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
    return np.array(image) if size is None or image.size == (size[1], size[0]) else _fit(image, size, how, "bicubic")
