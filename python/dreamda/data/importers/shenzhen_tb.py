"""The Shenzhen chest X-rays."""
from __future__ import annotations

from collections.abc import Iterator

from .common import DataSet, ImportReport, Picture, drawn, image_files
from .source import Source

TRAINING = 0.7          # of each class: 228 + 235, the paper's 463


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)CXR_png/(CHNCXR_\d{4}_([01])\.png)$", "CXR_png/CHNCXR_0001_0.png")
    places: dict[str, tuple[str, str, str, str]] = {}
    for digit, label, text in (("0", "normal", "a chest X-ray of a healthy patient, normal lungs"),
                               ("1", "tuberculosis", "a chest X-ray of a patient with pulmonary tuberculosis")):
        names = {match[1]: name for name, match in found.matches.items() if match[2] == digit}
        training = drawn(names, round(TRAINING * len(names)))
        places |= {at: ("train" if name in training else "test", label, name, text) for name, at in names.items()}
    yield from image_files(found, places)


DATA_SET = DataSet(
    "the Shenzhen tuberculosis set", ("ChinaSet_AllFiles.zip", ), {"train": 463, "test": 199}, 2, _read,
    "none is official; 70 % of each class for training (the paper's 463), drawn by a hash of their names")
