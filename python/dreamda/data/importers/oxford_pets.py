"""Oxford-IIIT Pets."""
from __future__ import annotations

import re
from collections.abc import Iterator

from ..prompts import fill_template
from .common import DataSet, ImportReport, Picture, image_files
from .source import Source


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)images/([A-Za-z_]+)_(\d+)\.jpg$", "images/Abyssinian_1.jpg")
    at = {f"{match[1]}_{match[2]}": name for name, match in found.matches.items()}
    places = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        pattern = rf"(?:^|/)annotations/{file}$"
        content = source.required_file(pattern, f"annotations/{file}") if split == "train" else source.file(
            pattern, file)
        if content is None:
            report.notes.append(f"annotations/{file} is missing, so there are no test images")
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = re.fullmatch(r"([A-Za-z_]+)_(\d+) (\d+) ([12]) (\d+)", line.strip())
            if not match:
                raise ValueError(
                    f'{source.path}: annotations/{file} line {number} is not "name class species breed": {line[:60]!r}')
            stem = f"{match[1]}_{match[2]}"
            text = fill_template("a photo of a {}", f"{match[1]}, a breed of {'cat' if match[4] == '1' else 'dog'}")
            if stem in at:
                places[at[stem]] = (split, match[1], f"{stem}.jpg", text)
            else:
                report.skipped.append((f"images/{stem}.jpg", f"named by annotations/{file}, but not there"))
    yield from image_files(found, places)


DATA_SET = DataSet("Oxford-IIIT Pets", ("images.tar.gz", "annotations.tar.gz"), {"train": 3680, "test": 3669}, 37,
                   _read)
