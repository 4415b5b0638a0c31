"""Checks before `dreamda generate` starts, and estimates of the cost of a run.

They find prompts that are too long for the model, and images and words that it was not trained on. A model describes
its training data in ``dreamda.json`` in its folder; all fields are optional:

    {"training_size": [32, 32], "greyscale": true, "words": ["a", "coat", "of", "photo", ...]}

A class-conditional model may name its classes by number: ``{"classes": ["cat", "dog"]}``.
(``parts_from`` in the same file is read by `dreamda.networks.hub.part_folder`.)
"""
from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import BrokenImageError
from ..data.folders import ImageFolder
from ..data.images import read_image
from ..data.prompt_syntax import Syntax, plain_text, unclosed
from ..data.class_labels import number_classes, numbers_as_prompts
from ..data.prompts import Prompts, class_names
from ..generation.tiles import WHOLE
from ..networks.config import read_json, read_unet_config
from ..networks.hub import part_folder
from ..text import counted

if TYPE_CHECKING:
    from ..networks.tokenizer import Tokenizer

NAME = "dreamda.json"
SHOWN = 3                  # maximum number of prompts, words or classes in one message
SAMPLE = 16                # number of images that are checked
COLOURFUL = 8.0            # an image is in colour from this mean distance between its channels, of 255
OTHER_SIZE = 3.0           # warn of images larger or smaller than the training images by this factor


def conditions_without_text(folder: ImageFolder, model: Path) -> Prompts | None:
    """What stands in place of prompts for a model without text: the numbers of classes, or nothing.

    Parameters
    ----------
    folder : ImageFolder
    model : Path
        The model's folder.

    Returns
    -------
    Prompts or None
        None if the model reads prompts.

    Raises
    ------
    ValueError
        A class of `folder` has no number, or a file of the model is damaged.
    """
    config = read_unet_config(part_folder(model, "unet"))
    if config["context_dim"]:
        return None
    if not config["class_embedding"]:
        return Prompts({image.key: "" for image in folder.images}, {})
    if folder.sizes is not None:
        raise ValueError(f"{model} is class-conditional, and labelled images show several classes; use an "
                         "unconditional model, or one that reads prompts")
    names, count = read_purpose(model).get("classes"), config["num_class_embeds"] or None
    if names is not None and count is not None and len(names) > count:
        raise ValueError(f"{model / NAME}: 'classes' has {len(names)} names, and the U-Net {count} classes")
    return numbers_as_prompts(folder, number_classes(folder, count, names, model))


def conditions_of(folder: ImageFolder, pipeline: Any) -> Prompts | None:
    """`conditions_without_text` for the model of a pipeline."""
    text = getattr(pipeline, "conditioning", "text") == "text"  # of objects that are like a pipeline, too
    return None if text else conditions_without_text(folder, pipeline.folder)


def check_prompts(folder: ImageFolder, prompts: Mapping[str, str], tokenizer: Tokenizer,
                  negative_prompt: str = "", prompt_syntax: Syntax = "a1111") -> list[str]:
    """Notes about prompts that are longer than one chunk, or that may not mean what was meant.

    Parameters
    ----------
    folder : ImageFolder
    prompts : mapping of prompt to key
        The different prompts, each with the key of an image that has it (`dreamda.data.Prompts.distinct`).
    tokenizer : Tokenizer
    negative_prompt : str
    prompt_syntax : {"a1111", "plain"}

    Raises
    ------
    ValueError
        A prompt cannot be read; or, with "plain", the class name is in the part that is cut off.
    """
    first = {negative_prompt: "the negative prompt"} if negative_prompt else {}
    for prompt, key in prompts.items():
        first.setdefault(prompt, f"the prompt of {key}")
    if prompt_syntax == "plain":
        return _cut_off(folder, prompts, first, tokenizer)
    chunks = {}
    for prompt, whose in first.items():
        try:
            chunks[prompt] = len(tokenizer.chunks(prompt)[0])
        except ValueError as error:
            raise ValueError(f"{whose}: {error}") from None
    notes = []
    if long := [prompt for prompt in first if chunks[prompt] > 1]:
        most = max(long, key=chunks.__getitem__)
        notes.append(f"{len(long)} of {counted(len(first), 'prompt')} have more than the {tokenizer.length - 2} tokens "
                     f"of a chunk and are read in several, {first[most]} in {chunks[most]}; models were trained with "
                     "one")
    if left := next((prompt for prompt in first if unclosed(prompt)), None):
        notes.append(f"{first[left]} has a bracket that is never closed, {(unclosed(left) or '')[:80]!r}: its weight "
                     "goes to the end; write \\( or \\[ for the character itself")
    return notes


