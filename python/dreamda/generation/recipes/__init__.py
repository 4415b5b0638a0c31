"""Recipes of `dreamda generate --recipe NAME`: JSON files with settings and a prompt template for a kind of data."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...runs.generate import SETTING_NAMES, Settings

MAX_BYTES = 1 << 20


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def load_recipe(recipe: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """Read a recipe.

    Parameters
    ----------
    recipe : str or path
        A name of `names`, or a JSON file: an object with some fields of `dreamda.runs.generate.Settings`, ``template`` and ``about``.

    Returns
    -------
    settings : dict
        Arguments for `Settings`.
    template : str or None
        The prompt of a class, with ``{}`` for its name.

    Raises
    ------
    ValueError
        There is no such recipe, or it holds something else.
    """
    path = Path(__file__).with_name(f"{recipe}.json") if str(recipe) in names() else Path(recipe)
    if not path.is_file():
        raise ValueError(f"--recipe {recipe}: no such file, and the recipes that come with dreamda are {', '.join(names())}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"--recipe {path} is larger than the {MAX_BYTES >> 20} MiB that are read")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'--recipe {path} is no JSON object, such as {{"variants": 5, "template": "a photo of a {{}}"}}')
    found.pop("about", None)
    template = found.pop("template", None)
    if template is not None and not isinstance(template, str):
        raise ValueError(f"--recipe {path}: the template must be a text, and is {template!r}")
    if unknown := sorted(found.keys() - set(SETTING_NAMES)):
        raise ValueError(f"--recipe {path} has {unknown[0]!r}; the settings are {', '.join(SETTING_NAMES)}, beside template and about")
    defaults = Settings()
    for name, value in found.items():
        kind = type(getattr(defaults, name))
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"--recipe {path}: {name} is {value!r}, which is no {_KINDS[kind]}")
    return found, template


_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
