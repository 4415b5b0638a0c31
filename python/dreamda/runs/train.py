"""The run folder of `dreamda train`: checkpoints that go on to the same bits, a log, the model, its metrics and pictures.

    RUN/run.json                  every parameter, the hashes of the data, the threads: a run with others is refused; and the machine
    RUN/log.jsonl                 a line per epoch and per labelling
    RUN/checkpoint.safetensors    arrays, and as JSON in its header the position; after every epoch and on Ctrl-C
    RUN/model.safetensors         the classifier: of the best epoch on the validation split, else of the last
    RUN/metrics.json, confusion.png, curves.png      when the run is over (the first two with test images)

Every file but the log is replaced as a whole. A run that was stopped or killed goes on with the same command from its last checkpoint; the
checkpoints and the model end with the same bytes as those of an undisturbed run on the same machine with the same number of threads: with
another number it is refused.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.files import BrokenImageError, LostImageError, digest_of_file, read_bounded, read_json_lines, temporary_name, write_atomically
from ..data.folders import ImageFolder, ImageRef, shown
from ..data.images import decode_image
from ..networks.config import read_json
from ..training.backbone import choose_stem, create_backbone, initialise, load_pretrained
from ..training.batches import Data
from ..training.classifier import describe, split
from ..training.heads import AMSTHeads
from ..training.metrics import Metrics, confusion_picture, curves_picture, evaluate_predictions
from ..training.recipe import Recipe
from ..training.saved import TrainedModel, load_arrays, save_arrays
from ..training.stages import DivergenceError, Event, Training
from ..training.views import IMAGENET_MEAN, IMAGENET_STD, SMALL, Views, channel_statistics, is_grey
from .files import OutputError, StopOnSignals
from .inspection import BITS, differences, environment

CACHE_BYTES = 1 << 30  # of decoded images kept; the others are decoded whenever they are drawn
FILES = ("run.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors", "metrics.json", "confusion.png", "curves.png")


@dataclass(frozen=True)
class TrainSettings:
    """What a run needs beside its `Recipe`.

    Attributes
    ----------
    backbone, stem, width, dtype
        See `dreamda.training.backbone.create_backbone`.
    size : (height, width), optional
        Default: that of the first real image where it has at most 64 pixels a side, else 224 x 224.
    mean, std : three floats each, optional
        Default: of the real images; ImageNet's with `pretrained`.
    crop_scale, flip
        See `dreamda.training.views.Views`.
    validation : float
        Part of every class that is held back to choose the best epoch; 0: the last epoch is taken.
    pretrained : path, optional
    """

    backbone: str = "resnet18"
    stem: str = "auto"
    width: int = 64
    dtype: str = "auto"
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_scale: tuple[float, float] | None = None
    flip: bool = True
    validation: float = 0.0
    pretrained: Path | None = None


@dataclass
class TrainReport:
    """What `train_dataset` did.

    Attributes
    ----------
    epochs : int
        Epochs done, of `recipe.epochs`.
    metrics : Metrics or None
        On the test images, when the run is over.
    best : dict or None
        Epoch and accuracy of the best epoch on the validation split.
    events : list of dict
        The log.
    signal : int or None
        The signal that ended the run early.
    notes : list of str
        What the user should know.
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


