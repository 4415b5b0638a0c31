"""The commands `dreamda import`, `crops` and `report`; `dreamda.cli` registers them."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..text import counted
from .common import (Coco, Debug, LabelsPath, Masks, OutArgument, Progress, Threads, Voc, Yolo, add_command,
                     check_result, complain_of, only_out, out_option, printable, read_labels, write_result)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add_command(app,
                import_,
                "dreamda import oxford-pets downloads --out pets",
                "dreamda import stl10 stl10_binary.tar.gz --out stl",
                name="import")
    add_command(app, crops, "dreamda crops images --coco instances.json --out crops",
                "dreamda crops images --yolo data.yaml -o crops")
    add_command(app, report, "dreamda report photos synthetic --out report.html",
                "dreamda report photos synthetic --classifier run")


def import_(
    name: Annotated[str,
                    typer.Argument(
                        help="caltech101, stanford-cars, oxford-pets, shenzhen-tb, stl10, fashion-mnist or cifar10.")],
    source: Annotated[
        Path,
        typer.
        Argument(metavar="SRC", help="The official archive, or a folder with the archives or their contents.")],
    out_argument: OutArgument = None,
    out: Annotated[
        Path | None,
        out_option("New or empty; becomes OUT/train/<class>/ and OUT/test/<class>/ with prompts.  [required]")] = None,
    debug: Debug = False,
) -> int:
    """Convert the official archive of a well-known data set to image folders with prompts.

    Nothing is downloaded. Exit code 1: the source is incomplete, and the images that it has were imported.
    """
    from ..data.importers import DATASETS, import_dataset

    place = only_out(out_argument, out)
    with Progress() as progress:
        report = import_dataset(name, source, place, progress=progress)
    complain_of(report.skipped, report.notes)
    counts = ", ".join(f"{count:,} {split}" for split, count in report.counts.items())
    print(
        printable(f"{place}: {DATASETS[name].title}, {counts} images of "
                  f"{counted(report.classes, 'class')}; split: {report.split}"))
    return 0 if report.complete else 1


def crops(
    real: Annotated[Path, typer.Argument(help="The folder of the images.")],
    out_argument: OutArgument = None,
    out: Annotated[Path | None, out_option("New or empty; becomes OUT/<category>/<image>-<number>.png.  [required]")]
    = None,
    coco: Coco = None,
    yolo: Yolo = None,
    voc: Voc = None,
    masks: Masks = None,
    debug: Debug = False,
) -> int:
    """Cut the objects out of annotated images, by their boxes, into class folders for dreamda train.

    A classifier of them is what dreamda generate --verify needs. Crowds and objects below 8 pixels are left out. Exit
    code 1: some images or annotations were skipped.
    """
    from ..data.annotations.crops import write_crops

    place, labels = only_out(out_argument, out), read_labels(real, coco=coco, yolo=yolo, voc=voc, masks=masks)
    if labels is None:
        raise ValueError("the annotations are missing; add --coco, --yolo, --voc or --masks")
    with Progress() as progress:
        made = write_crops(labels, place, progress=progress)
    complain_of(made.skipped, [f"{counted(made.small, 'object')} below 8 pixels left out"] if made.small else [])
    print(printable(f"{place}: {counted(sum(made.counts.values()), 'object')} of "
                    f"{counted(len(made.counts), 'class')}"))
    return 1 if made.skipped else 0


def report(
    real: Annotated[Path, typer.Argument(help="The data set that the synthetic images were made from.")],
    synthetic: Annotated[Path, typer.Argument(help="The output of dreamda generate, finished or still running.")],
    out: Annotated[Path | None,
                   out_option("The HTML file.  [default: SYNTHETIC-report.html in the current folder]", "FILE")] = None,
    classifier: Annotated[Path | None,
                          typer.Option(
                              help="A run of dreamda train whose network is used instead of new ones.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Weights of a ResNet from timm or torchvision (safetensors), such as ImageNet's, to use "
                     "instead.")] = None,
    labels: LabelsPath = None,
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Assess synthetic images: one HTML page with a verdict per class, measures, examples and a contact sheet.

    Small networks are trained on the real images for this; --classifier and --features avoid that.
    """
    from ..runs.measures import read_network
    from ..runs.report import report_page
    from ..runs.files import model_file
    from ..training.saved import TrainedModel

    if classifier is not None and features is not None:
        raise ValueError("--classifier and --features exclude each other; give one of them")
    out = out if out is not None else Path(f"{synthetic.absolute().name}-report.html")
    check_result("--out", out)
    network = TrainedModel.load(
        model_file(classifier)) if classifier is not None else read_network(features) if features is not None else None
    page, skipped = report_page(real, synthetic, network, labels=labels, threads=threads or None)
    complain_of(skipped, [])
    write_result("--out", out, page.encode())
    print(printable(f"Look at: {out}"))
    return 1 if skipped else 0
