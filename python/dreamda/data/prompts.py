"""Prompts from the names of class folders, from templates with fields, from lists, or from the captions of a data set.

    prompts = choose_prompts(ImageFolder.scan("photos"), "a {style} of a {}", fields="styles.json")
    prompts.of("cat/1.jpg", 0)                          # Prompt("a sketch of a cat", {"style": "sketch"})

The words of a class are its folder's name without numbers and underscores. ``classes.json`` in the data set, an object
that maps folder names to words, overrides the name.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..options import ParameterError
from ..text import counted
from .fields import Fields, read_fields
from .files import is_utf8, read_bounded
from .folders import ImageFolder, shown
from .metadata import metadata_files, read_rows, rows_of_images
from .prompt_syntax import Syntax, escape_prompt
from .templates import CAPTION, CLASS, TEMPLATE, Prompt, Template, class_words, order_of, placed, readable

DEFAULT_TEMPLATE = "a photo of a {}"
CLASSES_FILE = "classes.json"
CAPTIONS = ("text", "caption", "prompt")
MAX_CHECKED = 50_000  # prompts that are made to be looked at before a run


@dataclass(frozen=True)
class Choice:
    """How the prompts of variants are chosen: among templates, and among the values of their fields.

    Attributes
    ----------
    templates : dict of str to tuple of Template
        Those of each class.
    values : dict of str to tuple of str
        Those of each field.
    own : dict of str to dict
        Image key -> its class and its caption, as values for `Template.fill`.
    seed : int
    """

    templates: dict[str, tuple[Template, ...]]
    values: dict[str, tuple[str, ...]]
    own: dict[str, dict[str, Any]]
    seed: int

    def of(self, key: str, variant: int) -> Prompt:
        """The prompt of a variant of an image."""
        templates = self.templates[key.split("/")[0]]
        turn, place = divmod(variant, len(templates))
        order = order_of(len(templates), self.seed, key, "", turn)
        *before, template = (templates[number] for number in order[: place + 1])
        chosen = {}
        for name in template.fields:
            if values := self.values.get(name):
                uses = turn * sum(name in each.fields for each in templates) + sum(name in t.fields for t in before)
                number = order_of(len(values), self.seed, key, name, uses // len(values))[uses % len(values)]
                chosen[name] = values[number]
        recorded = chosen | ({TEMPLATE: template.text} if len(templates) > 1 else {})
        return Prompt(template.fill(self.own[key] | chosen), recorded)


@dataclass(frozen=True, repr=False)
class Prompts:
    """The prompts of a data set.

    Attributes
    ----------
    texts : dict of str to str
        Image key -> the prompt of its first variant.
    source : dict
        The origin of the prompts, as recorded in run.json: the template, and digests of files and fields.
    notes : tuple of str
        Notes for the user.
    choice : Choice or Listed, optional
        If the variants of an image have different prompts.
    """

    texts: dict[str, str]
    source: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    choice: Choice | Listed | None = None

    def of(self, key: str, variant: int) -> Prompt:
        """The prompt of a variant of an image."""
        return Prompt(self.texts[key], {}) if self.choice is None else self.choice.of(key, variant)

    def variants(self, key: str, first: int, last: int) -> str | list[str]:
        """The prompts of the variants `first` to `last` (exclusive) of an image, for `dreamda.Pipeline.augment`.

        It is a list of `last` texts, of which those before `first` mean nothing; or a single text for all.
        """
        if self.choice is None:
            return self.texts[key]
        texts = [self.choice.of(key, variant).text for variant in range(first, last)]
        return texts[0] if len(set(texts)) == 1 else [""] * first + texts

    def distinct(self, variants: int) -> dict[str, str]:
        """The different prompts of a run, each with the key of the first image that has it.

        Of large data sets only those of the first variants, so that about `MAX_CHECKED` are looked at.
        """
        count = 1 if self.choice is None else max(1, min(variants, MAX_CHECKED // max(1, len(self.texts))))
        found: dict[str, str] = {}
        for variant in range(count):
            for key in self.texts:
                found.setdefault(self.of(key, variant).text, key)
        return found

    def __repr__(self) -> str:
        different = list(dict.fromkeys(self.texts.values()))
        others = f" and {counted(len(different) - 1, 'other prompt')}" if len(different) > 1 else ""
        first = f": {different[0]!r}{others}" if different else ""
        return f"Prompts({counted(len(self.texts), 'image')}{first})"


def choose_prompts(folder: ImageFolder, template: str | Sequence[str] | None = None,
                   file: str | os.PathLike[str] | None = None, otherwise: str | None = None,
                   prompt_syntax: Syntax = "a1111", fields: str | os.PathLike[str] | None = None,
                   seed: int = 0) -> Prompts:
    """Choose the prompts of a data set.

    They come from `template` or `file`, else from the data set's own captions, else from the template `otherwise`. For
    annotated images the class of a template is the categories in the image. The data set's own captions are a column
    text, caption or prompt of ``metadata.jsonl`` or ``metadata.csv``, in its root or in its class folders.

    Parameters
    ----------
    folder : ImageFolder
    template : str or sequence of str, optional
        See `dreamda.data.templates`. Of several templates, the variants of an image have one after the other.
    file : path, optional
        Captions, see `prompts_from_file`; or, if its name ends in .json, an object of classes, each with a prompt or a
        list of prompts, which may have fields like a template.
    otherwise : str, optional
        Default: "a photo of a {}".
    prompt_syntax : {"a1111", "plain"}
        With "a1111", templates, lists and fields may give words weight; class names and captions are read as they are,
        so brackets in them are escaped.
    fields : str or path, optional
        Values for the fields of the templates, see `dreamda.data.fields`. If it has templates of its own, they are used
        where `template` is not given.
    seed : int
        Of the order in which an image's variants get values.

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
    given = [template] if isinstance(template, str) else list(template or ())
    known = read_fields(fields) if fields is not None else None
    templates = [Template(text) for text in given] or list(known.templates if known else ())
    is_list = file is not None and Path(file).suffix.lower() == ".json"
    captioned = any(CAPTION in each.fields for each in templates)
    if templates and file is not None and (is_list or not captioned):
        raise ValueError("a template and a file of prompts exclude each other; give one of them")
    if file is not None and not Path(file).is_file():
        raise ParameterError("prompts", f"{file}: no such file; give JSON Lines or CSV with file_name and text for "
                             "every image, or a .json file with prompts for each class")
    if is_list and file is not None:
        return _from_lists(folder, Path(file), known, prompt_syntax, seed)
    notes: list[str] = []
    files = [Path(file)] if file is not None else []
    if file is None and (captioned or not templates) and folder.captions:
        files, notes = _own_captions(folder)
    if known and not templates:
        one = len(known.values) == 1
        raise ParameterError("fields", f"{fields} has the {'field' if one else 'fields'} {', '.join(known.values)}; "
                             f"give a `template` with {'it' if one else 'some of them'}, or `templates` in the file")
    if not templates and not files:
        templates = [Template(otherwise or DEFAULT_TEMPLATE)]
    captions = prompts_from_file(folder, *files, prompt_syntax=prompt_syntax) if files else None
    source: dict[str, Any] = {}
    if captions is not None:
        source["prompts_sha256"] = _digest_of(files)
    if not templates:
        return Prompts(captions or {}, source, tuple(notes))
    _check(templates, known, captions is not None)
    source = {"template": templates[0].text if len(templates) == 1 else [each.text for each in templates]} | source
    own = _own_values(folder, captions, prompt_syntax)
    return _chosen(folder, {label: tuple(templates) for label in folder.classes}, known, own, seed, source, notes)


