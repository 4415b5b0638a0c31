"""Prompts: from the names of class folders, or from a file.

    prompts = prompts_from_template(ImageFolder.scan("photos"), "a photo of a {}")      # {"cat/1.jpg": "a photo of a cat", ...}
"""
from __future__ import annotations

import os
import re
from pathlib import Path

from .files import is_utf8, read_json_lines
from .folders import ImageFolder

DEFAULT_TEMPLATE = "a photo of a {}"


def class_words(label: str) -> str:
    """A folder name as words for a prompt: ``soccer_ball`` -> ``soccer ball``; hyphens stay (``t-shirt``)."""
    return " ".join(label.replace("_", " ").split())


def fill_template(template: str, label: str) -> str:
    """Put a class into a prompt template.

    An article ``a`` or ``an`` right before the ``{}`` is made to fit the first letter of the class (``an ankle boot``). The rule looks
    at the letter, not at the sound; where it is wrong (``an hourglass``), write the prompts into a file.

    >>> fill_template("a photo of a {}", "ankle_boot")
    'a photo of an ankle boot'
    """
    words = class_words(label)
    before, after = template.split("{}")
    if match := re.search(r"\b([Aa])n?(\s+)$", before):
        before = before[: match.start()] + match[1] + ("n" if words[:1].lower() in "aeiou" else "") + match[2]
    return before + words + after


def prompts_from_template(folder: ImageFolder, template: str = DEFAULT_TEMPLATE) -> dict[str, str]:
    """One prompt for every image, ``{key: prompt}``; ValueError unless `template` holds ``{}`` exactly once."""
    if template.count("{}") != 1:
        raise ValueError(f'--template {template!r} must hold {{}} once, where the class name goes: "{DEFAULT_TEMPLATE}"')
    if not is_utf8(template):
        raise ValueError(f"--template {template!r} is not UTF-8")
    return {image.key: fill_template(template, image.label) for image in folder.images}


def prompts_from_file(folder: ImageFolder, path: str | os.PathLike[str]) -> dict[str, str]:
    """Prompts from a JSON Lines file, ``{"file_name": ..., "text": ...}`` a line, as ``{key: prompt}``.

    A file name is relative to the data set (``class/image.png``), or plain (``image.png``) where only one class has it. Other fields
    are ignored, so Hugging Face's ImageFolder ``metadata.jsonl`` can be given as it is.

    Raises
    ------
    ValueError
        A line is no such object, names an image that is not there, or contradicts an earlier line; or an image has no line.
    OSError
        The file cannot be read.
    """
    keys = {image.key for image in folder.images}
    plain: dict[str, list[str]] = {}
    for image in folder.images:
        plain.setdefault(image.name, []).append(image.key)
    prompts: dict[str, str] = {}
    for number, row in read_json_lines(path):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f'{path} line {number} must have the texts "file_name" and "text"')
        if not is_utf8(text):
            raise ValueError(f'{path} line {number}: the "text" holds half of a surrogate pair; write the character itself')
        found = [name] if name in keys else plain.get(name, [])
        if not found:
            raise ValueError(f"{path} line {number} names {name!r}, which is no image of {folder.root}; remove the line or add the image")
        if len(found) > 1:
            raise ValueError(f"{path} line {number}: {name!r} is in several classes; write it as {found[0]!r}")
        if prompts.setdefault(found[0], text) != text:
            raise ValueError(f"{path} line {number} gives {name!r} a second text; keep one of the lines")
    missing = [image.key for image in folder.images if image.key not in prompts]
    if missing:
        raise ValueError(f"{path} has no line for {len(missing)} of the {len(keys)} images; the first is {missing[0]!r}")
    return prompts


def own_prompt_file(folder: ImageFolder) -> Path | None:
    """``metadata.jsonl`` in the data set, where its lines have a ``text`` field; else None."""
    path = folder.root / "metadata.jsonl"
    if path.is_file() and any("text" in row for _, row in read_json_lines(path)):
        return path
    return None
