"""Masks: a PNG file per image, with the same name, whose values are classes (semantic) or objects (instances).

The value 0 is the background. In 8 bits, 255 is ignored: it is neither an object nor background.
"""
from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import Labels, Thing, png_bytes, read_frame, read_text_file, write_if_other
from ..files import BrokenImageError
from ..images import pixels_of_png

IGNORED = 255
MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


class MaskLabels(Labels):
    """Masks; see `dreamda.data.masks`."""

    format = "masks"
    place = "masks"

    def _read(self) -> Iterator[bytes]:
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; give the folder of the masks")
        self._files: dict[str, Path] = {}
        stems: dict[str, list[str]] = {}
        for name in self._found:
            stems.setdefault(name.rpartition(".")[0], []).append(name)
        for path in sorted(self.path.rglob("*.png")):
            inside = path.relative_to(self.path).as_posix()
            names = stems.get(inside[:-4], [])
            if not names:
                self.problems.append((inside, f"has no image of this name in {self.root}"))
                continue
            content = read_text_file(path)
            yield f"{inside}\n".encode() + content
            try:
                size = read_frame(path).size
                _opened(content)
            except BrokenImageError as error:
                self.problems.append((inside, str(error)))
                continue
            for name in names:
                if self._image(name, inside, size):
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

    def write(self, out: Path, made: Sequence[tuple[str, str]]) -> None:
        """Write ``out/masks/*.png``: the original files without their texts and EXIF data.

        Where the image is turned when it is displayed, its mask is written in that orientation.
        """
        from PIL import Image

        for file, name in made:
            content, frame = read_text_file(self._files[name]), self._frames[name]
            if frame.orientation != 1:
                image = _opened(content)
                turned = Image.fromarray(frame.array(np.asarray(image)))
                if image.mode == "P":
                    turned = turned.convert("P") if turned.mode != "L" else _with_palette(turned, image)
                content = png_bytes(turned)
            write_if_other(out / "masks" / (file.rpartition(".")[0] + ".png"), pixels_of_png(content))


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