def _chosen(folder: ImageFolder, templates: dict[str, tuple[Template, ...]], known: Fields | None,
            own: dict[str, dict[str, Any]], seed: int, source: dict[str, Any], notes: list[str]) -> Prompts:
    """The prompts of checked templates."""
    if folder.captions and (folder.root / CLASSES_FILE).exists():
        words = json.dumps(class_names(folder), sort_keys=True)
        source["prompts_sha256"] = hashlib.sha256((words + source.get("prompts_sha256", "")).encode()).hexdigest()
    every = [template for each in templates.values() for template in each]
    used = {name for template in every for name in template.fields}
    values = {name: choices for template in every for name, choices in template.inline.items()}
    if known:
        taken = {name: choices for name, choices in known.values.items() if name in used}
        if spare := [name for name in known.values if name not in used]:
            notes = notes + [f"no template has the {'field' if len(spare) == 1 else 'fields'} {', '.join(spare)} of "
                             f"{known.origin}"]
        values |= taken
        source = source | {"fields_sha256": hashlib.sha256(json.dumps(taken, sort_keys=True).encode()).hexdigest()}
    choice = Choice(templates, values, own, seed)
    texts = {image.key: choice.of(image.key, 0).text for image in folder.images}
    varied = bool(values) or any(len(each) > 1 for each in templates.values())
    return Prompts(texts, source, tuple(notes), choice if varied else None)


def _own_values(folder: ImageFolder, captions: Mapping[str, str] | None, syntax: Syntax) -> dict[str, dict[str, Any]]:
    """The values that depend on the image: its class, and its caption (escaped by `prompts_from_file`)."""
    return {key: {CLASS: place, CAPTION: (captions or {}).get(key, "")}
            for key, place in folder.placing(syntax).items()}


