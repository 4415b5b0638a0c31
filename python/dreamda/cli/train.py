"""The commands `dreamda train`, `evaluate` and `predict`; `dreamda.cli` registers them."""
from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Command, Debug, Dtype, Threads, check_result, complain, complain_of, parse_size, printable, write_result

DEMO_WIDTH = 16
# The settings that did best on validation images (benchmarks/EFFICACY.md).
DEMO_RECIPE: dict[str, Any] = {"epochs": 12, "pretrain_epochs": 2, "steps_per_epoch": 25, "batch": 32, "lr": 0.05, "warmup_epochs": 1.0,
                               "threshold": 0.7, "hint": "keep", "relabel": 3, "consistency_on": "all"}

Model = Annotated[Path, typer.Argument(help="A model.safetensors, or the folder of a finished dreamda train.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that decode and augment images; they do not change the result.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (train, evaluate, predict):
        app.command(cls=Command)(command)


def train(
    real: Annotated[Path, typer.Argument(help="The real images: REAL/<class>/*.png|jpg|webp|bmp|tif.")],
    synthetic: Annotated[Path | None, typer.Argument(help="The output of dreamda generate, or class folders; not for --method real-only.")] = None,
    out: Annotated[Path | None, typer.Option(help="New or empty, or the folder of the same run, which then goes on.  [required]")] = None,
    method: Annotated[str, typer.Option(help="amst, plain (trust the labels of the seeds) or real-only.")] = "amst",
    test: Annotated[Path | None, typer.Option(help="Images of the same classes to test the finished classifier on.")] = None,
    backbone: Annotated[str, typer.Option(help="resnet18, resnet34 or resnet50.")] = "resnet18",
    pretrained: Annotated[Path | None, typer.Option(help="timm or torchvision weights to start from (safetensors).")] = None,
    stem: Annotated[str, typer.Option(help="auto, imagenet, or small (3 x 3, stride 1); auto is small up to 64 pixels.")] = "auto",
    width: Annotated[int, typer.Option(min=8, help="Channels of the first stage.")] = 64,
    size: Annotated[str, typer.Option(help="Training size, N or HEIGHTxWIDTH. [default: small images' own, else 224]")] = "",
    epochs: Annotated[int, typer.Option(help="Epochs of all stages together.")] = 30,
    pretrain_epochs: Annotated[int | None, typer.Option(help="Of the first stage of amst. [default: a third]")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(help="[default: images / batch] Set it to compare methods at equal steps.")] = None,
    batch: Annotated[int, typer.Option(help="Labelled images in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Nesterov momentum.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Not on norms and biases.")] = 1e-4,
    warmup_epochs: Annotated[float, typer.Option(help="Linear warm-up, at most a fifth of a stage; then a cosine.")] = 5.0,
    smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.0,
    clip_norm: Annotated[float, typer.Option(help="Largest norm of the gradient; 0: no clipping.")] = 0.0,
    threshold: Annotated[float, typer.Option(help="Confidence that a pseudo-label needs.")] = 0.9,
    consistency_weight: Annotated[float, typer.Option(help="Lambda of the consistency loss.")] = 1.0,
    consistency_on: Annotated[str, typer.Option(help="rest: the synthetic images that were not accepted; or all of them.")] = "rest",
    relabel: Annotated[int, typer.Option(help="Label again every so many epochs; 0: only once.")] = 0,
    hint: Annotated[str, typer.Option(help="Of the seeds' labels: ignore them; agree: accept no other; keep: until contradicted.")] = "ignore",
    real_share: Annotated[float, typer.Option(help="Least part of real images in a labelled batch.")] = 0.5,
    mix: Annotated[str, typer.Option(help="none, mixup or cutmix.")] = "none",
    view: Annotated[str, typer.Option(help="Of labelled images: weak, randaugment or strong.")] = "weak",
    crop_scale: Annotated[str, typer.Option(help="LOW,HIGH: area of random crops. [default: 0.08,1; up to 64 pixels 0.5,1]")] = "",
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Random horizontal flips; wrong for digits and X-rays.")] = True,
    mean: Annotated[str, typer.Option(help="R,G,B from 0 to 1. [default: of the real images]")] = "",
    std: Annotated[str, typer.Option(help="R,G,B from 0 to 1. [default: of the real images]")] = "",
    validation: Annotated[float, typer.Option(help="Part of the real images held back to choose the best epoch.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, views, order and split.")] = 0,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
) -> int:
    """Train a classifier on real and synthetic images (AMST), or on the real ones alone.

    The same command again goes on where the last one stopped. The classifier is OUT/model.safetensors, the record OUT/log.jsonl.
    """
    from ..runs.train import TrainSettings, train_dataset
    from ..training.recipe import Recipe
    from ..training.stages import DivergenceError

    if out is None:
        raise ValueError("--out is missing; name a folder for the run")
    recipe = Recipe(method, epochs, pretrain_epochs, steps_per_epoch, batch, lr, momentum, weight_decay, warmup_epochs, smoothing, clip_norm,
                    threshold, consistency_weight, consistency_on, relabel, hint, real_share, mix, view, seed)
    if method != "real-only" and synthetic is None:
        raise ValueError(f"--method {method} needs SYNTHETIC, the output of dreamda generate; or take --method real-only")
    settings = TrainSettings(backbone, stem, width, dtype, parse_size(size), _numbers("--mean", mean, 3), _numbers("--std", std, 3),
                             _numbers("--crop-scale", crop_scale, 2), flip, validation, pretrained)
    with _Steps() as steps:
        try:
            report = train_dataset(real, synthetic, out, recipe, settings, test=test, threads=threads or None, workers=workers, tell=steps.tell,
                                   progress=steps)
        except DivergenceError as error:
            complain(str(error))
            return 1
    complain_of(report.skipped, [])
    if report.signal:
        complain(f"stopped by {signal.Signals(report.signal).name} in epoch {report.epochs + 1} of {recipe.epochs}; the same command goes on from here")
        return 128 + report.signal
    for note in report.notes:
        complain(note)
    if report.metrics is not None:
        print(_printable_lines(report.metrics.table()))
    best = f" (best epoch {report.best['epoch']}, validation accuracy {report.best['accuracy']:.4f})" if report.best else ""
    print(printable(f"model: {out / 'model.safetensors'}{best}"))
    return 1 if report.skipped or any("no synthetic image was ever accepted" in note for note in report.notes) else 0


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Test images: DATA/<class>/*, classes as in training.")],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and confusion.png.")] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
) -> int:
    """Test a classifier: accuracy, macro-F1, AUC for two classes, a table and a confusion matrix."""
    from ..training.metrics import confusion_picture
    from ..runs.train import evaluate_dataset, find_model
    from ..training.saved import TrainedModel

    if out is not None:
        check_result("--out", out / "metrics.json")
    metrics, skipped = evaluate_dataset(TrainedModel.load(find_model(model)), data, dtype=dtype, threads=threads or None, workers=workers)
    complain_of(skipped, [])
    print(_printable_lines(metrics.table()))
    if out is not None:
        write_result("--out", out / "metrics.json", (json.dumps(metrics.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        try:
            confusion_picture(metrics).savefig(out / "confusion.png", dpi=120)
        except ImportError as error:
            complain(f"no picture was drawn: {error}")
    return 1 if skipped else 0


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path | None, typer.Option(help="JSON Lines file. [default: standard output]")] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    debug: Debug = False,
) -> int:
    """Classify images: a line {"file_name", "label", "probability", "probabilities"} for each."""
    from ..data.files import BrokenImageError, is_utf8
    from ..data.folders import list_images
    from ..data.images import FORMATS, read_image
    from ..runs.train import find_model
    from ..training.saved import TrainedModel

    if out is not None:
        check_result("--out", out)
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
    trained = TrainedModel.load(find_model(model))
    lines = []
    for start in range(0, len(paths), 64):
        good, pixels = [], []
        for path in paths[start: start + 64]:
            try:
                if not is_utf8(str(path)):  # what JSON cannot say is refused before the work is done
                    raise BrokenImageError("its name is not UTF-8; rename it")
                pixels.append(read_image(path).pixels)
                good.append(path)
            except BrokenImageError as error:
                skipped.append((str(path), str(error)))
        if not good:
            continue
        for path, row in zip(good, trained.predict_proba(pixels, dtype=dtype, threads=threads or None, workers=workers), strict=True):
            probabilities = {str(name): round(float(p), 6) for name, p in zip(trained.classes, row, strict=True)}
            lines.append(json.dumps({"file_name": str(path), "label": str(trained.classes[int(row.argmax())]), "probability": float(row.max()),
                                     "probabilities": probabilities}, ensure_ascii=False))
    complain_of(skipped, [])
    text = "".join(f"{line}\n" for line in lines)
    if out is None:
        sys.stdout.write(text)
    else:
        try:
            write_result("--out", out, text.encode())
        except OSError:
            sys.stdout.write(text)  # rather than lost
            raise
    return 1 if skipped else 0


def compare(out: Path, dtype: str, threads: int) -> int:
    """The second half of the demo: train with AMST and on the real images alone, with as many optimiser steps, and print both results."""
    from ..training.recipe import Recipe
    from ..runs.train import TrainSettings, train_dataset

    rows = {}
    for method, title in (("real-only", "real images alone"), ("amst", "DreamDA + AMST")):
        print(f"Training:         {title}", flush=True)
        recipe = Recipe(method, **DEMO_RECIPE)
        with _Steps() as steps:
            report = train_dataset(out / "real", out / "synthetic", out / method, recipe, TrainSettings(width=DEMO_WIDTH, dtype=dtype),
                                   test=out / "test", threads=threads or None, tell=steps.tell, progress=steps)
        if report.signal:
            complain(f"stopped by {signal.Signals(report.signal).name}; the same command goes on from here")
            return 128 + report.signal
        for note in report.notes:
            complain(note)
        assert report.metrics is not None  # of every finished run that was given a test folder
        rows[title] = report.metrics
    total = DEMO_RECIPE["epochs"] * DEMO_RECIPE["steps_per_epoch"]
    print(f"\n{total} steps each, tested on {rows['DreamDA + AMST'].support.sum()} images:\n{'':18}  accuracy  macro-F1")
    for title, metrics in rows.items():
        print(f"{title:18}  {metrics.accuracy:8.1%}  {metrics.macro_f1:8.3f}")
    pictures = ", curves and confusion matrices" if (out / "amst" / "curves.png").exists() else ""
    print(f"Models, logs{pictures}: {out / 'real-only'} and {out / 'amst'}")
    return 0


def _numbers(option: str, text: str, count: int) -> tuple[Any, ...] | None:
    if not text:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(0 <= n <= 1 for n in numbers):
        raise ValueError(f"{option} {text!r} must be {count} numbers from 0 to 1 with commas between them")
    return numbers


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


class _Steps:
    """A bar of steps on stderr where that is a terminal, with the lines of the log above it."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Steps:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm
            self._bar = tqdm(total=total, initial=done - 1, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def tell(self, text: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.write(printable(text), file=sys.stderr)
        else:
            print(printable(text), file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
