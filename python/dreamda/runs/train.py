"""The run folder of `dreamda train`: checkpoints, a log, the model, its metrics and pictures.

    RUN/run.json                every parameter, the hashes of the data, the number of threads, and the machine
    RUN/log.jsonl               one line per epoch, stage and labelling
    RUN/checkpoint.safetensors  arrays, and the position as JSON in its header; after every epoch and on Ctrl-C
    RUN/model.safetensors       the classifier of the best epoch on the validation split, else of the last one so far
    RUN/metrics.json, confusion.png, curves.png      when the run has ended (the first two with test images)

Every file except the log is replaced as a whole. The same command resumes a run that was stopped or killed, from its
last checkpoint. On the same machine, its model and checkpoints are then bitwise identical to those of an uninterrupted
run. A run with other parameters, data or another number of threads is refused.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import reprlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.files import LostImageError, digest_of_file, temporary_name, write_atomically
from ..networks.config import read_json
from ..options import ParameterError, options_of
from ..text import counted, in_brackets
from ..training.batches import Data
from ..training.holdout import split
from ..training.metrics import Metrics, confusion_picture, curves_picture, evaluate_predictions
from ..training.recipe import Recipe, natural_size
from ..training.saved import TrainedModel, load_arrays, save_arrays
from ..training.setup import Setup
from ..training.stages import DivergenceError, Event, Training, describe
from ..training.views import SMALL, is_grey
from .files import OutputError, StopOnSignals, locked_folder
from .inspection import BITS, differences, environment
from .labelled import FolderImages, LabelledFolder, dimensions, read_folder, scan_labelled, scan_real

FILES = ("run.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors", "metrics.json", "confusion.png",
         "curves.png")

SAME_ASPECT = 0.02  # aspect ratios that differ by less count as the same

Paths = str | os.PathLike[str]


@dataclass(repr=False)
class TrainReport:
    """The result of `train_dataset`.

    Attributes
    ----------
    epochs : int
        Number of finished epochs, of `recipe.epochs`.
    metrics : Metrics or None
        On the test images; None before the run has ended.
    best : dict or None
        Number and accuracy of the best epoch on the validation split.
    events : list of dict
        The log.
    signal : int or None
        The signal that ended the run early.
    notes : list of str
        Messages for the user; parameters in them are in backticks (see `dreamda.options`).
    skipped : list of (str, str)
        Files of the data sets that were left out, each with the reason.
    """

    epochs: int = 0
    metrics: Metrics | None = None
    best: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    signal: int | None = None
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __repr__(self) -> str:
        best = self.best and f"best epoch {self.best['epoch']} with validation accuracy {self.best['accuracy']:.4f}"
        return in_brackets("TrainReport",
                           counted(self.epochs, "epoch"),
                           best,
                           self.metrics or "no metrics",
                           counted(len(self.events), "event"),
                           self.notes and counted(len(self.notes), "note"),
                           self.skipped and f"{counted(len(self.skipped), 'file')} skipped",
                           self.signal and f"stopped by {signal.Signals(self.signal).name}")


def train_dataset(real: Paths,
                  synthetic: Paths | None,
                  out: Paths,
                  recipe: Recipe = Recipe(),
                  *,
                  test: Paths | None = None,
                  threads: int | None = None,
                  workers: int = 2,
                  tell: Callable[[str], None] = lambda text: None,
                  progress: Callable[[int, int], None] = lambda done, total: None) -> TrainReport:
    """Train a classifier and write it into the folder `out`, or resume from the end of the last call.

    On SIGINT or SIGTERM (in the main thread) the call finishes the current step, saves its state and returns; a second
    signal stops it at once.

    Parameters
    ----------
    real, synthetic, test : paths
        Data sets; `synthetic` is None for method real-only.
    out : path
        A new or empty folder, or the folder of the same run.
    recipe : Recipe
    threads, workers : int
        Numbers of core threads, and of threads that make views. The number of core threads can change the result
        slightly, so a run can only be resumed with the same number.
    tell, progress : callable
        Called with lines to show to the user (parameters in backticks, see `dreamda.options`), and with the number of
        finished steps and the total.

    Raises
    ------
    ValueError, OSError
        The data, the recipe or `out` cannot be used; nothing was written.
    DivergenceError
        Its message names the last good checkpoint.
    LostImageError
        An image was removed or changed since the run began; the last checkpoint stays.
    OutputError
        `out` could no longer be written.
    """
    run = _Run(recipe, Path(out), tell, threads, workers)
    run.scan(real, synthetic, test)
    run.read()
    run.prepare()
    return run.train(progress)


class _Run:
    """One call of `train_dataset`, in four phases: `scan`, `read`, `prepare`, `train`. Only the last one writes."""

    def __init__(self, recipe: Recipe, out: Path, tell: Callable[[str], None], threads: int | None,
                 workers: int) -> None:
        self.recipe, self.out, self.tell, self.threads, self.workers = recipe, out, tell, threads, workers

    # ---- before anything is written

    def scan(self, real: Paths, synthetic: Paths | None, test: Paths | None) -> None:
        """Find the files, check that they fit together, and hold images back."""
        recipe = self.recipe
        self.real = scan_real(real)
        if recipe.method == "real-only" and synthetic is not None:
            raise ParameterError(
                "synthetic",
                f"{synthetic} would not be used, as `method=real-only` leaves synthetic images out; leave it off, or "
                "use another `method`")
        if recipe.method != "real-only" and synthetic is None:
            raise ParameterError(
                "synthetic",
                f"is missing: `method={recipe.method}` needs the output of dreamda generate; or use `method=real-only`")
        self.synthetic = scan_labelled(synthetic, self.real.classes, "SYNTHETIC") if synthetic is not None else None
        self.test = scan_labelled(test, self.real.classes, "TEST") if test is not None else None
        _check_out(self.out, [Path(p) for p in (real, synthetic, test) if p is not None])
        found = [dimensions(path) for path in self.real.paths] if recipe.image_size is None else []
        sizes = [size for size in found if size is not None]
        self.size, self.why = natural_size(recipe.image_size, sizes or [(1, 1)])  # without sizes, `read` will fail

    def read(self) -> None:
        """Decode every image once, leave out those that cannot be read, and hold images back.

        Synthetic images that were made from held-back or test images are left out, too.
        """
        self.real, self.images = read_folder(self.real, self.size, self.workers)
        for label in set(range(len(self.real.classes))) - set(self.real.labels.tolist()):
            raise ParameterError(
                "real", f"{self.real.root}: no image of class {self.real.classes[label]!r} can be read; repair or "
                "replace them, or remove the folder")
        self.kept, self.held = self._split()
        self.made = self.tested = FolderImages([], self.size)
        if self.synthetic is not None:
            self.synthetic, self.made = read_folder(self.synthetic, self.size, self.workers)
        if self.test is not None:
            self.test, self.tested = read_folder(self.test, self.size, self.workers)
        self.used = np.arange(len(self.made))
        self.leaks = 0
        if self.synthetic is not None:
            names, hashes = self.real.names, self.images.hashes
            of_held = self.synthetic.made_from({names[i] for i in self.held}, {hashes[i] for i in self.held})
            of_tested = self.synthetic.made_from(set(), set(self.tested.hashes) - {hashes[i] for i in self.kept})
            self.used, self.leaks = np.flatnonzero(~(of_held | of_tested)), int((of_held | of_tested).sum())
            if not len(self.used):
                raise ParameterError(
                    "synthetic",
                    "every synthetic image was made from a real image that is held back or tested on; none is left")

    def _split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        recipe, labels = self.recipe, self.real.labels
        kept, held = split(labels, recipe.validation_fraction, recipe.random_state)
        if recipe.validation_fraction and not len(held):
            most = max(np.bincount(labels))
            raise ParameterError(
                "validation_fraction",
                f"{recipe.validation_fraction} holds back no image, as no class has more than {most}; " +
                (f"give at least {0.5 / most:.2g}" if most > 1 else "leave it out"))
        return kept, held

    def prepare(self) -> None:
        """Resolve the recipe, refuse the folder of another run, and allocate memory for the network."""
        from .. import __version__
        from ..networks.models import resolve_dtype

        recipe, real, synthetic = self.recipe, self.real, self.synthetic
        self.setup = Setup.of(recipe, self.size, (self.images[int(i)] for i in self.kept),
                              is_grey(self.images[i] for i in range(len(self.images))))
        self.dtype = resolve_dtype(recipe.dtype)
        self.threads, self.why_threads = _threads(self.threads, self.out)
        self.identity = {
            "format": 2, "dreamda": __version__, "classes": real.classes, "real": real.digest(self.images.hashes),
            "synthetic": synthetic.digest(self.made.hashes) if synthetic else None, **asdict(recipe),
            **self.setup.resolved(), "dtype": self.dtype, "pretrained":
            digest_of_file(recipe.pretrained) if recipe.pretrained else None, "words": real.words or
            None, "threads": self.threads, "environment": environment()
        }
        _check_same(self.out, self.identity)
        made = synthetic.subset(self.used) if synthetic else None
        data = Data(self.images.subset(self.kept), real.labels[self.kept],
                    self.made.subset(self.used), made.labels if made else None, made.truth if made else None,
                    self.images.subset(self.held), real.labels[self.held])
        self.training = self.setup.training(data, len(real.classes), threads=self.threads, workers=self.workers)

    def _skipped(self) -> list[tuple[str, str]]:
        parts = [part for part in (self.real, self.synthetic, self.test) if part is not None]
        return [skipped for part in parts for skipped in part.ignored]

    def header(self) -> list[str]:
        """A few lines about the network and its data."""
        recipe, training, setup = self.recipe, self.training, self.setup
        assert self.threads is not None  # `prepare` has chosen it
        held = f", {len(self.held)} of them held back for validation" if len(self.held) else ""
        lines = [f"real images: {len(self.images):,} of {counted(len(self.real.classes), 'class')}{held}"]
        if self.synthetic is not None:
            left_out = (f", {self.leaks} of them left out: they were made from images that are held back or tested on"
                        if self.leaks else "")
            lines.append(f"synthetic images: {len(self.made):,}{left_out}")
        if self.test is not None:
            lines.append(f"test images: {len(self.tested):,}")
        if skipped := len(self._skipped()):
            lines.append(f"skipped: {counted(skipped, 'file')}, named at the end")
        lines.append(f"image size: {setup.size[0]} x {setup.size[1]} ({self.why})")
        target = setup.size[0] / setup.size[1]
        if others := sum(abs(height / width / target - 1) > SAME_ASPECT for height, width in self.images.sizes):
            done = {"crop": "cropped", "pad": "padded", "squash": "squashed"}[recipe.image_fit]
            lines.append(
                f"aspect ratio: {counted(others, 'real image')} of another, {done} (`image_fit={recipe.image_fit}`)")
        parameters = sum(array.size for array in training.network.backbone.parameters.values()) + (
            training.network.backbone.features + 1) * len(self.real.classes)
        lines.append(
            f"network: {recipe.backbone}, width {setup.width}, {setup.stem} stem: {parameters:,} parameters, "
            f"{self.dtype}, {counted(self.threads, 'thread')}{self.why_threads}")
        lines.append(
            f"weights: {recipe.pretrained}" if recipe.pretrained else f"weights: random, seed {recipe.random_state}")
        steps = training.steps_per_epoch
        lines.append(
            f"training: method {recipe.method}, {counted(recipe.epochs, 'epoch')} of {counted(steps, 'step')} of "
            f"{counted(recipe.batch_size, 'image')}: {counted(recipe.epochs * steps, 'step')}")
        return lines

    # ---- in the folder

    def train(self, progress: Callable[[int, int], None]) -> TrainReport:
        """Train in the run folder, starting from its checkpoint if there is one."""
        self.report = TrainReport(skipped=self._skipped())
        words = ("finishing the current step and saving; a second signal stops at once and loses what was done since "
                 "the last epoch")
        with StopOnSignals(words) as stop, _writing(self.out), _Folder(self.out, self.identity) as self.folder:
            self._resume()
            try:
                finished = self.training.run(self._on_event, self._save, lambda: stop.signal is not None, progress)
            except DivergenceError as error:
                error.args = (f"{error.args[0]}; {self._last_good()}",)
                raise
            except LostImageError as error:
                error.args = (f"{error}, then run the same command again to resume from the last checkpoint",)
                raise
            self.report.epochs, self.report.best = self.training.epoch, self.training.best
            if finished:
                self._finish()
            else:
                self._save()
                self.report.signal = stop.signal
        return self.report

    def _resume(self) -> None:
        """Show the header, and load the checkpoint and the part of the log before it."""
        kept = self.folder.checkpoint()
        path = self.folder.path("checkpoint.safetensors")
        if kept is not None:
            try:
                self.training.load_state(*kept)
            except ValueError as error:
                raise ValueError(f"{path}: {error}; remove it to begin again, or give another `out`".replace(
                    "`", "")) from None
        self.report.events = self.folder.log(kept[1]["events"] if kept else 0)
        if self.training.epoch == self.recipe.epochs:
            return
        for line in self.header():
            self.tell(line)
        if self.recipe.validation_fraction and self.synthetic is not None and not self.synthetic.seeds:
            self.report.notes.append(
                "SYNTHETIC does not say which real image each image was made from (it has no metadata.jsonl), so "
                "images made from those held back are trained on, and the validation accuracy is too high")
            self.tell(self.report.notes[-1])
        if kept is not None:
            if differing := differences(self.folder.begun.get("environment"), self.identity["environment"], BITS):
                self.tell(
                    f"this run was begun with {differing}: what is trained from here on may differ in its last bits")
            self.tell(
                f"resuming from {path}: epoch {self.training.epoch + 1}, step {self.training.step + 1} of "
                f"{self.training.steps_per_epoch}")

    def _on_event(self, event: Event) -> None:
        self.report.events.append(event)
        self.folder.append(event)
        self.tell(describe(event))

    def _save(self, best: bool = False) -> None:
        """Write the checkpoint, and also the model if this is the best epoch or no epoch has been evaluated yet."""
        training, recipe = self.training, self.recipe
        if best or training.best is None:
            about: dict[str, Any] = {"epoch": training.epoch, "seed": recipe.random_state, "method": recipe.method}
            if self.real.words:
                about["words"] = self.real.words
            if not best and training.epoch < recipe.epochs:
                about["stopped_in_epoch"] = training.epoch + 1
            self.setup.model(training.network, self.real.classes, about=about,
                             pretraining=training.is_pretraining).save(self.folder.path("model.safetensors"))
        arrays, position = training.state()
        save_arrays(self.folder.path("checkpoint.safetensors"), arrays, {
            "format": 1, "kind": "checkpoint", **position, "events": len(self.report.events), "classes":
            self.real.classes
        })

    def _finish(self) -> None:
        """Test the model and draw the pictures."""
        report, recipe = self.report, self.recipe
        if recipe.method == "amst" and not any(e.get("accepted") for e in report.events):
            report.notes.append(
                f"no synthetic image ever got a label at `threshold={recipe.threshold:g}`: the model learned from the "
                "real images and the consistency loss alone")
        if self.test is not None:
            model = TrainedModel.load(self.folder.path("model.safetensors"))
            report.metrics = evaluate_predictions(
                model.predict_proba(self.tested, dtype=self.dtype, threads=self.threads, workers=self.workers),
                self.test.labels, self.real.classes, model.words)
            self.folder.replace("metrics.json",
                                (json.dumps(report.metrics.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        report.notes += self.folder.pictures(report.events, report.metrics)

    def _last_good(self) -> str:
        path = self.folder.path("checkpoint.safetensors")
        if not path.is_file():
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {path}, of epoch {int(load_arrays(path, 'checkpoint')[1]['epoch'])}"


def evaluate_dataset(model: TrainedModel,
                     data: Paths,
                     *,
                     dtype: str = "auto",
                     threads: int | None = None,
                     workers: int = 2) -> tuple[Metrics, list[tuple[str, str]]]:
    """Test a model on a labelled folder; also return the files that were left out, each with the reason.

    Raises
    ------
    ValueError
        The folder has classes that the model does not have.
    """
    folder, images = read_folder(scan_labelled(data, [str(c) for c in model.classes], "DATA"), model.size, workers)
    metrics = evaluate_predictions(model.predict_proba(images, dtype=dtype, threads=threads, workers=workers),
                                   folder.labels, model.classes, model.words)
    return metrics, folder.ignored


# ---- the folder

def _check_out(out: Path, inputs: list[Path]) -> None:
    for place in inputs:
        if out.resolve() == place.resolve() or place.resolve() in out.resolve().parents:
            raise ParameterError("out", f"{out} lies in the data set {place}; give a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise ParameterError("out", f"{out} is no folder; give a new or an empty one")
    if out.is_dir() and not (out / "run.json").is_file() and any(path.name not in _TEMPORARY for path in out.iterdir()):
        raise ParameterError("out",
                             f"{out} holds files but no run.json of dreamda train; give a new or an empty folder")


def _threads(threads: int | None, out: Path) -> tuple[int, str]:
    """The number of threads, and why it is not all: as given, as in the run in `out`, or as many as are free now."""
    from ..networks.threads import free_threads, resolve_threads

    if threads is None and (out / "run.json").is_file():
        with contextlib.suppress(ValueError, OSError):
            recorded = read_json(out / "run.json").get("threads")
            threads = recorded if type(recorded) is int and 1 <= recorded <= 1024 else None
    if threads is not None:
        return resolve_threads(threads), ""
    free, reason = free_threads()
    return free, f" ({reason}; `threads` overrides this)" if free < resolve_threads(None) else ""


_TEMPORARY = {temporary_name(name) for name in FILES}  # a kill during a write may leave these


def _check_same(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError if `out` holds another run; return the run.json that applies."""
    path = out / "run.json"
    if not path.is_file():
        return identity
    try:
        there = read_json(path)
    except ValueError:
        there = {}
    if "epochs" not in there:
        raise ParameterError("out", f"{path} is not a run of dreamda train; give another folder")
    if "image_fit" not in there and max(identity["image_size"]) > SMALL:
        there["image_fit"] = "crop"  # the treatment of large images before the option existed
    for name, value in identity.items():
        if name == "image_fit" and name not in there:
            raise ParameterError(
                "out", f"{out} holds a run begun by an earlier version, which squashed small images for testing, and "
                       "so cannot be resumed; give another folder")
        if name == "threads" and type(there.get(name)) is int and there[name] != value:
            raise ParameterError(
                "out",
                f"{out} holds a run begun with {counted(there[name], 'thread')}, now there are {value}, and its result "
                f"depends on that; resume with `threads={there[name]}`, or give another folder")
        if name != "environment" and there.get(name, value if name == "threads" else None) != value:
            values = "" if name in ("real", "synthetic",
                                    "pretrained") else f": {reprlib.repr(there.get(name))}, now {reprlib.repr(value)}"
            other = _NAMES.get(name) or (f"`{name}`" if name in options_of(Recipe) else name)
            raise ParameterError(
                "out", f"{out} holds a run with another {other}{values}; repeat that one or give another folder")
    return there


