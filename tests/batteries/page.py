"""Writes python/docs/supported_inputs.md from the batteries; run it after adding a case: python
tests/batteries/page.py"""
from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "python" / "docs" / "supported_inputs.md"
TITLES = {
    "images": ("Image files",
               "What `dreamda` reads wherever it takes images. Files are told by their contents, not by their names."),
    "tokenizers": ("Tokenizers", "Folders of CLIP tokenizers, as old and new versions of transformers write them."),
    "schedulers": ("Schedulers",
                   "What `scheduler_config.json` may say. Its noise levels are used; the steps are DreamDA's own."),
    "unets": ("U-Nets", "What `unet/config.json` may say: networks of text models, and of models in pixel space."),
    "labels": ("Labels", "What `AMSTClassifier` takes for classes, and where `dreamda train` "
                         "and `evaluate` find labels."),
    "environments": ("Environments", "Environment variables and containers: how many threads compute. The images and "
                                     "models are those of as many threads anywhere else."),
}


def rows(battery: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The tables of a battery: a title, and for each case what it is and what becomes of it."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, value in vars(battery).items():
        if not name.isupper() or name.startswith("_"):
            continue
        if name == "CASES" and isinstance(value, dict):
            yield from ((kind, [_row(case) for case in cases]) for kind, cases in value.items())
            return
        if isinstance(value, list) and value and all(
                isinstance(case, dict) and {"name", "what"} & case.keys() for case in value):
            tables[name] = value
    for name, cases in tables.items():
        yield "Refused" if name == "REFUSED" else "Read" if "REFUSED" in tables else "", [_row(case) for case in cases]


def _row(case: dict[str, Any]) -> tuple[str, str]:
    refused = case.get("refused", case.get("says"))
    result = f"refused: {refused}" if refused else f"run as {case['run_as']}" if case.get("run_as") else "read"
    return case.get("what") or case["name"], case.get("result", result)


def text() -> str:
    """The page."""
    parts = [
        "# Supported inputs", "",
        "Every line here is a test. This page is made by `tests/batteries/page.py` from the "
        "tables in `tests/batteries`.",
        "A refused input ends with one sentence that says why and what to do; the words after "
        "\"refused\" are a part of it."
    ]
    for name in [
            *TITLES, *sorted(path.stem for path in HERE.glob("*.py") if path.stem not in TITLES and path.stem != "page")
    ]:
        if not (HERE / f"{name}.py").is_file():
            continue
        title, about = TITLES.get(name, (name.replace("_", " ").capitalize(), ""))
        parts += ["", f"## {title}", "", about]
        for table, cases in rows(importlib.import_module(f"batteries.{name}")):
            parts += ["", *([f"### {table}", ""] if table else []), "| input | result |", "| --- | --- |"]
            parts += [f"| {_cell(what)} | {_cell(result)} |" for what, result in cases]
    return "\n".join(parts) + "\n"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE)
