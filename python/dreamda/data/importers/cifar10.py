"""CIFAR-10, the binary version."""
from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ..prompts import fill_template
from .common import DataSet, ImportReport, Picture
from .source import Source, records

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    found = source.find(r"(?:^|/)(?:data_batch_([1-5])|test_batch)\.bin$")
    if not found.matches:
        pickled = source.find(
            r"cifar-10-batches-py/|cifar-10-python\.tar\.gz$").matches or source.path.name == "cifar-10-python.tar.gz"
        if pickled:
            raise ValueError(
                f"{source.path} is the Python version of CIFAR-10, made of pickles, and those are never opened here; "
                "give the binary version, cifar-10-binary.tar.gz")
    source.require(r"(?:^|/)data_batch_[1-5]\.bin$", "cifar-10-batches-bin/data_batch_1.bin")
    there = {os.path.basename(name) for name in found.matches}
    report.notes += [
        f"{name} is missing" for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
        if name not in there
    ]
    for name, file in found.place.read(found.matches):
        batch, what = found.matches[name][1], f"{found.place.title}: {name}"
        for number, record in enumerate(records(file, 1 + 3072, what)):
            if record[0] > 9:
                raise ValueError(f"{what}: image {number} has the label {record[0]}; CIFAR-10's are 0 to 9")
            label = CLASSES[record[0]]
            image = np.frombuffer(record, np.uint8, offset=1).reshape(3, 32, 32).transpose(1, 2, 0)
            yield Picture("train" if batch else "test", label,
                          f"{batch}-{number:05d}.png" if batch else f"{number:05d}.png",
                          fill_template("a photo of a {}", label), image)


DATA_SET = DataSet("CIFAR-10", ("cifar-10-binary.tar.gz",), {"train": 50_000, "test": 10_000}, 10, _read)
