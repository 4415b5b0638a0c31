"""Decode image files to pixels.

    pixels = read_image("photos/cat/1.jpg", (512, 512)).pixels      # uint8 (512, 512, 3)

Image files are untrusted: sizes are bounded, only a few formats are opened, and any problem with a file raises a
`BrokenImageError`.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .files import BrokenImageError, read_bounded

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".ppm",
            ".pnm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Files with these extensions are images in unsupported formats, unless their first bytes are those of a supported one.
OTHER_FORMATS = {".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
                 ".jxl": "JPEG XL", ".npy": "NumPy", ".svg": "SVG", ".tga": "TGA", ".psd": "Photoshop", ".dcm": "DICOM",
                 ".exr": "OpenEXR", ".ico": "ICO", ".pcx": "PCX"}
# Raw camera photographs: TIFF files whose first image is a thumbnail.
RAW_SUFFIXES = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
MAX_PIXELS = 89_478_485          # Pillow's own limit for decompression bombs: 256 MiB of RGB
FITS = ("crop", "pad", "squash")


def format_of(head: bytes) -> str | None:
    """The format of an image file that begins with these bytes: one of `FORMATS`, another one, or None.

    132 bytes are enough.

    >>> format_of(b"GIF89a")
    'GIF'
    """
    for name, magic in _MAGIC:
        if re.match(magic, head, re.DOTALL):
            return name
    return None


_MAGIC = (("PNG", rb"\x89PNG\r\n\x1a\n"), ("JPEG", rb"\xff\xd8\xff"), ("GIF", rb"GIF8[79]a"),
          ("WEBP", rb"RIFF....WEBP"), ("TIFF", rb"II[*+]\0|MM\0[*+]"),
          ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"), ("PPM", rb"P[1-6]\s+[#\d]"),
          ("AVIF", rb"....ftypavi[fs]"), ("HEIC", rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
          ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "), ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
          ("Photoshop", rb"8BPS"), ("OpenEXR", rb"\x76\x2f\x31\x01"), ("DICOM", rb".{128}DICM"), ("NumPy",
                                                                                                  rb"\x93NUMPY"))


class LoadedImage(NamedTuple):
    """The pixels, uint8 (H, W, 3), and the SHA-256 (hex) of their file."""

    pixels: np.ndarray
    sha256: str


def fit(image: NDArray[np.uint8],
        size: tuple[int, int],
        how: str = "crop",
        *,
        resample: str = "bicubic") -> NDArray[np.uint8]:
    """Resize an image to exactly `size`.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    size : (height, width)
    how : {"crop", "pad", "squash"}
        How a different aspect ratio is handled. crop: keep the largest centred part. pad: keep the whole image, and
        fill the rest with its reflection. squash: resize the whole image, which changes its aspect ratio (as in the
        authors' code).
    resample : {"bicubic", "bilinear"}

    Returns
    -------
    uint8 (height, width, 3)
        The image itself if it already has this size.

    Raises
    ------
    ValueError
        `how` is not one of the three values.
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
        pixels = np.pad(pixels, ((above, height - inner[0] - above), (before, width - inner[1] - before), (0, 0)),
                        "symmetric")
    return pixels


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None, how: str = "squash") -> LoadedImage:
    """Read one image file as RGB.

    The EXIF orientation is applied, transparent pixels are composited over white, and the first of several frames is
    used. Grey values of 1 to 16 bits are scaled to 8 bits. Values without a defined black and white are refused:
    signed, 32-bit and float values without a declared range, and 16-bit values if the file uses only the low bits.
    With `size`, the image is resized; see `fit`.

    Parameters
    ----------
    path : path
    size : (height, width), optional
    how : {"crop", "pad", "squash"}

    Raises
    ------
    BrokenImageError
        The file cannot be used; the message does not repeat its name.
    """
    data = read_bounded(path)
    return LoadedImage(decode_image(data, size, how), hashlib.sha256(data).hexdigest())


def decode_image(data: bytes, size: tuple[int, int] | None = None, how: str = "squash") -> NDArray[np.uint8]:
    """Decode the bytes of an image file to uint8 (H, W, 3); see `read_image`."""
    try:
        try:
            image = _decoded(data)
        except BrokenImageError:
            raise
        except Exception:
            if format_of(data[:8]) != "PNG":
                raise
            image = _decoded(pixels_of_png(data, orientation=True))
    except BrokenImageError:
        raise
    except Exception as error:  # the file is untrusted, and Pillow's decoders may raise any exception
        if type(error).__name__ != "UnidentifiedImageError":
            raise BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
        found = format_of(data[:132])
        if found is None:
            raise BrokenImageError(f"not an image, or damaged; the formats read are {', '.join(FORMATS)}") from error
        problem = "is damaged, or of a kind that is not read" if found in FORMATS else "is not read"
        raise BrokenImageError(f"a {found} image that {problem}; save it as an 8-bit PNG or JPEG") from error
    return np.array(image) if size is None or image.size == (size[1], size[0]) else _fit(image, size, how, "bicubic")