class FolderImages:
    """The images of a folder as uint8 arrays (H, W, 3), decoded when they are asked for.

    An image with a shorter side of more than twice the training size is reduced to that (Lanczos), so that a crop of 8 % of a photo costs no
    more than it shows. Up to `CACHE_BYTES` of decoded images are kept. One that is lost or changed after `read_all` is a `LostImageError`.

    Parameters
    ----------
    paths : sequence of Path
    size : (height, width)
        Of the views.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths, self._size = list(paths), size
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._cached = 0
        self.hashes: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        try:
            pixels, digest = self._load(index)
        except BrokenImageError as error:
            raise LostImageError(f"{self.paths[index]}: {error}; put it back as it was") from None
        if self.hashes and digest != self.hashes[index]:
            raise LostImageError(f"{self.paths[index]}: has changed since the run began; put it back as it was")
        return pixels

    def _load(self, index: int) -> tuple[NDArray[np.uint8], str]:
        data = read_bounded(self.paths[index])
        pixels = decode_image(data)
        height, width = pixels.shape[:2]
        scale = max(2 * self._size[0] / height, 2 * self._size[1] / width)
        if scale < 1:
            reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
            pixels = np.asarray(Image.fromarray(pixels).resize(reduced, Image.Resampling.LANCZOS))
        return pixels, hashlib.sha256(data).hexdigest()

    def read_all(self, workers: int = 2) -> None:
        """Decode every image once: fills the cache and `hashes`, and finds what is broken.

        Raises
        ------
        ValueError
            Naming the first images that cannot be read.
        """
        def load(index: int) -> tuple[NDArray[np.uint8], str] | str:
            try:
                return self._load(index)
            except BrokenImageError as error:
                return f"{self.paths[index]}: {error}"

        broken = []
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for index, found in enumerate(pool.map(load, range(len(self)))):
                if isinstance(found, str):
                    broken.append(found)
                    continue
                pixels, digest = found
                self.hashes.append(digest)
                if self._cached + pixels.nbytes <= CACHE_BYTES:
                    self._cache[index] = pixels
                    self._cached += pixels.nbytes
        if broken:
            more = f" (and {len(broken) - 1} more images)" if len(broken) > 1 else ""
            raise ValueError(f"{broken[0]}{more}; repair or remove it")

    def subset(self, which: NDArray[np.int64]) -> _Subset:
        """Some of the images, in this order."""
        return _Subset(self, which)


class _Subset:
    def __init__(self, images: FolderImages, which: NDArray[np.int64]) -> None:
        self._images, self._which = images, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self._images[int(self._which[index])]


@dataclass
class LabelledFolder:
    """A scanned data set: files, and each one's position in `classes` (-1: none given), and what is really there where that is known.

    `ignored` are the files that look like data and are not read, each with the reason.
    """

    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    truth: NDArray[np.int64] | None = None
    ignored: list[tuple[str, str]] = field(default_factory=list)


def scan_real(root: str | os.PathLike[str]) -> LabelledFolder:
    """A folder of real images, ``root/<class>/<image>``; ValueError for fewer than 2 classes or a class without images."""
    folder = ImageFolder.scan(root)
    there = {image.label for image in folder.images}
    empty = [label for label in folder.classes if label not in there]
    if empty:
        raise ValueError(f"{root}: class {empty[0]!r} has no real image; add some, or remove the folder")
    if len(folder.classes) < 2:
        raise ValueError(f"{root} has 1 class ({folder.classes[0]!r}); a classifier needs 2 or more")
    return _labelled(folder, list(folder.classes), str(root))


def scan_labelled(root: str | os.PathLike[str], classes: Sequence[str], what: str) -> LabelledFolder:
    """Images whose labels must be among `classes`: an output of `dreamda generate` (labels from metadata.jsonl), or class folders.

    In the metadata.jsonl of SYNTHETIC a label may be null: an image that nobody has labelled, which AMST may label (-1 here).

    Raises
    ------
    ValueError
        A class that is not among `classes`, or a line of metadata.jsonl that names no image.
    """
    folder = ImageFolder.scan(root)
    path = folder.root / "metadata.jsonl"
    if path.is_file() and any("label" in row for _, row in read_json_lines(path)):
        return _from_metadata(folder, path, list(classes), what)
    return _labelled(folder, list(classes), what)


def _labelled(folder: ImageFolder, classes: list[str], what: str) -> LabelledFolder:
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted({image.label for image in folder.images} - number.keys())
    if unknown:
        raise ValueError(f"{what} {folder.root} has {_classes(unknown, classes)} that the others lack; remove them or rename the folders")
    return LabelledFolder([folder.path(i) for i in folder.images], np.array([number[i.label] for i in folder.images]), classes,
                          ignored=_ignored(folder))


def _classes(names: list[str], known: list[str]) -> str:
    first = ", ".join(shown(name, known) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"class{'es' if len(names) > 1 else ''} {first}"


def _ignored(folder: ImageFolder) -> list[tuple[str, str]]:
    return [(str(folder.root / name), reason) for name, reason in folder.ignored]


def _from_metadata(folder: ImageFolder, path: Path, classes: list[str], what: str) -> LabelledFolder:
    number = {label: i for i, label in enumerate(classes)}
    there = {image.key: image for image in folder.images}
    chosen: dict[str, tuple[ImageRef, int, int]] = {}
    unknown: set[str] = set()
    for line, row in read_json_lines(path):
        name, label, truth = row.get("file_name"), row.get("label"), row.get("truth")
        unlabelled = what == "SYNTHETIC" and "label" in row and label is None
        if not isinstance(name, str) or not (isinstance(label, str) or unlabelled):
            raise ValueError(f'{path} line {line} must have the texts "file_name" and "label"')
        if name not in there:
            raise ValueError(f"{path} line {line} names {name!r}, which is not there; make it again, or remove the line")
        unknown |= {x for x in (label, truth) if isinstance(x, str) and x not in number}
        chosen[name] = there[name], number.get(label, -1) if isinstance(label, str) else -1, number.get(truth, -1) if isinstance(truth, str) else -1
    if unknown:
        raise ValueError(f"{what} {folder.root} has {_classes(sorted(unknown), classes)} that the others lack; remove them from {path.name}, or add real images")
    truths = np.array([t for _, _, t in chosen.values()])
    ignored = _ignored(folder) + [(str(folder.root / name), f"{path.name} has no line for it") for name in there if name not in chosen]
    return LabelledFolder([folder.path(i) for i, _, _ in chosen.values()], np.array([n for _, n, _ in chosen.values()]), classes,
                          truths if (truths >= 0).all() else None, ignored)


def train_dataset(real: str | os.PathLike[str], synthetic: str | os.PathLike[str] | None, out: str | os.PathLike[str], recipe: Recipe = Recipe(),
                  settings: TrainSettings = TrainSettings(), *, test: str | os.PathLike[str] | None = None, threads: int | None = None,
                  workers: int = 2, tell: Callable[[str], None] = lambda text: None, progress: Callable[[int, int], None] = lambda done, total: None
                  ) -> TrainReport:
    """Train a classifier into the folder `out`, or go on where the last call stopped.

    On SIGINT or SIGTERM (in the main thread) the step in hand is finished and the state saved; a second signal acts at once.

    Parameters
    ----------
    real, synthetic, test : paths
        Data sets; `synthetic` may be None for method real-only.
    out : path
        New, empty, or the folder of the same run.
    recipe : Recipe
    settings : TrainSettings
    threads, workers : int
        Of the core, and for making views. Only the former may change a bit of the result; a run goes on with no other number.
    tell, progress : callable
        Take lines for people, and the steps done with their total.

    Raises
    ------
    ValueError, OSError
        The data, the settings or `out` cannot be used; nothing was written.
    DivergenceError
        With the last good checkpoint in its text.
    LostImageError
        An image has gone or changed since the run began; the last checkpoint stays.
    OutputError
        `out` could not be written any more.
    """
    from .. import __version__
    from ..networks.models import resolve_dtype
    from ..networks.threads import resolve_threads

    out = Path(out)
    found = scan_real(real)
    size = settings.size or _natural_size(found.paths[0])
    stem = choose_stem(settings.stem, size)
    made = scan_labelled(synthetic, found.classes, "SYNTHETIC") if synthetic is not None and recipe.method != "real-only" else None
    tested = scan_labelled(test, found.classes, "--test") if test is not None else None
    train, held = split(found.labels, settings.validation, recipe.seed)
    if settings.validation and not len(held):
        most = max(np.bincount(found.labels))
        raise ValueError(f"--validation {settings.validation} holds back no image, as no class has more than {most}; "
                         + (f"give at least {0.5 / most:.2g}" if most > 1 else "leave it out"))
    _check_out(out, [Path(p) for p in (real, synthetic, test) if p is not None])

    images = FolderImages(found.paths, size)
    images.read_all(workers)
    synthetic_images = FolderImages(made.paths if made else [], size)
    synthetic_images.read_all(workers)
    test_images = FolderImages(tested.paths if tested else [], size)
    test_images.read_all(workers)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if settings.pretrained else channel_statistics(images[int(i)] for i in train)
    mean, std = settings.mean or mean, settings.std or std
    views = Views(size, mean, std, seed=recipe.seed, crop_scale=settings.crop_scale, flip=settings.flip,
                  grey=is_grey(images[i] for i in range(len(images))))

    dtype, used = resolve_dtype(settings.dtype), resolve_threads(threads)
    identity = {"format": 1, "dreamda": __version__, "classes": found.classes, "real": _digest(found, images),
                "synthetic": _digest(made, synthetic_images), **asdict(recipe), **asdict(settings), "size": list(size), "stem": stem, "dtype": dtype,
                "mean": list(map(float, mean)), "std": list(map(float, std)), "crop_scale": list(views.crop_scale),
                "pretrained": digest_of_file(settings.pretrained) if settings.pretrained else None, "threads": used, "environment": environment()}
    _check_same(out, identity)
    backbone = create_backbone(settings.backbone, size=size, batch=recipe.batch, stem=stem, width=settings.width, dtype=dtype, threads=used,
                               slots=2 if recipe.method == "amst" else 1)
    initialise(backbone, recipe.seed)
    if settings.pretrained is not None:
        load_pretrained(backbone, settings.pretrained)
    data = Data(images.subset(train), found.labels[train], synthetic_images, made.labels if made else None, made.truth if made else None,
                images.subset(held), found.labels[held])
    run = Training(backbone, AMSTHeads(backbone.features, len(found.classes), recipe.seed), recipe, views, data, workers=workers)
    about = {"backbone": settings.backbone, "stem": stem, "width": settings.width, "size": size, "mean": tuple(map(float, mean)),
             "std": tuple(map(float, std)), "classes": found.classes}

    with StopOnSignals("finishing the step in hand and saving; a second signal stops at once, and loses the epoch") as stop, _writing(out), _Folder(out, identity) as folder:
        kept = folder.checkpoint()
        if kept is not None:
            try:
                run.load_state(*kept)
            except ValueError as error:
                raise ValueError(f"{folder.path('checkpoint.safetensors')}: {error}; remove it to begin again, or give another --out") from None
        events = folder.log(kept[1]["events"] if kept else 0)
        report = TrainReport(events=events, skipped=[skipped for part in (found, made, tested) if part for skipped in part.ignored])
        if kept is not None and run.epoch < recipe.epochs:
            if differing := differences(folder.begun.get("environment"), identity["environment"], BITS):
                tell(f"this run was begun with {differing}: what is trained from here on may differ in its last bits")
            tell(f"going on from {folder.path('checkpoint.safetensors')}: epoch {run.epoch + 1}, step {run.step + 1} of {run.steps_per_epoch}")

        def on_event(event: Event) -> None:
            events.append(event)
            folder.append(event)
            tell(describe(event))

        def save(best: bool = False) -> None:
            if best or run.epoch == recipe.epochs and not len(held):
                epoch = {"epoch": run.epoch, "seed": recipe.seed, "method": recipe.method}
                TrainedModel.of(run.network, **about, about=epoch).save(folder.path("model.safetensors"))
            arrays, position = run.state()
            save_arrays(folder.path("checkpoint.safetensors"), arrays, {"format": 1, "kind": "checkpoint", **position, "events": len(events),
                                                                         "classes": found.classes})

        try:
            finished = run.run(on_event, save, lambda: stop.signal is not None, progress)
        except DivergenceError as error:
            good = folder.path("checkpoint.safetensors")
            where = f"the last good checkpoint is {good}, of epoch {_epoch_of(good)}" if good.is_file() else "there is no checkpoint yet"
            error.args = (f"{error}; {where}",)
            raise
        except LostImageError as error:
            error.args = (f"{error}, then the same command goes on from the last checkpoint",)
            raise
        if not finished:
            save()
        report.epochs, report.best = run.epoch, run.best
        report.signal = None if finished else stop.signal
        if finished:
            if recipe.method == "amst" and not any(e.get("accepted") for e in events):
                report.notes.append(f"no synthetic image was ever accepted at --threshold {recipe.threshold:g}: the model learned from the real images "
                                    "and the consistency loss alone; lower --threshold or raise --pretrain-epochs")
            if tested is not None:
                model = TrainedModel.load(folder.path("model.safetensors"))
                report.metrics = evaluate_predictions(model.predict_proba(test_images, dtype=dtype, threads=used, workers=workers),
                                                      tested.labels, found.classes)
                folder.replace("metrics.json", (json.dumps(report.metrics.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
            report.notes += folder.pictures(events, report.metrics)
    return report


def evaluate_dataset(model: TrainedModel, data: str | os.PathLike[str], *, dtype: str = "auto", threads: int | None = None, workers: int = 2
                     ) -> tuple[Metrics, list[tuple[str, str]]]:
    """Test a model on a labelled folder, and list the files in it that were left out, each with the reason.

    Raises
    ------
    ValueError
        The folder has classes that the model does not know.
    """
    folder = scan_labelled(data, [str(c) for c in model.classes], "DATA")
    images = FolderImages(folder.paths, model.size)
    images.read_all(workers)
    metrics = evaluate_predictions(model.predict_proba(images, dtype=dtype, threads=threads, workers=workers), folder.labels, model.classes)
    return metrics, folder.ignored


def find_model(path: str | os.PathLike[str]) -> Path:
    """The model file: the path itself, or model.safetensors in a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a model.safetensors, or the folder of a finished dreamda train")
    return path


