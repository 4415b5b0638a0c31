"""Common parts of the annotation formats: images, the things in them, and their locations.

Coordinates are pixels from the upper left corner of the image as displayed, with its EXIF orientation applied. The
reader of a format knows the frame that its file uses: if an annotation states a size and that is the stored size of the
file, boxes, polygons and masks are turned like the pixels.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...text import counted, in_brackets
from ..files import BrokenImageError, read_bounded, write_atomically
from ..folders import check_outside, list_images
from ..images import FORMATS, MAX_PIXELS
from ..prompt_syntax import Syntax
from ..templates import class_words, placed
from .outlines import Patch, box_of, covered

if TYPE_CHECKING:
    from .compose import Composition
    from .folder import AnnotatedFolder

LABEL = "images"        # the folder of OUT that contains the images
CORNER = 0.2            # radius of a rounded box, as a share of its shorter side
FARTHEST = 1e6          # pixels; larger values are not coordinates


@dataclass(frozen=True)
class Thing:
    """A labelled object.

    Attributes
    ----------
    category : str
    box : (x, y, width, height)
        In pixels.
    polygons : tuple of arrays (n, 2)
        Its outline as points (x, y), or empty.
    mask : bool array (H, W), optional
        Its pixels, if the format has them.
    ignored : bool
        A region that is not a single object (a crowd), or is not evaluated; it is always kept.
    """

    category: str
    box: tuple[float, float, float, float]
    polygons: tuple[NDArray[np.float64], ...] = ()
    mask: NDArray[np.bool_] | None = None
    ignored: bool = False

    @property
    def has_outline(self) -> bool:
        """Whether its pixels are known, and not only its box."""
        return self.mask is not None or bool(self.polygons)

    def patch(self, shape: tuple[int, int]) -> Patch:
        """Its pixels, as closely as they are known, in an image of this height and width.

        `region` takes every pixel that the outline touches; this takes its share.
        """
        if self.mask is not None:
            x, y, width, height = map(int, box_of(self.mask))
            return Patch(y, x, self.mask[y : y + height, x : x + width].astype(np.float32))
        points = np.concatenate(self.polygons)
        low = np.clip(np.floor(points.min(0)), 0, (shape[1] - 1, shape[0] - 1)).astype(int)
        high = np.maximum(np.clip(np.ceil(points.max(0)), 0, (shape[1], shape[0])).astype(int), low + 1)
        left, top = low.tolist()
        return Patch(top, left, covered([each - low for each in self.polygons], (int(high[1]) - top,
                                                                                int(high[0]) - left)))

    def pixels(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The pixels of `patch`, bool (H, W)."""
        if self.mask is not None:
            return self.mask
        result, patch = np.zeros(shape, np.bool_), self.patch(shape)
        result[patch.place] = patch.region
        return result

    def region(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Its pixels in an image of this height and width; a thing with only a box has those of a rounded box."""
        from PIL import Image, ImageDraw

        if self.mask is not None:
            return self.mask
        image = Image.new("L", (shape[1], shape[0]))
        draw = ImageDraw.Draw(image)
        for points in self.polygons:
            centres = [(x - 0.5, y - 0.5) for x, y in points.tolist()]  # for Pillow, whole numbers are pixel centres
            draw.polygon(centres, fill=1)
            draw.line([*centres, centres[0]], fill=1, width=3)  # and every pixel that the outline touches
        if not self.polygons:
            x, y, width, height = self.box
            left, top = max(0, math.floor(x)), max(0, math.floor(y))
            right, bottom = min(shape[1], math.ceil(x + width)) - 1, min(shape[0], math.ceil(y + height)) - 1
            if left <= right and top <= bottom:
                draw.rounded_rectangle((left, top, right, bottom), CORNER * min(right - left, bottom - top), fill=1)
        return np.asarray(image) > 0


class Placed(NamedTuple):
    """An object in the annotations of a synthetic image.

    Attributes
    ----------
    name, number : str, int
        The real image that it comes from, and its number in ``things(name)``.
    thing : Thing, optional
        Where it is now; default: where it was.
    """

    name: str
    number: int
    thing: Thing | None = None


class Made(NamedTuple):
    """A synthetic image.

    Attributes
    ----------
    file : str
        In ``out/images``.
    name : str
        The real image whose size it has.
    objects : tuple of Placed, optional
        Its objects; default: all objects of that image.
    """

    file: str
    name: str
    objects: tuple[Placed, ...] | None = None


@dataclass(frozen=True)
class Frame:
    """The stored size of an image file, and its orientation when displayed.

    Attributes
    ----------
    size : (height, width)
    orientation : int
        The EXIF orientation, 1 to 8; 1 means not turned.
    """

    size: tuple[int, int]
    orientation: int = 1

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of the image as displayed."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def turned_for(self, size: tuple[int, int]) -> Frame | None:
        """The frame for annotations made for an image of `size`; None if the image has another size.

        Annotations for the stored size are turned, those for the displayed size are not.
        """
        if size == self.size:
            return self
        return Frame(size) if size == self.shown else None

    def array(self, array: np.ndarray) -> np.ndarray:
        """An array (H, W, ...) of the stored image, turned."""
        if self.orientation >= 5:
            array = array.swapaxes(0, 1)
        flip_x, flip_y = self._flips
        return np.ascontiguousarray(array[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2), x and y in the stored image, turned."""
        if self.orientation >= 5:
            points = points[:, ::-1]
        height, width = self.shown
        flip_x, flip_y = self._flips
        x, y = points[:, 0], points[:, 1]
        return np.stack([width - x if flip_x else x, height - y if flip_y else y], 1)

    def box(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box (x, y, width, height) of the stored image, turned."""
        if self.orientation == 1:
            return (box[0], box[1], box[2], box[3])
        x, y, width, height = box
        corners = self.points(np.array([[x, y], [x + width, y + height]]))
        (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
        return (left, top, right - left, bottom - top)

    @property
    def _flips(self) -> tuple[bool, bool]:
        """Whether x and y are reversed, after the axes have been swapped."""
        return self.orientation in (2, 3, 6, 7), self.orientation in (3, 4, 7, 8)


def read_frame(path: str | os.PathLike[str]) -> Frame:
    """The frame of an image file, from its header; BrokenImageError if that cannot be read."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} that "
                                       "are read; make it smaller")
            orientation = 1
            with contextlib.suppress(Exception):  # unreadable EXIF data do not define an orientation
                orientation = image.getexif().get(0x0112, 1)
            known = isinstance(orientation, int) and 1 <= orientation <= 8
            return Frame((image.height, image.width), orientation if known else 1)
    except BrokenImageError:
        raise
    except Exception as error:  # the file is untrusted, and Pillow may raise any exception
        raise BrokenImageError(f"cannot be read as an image ({str(error) or type(error).__name__})") from error


class Labels(ABC):
    """Annotations and their images, read from one of the formats by `coco`, `yolo`, `voc` or `masks`.

    Attributes
    ----------
    path : Path
        The path of the annotations.
    searched : Path
        Where the annotations were found: the file, or the folder of the files.
    root : Path
        The folder of the images.
    names : list of str
        The images, relative to `root`.
    problems : list of (str, str)
        Entries that cannot be used and are left out, each with the reason.
    notes : list of str
        Further notes for the user.
    sha256 : str
        The SHA-256 of the annotations.
    """

    format: ClassVar[str]
    place: ClassVar[str]  # of the annotations in the folder that `write` fills
    has_names: ClassVar[bool] = True  # whether its categories have names, and not only numbers

    def __init__(self, path: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
        self.path = self.searched = Path(path)
        self.root = Path(root)
        self.problems: list[tuple[str, str]] = []
        self.notes: list[str] = []
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder; give the folder of the images")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file or folder; give the annotations")
        found, ignored = list_images(self.root)
        self._found, self.problems[:] = dict.fromkeys(found), ignored
        self._frames: dict[str, Frame] = {}
        self._unusable: set[str] = set()
        digest = hashlib.sha256()
        for part in self._read():
            digest.update(hashlib.sha256(part).digest())
        self.sha256 = digest.hexdigest()
        self.names = sorted(self._frames)
        if not self.names:
            raise ValueError(f"{self.path} has labels of no image in {self.root}{self._first_problem}")

    @abstractmethod
    def _read(self) -> Iterator[bytes]:
        """Read the annotations, call `_image` for every image, and yield the bytes that were read."""

    @abstractmethod
    def _things(self, name: str) -> list[Thing]:
        """The things in an image, in the frame of the annotations."""

    @abstractmethod
    def write(self, out: Path, made: Iterable[Made]) -> None:
        """Write the annotations of synthetic images, in the format that was read.

        Parameters
        ----------
        out : Path
        made : iterable of Made
        """

    def check_objects(self) -> None:
        """Raise ValueError if the format cannot tell single objects."""

    def check_any(self) -> None:
        """Raise ValueError if no image has an annotation."""
        if not any(self._things(name) for name in self.names):
            raise ValueError(f"no annotation fits an image in {self.root}; looked in {self.searched}"
                             f"{self._first_problem}")

    def check_out(self, out: str | os.PathLike[str]) -> None:
        """Raise ValueError if `out` lies among the images or the files of annotations."""
        check_outside(out, self.root)
        if self.searched.is_dir():
            check_outside(out, self.searched, "the folder of annotations", "the next run would read what is written")

    @property
    def _first_problem(self) -> str:
        return f"; the first problem: {self.problems[0][0]}: {self.problems[0][1]}" if self.problems else ""

    def objects(self, made: Made) -> Sequence[Placed]:
        """The objects of a synthetic image."""
        if made.objects is not None:
            return made.objects
        return [Placed(made.name, index) for index in range(len(self._things(made.name)))]

    def read_back(self, out: Path) -> Labels:
        """Read what `write` has written, with the images in ``out/images``."""
        return type(self)(out / self.place, out / LABEL)

    def _image(self, name: str, where: str, size: tuple[int, int] | None) -> bool:
        """Add an image with annotations for this size; False if it cannot be used, which is recorded in `problems`."""
        problem = None
        if name not in self._found:
            problem = f"names the image {name!r}, which is not in {self.root}"
        elif name in self._frames:
            problem = f"names the image {name!r} a second time"
        else:
            try:
                frame = read_frame(self.root / name)
            except BrokenImageError as error:
                where, problem = name, str(error)
                self._unusable.add(name)
            else:
                turned = Frame(frame.shown) if size is None else frame.turned_for(size)
                if turned is None and size is not None:
                    problem = (f"is for {size[1]} x {size[0]} pixels, and the image {name} has "
                               f"{frame.shown[1]} x {frame.shown[0]}")
                    self._unusable.add(name)
                elif turned is not None:
                    self._frames[name] = turned
        if problem is not None:
            self.problems.append((where, problem))
        return problem is None

    def _leave_out_others(self) -> None:
        """Add a note about images without annotations; `problems` has those that cannot be read or used."""
        others = [name for name in self._found if name not in self._frames and name not in self._unusable]
        if others:
            self.notes.append(f"{len(others)} of {len(self._found)} images in {self.root} have no annotations in "
                              f"{self.path} that can be used, and are left out; the first is {others[0]}")

    def _tell_of_empty(self) -> None:
        """Add a note about images without objects."""
        empty = [name for name in sorted(self._frames) if not self._things(name)]
        if empty:
            self.notes.append(f"{len(empty)} of {counted(len(self._frames), 'image')} have no objects in "
                              f"{self.searched}; the first is {empty[0]}")

    def _within(self, inside: str) -> str:
        """A file of the annotations, for `problems`: its path from the folder around `searched`."""
        return (Path(self.searched.name) / inside).as_posix()

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image as displayed."""
        return self._frames[name].shown

    def things(self, name: str) -> list[Thing]:
        """The things in an image, in pixels of the image as displayed."""
        frame = self._frames[name]
        every = self._things(name)
        if frame.orientation == 1:
            return every
        return [replace(thing,
                        box=frame.box(thing.box),
                        polygons=tuple(frame.points(points) for points in thing.polygons),
                        mask=None if thing.mask is None else frame.array(thing.mask)) for thing in every]

    def mask(self, name: str, keep: str = "objects", only: Container[int] | None = None) -> NDArray[np.bool_]:
        """The mask of the objects in an image, bool (H, W), for `Pipeline.augment` with this `keep`.

        Ignored regions belong to the part that is kept. `only` has the numbers of the objects that count, by default
        all.
        """
        shape = self.size(name)
        things = [thing for index, thing in enumerate(self.things(name)) if only is None or index in only]
        objects, ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for thing in things:
            region = ignored if thing.ignored else objects
            region |= thing.region(shape)
        return objects & ~ignored if keep == "background" else objects | ignored

    def categories(self, name: str) -> list[str]:
        """The categories in an image, each once, in order of appearance."""
        return list(dict.fromkeys(thing.category for thing in self.things(name) if not thing.ignored))

    def folder(self, keep: str = "objects", composition: Composition | None = None) -> AnnotatedFolder:
        """The images as a data set for `generate_dataset`, ordered by size.

        Parameters
        ----------
        keep : {"objects", "background", "none"}
            As in `Pipeline.augment`.
        composition : Composition, optional
            Objects of other images to place in each image; needs "objects".

        Raises
        ------
        ValueError
            `composition` is given, and `keep` is not "objects", or no object can be cut out.
        """
        from .compose import Composition
        from .folder import annotated_folder

        return annotated_folder(self, keep, composition or Composition())

    def prompts(self, template: str = "a photo of {}", prompt_syntax: Syntax = "a1111") -> dict[str, str]:
        """A prompt for each image of `folder`, by its key: the template with the categories in the image.

        Brackets in the names of categories are escaped, unless `prompt_syntax` is "plain".

        Raises
        ------
        ValueError
            `template` does not contain ``{}`` exactly once.
        """
        if template.count("{}") != 1:
            raise ValueError(f'{template!r} must hold {{}} once, where the categories go: "a photo of {{}}"')
        before, after = template.split("{}")
        return {f"{LABEL}/{name}": (self.placing(name, prompt_syntax)(before) + after).strip() for name in self.names}

    def placing(self, name: str, prompt_syntax: Syntax = "a1111") -> Callable[[str], str]:
        """A function that puts the categories in an image after a text: ``photo of a cat and a dog``.

        If there are none, it removes ``of a`` from the end of the text.
        """
        return partial(_with_categories, categories=self.categories(name), prompt_syntax=prompt_syntax)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return in_brackets(type(self).__name__, f"{str(self.path)!r}: {counted(len(self), 'image')}",
                           self.problems and counted(len(self.problems), "problem"))


def _with_categories(before: str, categories: Sequence[str], prompt_syntax: Syntax) -> str:
    if not categories:
        return re.sub(r"(\bof\s+)?(\ban?\s+)?$", "", before).rstrip()
    words = [placed("a ", class_words(category), prompt_syntax) for category in categories]
    listed = ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
    return re.sub(r"\ban?\s+([(\[]*)$", r"\1", before) + listed


# ---- helpers of the readers and writers

def read_text_file(path: Path) -> bytes:
    """Read the bytes of an annotation file; ValueError, with its name, if it cannot be read."""
    try:
        return read_bounded(path)
    except BrokenImageError as error:
        raise ValueError(f"{path}: {error}") from None


def checked_box(values: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | str:
    """A box (x, y, width, height) of an image, or the problem with it."""
    if not (isinstance(values, (list, tuple)) and len(values) == 4 and all(map(is_number, values))):
        return "its box is not four numbers"
    x, y, width, height = map(float, values)
    if width <= 0 or height <= 0:
        return f"its box is {width:g} x {height:g} pixels"
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        return f"its box lies outside of the image, which has {size[1]} x {size[0]} pixels"
    return x, y, width, height


def checked_polygon(values: Any) -> NDArray[np.float64] | str:
    """The points (n, 2) of a polygon given as x, y, x, y, ...; or the problem with it."""
    if not (isinstance(values, (list, tuple)) and len(values) % 2 == 0 and all(map(is_number, values))):
        return "a polygon is not pairs of numbers"
    if len(values) < 6:
        return f"a polygon has {counted(len(values) // 2, 'point')}; it needs three"
    return np.array(values, np.float64).reshape(-1, 2)


def is_number(value: Any) -> bool:
    """Whether a value can be a coordinate."""
    return type(value) in (int, float) and abs(value) <= FARTHEST  # False for NaN


def write_if_other(path: Path, content: bytes) -> None:
    """Write `content` to a file, unless it already has that content; its folder is created."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def png_bytes(image: Any) -> bytes:
    """A Pillow image as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
