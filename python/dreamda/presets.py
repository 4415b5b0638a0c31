"""Presets: named options of generation and training, in presets.json.

    load_preset("fast").generate                       # {"method": "cycle", "steps": 4, ...}
    pipe.augment(images, prompts, **load_preset("paper").generate)

An option that a preset does not name keeps its default. `text_share` is one that `dreamda generate` leaves out for
annotated images, for models without prompts, and where `method` or `strength` are given beside the preset.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .options import ParameterError

BALANCED = "balanced"


@dataclass(frozen=True)
class Preset:
    """Some options by name.

    Attributes
    ----------
    name, about : str
    generate : dict
        Keywords for `GenerationOptions`.
    train : dict
        Keywords for `Recipe`.
    """

    name: str
    about: str
    generate: dict[str, Any]
    train: dict[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    found = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {name: Preset(name, **fields) for name, fields in found.items()}


def load_preset(name: str) -> Preset:
    """A preset by its name.

    Raises
    ------
    ParameterError
        There is none of this name.
    """
    if name not in presets():
        raise ParameterError("preset", f"{name!r} is not possible; use one of {', '.join(presets())}")
    return presets()[name]
