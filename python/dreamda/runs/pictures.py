"""Contact sheets and pictures with labels, drawn with Pillow only."""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..copies.index import thinned
from ..data.files import BrokenImageError
from ..data.images import FITS, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.annotations import Labels, Thing
    from ..data.folders import ImageFolder

PAPER, INK, FAINT, FRAME = (255, 255, 255), (32, 33, 36), (110, 114, 120), (26, 115, 232)
MARGIN, GAP, GROUP_GAP, TEXT = 24, 6, 28, 16
COLOURS = ((230, 60, 50), (250, 190, 20), (50, 170, 80), (40, 120, 230), (170, 70, 200), (20, 180, 190))
CELL = 96  # target size in pixels: small images are enlarged towards it, large ones reduced to at most twice as much


def contact_sheet(seeds: np.ndarray,
                  variants: np.ndarray,
                  labels: Sequence[str],
                  *,
                  per_row: int = 1,
                  title: str = "") -> Image:
    """Every real image beside its variants, one class after the other.

    Parameters
    ----------
    seeds : uint8 (N, H, W, 3)
        The real images, framed in the picture.
    variants : uint8 (N, K, H, W, 3)
        The K synthetic images of each.
    labels : sequence of N str
        Class names. A row holds real images of one class, and has its name on the left.
    per_row : int
        Number of real images per row.
    title : str
        A line above the sheet.

    Returns
    -------
    PIL.Image.Image
        RGB. Small images are enlarged by a whole factor, without smoothing.
    """
    from PIL import Image, ImageDraw, ImageFont

    seeds, variants = np.asarray(seeds), np.asarray(variants)
    if seeds.ndim != 4 or variants.ndim != 5 or seeds.shape[-1] != 3 or variants.shape != (len(seeds),
                                                                                           variants.shape[1],
                                                                                           *seeds.shape[1:]):
        raise ValueError(
            "contact_sheet wants seeds (N, H, W, 3) and variants (N, K, H, W, 3); "
            f"it got {seeds.shape} and {variants.shape}")
    if len(labels) != len(seeds) or not len(seeds) or per_row < 1:
        raise ValueError(
            f"contact_sheet wants a label for each of one or more seeds; it got {len(labels)} "
            f"labels for {len(seeds)} seeds")

    rows: list[tuple[str, list[int]]] = []
    for label in dict.fromkeys(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        rows += [(label, members[i: i + per_row]) for i in range(0, len(members), per_row)]
    groups = max(len(members) for _, members in rows)
    height, width = seeds.shape[1:3]
    factor = max(1, CELL // max(height, width))
    scale = min(1.0, 2 * CELL / max(height, width))
    cell_w, cell_h = round(width * factor * scale), round(height * factor * scale)

    font, heading, small = (ImageFont.load_default(size) for size in (TEXT, round(TEXT * 1.4), round(TEXT * 0.8)))
    shown = [
        "".join(c if c.isprintable() else " " for c in label[:24]) + ("..." if len(label) > 24 else "")
        for label, _ in rows
    ]
    label_w = max(round(font.getlength(label)) for label in shown) + GROUP_GAP
    group_w = (1 + variants.shape[1]) * (cell_w + GAP) - GAP + 2 * GAP  # the real image has a wider gap
    top = MARGIN + (round(TEXT * 2.4) if title else 0) + round(TEXT * 1.5)
    inner_w = max(label_w + groups * (group_w + GROUP_GAP) - GROUP_GAP, round(heading.getlength(title)))
    sheet = Image.new("RGB", (inner_w + 2 * MARGIN, top + len(rows) * (cell_h + GAP) - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, heading)

    def paste(pixels: np.ndarray, x: int, y: int) -> None:
        image = Image.fromarray(pixels)
        resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
        sheet.paste(image.resize((cell_w, cell_h), resample), (x, y))

    for group in range(groups):
        x = MARGIN + label_w + group * (group_w + GROUP_GAP)
        draw.text((x, top - 6), "real", FRAME, small, anchor="ls")
        draw.text((x + cell_w + 3 * GAP, top - 6), "synthetic", FAINT, small, anchor="ls")
    for row, (label, members) in enumerate(rows):
        y = top + row * (cell_h + GAP)
        if row == 0 or rows[row - 1][0] != label:
            draw.text((MARGIN, y + cell_h / 2), shown[row], INK, font, anchor="lm")
        for group, member in enumerate(members):
            x = MARGIN + label_w + group * (group_w + GROUP_GAP)
            paste(seeds[member], x, y)
            draw.rectangle((x - 2, y - 2, x + cell_w + 1, y + cell_h + 1), outline=FRAME, width=2)
            for k, pixels in enumerate(variants[member]):
                paste(pixels, x + (k + 1) * (cell_w + GAP) + 2 * GAP, y)
    return sheet


def picture(path: str | os.PathLike[str]) -> Image:
    """An image file, enlarged or reduced to `CELL` pixels for a page.

    Raises
    ------
    BrokenImageError
        The file cannot be read.
    """
    from PIL import Image

    image = Image.fromarray(read_image(path).pixels)
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)


def sheet_of_run(out: str | os.PathLike[str],
                 folder: ImageFolder,
                 rows: Iterable[Mapping[str, Any]] | None = None,
                 *,
                 title: str = "") -> Image:
    """A contact sheet of a folder written by `dreamda generate` from this data set; with labels, if it has any.

    `rows` are lines of its metadata.jsonl; default: all.
    """
    if folder.annotations is not None:
        return labelled_sheet(out, folder.annotations, rows, title=title)
    return contact_sheet_of_run(out, folder.root, rows, title=title)


def labelled_sheet(out: str | os.PathLike[str],
                   labels: Labels,
                   rows: Iterable[Mapping[str, Any]] | None = None,
                   *,
                   most: int = 12,
                   max_variants: int = 4,
                   title: str = "") -> Image:
    """Labelled real images beside their synthetic images, all with boxes and outlines.

    Parameters
    ----------
    out : path
        The run.
    labels : Labels
        The labels of the data set that it was made from.
    rows : mappings, optional
        Lines of its metadata.jsonl; default: all.
    most, max_variants : int
        Maximum number of real images to show, evenly spread, and of variants of each.
    title : str

    Raises
    ------
    ValueError
        A line of metadata.jsonl is not one of dreamda generate, or an image is gone or broken.
    """
    from PIL import Image, ImageDraw, ImageFont

    from .manifest import read_manifest

    files: dict[str, list[str]] = {}
    for row in read_manifest(out) if rows is None else rows:
        files.setdefault(row["seed_file"].removeprefix(row["label"] + "/"), []).append(row["file_name"])
    made = labels.read_back(Path(out))
    known = set(labels.names)
    names = [name for name in files if name in known]
    names = [names[i] for i in thinned(len(names), most)]
    if not names:
        raise ValueError(f"{Path(out) / 'metadata.jsonl'} lists no images of {labels.path}")
    cell = 2 * CELL
    columns = 1 + min(max_variants, max(len(files[name]) for name in names))
    heading = ImageFont.load_default(round(TEXT * 1.4))
    top = MARGIN + (round(TEXT * 2.4) if title else 0)
    width = max(columns * (cell + GAP) + 2 * GAP, round(heading.getlength(title)))
    sheet = Image.new("RGB", (width + 2 * MARGIN, top + len(names) * (cell + GAP) - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, heading)
    for row_number, name in enumerate(names):
        pictures = [(labels.root / name, labels.things(name))]
        for file in files[name][: columns - 1]:
            inside = file.partition("/")[2]
            pictures.append((Path(out) / file, made.things(inside) if inside in made.names else []))
        for column, (path, things) in enumerate(pictures):
            try:
                image = Image.fromarray(draw_labels(read_image(path).pixels, things))
            except BrokenImageError as error:
                raise ValueError(f"{path}: {error}; repair or remove it") from None
            if (factor := cell // max(image.size)) > 1:
                image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
            image.thumbnail((cell, cell))
            x, y = MARGIN + column * (cell + GAP) + (2 * GAP if column else 0), top + row_number * (cell + GAP)
            sheet.paste(image, (x, y))
            if not column:
                draw.rectangle((x - 2, y - 2, x + image.width + 1, y + image.height + 1), outline=FRAME, width=2)
    return sheet


def draw_labels(pixels: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
    """An image, uint8 (H, W, 3), with the boxes, outlines and categories of its objects."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    width, font = max(1, min(image.size) // 150), ImageFont.load_default(max(8, min(image.size) // 20))
    categories: dict[str, int] = {}
    for thing in things:
        number = categories.setdefault(thing.category, len(categories))
        colour = FAINT if thing.ignored else COLOURS[number % len(COLOURS)]
        x, y, w, h = thing.box
        if thing.mask is not None:
            edge = thing.mask & ~_eroded(thing.mask, width)
            image.paste(colour, mask=Image.fromarray((edge * 255).astype(np.uint8)))
        for points in thing.polygons:
            draw.line([(float(x), float(y)) for x, y in (*points, points[0])], colour, width)
        draw.rectangle((x, y, x + w - 1, y + h - 1), outline=colour, width=width)
        draw.text((x + width + 1, y + width), thing.category, colour, font)
    return np.asarray(image)


def _eroded(mask: np.ndarray, by: int) -> np.ndarray:
    for axis in (0, 1):
        padded = np.pad(mask, [(by, by) if a == axis else (0, 0) for a in (0, 1)], constant_values=False)
        n = mask.shape[axis]
        mask = np.logical_and.reduce([np.take(padded, range(i, i + n), axis) for i in range(2 * by + 1)])
    return mask


def contact_sheet_of_run(out: str | os.PathLike[str],
                         real: str | os.PathLike[str],
                         rows: Iterable[Mapping[str, Any]] | None = None,
                         *,
                         per_class: int = 2,
                         max_classes: int = 20,
                         max_variants: int = 6,
                         title: str = "") -> Image:
    """A `contact_sheet` of a folder written by `dreamda generate`, with the first real images of each class.

    Parameters
    ----------
    out, real : path
        The run, and the data set that it was made from.
    rows : mappings, optional
        Lines of its metadata.jsonl; default: all.
    per_class, max_classes, max_variants : int
        Maximum numbers of real images per class, of classes, and of variants to show.
    title : str

    Raises
    ------
    ValueError
        A line of metadata.jsonl is not one of dreamda generate, or an image is gone or broken.
    """
    from .manifest import read_manifest

    shown: dict[str, dict[str, list[str]]] = {}  # class -> real image -> files
    for row in read_manifest(out) if rows is None else rows:
        size: Any = row.get("size")
        fit = "squash" if row.get("fit") not in FITS else row["fit"]  # the behaviour before the option existed
        if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and 0 < s <= 8192 for s in size):
            raise ValueError(
                f"{Path(out) / 'metadata.jsonl'}: the size of {row['file_name']} is no size; "
                "it is not as dreamda generate wrote it")
        files = shown.setdefault(row["label"], {}).setdefault(row["seed_file"], [])
        if len(files) < max_variants:
            files.append(row["file_name"])
    picked = [(label, seed, files) for label, seeds in list(shown.items())[:max_classes]
              for seed, files in list(seeds.items())[:per_class]]
    if not picked:
        raise ValueError(f"{Path(out) / 'metadata.jsonl'} lists no images")

    def read(path: Path, *how: Any) -> np.ndarray:
        try:
            return read_image(path, *how).pixels
        except BrokenImageError as error:
            raise ValueError(f"{path}: {error}; repair or remove it") from None

    seeds = np.stack([read(Path(real) / seed, (size[0], size[1]), fit) for _, seed, _ in picked])
    blank = np.full_like(seeds[0], 255)  # in an unfinished run, some real images have fewer variants
    most = max(len(files) for _, _, files in picked)
    variants = np.stack([[read(Path(out) / files[i]) if i < len(files) else blank for i in range(most)]
                         for _, _, files in picked])
    return contact_sheet(seeds,
                         variants, [label.replace("_", " ") for label, _, _ in picked],
                         per_row=per_class,
                         title=title)
