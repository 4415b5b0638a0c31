"""Metadata files of data sets in Hugging Face's format: ``metadata.jsonl`` or ``metadata.csv``, one line per image.

They are in the root of the data set, or in a folder that contains images. ``file_name`` is relative to the folder of
the file.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import read_bounded, read_json_lines
from .folders import ImageFolder

NAMES = ("metadata.jsonl", "metadata.csv")


def metadata_file(folder: str | os.PathLike[str]) -> Path | None:
    """The metadata file in a folder; None if there is none, ValueError if there are two."""
    found = [path for name in NAMES if (path := Path(folder) / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(NAMES)}; keep one of them")
    return found[0] if found else None


def metadata_files(folder: ImageFolder) -> list[Path]:
    """The metadata files of a data set: in its root, and in every folder that contains images."""
    places = {folder.root, *(folder.path(image).parent for image in folder.images)}
    return [path for place in sorted(places) if (path := metadata_file(place)) is not None]


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a JSON Lines or CSV file, each with its line number.

    Raises
    ------
    ValueError
        A line is not a row; the message names the first such line.
    OSError
        The file cannot be read.
    """
    if os.path.splitext(path)[1].lower() != ".csv":
        yield from read_json_lines(path)
        return
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    reader = None
    try:
        reader = csv.DictReader(io.StringIO(read_bounded(path).decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError
            yield reader.line_num, row
    except (csv.Error, ValueError) as error:
        line = f" line {reader.line_num}" if reader is not None else ""
        raise ValueError(
            f"{path}{line} is not CSV with as many fields as its first line names, in UTF-8; correct it") from error


def rows_of_images(folder: ImageFolder, *paths: str | os.PathLike[str],
                   strict: bool = True) -> Iterator[tuple[Path, int, dict[str, Any], str]]:
    """Yield the rows of metadata files for the images of a data set: file, line number, row and image key.

    A ``file_name`` is relative to the data set root, relative to the metadata file's folder, or a bare name
    (``image.png``) that only one class has. Rows for files that the data set ignores or excludes are skipped.

    Parameters
    ----------
    folder : ImageFolder
    *paths : paths
    strict : bool
        Refuse rows without a ``file_name``, and names that match no image or several; otherwise they are skipped.

    Raises
    ------
    ValueError
        There is such a row, or a line that is not a row; the message names the first.
    OSError
        A file cannot be read.
    """
    keys = {image.key for image in folder.images}
    ignored = {name for name, _ in folder.ignored}
    ignored |= {name for image in folder.excluded for name in (image.key, image.name.rpartition("/")[2])}
    plain: dict[str, list[str]] = {}
    for image in folder.images:
        plain.setdefault(image.name.rpartition("/")[2], []).append(image.key)
    for path in map(Path, paths):
        inside = path.parent.relative_to(folder.root).as_posix() + "/" if folder.root in path.parent.parents else ""
        for number, row in read_rows(path):
            name = row.get("file_name")
            if not isinstance(name, str):
                if not strict:
                    continue
                raise ValueError(f'{path} line {number} must have the text "file_name"')
            found = [key for key in dict.fromkeys((inside + name, name)) if key in keys][:1] or plain.get(name, [])
            if not found and {inside + name, name} & ignored or not strict and len(found) != 1:
                continue
            if not found:
                raise ValueError(f"{path} line {number} names {name!r}, which is no image of {folder.root}; "
                                 "remove the line or add the image")
            if len(found) > 1:
                raise ValueError(f"{path} line {number}: {name!r} is in several classes; write it as {found[0]!r}")
            yield path, number, row, found[0]


def check_labels(folder: ImageFolder) -> None:
    """Refuse labels in the metadata files of a data set that contradict its class folders.

    The class folders are authoritative. Different words for the classes are not a contradiction.

    Raises
    ------
    ValueError
        A class folder has images with two labels, or a label is given to images of two class folders.
    """
    label_of: dict[str, str | int] = {}
    class_of: dict[str | int, str] = {}
    for path, number, row, key in rows_of_images(folder, *metadata_files(folder), strict=False):
        label, name = row.get("label"), key.split("/")[0]
        if not isinstance(label, (str, int)) or label == "":
            continue
        if label_of.setdefault(name, label) != label:
            raise ValueError(f"{path} line {number} gives {key!r} the label {label!r}, and other images of that class "
                             f"folder {label_of[name]!r}; the class folders count: put the image into the right one, "
                             "or remove the column")
        if class_of.setdefault(label, name) != name:
            raise ValueError(f"{path} line {number} gives {key!r} the label {label!r}, as it does images of the class "
                             f"folder {class_of[label]!r}; the class folders count: put the image into the right one, "
                             "or remove the column")