def _check(templates: Sequence[Template], known: Fields | None, captioned: bool, needs_class: bool = True) -> None:
    """Refuse templates without the class, and those with fields that have no values."""
    for template in templates:
        if needs_class and template.count(CLASS) != 1 and CAPTION not in template.fields:
            raise ParameterError("template", f'{template.text!r} must hold {{}} once, where the class name goes: '
                                 f'"{DEFAULT_TEMPLATE}"')
        for name in template.fields:
            if name == CAPTION and not captioned:
                raise ParameterError("template", f"{template.text!r} has {{caption}}, and the data set has no captions;"
                                     " add them as metadata.jsonl, or as a file of `prompts`")
            if name in (CLASS, CAPTION) or name in template.inline or known and name in known.values:
                continue
            raise ParameterError("template", f"{template.text!r} has the field {{{name}}}: " + (
                known.missing(name) if known else "it has no values; give them as `fields`, or write {{ and }} for "
                "braces that are none"))


def _from_lists(folder: ImageFolder, path: Path, known: Fields | None, syntax: Syntax, seed: int) -> Prompts:
    """Prompts of a JSON file of classes and their prompts."""
    example = f'write {{"{folder.classes[0]}": ["a photo", "a sketch"]}}'
    content = read_bounded(path)
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"{path} is no JSON object of classes and their prompts; {example}")
    if unknown := next((label for label in given if label not in folder.classes), None):
        raise ValueError(f"{path} names {shown(unknown, folder.classes)}, which is no class of {folder.root}; correct "
                         "or remove it")
    if missing := next((image.label for image in folder.images if image.label not in given), None):
        raise ValueError(f"{path} has no prompts for the class {missing!r}; add them")
    templates: dict[str, tuple[Template, ...]] = {}
    for label, texts in given.items():
        texts = [texts] if isinstance(texts, str) else texts
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
            raise ValueError(f"{path}: the prompts of {label!r} must be a text or a list of texts; {example}")
        if len(set(texts)) < len(texts):
            raise ValueError(f"{path}: the prompts of {label!r} hold one of them twice; remove it")
        try:
            templates[label] = tuple(Template(text) for text in texts)
            _check(templates[label], known, False, needs_class=False)
        except ParameterError as error:
            raise ValueError(f"{path}: the prompt {error.reason}") from None
    source = {"prompts_sha256": hashlib.sha256(content).hexdigest()}
    return _chosen(folder, templates, known, _own_values(folder, None, syntax), seed, source, [])


def _digest_of(files: Sequence[Path]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digests[0] if len(files) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def as_prompts(given: Prompts | Mapping[str, str | Sequence[str | Prompt]]) -> Prompts:
    """Prompts by image key, each a text, or a sequence with one for each variant, as `Prompts`."""
    if isinstance(given, Prompts):
        return given
    listed = {key: [each] if isinstance(each, str) else list(each) for key, each in given.items()}
    prompts = {key: [Prompt(each, {}) if isinstance(each, str) else each for each in of] for key, of in listed.items()}
    if empty := next((key for key, of in prompts.items() if not of), None):
        raise ParameterError("prompts", f"the list for {empty} is empty; give a prompt for each variant")
    varied = any(not isinstance(each, str) for each in given.values())
    return Prompts({key: of[0].text for key, of in prompts.items()}, {}, choice=Listed(prompts) if varied else None)


@dataclass(frozen=True)
class Listed:
    """Prompts that are given for every variant.

    Attributes
    ----------
    prompts : dict of str to list of Prompt
        Of a single one, all variants have it.
    """

    prompts: dict[str, list[Prompt]]

    def of(self, key: str, variant: int) -> Prompt:
        """The prompt of a variant of an image."""
        prompts = self.prompts[key]
        if len(prompts) > 1 and variant >= len(prompts):
            raise ParameterError("prompts", f"{key} has {len(prompts)} prompts, and no variant {variant}; give one for "
                                 "each variant")
        return prompts[variant] if len(prompts) > 1 else prompts[0]


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
        label: readable(name) if numbered else class_words(label)
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
    before, after = template.split("{}")
    return placed(before, class_words(label)) + after


def prompts_from_template(folder: ImageFolder, template: str = DEFAULT_TEMPLATE,
                          prompt_syntax: Syntax = "a1111") -> dict[str, str]:
    """One prompt per image, ``{key: prompt}``; ValueError unless `template` contains ``{}`` exactly once."""
    if template.count("{}") != 1:
        raise ParameterError("template",
                             f'{template!r} must hold {{}} once, where the class name goes: "{DEFAULT_TEMPLATE}"')
    if not is_utf8(template):
        raise ParameterError("template", f"{template!r} is not UTF-8")
    before, after = template.split("{}")
    of_class = {label: placed(before, words, prompt_syntax) + after for label, words in class_names(folder).items()}
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
        given = text if prompt_syntax == "plain" else escape_prompt(text)
        if prompts.setdefault(key, given) != given:
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
