"""Prompts from the names of class folders, from classes.json, or from the captions of a data set.

    prompts = choose_prompts(ImageFolder.scan("photos"))
    prompts.texts                                       # {"cat/1.jpg": "a photo of a cat", ...}

The words of a class are its folder's name without numbers and underscores. ``classes.json`` in the data set, an object
that maps folder names to words, overrides the name.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..options import ParameterError
from ..text import counted
from .files import is_utf8, read_bounded
from .folders import ImageFolder, shown
from .metadata import metadata_files, read_rows, rows_of_images
from .prompt_syntax import Syntax, escape_prompt

DEFAULT_TEMPLATE = "a photo of a {}"
CLASSES_FILE = "classes.json"
CAPTIONS = ("text", "caption", "prompt")


@dataclass(frozen=True, repr=False)
class Prompts:
    """One prompt for every image.

    Attributes
    ----------
    texts : dict of str to str
        Image key -> prompt.
    source : dict of str to str
        The origin of the prompts, as recorded in run.json: the template, or the digest of the files.
    notes : tuple of str
        Notes for the user.
    """

    texts: dict[str, str]
    source: dict[str, str]
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        different = list(dict.fromkeys(self.texts.values()))
        others = f" and {counted(len(different) - 1, 'other prompt')}" if len(different) > 1 else ""
        first = f": {different[0]!r}{others}" if different else ""
        return f"Prompts({counted(len(self.texts), 'image')}{first})"


def choose_prompts(folder: ImageFolder, template: str | None = None, file: str | os.PathLike[str] | None = None,
                   otherwise: str | None = None, prompt_syntax: Syntax = "a1111") -> Prompts:
    """Choose the prompts of a data set.

    They come from `template` or `file`, else from the data set's own captions, else from the template `otherwise`. For
    annotated images they name the categories in the image. The data set's own captions are a column text, caption or
    prompt of ``metadata.jsonl`` or ``metadata.csv``, in its root or in its class folders.

    Parameters
    ----------
    folder : ImageFolder
    template : str, optional
        See `prompts_from_template`.
    file : path, optional
        See `prompts_from_file`.
    otherwise : str, optional
        Default: "a photo of a {}".
    prompt_syntax : {"a1111", "plain"}
        With "a1111", templates may give words weight; class names and captions are read as they are, so brackets in
        them are escaped.

    Returns
    -------
    Prompts

    Raises
    ------
    ValueError
        Both `template` and `file` are given, or one of them or a file of the data set cannot be used.
    OSError
        `file` cannot be read.
    """
    if template is not None and file is not None:
        raise ValueError("a template and a file of prompts exclude each other; give one of them")
    notes: list[str] = []
    files: list[Path] = []
    if file is None and not folder.captions:
        template = template or otherwise or DEFAULT_TEMPLATE
        return Prompts(folder.prompts(template, prompt_syntax), {"template": template})
    if file is not None:
        files = [Path(file)]
    elif template is None:
        files, notes = _own_captions(folder)
    if files:
        texts = prompts_from_file(folder, *files, prompt_syntax=prompt_syntax)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        digest = digests[0] if len(files) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return Prompts(texts, {"prompts_sha256": digest}, tuple(notes))
    template = DEFAULT_TEMPLATE if template is None and otherwise is None else template or otherwise or ""
    source = {"template": template}
    path = folder.root / CLASSES_FILE
    texts = prompts_from_template(folder, template, prompt_syntax)
    if path.exists():
        words = class_names(folder)
        source["prompts_sha256"] = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    return Prompts(texts, source, tuple(notes))


def class_words(label: str) -> str:
    """A folder name as words for a prompt.

    Underscores become spaces; hyphens are kept (``t-shirt``). A number before the name is removed if it can only be a
    number (``001.Black_footed_Albatross``, ``n02085620-Chihuahua``), long words in capitals become lower case
    (``NORMAL``), and joined words are separated (``AnnualCrop``).

    >>> class_words("001.Black_footed_Albatross"), class_words("NORMAL"), class_words("soccer_ball")
    ('Black footed Albatross', 'normal', 'soccer ball')
    """
    return _readable(re.sub(r"^(?:n\d{8}[-_. ]+|\d+\.\s*|0\d*[-_ ]+)(?=[^\W\d_])", "", label))


def _readable(name: str) -> str:
    divided = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", "_", name)
    if divided != name:
        divided = divided.lower()
    words = divided.replace("_", " ").split()
    return " ".join(word.lower() if word.isupper() and word.isalpha() and len(word) > 4 else word for word in words)


def class_names(folder: ImageFolder) -> dict[str, str]:
    """The words of each class: from ``classes.json`` in the data set, else from the folder's name.

    If all folder names begin with a number (``1_cat``, ``2_dog``) and differ without it, the numbers are removed.

    Raises
    ------
    ValueError
        ``classes.json`` is not an object that maps class folders to words.
    """
    labels = folder.classes
    plain = [re.sub(r"^\d+[-_. ]+(?=[^\W\d_])", "", label) for label in labels]
    numbered = len(labels) > 1 and all(a != b
                                       for a, b in zip(plain, labels, strict=True)) and len(set(plain)) == len(plain)
    words = {
        label: _readable(name) if numbered else class_words(label)
        for label, name in zip(labels, plain, strict=True)
    }
    return words | _read_classes(folder.root / CLASSES_FILE, labels)


def _read_classes(path: Path, labels: Sequence[str]) -> dict[str, str]:
    if not os.path.lexists(path):
        return {}
    try:
        given = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON; write an object of folder names and words") from error
    if not isinstance(given, dict) or not all(
            isinstance(text, str) and text.strip() and is_utf8(text) for text in given.values()):
        raise ValueError(f'{path} must be an object of folder names and words, {{"{labels[0]}": "..."}}')
    if unknown := next((label for label in given if label not in labels), None):
        raise ValueError(
            f"{path} names {shown(unknown, labels)}, which is no class folder of {path.parent}; correct or remove it")
    return {label: " ".join(text.split()) for label, text in given.items()}


def fill_template(template: str, label: str) -> str:
    """Put a class into a prompt template.

    An article ``a`` or ``an`` directly before the ``{}`` is adapted to the class: ``an`` before a vowel (``an ankle
    boot``), none before a plural (``roses``). The rules consider letters, not sounds or meanings; if they are wrong
    (``an hourglass``), write the prompts to a file.

    >>> fill_template("a photo of a {}", "ankle_boot"), fill_template("a photo of a {}", "roses")
    ('a photo of an ankle boot', 'a photo of roses')
    """
    return _fill(template, class_words(label))


def _fill(template: str, words: str, prompt_syntax: Syntax = "plain") -> str:
    before, after = template.split("{}")
    if match := re.search(r"\b([Aa])n?(\s+)([(\[]*)$", before):
        article = "" if _is_plural(words) else match[1] + ("n" if words[:1].lower() in "aeiou" else "") + match[2]
        before = before[: match.start()] + article + match[3]
    return before + _as_it_is(words, prompt_syntax) + after


def _as_it_is(text: str, prompt_syntax: Syntax) -> str:
    return text if prompt_syntax == "plain" else escape_prompt(text)


def _is_plural(words: str) -> bool:
    head = re.split(r",| of | with | in | from | on ", words)[0].split()
    last = head[-1].lower() if head else ""
    return (len(last) > 3 and last.endswith("s") and last.isalpha() and not last.endswith(
        ("ss", "us", "is", "as", "os")) and last not in ("lens", "news", "mercedes"))


def prompts_from_template(folder: ImageFolder, template: str = DEFAULT_TEMPLATE,
                          prompt_syntax: Syntax = "a1111") -> dict[str, str]:
    """One prompt per image, ``{key: prompt}``; ValueError unless `template` contains ``{}`` exactly once."""
    if template.count("{}") != 1:
        raise ParameterError("template",
                             f'{template!r} must hold {{}} once, where the class name goes: "{DEFAULT_TEMPLATE}"')
    if not is_utf8(template):
        raise ParameterError("template", f"{template!r} is not UTF-8")
    of_class = {label: _fill(template, words, prompt_syntax) for label, words in class_names(folder).items()}
    return {image.key: of_class[image.label] for image in folder.images}


def prompts_from_file(folder: ImageFolder, *paths: str | os.PathLike[str],
                      prompt_syntax: Syntax = "a1111") -> dict[str, str]:
    """Prompts from JSON Lines or CSV files, as ``{key: prompt}``. They are read as they are: brackets are escaped.

    Each line of JSON Lines is ``{"file_name": ..., "text": ...}``; CSV has these columns. A file name is relative to
    the data set root (``class/image.png``), relative to the file's own folder if that is inside the data set, or a bare
    name (``image.png``) that only one class has. The text may also be called caption or prompt. Other fields are
    ignored, so Hugging Face's ``metadata.jsonl`` and ``metadata.csv`` can be used unchanged.

    Raises
    ------
    ValueError
        A line is not such an object, names a missing image, or contradicts an earlier line; or an image has no line.
    OSError
        The file cannot be read.
    """
    prompts: dict[str, str] = {}
    for path, number, row, key in rows_of_images(folder, *paths):
        text = next((row[column] for column in CAPTIONS if column in row), None)
        if not isinstance(text, str):
            raise ValueError(
                f'{path} line {number} must have the texts "file_name" and "text" (or "caption", "prompt")')
        if not is_utf8(text):
            raise ValueError(
                f'{path} line {number}: the "text" holds half of a surrogate pair; write the character itself')
        if prompts.setdefault(key, _as_it_is(text, prompt_syntax)) != _as_it_is(text, prompt_syntax):
            raise ValueError(f"{path} line {number} gives {row['file_name']!r} a second text; keep one of the lines")
    missing = [image.key for image in folder.images if image.key not in prompts]
    if missing:
        whose = f"{paths[0]} has" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files have"
        raise ValueError(f"{whose} no line for {len(missing)} of the {len(folder.images)} images; "
                         f"the first is {missing[0]!r}")
    return prompts


def own_prompt_files(folder: ImageFolder) -> list[Path]:
    """The metadata files of the data set and its folders that have captions (see `choose_prompts`)."""
    return _own_captions(folder)[0]


def _own_captions(folder: ImageFolder) -> tuple[list[Path], list[str]]:
    """The metadata files with captions, and notes about the others."""
    files, notes = [], []
    for path in metadata_files(folder):
        columns = {name for _, row in read_rows(path) for name in row}
        if columns & set(CAPTIONS):
            files.append(path)
        elif not columns & {"label", "seed_file"}:
            notes.append(f"{path} has no column text, caption or prompt, so prompts are made of class names")
    if parquet := sorted(folder.root.glob("metadata.parquet")):
        notes.append(f"{parquet[0]} is not read; save it as metadata.csv or metadata.jsonl")
    return files, notes
