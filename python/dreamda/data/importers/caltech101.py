"""Caltech-101: 30 training images per class, as used by the authors of the data set and in the paper."""
from __future__ import annotations

from collections.abc import Iterator

from ...text import counted
from ..prompts import fill_template
from .common import DataSet, ImportReport, Picture, drawn, image_files
from .source import Source

WORDS = {
    "Faces": "person's face",
    "Faces_easy": "person's face, close-up",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "binocular": "pair of binoculars",
    "car_side": "car from the side",
    "cougar_body": "cougar",
    "cougar_face": "cougar's face",
    "crocodile_head": "crocodile's head",
    "flamingo_head": "flamingo's head",
    "garfield": "cartoon cat Garfield",
    "snoopy": "cartoon dog Snoopy",
    "scissors": "pair of scissors",
    "water_lilly": "water lily",
    "yin_yang": "yin yang symbol",
    "buddha": "buddha statue",
    "brain": "human brain",
}
# images per class, the protocol of the data set's authors; for 101 classes this gives the paper's 3,030
TRAINING = 30


def _read(source: Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)101_ObjectCategories/([^/]+)/(image_\d+\.jpg)$",
                           "101_ObjectCategories/<class>/image_0001.jpg")
    of_class: dict[str, list[str]] = {}
    for name, match in found.matches.items():
        of_class.setdefault(match[1], []).append(name)
    if background := of_class.pop("BACKGROUND_Google", None):
        report.notes.append(f"the class BACKGROUND_Google ({counted(len(background), 'image')}) was left out, "
                            "as in the paper")
    places = {}
    for label, names in of_class.items():
        training = drawn((f"{label}/{found.matches[n][2]}" for n in names), TRAINING)
        text = fill_template("a photo of a {}", WORDS.get(label, label))
        for name in names:
            stem = found.matches[name][2]
            places[name] = ("train" if f"{label}/{stem}" in training else "test", label, stem, text)
    yield from image_files(found, places)


DATA_SET = DataSet("Caltech-101", ("caltech-101.zip", "101_ObjectCategories.tar.gz"), {"train": 3030, "test": 5647},
                   101, _read,
                   "none is official; 30 training images a class as in the paper, drawn by a hash of their names")
