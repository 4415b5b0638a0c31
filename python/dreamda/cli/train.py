"""The commands `dreamda train`, `evaluate` and `predict`; `dreamda.cli` registers them."""
from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import spelled
from ..presets import BALANCED, load_preset
from ..training.recipe import Recipe
from .common import (RUNNING, Command, Debug, Dtype, Preset, Progress, Threads, accepts_options, add_command,
                     check_result, chosen, complain, complain_of, needs_stdout, not_negative, out_option, printable,
                     with_preset, write_result)

if TYPE_CHECKING:
    from ..training.saved import TrainedModel

# Shorter than the defaults, and with views that take few steps to learn; both methods take the same number of steps.
DEMO_RECIPE: dict[str, Any] = {"epochs": 12, "pretrain_epochs": 2, "steps_per_epoch": 25, "view": "weak"}

Model = Annotated[Path, typer.Argument(help="A model.safetensors, or the output folder of dreamda train.")]
Workers = Annotated[int, typer.Option(callback=not_negative, metavar="N", rich_help_panel=RUNNING,
                                      help="Threads that decode and augment images; they do not affect the result.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add_command(app, train, "dreamda train photos synthetic --out run --test test",
                "dreamda train photos synthetic -o run --pretrained resnet18.safetensors --validation 0.2")
    add_command(app, evaluate, "dreamda evaluate run test", "dreamda evaluate run test --out results")
    add_command(app, predict, "dreamda predict run photo.jpg", "dreamda predict run photos --out predictions.jsonl")


@accepts_options(Recipe)
def train(
    context: typer.Context,
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="The real images, in a folder for each class: REAL/<class>/*.")],
    synthetic: Annotated[
        Path | None,
        typer.Argument(metavar="SYNTHETIC",
                       help="The output of dreamda generate, or class folders. Not with --method real-only.")] = None,
    out: Annotated[
        Path | None,
        out_option("New or empty, or the folder of the same run, which is then resumed.  [required]")] = None,
    test: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images of the same classes to test the finished classifier on.")] = None,
    preset: Preset = BALANCED,
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
    **options: Any,
) -> int:
    """Train a classifier on real and synthetic images (AMST), or on the real ones alone.

    Run the same command again to resume a stopped run. OUT/model.safetensors is the classifier, OUT/log.jsonl the log.
    """
    from ..runs.train import train_dataset
    from ..training.stages import DivergenceError

    if out is None:
        raise ValueError("--out is missing; name a folder for the run")
    recipe = chosen(Recipe, with_preset(context, options, load_preset(preset).train, {}))
    spell = _spell(context)
    with Progress("step", spell) as progress:
        try:
            report = train_dataset(real,
                                   synthetic,
                                   out,
                                   recipe,
                                   test=test,
                                   threads=threads or None,
                                   workers=workers,
                                   tell=progress.tell,
                                   progress=progress)
        except DivergenceError as error:
            complain(spelled(error.args[0], spell))
            return 1
    complain_of(report.skipped, [])
    if report.signal:
        complain(
            f"stopped by {signal.Signals(report.signal).name} in epoch {report.epochs + 1} of {recipe.epochs}; "
            "run the same command again to resume")
        return 128 + report.signal
    for note in report.notes:
        complain(spelled(note, spell))
    if report.metrics is not None:
        print(_printable_lines(report.metrics.table()))
    best = (f" (best epoch {report.best['epoch']}, validation accuracy {report.best['accuracy']:.4f})"
            if report.best else "")
    print(printable(f"model: {out / 'model.safetensors'}{best}"))
    return 1 if report.skipped else 0


