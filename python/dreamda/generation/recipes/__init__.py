"""Recipes of `dreamda generate --recipe NAME`: JSON files with settings and a prompt template for a kind of data."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...options import ParameterError, options_of
from ..options import GenerationOptions, with_todays_names

MAX_BYTES = 1 << 20


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def load_recipe(recipe: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """Read a recipe.

    Parameters
    ----------
    recipe : str or path
        A name of `names`, or a JSON file: an object with some fields of `GenerationOptions`, ``template`` and
        ``about``.

    Returns
    -------
    settings : dict
        Keywords for `GenerationOptions`.
    template : str or None
        The prompt of a class, with ``{}`` for its name.

    Raises
    ------
    ValueError
        There is no such recipe, or it holds something else.
    """
    path = Path(__file__).with_name(f"{recipe}.json") if str(recipe) in names() else Path(recipe)
    if not path.is_file():
        raise ValueError(
            f"--recipe {recipe}: no such file, and the recipes that come with dreamda are {', '.join(names())}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"--recipe {path} is larger than the {MAX_BYTES >> 20} MiB that are read")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f'--recipe {path} is no JSON object, such as {{"variants": 5, "template": "a photo of a {{}}"}}')
    found.pop("about", None)
    template = found.pop("template", None)
    found = with_todays_names(found)
    if template is not None and not isinstance(template, str):
        raise ValueError(f"--recipe {path}: the template must be a text, and is {template!r}")
    options = options_of(GenerationOptions)
    if unknown := sorted(found.keys() - options.keys()):
        raise ValueError(
            f"--recipe {path} has {unknown[0]!r}; the options are {', '.join(options)}, beside template and about")
    try:
        return {name: options[name].checked(name, value) for name, value in found.items()}, template
    except ParameterError as error:
        raise ValueError(f"--recipe {path}: {error}") from None
