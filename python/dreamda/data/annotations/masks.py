"""Masks: a PNG file per image, with the same name, whose values are classes (semantic) or objects (instances).

The value 0 is the background. In 8 bits, 255 is ignored: it is neither an object nor background.
"""
from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .common import Labels, Made, Thing, png_bytes, read_frame, read_text_file, write_if_other
from ..files import BrokenImageError
from ..images import pixels_of_png

IGNORED = 255
MOST = 65535  # the largest value of 16 bits
EIGHT_BITS = ("1", "L", "P")
MODES = (*EIGHT_BITS, "I", "I;16", "I;16B", "I;16L")


class MaskLabels(Labels):
    """Masks; see `dreamda.data.masks`."""

    format = "masks"
    place = "masks"
    has_names = False

    def _read(self) -> Iterator[bytes]:
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; give the folder of the masks")
        self._files: dict[str, Path] = {}
        stems: dict[str, list[str]] = {}
        for name in self._found:
            stems.setdefault(name.rpartition(".")[0], []).append(name)
        for path in sorted(self.path.rglob("*.png")):
            inside = path.relative_to(self.path).as_posix()
            where = self._within(inside)
            names = stems.get(inside[:-4], [])
            if not names:
                self.problems.append((where, f"has no image of this name in {self.root}"))
                continue
            content = read_text_file(path)
            yield f"{inside}\n".encode() + content
            try:
                size = read_frame(path).size
                _opened(content)
            except BrokenImageError as error:
                self.problems.append((where, str(error)))
                continue
            for name in names:
                if self._image(name, where, size):
                    self._files[name] = path
        self._leave_out_others()

    def _things(self, name: str) -> list[Thing]:
        image = _opened(read_text_file(self._files[name]))
        values = np.asarray(image)
        eight = image.mode in ("L", "P")
        things = []
        for value in np.unique(values):
            if value:
                mask = values == value
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1),
                       float(rows[-1] - rows[0] + 1))
                things.append(Thing(str(value), box, mask=mask, ignored=bool(eight and value == IGNORED)))
        return things

    def categories(self, name: str) -> list[str]:
        """No categories: masks only have numbers."""
        return []

    def check_objects(self) -> None:
        """Raise ValueError unless the masks have 16 bits: values of 8 bits are classes."""
        for name, path in self._files.items():
            if _opened(read_text_file(path)).mode in EIGHT_BITS:
                raise ValueError(f"{path}: a mask of 8 bits holds classes, which are no single objects; give masks of "
                                 "16 bits, in which each value is an object")

    def write(self, out: Path, made: Iterable[Made]) -> None:
        """Write ``out/masks/*.png``: the original files without their texts and EXIF data.

        Where the image is turned when it is displayed, its mask is written in that orientation. An object of another
        image keeps its value, or gets the next one that is free.
        """
        for each in made:
            content, frame = read_text_file(self._files[each.name]), self._frames[each.name]
            if frame.orientation != 1 or each.objects is not None:
                image = _opened(content)
                content = png_bytes(_with_values(image, self._now(frame.array(np.asarray(image)), each)))
            write_if_other(out / "masks" / (each.file.rpartition(".")[0] + ".png"), pixels_of_png(content))

    def _now(self, values: NDArray[Any], made: Made) -> NDArray[Any]:
        """The values of a synthetic image, made from those of its real image."""
        if made.objects is None:
            return values
        own = [value for value in np.unique(values).tolist() if value]
        written = {placed.number for placed in made.objects if placed.name == made.name}
        without = IGNORED if values.dtype.itemsize == 1 else 0  # in 8 bits, what is not known can be told
        gone = [value for number, value in enumerate(own) if number not in written]
        result = np.where(np.isin(values, gone), without, values)
        used = set(own)
        for name, _, thing in made.objects:
            if name != made.name and thing is not None:
                value = int(thing.category)
                while value in used:
                    value = value % MOST + 1
                used.add(value)
                result[thing.pixels(values.shape)] = value
        return result


def _with_values(image: Any, values: NDArray[Any]) -> Any:
    """A mask like `image`, with other values."""
    from PIL import Image

    result = Image.fromarray(values.astype(np.asarray(image).dtype))
    if image.mode == "P":
        result = result.convert("P") if result.mode != "L" else _with_palette(result, image)
    return result


def _with_palette(values: Any, image: Any) -> Any:
    values.putpalette(image.getpalette())
    return values


def _opened(content: bytes) -> Any:
    """Open a mask as a Pillow image with the values of the file."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", ))
        image.load()
    except Exception as error:  # the file is untrusted, and Pillow may raise any exception
        raise BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
    if image.mode not in MODES:
        raise BrokenImageError(f"has colours (mode {image.mode}), and not a number for each pixel; save it with a "
                               "palette, or in grey with 8 or 16 bits")
    return image
