"""STL-10, with its unlabelled images."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..prompts import fill_template
from .common import UNLABELLED, DataSet, ImportReport, Picture
from .source import Source, records

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    pixels = 3 * 96 * 96
    labels: dict[str, NDArray[np.uint8]] = {}
    for split in ("train", "test"):
        pattern, what = rf"(?:^|/){split}_y\.bin$", f"stl10_binary/{split}_y.bin"
        content = source.required_file(pattern, what) if split == "train" else source.file(pattern, what)
        if content is None:
            report.notes.append(f"{what} is missing, so there are no test images")
            continue
        labels[split] = np.frombuffer(content, np.uint8)
        if len(labels[split]) == 0 or labels[split].min() < 1 or labels[split].max() > 10:
            raise ValueError(f"{source.path}: {split}_y.bin must hold a byte from 1 to 10 for each image")
    source.require(r"(?:^|/)train_X\.bin$", "stl10_binary/train_X.bin")
    found = source.find(r"(?:^|/)(train|test|unlabeled)_X\.bin$")
    there = {match[1] for match in found.matches.values()}
    report.notes += [f"{part}_X.bin is missing" for part in ("test", "unlabeled") if part not in there]
    for name, file in found.place.read(found.matches):
        part, what = found.matches[name][1], f"{found.place.title}: {name}"
        if part != "unlabeled" and part not in labels:
            continue
        number = -1
        for number, record in enumerate(records(file, pixels, what)):
            # each channel is stored column by column
            image = np.frombuffer(record, np.uint8).reshape(3, 96, 96).transpose(2, 1, 0)
            if part == "unlabeled":
                yield Picture(UNLABELLED, "images", f"{number:06d}.png", None, image)
            elif number < len(labels[part]):
                label = CLASSES[labels[part][number] - 1]
                yield Picture(part, label, f"{number:05d}.png", fill_template("a photo of a {}", label), image)
        if part != "unlabeled" and number + 1 != len(labels[part]):
            raise ValueError(
                f"{what} has {number + 1:,} images, but {part}_y.bin {len(labels[part]):,} labels; download them again")


DATA_SET = DataSet("STL-10", ("stl10_binary.tar.gz",), {"train": 5000, "test": 8000, UNLABELLED: 100_000}, 10, _read)
