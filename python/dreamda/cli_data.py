"""The command `dreamda import`; `dreamda.cli` registers it."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli import Debug, _complain, _printable, _Progress


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("import")(import_)


def import_(
    name: Annotated[str, typer.Argument(help="caltech101, stanford-cars, oxford-pets, shenzhen-tb, stl10, fashion-mnist or cifar10.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The official archive, or a folder with the archives or with what they hold.")],
    out: Annotated[Path, typer.Argument(help="New or empty; becomes OUT/train/<class>/ and OUT/test/<class>/ with prompts.")],
    debug: Debug = False,
) -> int:
    """Make the official archive of a well-known data set into image folders with prompts.

    Nothing is downloaded. Exit code 1: less was there than is published, and the images that were there have been imported.
    """
    from .datasets import DATASETS, import_dataset

    with _Progress() as progress:
        report = import_dataset(name, source, out, progress=progress)
    for key, reason in report.skipped[:20]:
        _complain(f"skipped {key}: {reason}")
    if len(report.skipped) > 20:
        _complain(f"skipped {len(report.skipped) - 20} more")
    for note in report.notes:
        _complain(note)
    counts = ", ".join(f"{count:,} {split}" for split, count in report.counts.items())
    print(_printable(f"{out}: {DATASETS[name].title}, {counts} images of {report.classes} classes; split: {report.split}"))
    return 0 if report.complete else 1
