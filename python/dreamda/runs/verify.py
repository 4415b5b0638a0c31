"""Checks of labelled images: whether a classifier still recognises the objects in what was made of them.

    verify = Verifier("classifier", folder, seed=0)
    generate_dataset(folder, "synthetic", pipe, options, verify=verify)

The classifier is one of `dreamda train` on the crops of real objects (`dreamda crops`). It judges the objects that it
recognises in their real images: an object is lost if it takes the new one for something else. Objects that it does not
recognise in the real image, or does not know, are not judged.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..data.annotations import Thing
from ..data.annotations.crops import class_folders, crop
from ..data.files import BrokenImageError, digest_of_file
from ..data.folders import ImageFolder, ImageRef
from ..data.images import read_image
from ..options import ParameterError
from ..training.saved import TrainedModel
from .files import model_file

ACTIONS = ("drop", "flag")


class Verify(Protocol):
    """Judges the objects in a new image, uint8 (H, W, 3), that is a variant of a real one.

    `identity` has the fields that it adds to run.json; the result has those of the image's row.
    """

    identity: Mapping[str, Any]

    def __call__(self, image: ImageRef, variant: int, pixels: np.ndarray) -> Mapping[str, Any]: ...


class Verifier:
    """A `Verify` that asks a classifier.

    Parameters
    ----------
    path : path
        A model of `dreamda train`, or its folder. Its classes are categories of the annotations, as `dreamda crops`
        names their folders.
    folder : ImageFolder
        With annotations.
    seed : int
        Of the run.
    action : {"drop", "flag"}
        Leave the annotations of lost objects out, or name them in metadata.jsonl alone.

    Raises
    ------
    ValueError
        The folder has no annotations, the model is none or knows no category, or `action` is another text.
    """

    def __init__(self, path: str | os.PathLike[str], folder: ImageFolder, seed: int, action: str = "drop") -> None:
        if action not in ACTIONS:
            raise ParameterError("verify_action", f"{action!r} is not possible; use drop or flag")
        if folder.annotations is None:
            raise ParameterError("verify", "is for labelled images")
        path = model_file(path)
        self._model, self._folder, self._labels, self._seed = TrainedModel.load(path), folder, folder.annotations, seed
        of_folder = {str(name): number for number, name in enumerate(self._model.classes)}
        self._classes = {category: of_folder[name] for category, name in class_folders(self._labels).items()
                         if name in of_folder}
        if not self._classes:
            raise ParameterError("verify", f"{path} knows none of the categories of {self._labels.path}; train it on "
                                           "crops of the objects, from dreamda crops")
        self._before: dict[tuple[str, int], bool] = {}
        self.identity: Mapping[str, Any] = {"verify_sha256": digest_of_file(path), "verify_action": action}

    def __call__(self, image: ImageRef, variant: int, pixels: np.ndarray) -> dict[str, Any]:
        """The numbers of objects that were recognised and not judged, and the lost ones: number and category."""
        objects = [(number, placed, thing) for number, (placed, thing)
                   in enumerate(self._folder.objects(image, variant, self._seed)) if not thing.ignored]
        judged = [each for each in objects if self._was_recognised(each[1].name, each[1].number)]
        found = self._recognised(pixels, [thing for _, _, thing in judged])
        lost = [{"number": number, "category": thing.category}
                for (number, _, thing), is_recognised in zip(judged, found) if is_recognised is False]
        recognised = sum(each is True for each in found)
        return {"recognised": recognised, "not_judged": len(objects) - recognised - len(lost), "lost": lost}

    def _was_recognised(self, name: str, number: int) -> bool:
        """Whether the real object is recognised."""
        if (name, number) not in self._before:
            things = self._labels.things(name)
            try:
                found = self._recognised(read_image(self._labels.root / name).pixels, things)
            except BrokenImageError:
                found = [None] * len(things)
            self._before |= {(name, index): each is True for index, each in enumerate(found)}
        return self._before[name, number]

    def _recognised(self, pixels: np.ndarray, things: Sequence[Thing]) -> list[bool | None]:
        """Whether each object is taken for its category; None if that cannot be told."""
        parts = [crop(pixels, thing.box) if thing.category in self._classes else None for thing in things]
        crops = [part for part in parts if part is not None]
        best = iter(self._model.predict_proba(crops, dtype="f32").argmax(1).tolist() if crops else [])
        return [None if part is None else next(best) == self._classes[thing.category]
                for thing, part in zip(things, parts)]


class RecordedObjects:
    """A `Verify` that repeats the results of a recorded run.

    Parameters
    ----------
    rows : iterable of mappings
        Of metadata.jsonl, with the keys of real images.
    """

    identity: Mapping[str, Any] = {}

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = {(row["seed_file"], row["variant"]): {name: row[name] for name in
                                                          ("recognised", "not_judged", "lost") if name in row}
                      for row in rows}

    def __call__(self, image: ImageRef, variant: int, pixels: np.ndarray) -> Mapping[str, Any]:
        """Look an image up."""
        return self._rows.get((image.key, variant), {})