def _spell(context: typer.Context) -> Callable[[str, str | None], str | None]:
    """The function that spells parameters as the command's options."""
    assert isinstance(context.command, Command)  # as `register` makes them
    return context.command.spell


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Test images: DATA/<class>/*, classes as in training.")],
    out: Annotated[Path | None, out_option("Where to write metrics.json and confusion.png.")] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
) -> int:
    """Test a classifier: accuracy, macro-F1, AUC for two classes, a table and a confusion matrix."""
    from ..runs.train import evaluate_dataset
    from ..training.metrics import confusion_picture

    if out is not None:
        check_result("--out", out / "metrics.json")
    metrics, skipped = evaluate_dataset(_load(model), data, dtype=dtype, threads=threads or None, workers=workers)
    complain_of(skipped, [])
    print(_printable_lines(metrics.table()))
    if out is not None:
        write_result("--out", out / "metrics.json",
                     (json.dumps(metrics.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        try:
            confusion_picture(metrics).savefig(out / "confusion.png", dpi=120)
        except ImportError as error:
            complain(f"no picture was drawn: {error}")
    return 1 if skipped else 0


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path | None, out_option("Where to write the lines.  [default: standard output]", "FILE")] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
) -> int:
    """Classify images: one line {"file_name", "label", "probability", "probabilities"} per image.

    If the model's data set had a classes.json, "name" is added, the words for the label.
    """
    from ..data.files import BrokenImageError, is_utf8
    from ..data.folders import list_images
    from ..data.images import FORMATS
    from ..runs.labelled import FolderImages

    if out is not None:
        check_result("--out", out)
    else:
        needs_stdout("name a file with --out")
    paths: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for place in images:
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder")
        names, ignored = list_images(place) if place.is_dir() else (["."], [])
        paths += [place / name for name in names]
        skipped += [(str(place / name), reason) for name, reason in ignored]
    if not paths:
        raise ValueError(f"{images[0]} holds no images; the formats read are {', '.join(FORMATS)}")
    trained = _load(model)
    unwritable = [path for path in paths if not is_utf8(str(path))]  # JSON cannot hold such a name
    skipped += [(str(path), "its name is not UTF-8; rename it") for path in unwritable]
    files = FolderImages([path for path in paths if path not in set(unwritable)], trained.size)
    lines = []
    for start in range(0, len(files), 64):
        part = range(start, min(start + 64, len(files)))
        found = dict(zip(part, files.load_many(part, workers), strict=True))
        good = {index: loaded[0] for index, loaded in found.items() if not isinstance(loaded, BrokenImageError)}
        skipped += [(str(files.paths[index]), str(error)) for index, error in found.items()
                    if isinstance(error, BrokenImageError)]
        if not good:
            continue
        rows = trained.predict_proba(list(good.values()), dtype=dtype, threads=threads or None, workers=workers)
        for index, row in zip(good, rows, strict=True):
            label = str(trained.classes[int(row.argmax())])
            probabilities = {str(name): round(float(p), 6) for name, p in zip(trained.classes, row, strict=True)}
            lines.append(
                json.dumps(
                    {
                        "file_name": str(files.paths[index]), "label": label, **({"name": trained.words[label]}
                                                                                 if label in trained.words else {}),
                        "probability": float(row.max()), "probabilities": probabilities
                    },
                    ensure_ascii=False))
    complain_of(skipped, [])
    text = "".join(f"{line}\n" for line in lines)
    if out is None:
        sys.stdout.write(text)
    else:
        try:
            write_result("--out", out, text.encode())
        except OSError:
            sys.stdout.write(text)  # so that the result is not lost
            raise
    return 1 if skipped else 0


def _load(path: Path) -> TrainedModel:
    """Load the model of a file or a run; print a message if the run was stopped."""
    from ..runs.files import model_file
    from ..training.saved import TrainedModel

    model = TrainedModel.load(model_file(path))
    if (epoch := model.about.get("stopped_in_epoch")) is not None:
        complain(f"{path}: this training was stopped in epoch {epoch}, and the model is what it had learned until then")
    return model


def compare(out: Path, dtype: str, threads: int) -> int:
    """The second half of the demo: train with AMST and on the real images alone, and print both results.

    Both trainings have the same number of optimiser steps.
    """
    from ..runs.train import train_dataset

    rows: dict[str, Any] = {}
    notes: dict[str, None] = {}
    for method, title in (("real-only", "real images alone"), ("amst", "DreamDA + AMST")):
        print(f"Training:         {title}", flush=True)
        recipe = Recipe(**{"method": method, "dtype": dtype, **DEMO_RECIPE})
        with Progress("step") as progress:
            report = train_dataset(out / "real",
                                   out / "synthetic" if method == "amst" else None,
                                   out / method,
                                   recipe,
                                   test=out / "test",
                                   threads=threads or None,
                                   tell=progress.tell,
                                   progress=progress)
        if report.signal:
            complain(f"stopped by {signal.Signals(report.signal).name}; run the same command again to resume")
            return 128 + report.signal
        notes |= dict.fromkeys(report.notes)
        assert report.metrics is not None  # every finished run with a test folder has them
        rows[title] = report.metrics
    total = DEMO_RECIPE["epochs"] * DEMO_RECIPE["steps_per_epoch"]
    print(
        f"\n{total} steps each, tested on {rows['DreamDA + AMST'].support.sum()} images:\n{'':18}  accuracy  macro-F1")
    for title, metrics in rows.items():
        print(f"{title:18}  {metrics.accuracy:8.1%}  {metrics.macro_f1:8.3f}")
    pictures = ", curves and confusion matrices" if (out / "amst" / "curves.png").exists() else ""
    print(f"Models, logs{pictures}: {out / 'real-only'} and {out / 'amst'}")
    for note in notes:
        complain(spelled(note))
    return 0


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
