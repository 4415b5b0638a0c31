"""Values for the fields of prompt templates: from a JSON or YAML file, a folder of wildcards, or a set of ours.

    style: [photo, sketch, oil painting]          # fields.yaml
    view:
      - from above
      - seen from the side, at some distance

A file may also hold ``templates``, the prompts that use its fields, and ``about``. A folder of wildcards has a text
file for each field, ``style.txt``, with a value on each line; lines that begin with # are comments. No field may be
called ``class``, ``caption`` or ``template``.
"""
from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options import ParameterError
from .files import BrokenImageError, is_utf8, read_bounded
from .templates import CAPTION, CLASS, TEMPLATE, Template
from .yaml import yaml_lists

SETS = Path(__file__).with_name("prompt_sets")
TEMPLATES, ABOUT = "templates", "about"
MAX_BYTES = 1 << 20
RESERVED = {
    CLASS: "gives values to 'class', which depends on the image",
    CAPTION: "gives values to 'caption', which depends on the image",
    TEMPLATE: "has a field 'template', the name under which metadata.jsonl records the template of an image",
}


@dataclass(frozen=True)
class Fields:
    """The values of fields, and where they are from.

    Attributes
    ----------
    origin : str
        The file, folder or set.
    values : dict of str to tuple of str
    templates : tuple of Template
        Those of the file.
    """

    origin: str
    values: dict[str, tuple[str, ...]]
    templates: tuple[Template, ...] = ()

    def missing(self, name: str) -> str:
        """Why a field has no values, and the fix."""
        if Path(self.origin).is_dir():
            return f"there is no file {Path(self.origin) / name}.txt; add it, or correct the name"
        return f"{self.origin} has none of that name, only {', '.join(self.values)}; add it, or correct the name"


def set_names() -> list[str]:
    """The sets that come with the package."""
    return sorted(path.stem for path in SETS.glob("*.json"))


def read_fields(source: str | os.PathLike[str]) -> Fields:
    """Read the values of fields.

    Parameters
    ----------
    source : str or path
        A name of `set_names`, a JSON or YAML file, or a folder of wildcards.

    Raises
    ------
    ParameterError
        There is no such file, or it holds something else.
    """
    path = SETS / f"{source}.json" if str(source) in set_names() else Path(source)
    if path.is_dir():
        values = {file.relative_to(path).with_suffix("").as_posix(): _lines(file)
                  for file in sorted(path.rglob("*.txt")) if file.is_file()}
        if not values:
            raise ParameterError("fields", f"the folder {source} has no .txt files; write a file for each field, with "
                                 "a value on each line")
        _refuse_reserved(source, values)
        return Fields(str(source), values)
    if not path.is_file():
        raise ParameterError("fields", f"{source}: no such file or folder; give one, or a set that comes with dreamda: "
                             + ", ".join(set_names()))
    content = _read(path)
    try:
        found = yaml_lists(path, content) if path.suffix.lower() in (".yaml", ".yml") else _json(path, content)
    except ValueError as error:
        raise ParameterError("fields", str(error)) from None
    found.pop(ABOUT, None)
    lists = {name: _values(path, name, value) for name, value in found.items()}
    try:
        templates = tuple(Template(text) for text in lists.pop(TEMPLATES, ()))
    except ParameterError as error:
        raise ParameterError("fields", f"{path}: the template {error.reason}") from None
    _refuse_reserved(path, lists)
    return Fields(str(source), lists, templates)


def _refuse_reserved(source: str | os.PathLike[str], values: Mapping[str, tuple[str, ...]]) -> None:
    if name := next((name for name in RESERVED if name in values), None):
        raise ParameterError("fields", f"{source} {RESERVED[name]}; rename it")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ParameterError("fields", f"{path} is larger than the {MAX_BYTES >> 20} MiB that are read")
        return read_bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ParameterError("fields", f"{path} is not UTF-8 text; save it as such") from None
    except BrokenImageError as error:
        raise ParameterError("fields", f"{path}: {error}") from None


def _lines(path: Path) -> tuple[str, ...]:
    """The values in a file of a folder of wildcards."""
    values = [line.strip() for line in _read(path).splitlines()]
    return _values(path, path.stem, [value for value in values if value and not value.startswith("#")])


def _json(path: Path, content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'{path} is no JSON object of lists; write {{"style": ["photo", "sketch"]}}')
    return found


def _values(path: Path, name: str, given: Any) -> tuple[str, ...]:
    values = [given] if isinstance(given, str) else given
    if not (isinstance(values, list) and values and all(isinstance(v, str) and is_utf8(v) for v in values)):
        raise ParameterError("fields", f"{path}: {name!r} must be a list of at least one text")
    if twice := next((value for value, count in Counter(values).items() if count > 1), ""):
        raise ParameterError("fields", f"{path}: {name!r} has the value {twice[:80]!r} twice; remove one")
    return tuple(values)
