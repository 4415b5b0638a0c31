"""Fashion-MNIST, in the IDX format of MNIST."""
from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..prompts import fill_template
from .common import DataSet, ImportReport, Picture
from .source import MAX_ANNOTATION_BYTES, Source, read_member

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    report.notes.append(
        "images were padded with 2 black pixels on each side to 32 x 32, as the bundled model "
        "fashion-mini has seen them")
    for split, stem in (("train", "train"), ("test", "t10k")):
        arrays = []
        for kind, dimensions in (("images", 3), ("labels", 1)):
            pattern = rf"(?:^|/){stem}-{kind}[-.]idx{dimensions}-ubyte(\.gz)?$"
            what = f"{stem}-{kind}-idx{dimensions}-ubyte.gz"
            found = source.require(pattern, what) if split == "train" else source.find(pattern)
            if not found.matches:
                report.notes.append(f"{what} is missing, so there are no test images")
                break
            name = min(found.matches)
            for _, file in found.place.read({name}):
                arrays.append(_idx(file, name.endswith(".gz"), dimensions, f"{found.place.title}: {name}"))
        if len(arrays) < 2:
            continue
        images, labels = arrays
        if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
            raise ValueError(
                f"{source.path}: the {stem} files do not belong together: images {images.shape}, labels {labels.shape}")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = CLASSES[label]
            yield Picture(split, name, f"{number:05d}.png", fill_template("a photo of a {}", name), np.pad(image, 2))


def _idx(file: IO[bytes], compressed: bool, dimensions: int, what: str) -> NDArray[np.uint8]:
    """Read an array in MNIST's IDX format.

    The format is 0, 0, 8 (bytes), the number of dimensions, each dimension as a big-endian number, then the bytes.
    """
    with gzip.open(file) if compressed else contextlib.nullcontext(file) as stream:
        content = read_member(stream, MAX_ANNOTATION_BYTES, what)
    shape = tuple(int.from_bytes(content[4 + 4 * i: 8 + 4 * i], "big") for i in range(dimensions))
    data = content[4 + 4 * dimensions:]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(data) != int(np.prod(shape, dtype=object)):
        raise ValueError(
            f"{what} is no IDX file of bytes with {dimensions} dimensions, or not all of it; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


DATA_SET = DataSet("Fashion-MNIST", ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                                     "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
                   {"train": 60_000, "test": 10_000}, 10, _read)
