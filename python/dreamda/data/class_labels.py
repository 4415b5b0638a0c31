"""The numbers by which a class-conditional model knows the class folders of a data set.

    number_classes(ImageFolder.scan("photos"), 2)                       # {"cat": 0, "dog": 1}
    number_classes(ImageFolder.scan("photos"), 3, ["dog", "cow", "cat"])    # {"cat": 2, "dog": 0}
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..text import counted
from .folders import ImageFolder
from .prompts import Prompts


def number_classes(folder: ImageFolder, count: int | None = None, names: Sequence[str] | None = None,
                   model: Path = Path("MODEL")) -> dict[str, int]:
    """The number of each class folder.

    If the names of the model's classes are known, a folder has the number of its name. Otherwise folders are numbered
    from 0 in the order of their sorted names, as torchvision's and Hugging Face's ImageFolder number them in training.

    Parameters
    ----------
    folder : ImageFolder
    count : int, optional
        The number of classes that the model was trained with.
    names : sequence of str, optional
        Their names, by number.
    model : Path
        The model's folder, for messages.

    Returns
    -------
    dict of str to int
        By the names of the class folders.

    Raises
    ------
    ValueError
        A folder has no number, or without names there are more or fewer folders than the model has classes.
    """
    if names is None:
        if count is not None and len(folder.classes) != count:
            raise ValueError(
                f"{folder.root} has {counted(len(folder.classes), 'class folder')} and {model} was trained with "
                f"{counted(count, 'class')}, so which is which is unknown; name the model's classes by number in "
                f'{model / "dreamda.json"}: {{"classes": ["...", "..."]}}')
        return {label: number for number, label in enumerate(sorted(folder.classes))}
    numbers = {name: number for number, name in enumerate(names)}
    for label in folder.classes:
        if label not in numbers:
            raise ValueError(f"{folder.root / label} is no class of {model}, whose dreamda.json names "
                             f"{', '.join(map(repr, names[:5]))}{' and others' if len(names) > 5 else ''}; rename the "
                             "folder, or correct the names")
    return {label: numbers[label] for label in folder.classes}


def numbers_as_prompts(folder: ImageFolder, numbers: dict[str, int]) -> Prompts:
    """The number of each image's class in place of its prompt."""
    return Prompts({image.key: str(numbers[image.label]) for image in folder.images}, {"class_labels": numbers})
