"""Write image folders as WebDataset shards.

    dreamda.to_webdataset("synthetic", "shards/synthetic-%06d.tar")

Hugging Face's ``datasets`` needs no conversion: ``load_dataset("imagefolder", data_dir=OUT)`` reads what `dreamda
generate` writes, with a column for each field of metadata.jsonl. The column ``label`` is text;
``.class_encode_column("label")`` turns it into a ``ClassLabel``.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

from .files import read_bounded, read_json_lines
from .folders import ImageFolder


def to_webdataset(out: str | os.PathLike[str], tar_pattern: str, *, shard_size: int = 1000) -> list[Path]:
    """Write an output of `dreamda generate`, or another image folder, as tar files in WebDataset's format.

    A sample is ``00000000.png`` (or .jpg, ...: the unchanged file), ``00000000.json`` (its line of metadata.jsonl, with
    the label) and ``00000000.cls`` (the index of the label among the folder's classes, sorted by code point). An image
    whose label is null has no .cls. Equal folders give bitwise identical shards. A shard appears when it is complete.

    Parameters
    ----------
    out : path
        The folder, ``OUT/<class>/<image>``, with or without metadata.jsonl.
    tar_pattern : str
        A path with one number, such as ``"shards/train-%06d.tar"``; its folder is created.
    shard_size : int
        The number of samples per shard.

    Returns
    -------
    list of Path
        The shards.

    Raises
    ------
    ValueError
        The pattern, the folder or a line of metadata.jsonl cannot be used, an image differs from the one that its line
        describes, or old shards of a longer set would remain among the new ones.
    """
    if len(re.findall(r"%0?\d*d", tar_pattern)) != 1 or tar_pattern.replace("%%", "").count("%") != 1:
        raise ValueError(f'tar_pattern {tar_pattern!r} must hold one number, as in "shards/train-%06d.tar"')
    if shard_size < 1:
        raise ValueError(f"shard_size must be 1 or more; it is {shard_size}")
    folder = ImageFolder.scan(out)
    path = folder.root / "metadata.jsonl"
    rows = _rows(folder, path) if path.is_file() else [{"file_name": image.key, "label": image.label}
                                                       for image in folder.images]
    number = {label: i for i, label in enumerate(folder.classes)}
    if unknown := sorted({row["label"] for row in rows if row["label"] is not None} - number.keys()):
        raise ValueError(f"{path} has the label {unknown[0]!r}, which is no class folder of {folder.root}")
    stale = Path(tar_pattern % -(-len(rows) // shard_size))
    if stale.exists():
        raise ValueError(f"{stale} is of another, longer set of shards; remove those or give another tar_pattern")
    shards: list[Path] = []
    for start in range(0, len(rows), shard_size):
        shard = Path(tar_pattern % len(shards))
        shard.parent.mkdir(parents=True, exist_ok=True)
        temporary = shard.with_name(f".{shard.name}.tmp")
        try:
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
                for index, row in enumerate(rows[start: start + shard_size], start):
                    _add_sample(tar, f"{index:08d}", folder.root / row["file_name"], row, number)
            os.replace(temporary, shard)
        finally:
            temporary.unlink(missing_ok=True)
        shards.append(shard)
    return shards


def _rows(folder: ImageFolder, path: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl; a missing label is replaced by the folder's name."""
    there = {image.key: image for image in folder.images}
    rows = []
    for line, row in read_json_lines(path):
        image = there.get(row["file_name"]) if isinstance(row.get("file_name"), str) else None
        if image is None:
            raise ValueError(
                f'{path} line {line}: its "file_name" {row.get("file_name")!r} is no image of {folder.root}')
        row.setdefault("label", image.label)
        if not isinstance(row["label"], (str, type(None))):
            raise ValueError(f"{path} line {line}: the label must be a text or null; it is {row['label']!r}")
        rows.append(row)
    return rows


def _add_sample(tar: tarfile.TarFile, key: str, path: Path, row: dict[str, Any], number: dict[str, int]) -> None:
    content = read_bounded(path)
    if "sha256" in row and hashlib.sha256(content).hexdigest() != row["sha256"]:
        raise ValueError(f"{path} is not the image that its line of metadata.jsonl is about; make it again")
    members = {path.suffix.lower().removeprefix("."): content, "json": json.dumps(row, ensure_ascii=False).encode()}
    if row["label"] is not None:
        members["cls"] = str(number[row["label"]]).encode()
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
