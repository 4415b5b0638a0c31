"""Metadata files of data sets, by the convention of Hugging Face: ``metadata.jsonl`` or ``metadata.csv``, a line an
image.

They lie in the data set, or in a folder that holds images; ``file_name`` is relative to the folder of the file.
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
    """The metadata file in a folder; None where there is none, ValueError where there are two."""
    found = [path for name in NAMES if (path := Path(folder) / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(NAMES)}; keep one of them")
    return found[0] if found else None


def metadata_files(folder: ImageFolder) -> list[Path]:
    """The metadata files of a data set: in its root, and in every folder that holds images."""
    places = {folder.root, *(folder.path(image).parent for image in folder.images)}
    return [path for place in sorted(places) if (path := metadata_file(place)) is not None]


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON Lines or CSV file, each with its line number.

    Raises
    ------
    ValueError
        Names the first line that is no row.
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
