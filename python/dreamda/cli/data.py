"""The commands `dreamda import` and `report`; `dreamda.cli` registers them."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Command, Debug, check_result, complain_of, printable, Progress, write_result


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("import", cls=Command)(import_)
    app.command(cls=Command)(report)


def import_(
    name: Annotated[str, typer.Argument(help="caltech101, stanford-cars, oxford-pets, shenzhen-tb, stl10, fashion-mnist or cifar10.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The official archive, or a folder with the archives or with what they hold.")],
    out: Annotated[Path, typer.Argument(help="New or empty; becomes OUT/train/<class>/ and OUT/test/<class>/ with prompts.")],
    debug: Debug = False,
) -> int:
    """Make the official archive of a well-known data set into image folders with prompts.

    Nothing is downloaded. Exit code 1: less was there than is published, and the images that were there have been imported.
    """
    from ..data.importers import DATASETS, import_dataset

    with Progress() as progress:
        report = import_dataset(name, source, out, progress=progress)
    complain_of(report.skipped, report.notes)
    counts = ", ".join(f"{count:,} {split}" for split, count in report.counts.items())
    print(printable(f"{out}: {DATASETS[name].title}, {counts} images of {report.classes} classes; split: {report.split}"))
    return 0 if report.complete else 1


def report(
    real: Annotated[Path, typer.Argument(help="The data set that OUT was made from.")],
    out: Annotated[Path, typer.Argument(help="The output of dreamda generate.")],
    page: Annotated[Path | None, typer.Option("--page", help="The HTML file. [default: OUT-report.html]")] = None,
    classifier: Annotated[Path | None, typer.Option(help="A run of dreamda train, whose features are compared instead of pixels.")] = None,
    debug: Debug = False,
) -> None:
    """How true and how varied the synthetic images are: one HTML page with measures, the nearest and the farthest, and a contact sheet."""
    from ..runs.report import report_page
    from ..runs.train import model_file
    from ..training.saved import TrainedModel

    page = page if page is not None else out.absolute().with_name(f"{out.absolute().name}-report.html")
    check_result("--page", page)
    text = report_page(real, out, TrainedModel.load(model_file(classifier)) if classifier is not None else None)
    write_result("--page", page, text.encode())
    print(printable(f"Look at: {page}"))