def _decoded(data: bytes) -> Image.Image:
    """Decode the image to Pillow's mode RGB."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise BrokenImageError(
                f"{file.width} x {file.height} pixels are more than the {MAX_PIXELS:,} that are read; "
                "make it smaller")
        samples = _Samples.of(file, data)
        file.load()
        image: Image.Image = file
        with contextlib.suppress(Exception):  # unreadable EXIF data do not define an orientation
            image = ImageOps.exif_transpose(file)
        key = image.info.get("transparency")
        if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
            image = Image.fromarray(samples.grey(np.asarray(image), key if isinstance(key, int) else None))
        elif samples.bits > 8:
            samples.check_colours(image, key)
        if samples.colour_map is not None and image.mode == "P":
            image = Image.fromarray(samples.colour_map[np.asarray(image)])
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


class _Samples(NamedTuple):
    """The meaning of the numbers in a file, where Pillow does not apply it itself."""

    bits: int = 8
    largest: int | None = None                      # of 1 to 16 bits; None: unknown
    range: tuple[float, float] | None = None        # black and white, where a TIFF has SMinSampleValue, SMaxSampleValue
    low_bits: bool = False                          # values in the low bits alone would be an error of the writer
    inverted: bool = False
    colour_map: NDArray[np.uint8] | None = None     # of a TIFF, if it has 8 instead of 16 bits

    @classmethod
    def of(cls, file: Image.Image, data: bytes) -> _Samples:
        """The samples of a file that is open but not yet loaded; BrokenImageError if Pillow would misread it."""
        if file.format == "PNG":
            bits = data[24]
            return cls(bits, (1 << bits) - 1, low_bits=bits == 16)
        if file.format == "PPM":
            # Pillow scales by the file's own largest value
            return cls(16, 65535) if file.mode == "I" else cls(largest=255)
        if file.format != "TIFF":
            return cls(largest=255)
        tags = file.tag_v2  # type: ignore[attr-defined]
        bits = max(np.ravel(tags.get(258, 1)))
        unsigned, colours = set(np.ravel(tags.get(339, 1))) == {1}, tags.get(277, 1)
        if not unsigned and bits == 8:
            raise BrokenImageError("signed 8-bit values have no defined black and white; save it with unsigned values")
        if bits > 8 and colours > 1 and tags.get(284, 1) == 2:
            raise BrokenImageError(
                "16-bit colours in separate planes are not read; save it with interleaved colours, or with "
                "8 bits")
        ends = [float(np.ravel(tags[tag])[0]) for tag in (340, 341) if tag in tags]
        if len(ends) == 1 and 341 in tags:
            ends.insert(0, 0.0)
        declared = (ends[0], ends[1]) if len(ends) == 2 and np.isfinite(ends).all() and ends[0] < ends[1] else None
        map8 = None
        if 320 in tags and max(tags[320]) < 256:
            map8 = np.array(tags[320], np.uint8).reshape(3, -1).T
        return cls(bits, (1 << bits) - 1 if unsigned and bits <= 16 else None, declared, bits == 16, bits > 8
                   and tags.get(262) == 0, map8)

    def grey(self, values: NDArray[Any], key: int | None) -> NDArray[np.uint8]:
        """Grey values as 8 bits; those equal to the transparent value become white."""
        if values.dtype == np.uint8 or values.dtype == bool:
            grey = values.astype(np.uint8) * (255 if values.dtype == bool else 1)
            if key is not None and self.largest:
                grey = np.where(grey == (key & self.largest) * 255 // self.largest, 255, grey).astype(np.uint8)
            return grey
        if self.range is None and self.largest is None:
            raise BrokenImageError("32-bit or signed values have no defined black and white; save it with 8 or 16 bits")
        low, high = self.range or (0, self.largest or 0)
        if self.low_bits and self.range is None:
            _check_low_bits(int(values.max()), 65535)
        if (low, high) == (0, 65535):
            grey = (values // 257).astype(np.uint8)
        elif np.isfinite(values).all():
            grey = (np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)
        else:
            raise BrokenImageError("it holds NaN or infinite values; save it with 8 or 16 bits")
        if self.inverted:
            grey = 255 - grey
        return grey if key is None else np.where(values == key, np.uint8(255), grey)

    def check_colours(self, image: Image.Image, key: Any) -> None:
        """Refuse 16-bit colours whose upper 8 bits, the only ones that Pillow reads, are not enough."""
        if isinstance(key, tuple):
            raise BrokenImageError(
                "a transparent 16-bit colour is not read; save it with an alpha channel, or with 8 bits")
        if image.mode in ("RGB", "RGBX", "RGBA", "LA"):
            upper = np.asarray(image)[..., [i for i, band in enumerate(image.getbands()) if band in "RGBL"]]
            _check_low_bits(max(int(upper.max()), 1), 255)


def _check_low_bits(highest: int, largest: int) -> None:
    if 0 < highest <= largest // 4:
        raise BrokenImageError(
            f"its 16-bit values use the low bits only (the highest is {highest / largest:.1%} of white), and "
            "the file does not say what is white; scale them to 16 bits, or save it with 8")


def pixels_of_png(data: bytes, orientation: bool = False) -> bytes:
    """A PNG file without the chunks that do not affect its pixels: texts, EXIF data, times.

    `orientation` keeps EXIF data, which may say how the image is turned, unless they are damaged.
    """
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at: at + 4], "big")
        kind = data[at + 4: at + 8]
        sound = int.from_bytes(data[end - 4: end], "big") == zlib.crc32(data[at + 4: end - 4])
        optional = (b"tRNS", b"eXIf") if orientation else (b"tRNS", )
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or kind in optional and sound:
            kept.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept)


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a Pillow image as uint8 (H, W, 3).

    The EXIF orientation is applied, transparent pixels are composited over white, and 16-bit grey is scaled to 8 bits.

    Raises
    ------
    BrokenImageError
        Its values have no defined black and white.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(
            _Samples(16, 65535 if image.mode.startswith("I;16") else None, low_bits=True).grey(np.asarray(image), None))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