def _cut_off(folder: ImageFolder, prompts: Mapping[str, str], first: Mapping[str, str],
             tokenizer: Tokenizer) -> list[str]:
    """Notes about plain prompts of which a part is not read; `first` names each."""
    names, labels = class_names(folder), {image.key: image.label for image in folder.images}
    cut = {prompt: lost for prompt, lost in zip(first, tokenizer.unread(list(first))) if lost}
    left = tokenizer.truncation_side == "left"
    for prompt, key in prompts.items():
        if not (lost := cut.get(prompt)):
            continue
        words, read = names[labels[key]].lower(), (prompt[len(lost):] if left else prompt[:-len(lost)]).lower()
        if words in prompt.lower() and words not in read:
            raise ValueError(
                f"the prompt of {key} is longer than the {tokenizer.length - 2} tokens that the model reads, and the "
                f"class {names[labels[key]]!r} is in the part that is cut off; put it {'last' if left else 'first'}, "
                "or shorten the prompt")
    if not cut:
        return []
    prompt, lost = next(iter(cut.items()))
    are = "is" if len(cut) == 1 else "are"
    return [f"{len(cut)} of {counted(len(first), 'prompt')} {are} longer than the {tokenizer.length - 2} tokens that "
            f"the model reads; of {first[prompt]} it does not read {lost.strip()[:80]!r}"]


def check_model(folder: ImageFolder, prompts: Mapping[str, str], model: Path, size: tuple[int, int],
                tile_size: int = 0) -> list[str]:
    """Warnings about images and prompts unlike the model's training data; none if its folder does not describe them.

    Parameters
    ----------
    folder, prompts
        As for `check_prompts`.
    model : Path
        The model's folder.
    size : (height, width)
        Of the images that the model makes.
    tile_size : int
        As in `GenerationOptions`.

    Raises
    ------
    ValueError
        ``dreamda.json`` is damaged.
    """
    about = read_purpose(model)
    found = unknown_words(prompts, about)
    sample = _sample(folder)
    if about.get("greyscale") and colourful(sample) > 0.5:
        found.append(
            "the model was made for greyscale images, and these are in colour: it will not make images like them")
    if trained := about.get("training_size"):
        sides = [min(pixels.shape[:2]) for pixels in sample]
        given = float(np.median(sides)) if sides else float(min(trained))
        if not 1 / OTHER_SIZE < given / min(trained) < OTHER_SIZE:
            found.append(
                f"the model was made with images of {trained[0]} x {trained[1]} pixels, and the shorter side of these "
                f"is {given:.0f}: they are resized"
                + (f", and what is made has {size[0]} x {size[1]}" if folder.sizes is None else " for it, and back"))
        is_tiled = min(size) > tile_size if tile_size else math.prod(size) > WHOLE * math.prod(trained)
        ratio = min(size) / min(trained)
        if list(size) != list(trained) and (ratio <= 1 / 2 or ratio >= 2 and folder.sizes is None and not is_tiled):
            found.append(
                f"the model was made for {trained[0]} x {trained[1]} pixels, and is asked for {size[0]} x "
                f"{size[1]}; leave --size out")
    return found


def unknown_words(prompts: Mapping[str, str], about: Mapping[str, Any]) -> list[str]:
    """A warning about words that the model has never seen, if `about` (`read_purpose`) says which it knows."""
    known = {word.lower() for word in about.get("words") or ()}
    unknown: dict[str, str] = {}
    for prompt, key in prompts.items() if known else ():
        for word in _words(prompt):
            if word.lower() not in known:
                unknown.setdefault(word, key.split("/")[0])
    if not unknown:
        return []
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    shown = ", ".join(f"{_quoted(word)} (class {label})" for word, label in list(unknown.items())[:SHOWN])
    noun = "word" if len(unknown) == 1 else "words"
    return [f"the model has never seen the {noun} {shown}{more}: it will make what it knows instead, under your labels"]


