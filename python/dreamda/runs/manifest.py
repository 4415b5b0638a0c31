"""metadata.jsonl of `dreamda generate`: one line per synthetic image, appended when the image is finished.

During a run, and after a kill, the lines are in the order in which the images were made; of two lines about the same
image the later one counts. When the run ends, the lines are sorted by class, real image and variant.
"""
from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import MAX_LINE_BYTES

NAME = "metadata.jsonl"
LEFT_OUT = "left_out.jsonl"  # variants that were left out, one line for each; see safeguards.py


def read_manifest(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per image of a finished, running or stopped run, sorted by class, real image and variant.

    Raises
    ------
    FileNotFoundError
        There is no metadata.jsonl: no image is finished yet, or the folder is not an output of `dreamda generate`.
    ValueError
        A line was not written by `dreamda generate`; the message names it.
    """
    path = Path(out) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{out} has no {NAME}; give the OUT of a dreamda generate that has finished an image")
    return in_order(read_rows(path))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metadata.jsonl in the order of the file, without an incomplete last line."""
    return _read(path, is_row)


def read_left_out(out: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of left_out.jsonl in the order of the file, if there is one."""
    path = Path(out) / LEFT_OUT
    return _read(path, _is_left_out) if path.is_file() else iter(())


def _read(path: Path, is_valid: Callable[[Any], bool]) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if row := _parsed(line, is_valid):
                yield row
            elif not line.isspace():
                if _is_torn(line):
                    return
                raise ValueError(
                    f"{path} line {number} is not a line of dreamda generate; correct it, or give another OUT")


def _is_torn(line: bytes) -> bool:
    """Whether a line is incomplete. The last one may be, after a kill or while it is written."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES
    return False


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of every image, sorted by class, real image and variant."""
    newest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        newest[row["label"], row["seed_file"].removeprefix(row["label"] + "/"), row["variant"]] = row
    return [newest[key] for key in sorted(newest)]


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metadata.jsonl; None if it is not such a line."""
    return _parsed(line, is_row)


def _parsed(line: bytes, is_valid: Callable[[Any], bool]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if is_valid(row) else None


def format_row(row: Mapping[str, Any]) -> str:
    """A row as a line of metadata.jsonl."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def is_row(row: Any) -> bool:
    """Whether this is the row of an image: every field has its type, and file names stay inside OUT."""
    if not _is_variant(row) or not isinstance(row.get("file_name"), str):
        return False
    folder, _, name = row["file_name"].partition("/")
    return (folder == row["label"] and not {folder, name} & {"", ".", ".."} and not set("/\0") & set(name)
            and "\0" not in folder)


def _is_left_out(row: Any) -> bool:
    return _is_variant(row) and type(row.get("similarity")) in (int, float)


def _is_variant(row: Any) -> bool:
    """Whether the row names a variant of a real image."""
    if not (isinstance(row, dict)
            and all(isinstance(row.get(k), str) for k in ("label", "seed_file", "seed_sha256"))):
        return False
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return type(row.get("variant")) is int and row["label"] == row["seed_file"].partition("/")[0]


def encode_png(pixels: np.ndarray, about: Mapping[str, Any]) -> bytes:
    """A PNG of `pixels`, uint8 (H, W, 3), with `about` as JSON in its text field "dreamda".

    Equal arguments give equal bytes.
    """
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("dreamda", json.dumps(about, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()