_NAMES = {
    "real": "data set REAL",
    "synthetic": "data set SYNTHETIC",
    "classes": "list of classes",
    "dreamda": "version of dreamda",
    "format": "format of run.json",
    "pretrained": "`pretrained` file",
    "words": "classes.json in REAL",
}


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            error.errno,
            f"{out} cannot be written ({error.strerror}); fix that, then run the same command again to resume "
            "from the last checkpoint") from error


class _Folder:
    """The locked run folder; `begun` is the content of its run.json."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.identity, self.begun = out, identity, identity

    def __enter__(self) -> _Folder:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_folder(self.out))
            _check_out(self.out, [])  # again: another process may have begun, and ended, since the first time
            self.begun = _check_same(self.out, self.identity)
            for name in _TEMPORARY:
                self.path(name).unlink(missing_ok=True)
            if not self.path("run.json").is_file():
                self.replace("run.json", (json.dumps(self.identity, indent=1, ensure_ascii=False) + "\n").encode())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path(self, name: str) -> Path:
        return self.out / name

    def replace(self, name: str, content: bytes) -> None:
        write_atomically(self.path(name), content)

    def checkpoint(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        path = self.path("checkpoint.safetensors")
        if not path.is_file():
            return None
        arrays, about = load_arrays(path, "checkpoint")
        if about.get("classes") != self.identity["classes"]:
            raise ValueError(f"{path} is of another list of classes; give another folder")
        if type(about.get("events")) is not int or about["events"] < 0:
            raise ValueError(f"{path} does not say how long its log is; give another folder")
        return arrays, about

    def log(self, count: int) -> list[Event]:
        """The first `count` records of the log.

        Later ones are dropped: they are newer than the checkpoint, and are written again.
        """
        path = self.path("log.jsonl")
        lines = path.read_bytes().splitlines(keepends=True)[:count] if path.is_file() else []
        try:
            events = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            events = [None]
        if not all(isinstance(e, dict) and isinstance(e.get("event"), str) for e in events):
            raise ValueError(
                f"{path} holds a line that is no record of a training run; put it right, or give another folder")
        self.replace("log.jsonl", b"".join(lines))
        return events

    def append(self, event: Event) -> None:
        with open(self.path("log.jsonl"), "ab") as file:
            file.write((json.dumps(event, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def pictures(self, events: list[Event], metrics: Metrics | None) -> list[str]:
        """Draw the pictures; if matplotlib is missing, return a sentence that says so."""
        try:
            figures = {"curves.png": curves_picture(events)}
            if metrics is not None:
                figures["confusion.png"] = confusion_picture(metrics)
        except ImportError as error:
            return [f"no pictures were drawn: {error}"]
        for name, figure in figures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=120)
            self.replace(name, buffer.getvalue())
        return []
