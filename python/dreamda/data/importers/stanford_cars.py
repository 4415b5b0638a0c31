"""Stanford Cars, whose labels are in MATLAB files."""
from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..prompts import fill_template
from ..folders import folder_name
from .common import DataSet, ImportReport, Picture, image_files
from .source import Source


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError(
            'Stanford Cars has its labels in MATLAB files, which SciPy reads: pip install "dreamda-c[datasets]"'
        ) from None

    def variable(content: bytes, file: str, name: str) -> NDArray[Any]:
        try:
            return np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True, variable_names=[name])[name])
        except Exception as error:  # the file is untrusted, and SciPy may raise anything
            raise ValueError(
                f"{source.path}: {file} is no MATLAB file with {name!r} in it ({str(error) or type(error).__name__})"
            ) from error

    cars = [
        str(c) for c in variable(source.required_file(r"(?:^|/)cars_meta\.mat$", "cars_meta.mat"), "cars_meta.mat",
                                 "class_names")
    ]
    for split, folder, file in (("train", "cars_train", "cars_train_annos.mat"), ("test", "cars_test",
                                                                                  "cars_test_annos_withlabels.mat")):
        pattern = rf"(?:^|/){re.escape(file)}$"
        content = source.required_file(pattern, file) if split == "train" else source.file(pattern, file)
        if content is None:
            report.notes.append(
                f"{file} is missing (the devkit's cars_test_annos.mat has no labels), so there are no test images")
            continue
        rows = variable(content, file, "annotations")
        if not {"class", "fname"} <= set(rows.dtype.names or ()):
            raise ValueError(
                f"{source.path}: {file} has no fields class and fname but {', '.join(rows.dtype.names or ('none',))}")
        image = rf"(?:^|/){folder}/(\d+\.jpg)$"
        found = source.require(image, f"{folder}/00001.jpg") if split == "train" else source.find(image)
        if not found.matches:
            report.notes.append(f"{folder}/ is missing, so there are no test images")
            continue
        at = {match[1]: name for name, match in found.matches.items()}
        places = {}
        for row in rows:
            number, name = int(row["class"]), str(row["fname"])
            if not 1 <= number <= len(cars):
                raise ValueError(
                    f"{source.path}: {file} gives {name} the class {number}; cars_meta.mat has {len(cars)}")
            car = " ".join(cars[number - 1].split())
            if name in at:
                places[at[name]] = (split, folder_name(car), name, fill_template("a photo of a {}", car))
            else:
                report.skipped.append((f"{folder}/{name}", f"named by {file}, but not there"))
        yield from image_files(found, places)


DATA_SET = DataSet("Stanford Cars",
                   ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"),
                   {"train": 8144, "test": 8041}, 196, _read)