def _natural_size(path: Path) -> tuple[int, int]:
    try:
        height, width = decode_image(read_bounded(path)).shape[:2]
    except BrokenImageError as error:
        raise ValueError(f"{path}: {error}; repair or remove it") from None
    return (height, width) if max(height, width) <= SMALL else (224, 224)


def _digest(folder: LabelledFolder | None, images: FolderImages) -> str | None:
    """A hash of all files with their labels, in order; where they lie does not matter."""
    if folder is None:
        return None
    lines = [f"{path.parent.name}/{path.name} {label} {digest}" for path, label, digest in zip(folder.paths, folder.labels, images.hashes, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---- the folder

def _check_out(out: Path, inputs: list[Path]) -> None:
    for place in inputs:
        if out.resolve() == place.resolve() or place.resolve() in out.resolve().parents:
            raise ValueError(f"--out {out} lies in the data set {place}; give a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is no folder; give a new or an empty one")
    if out.is_dir() and not (out / "run.json").is_file() and any(path.name not in _TEMPORARY for path in out.iterdir()):
        raise ValueError(f"--out {out} holds files but no run.json of dreamda train; give a new or an empty folder")


_TEMPORARY = {temporary_name(name) for name in FILES}  # what a kill in the middle of a write may leave


def _check_same(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError unless `out` holds no run or this one; returns the run.json that holds."""
    path = out / "run.json"
    if not path.is_file():
        return identity
    try:
        there = read_json(path)
    except ValueError:
        there = {}
    if "epochs" not in there:
        raise ValueError(f"{path} is not a run of dreamda train; give another --out")
    for name, value in identity.items():
        if name == "threads" and there.get(name, value) != value:
            raise ValueError(f"--out {out} holds a run begun with {there[name]} threads, now there are {value}, and its bits depend on that; "
                             f"go on with --threads {there[name]}, or give another --out")
        if name not in ("threads", "environment") and there.get(name) != value:
            values = "" if name in ("real", "synthetic", "pretrained") else f": {reprlib.repr(there.get(name))}, now {reprlib.repr(value)}"
            option = _NAMES.get(name, "--" + name.replace("_", "-"))
            raise ValueError(f"--out {out} holds a run with another {option}{values}; repeat that one or give another --out")
    return there


_NAMES = {"real": "data set REAL", "synthetic": "data set SYNTHETIC", "classes": "list of classes", "dreamda": "version of dreamda",
          "format": "format of run.json", "pretrained": "--pretrained file"}


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise ValueError(f"--out {out} is being written by another process; wait for it, or give another folder") from None
        raise OutputError(error.errno, f"--out {out} cannot be written ({error.strerror}); put that right, then the same command goes on "
                                       "from the last checkpoint") from error


class _Folder:
    """The run folder, locked; `begun` is what its run.json says."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.identity, self.begun = out, identity, identity

    def __enter__(self) -> _Folder:
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_out(self.out, [])  # again: another process may have begun, and ended, since the first time
            self.begun = _check_same(self.out, self.identity)
            for name in _TEMPORARY:
                self.path(name).unlink(missing_ok=True)
            if not self.path("run.json").is_file():
                self.replace("run.json", (json.dumps(self.identity, indent=1, ensure_ascii=False) + "\n").encode())
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

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
            raise ValueError(f"{path} is of another list of classes; give another --out")
        if type(about.get("events")) is not int or about["events"] < 0:
            raise ValueError(f"{path} does not say how long its log is; give another --out")
        return arrays, about

    def log(self, count: int) -> list[Event]:
        """The first `count` records of the log, all that it keeps: what came after the checkpoint will come again."""
        path = self.path("log.jsonl")
        lines = path.read_bytes().splitlines(keepends=True)[:count] if path.is_file() else []
        try:
            events = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            events = [None]
        if not all(isinstance(e, dict) and isinstance(e.get("event"), str) for e in events):
            raise ValueError(f"{path} holds a line that is no record of a training run; put it right, or give another --out")
        self.replace("log.jsonl", b"".join(lines))
        return events

    def append(self, event: Event) -> None:
        with open(self.path("log.jsonl"), "ab") as file:
            file.write((json.dumps(event, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def pictures(self, events: list[Event], metrics: Metrics | None) -> list[str]:
        """Draw; where matplotlib is not installed, return the sentence that says so."""
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


def _epoch_of(path: Path) -> int:
    return int(load_arrays(path, "checkpoint")[1]["epoch"])