def other_classes(folder: ImageFolder, prompts: Mapping[str, str], negative_prompt: str = "",
                  prompt_syntax: Syntax = "a1111") -> list[str]:
    """Notes about prompts that name another class than that of their image, and a negative prompt that names one.

    Parameters
    ----------
    folder, prompts, negative_prompt, prompt_syntax
        As for `check_prompts`.
    """
    if not folder.captions:
        return []
    names = class_names(folder)
    label_of = {words.lower(): label for label, words in names.items()}
    longest = sorted(map(re.escape, label_of), key=len, reverse=True)  # "ankle boot" is found before "boot"
    pattern = re.compile(rf"(?<!\w)({'|'.join(longest)})s?(?!\w)")
    notes, found = [], []
    for prompt, key in prompts.items():
        label = key.split("/")[0]
        rest = plain_text(prompt, prompt_syntax).lower().replace(names[label].lower(), " ")
        found += [(key, prompt, other) for other in dict.fromkeys(pattern.findall(rest)) if label_of[other] != label]
    if found:
        key, prompt, other = found[0]
        several = len({prompt for _, prompt, _ in found})
        notes.append(f"{several} of {counted(len(prompts), 'prompt')} "
                     + ("names" if several == 1 else "name") + " another class than that of the image, which may then "
                     f"be shown under the wrong label; the prompt of {key} names {other!r}: {_quoted(prompt)}")
    if others := list(dict.fromkeys(pattern.findall(negative_prompt.lower()))):
        notes.append(f"the negative prompt names the class {others[0]!r}, and leads its own images away from it, too")
    return notes


def read_purpose(model: Path) -> dict[str, Any]:
    """Read ``dreamda.json`` of a model's folder; empty if there is none. A ValueError names the problem."""
    path = model / NAME
    if not path.is_file():
        return {}
    about = read_json(path)
    size, words = about.get("training_size"), about.get("words")
    if size is not None and not (isinstance(size, list) and len(size) == 2
                                 and all(type(side) is int and 0 < side <= 1 << 16 for side in size)):
        raise ValueError(f"{path}: 'training_size' must be [height, width] in pixels")
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"{path}: 'words' must be a list of texts")
    if type(about.get("greyscale", False)) is not bool:
        raise ValueError(f"{path}: 'greyscale' must be true or false")
    classes = about.get("classes")
    if classes is not None and not (isinstance(classes, list) and classes and all(
            isinstance(name, str) and name for name in classes) and len(set(classes)) == len(classes)):
        raise ValueError(f"{path}: 'classes' must be a list of different names, by number")
    return about


def _sample(folder: ImageFolder) -> list[np.ndarray]:
    pixels = []
    for image in folder.images[:: max(1, len(folder.images) // SAMPLE)]:
        try:
            pixels.append(read_image(folder.path(image)).pixels)
        except BrokenImageError:
            continue
    return pixels


def colourful(images: Iterable[np.ndarray]) -> float:
    """The share of images, uint8 (H, W, 3), in which people see colour; 0 without images."""
    found = []
    for pixels in images:
        small = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)].astype(np.int16)
        found.append(float((small.max(axis=2) - small.min(axis=2)).mean()) > COLOURFUL)
    return float(np.mean(found)) if found else 0.0


def _words(prompt: str) -> Iterable[str]:
    return re.findall(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", prompt)


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'


def forecast(images: float, seconds: float) -> str:
    """The time for this number of images, at `seconds` per image, and when they will be finished.

    For example ``about 2 s an image, 12 min in all (until Fri 27 Nov 15:12)``.
    """
    end = datetime.datetime.now() + datetime.timedelta(seconds=images * seconds)
    return f"about {duration(seconds)} an image, {duration(images * seconds)} in all (until {end:%a %d %b %H:%M})"


def disk_space(images: int, size: tuple[int, int]) -> str:
    """The maximum disk space for this number of PNG files of this size: ``at most 12 MiB on disk``."""
    mebibytes = images * size[0] * size[1] * 3 / 2**20
    return "less than 1 MiB on disk" if mebibytes < 1 else f"at most {mebibytes:,.0f} MiB on disk"


def duration(seconds: float) -> str:
    """A time in words: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
