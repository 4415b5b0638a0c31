"""`dreamda try`: do synthetic images help on this data set, and of which kind? A small cross-validated experiment.

    result = try_dataset("photos", "trial", Pipeline.load("sd15"), minutes=30)
    result.verdict.word                                          # "helps", "hurts" or "unclear"

The real images are divided into folds. Every row (the real images alone, with RandAugment, and with each kind of
synthetic images) trains on all folds but one and is tested on that one; synthetic images of a held-out image are left
out with it. The kinds are presets without text and, for the cheapest, images from the text alone and half of each. All
rows take the same number of optimiser steps and see the same images, so they are compared image by image. Rows with
synthetic images have RandAugment too, as the row that they have to beat. The folder keeps the images and every result,
so that a stopped trial can resume.

    OUT/synthetic-<preset>/       as dreamda generate writes it
    OUT/synthetic-<preset>-text/  the same with `text_share=1`; half of each are the images of `text_share=0.5`
    OUT/trial.json                the plan, and one result per training
    OUT/trial.html                the page
"""
from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.files import BrokenImageError, write_atomically
from ..data.folders import ImageFolder
from ..data.prompts import Prompts, choose_prompts
from ..generation.options import GenerationOptions, is_from_text
from ..generation.pipeline import Pipeline
from ..networks.config import read_json
from ..options import ParameterError
from ..presets import BALANCED, load_preset
from ..text import counted, in_brackets
from ..training.classifier import AMSTClassifier
from ..training.recipe import natural_size
from ..training.views import SMALL, keyed
from .checks import conditions_of
from .files import OutputError, StopOnSignals, locked_folder
from .generate import generate_dataset
from .inspection import describe_model
from .labelled import FolderImages, dimensions, scan_real
from .manifest import read_manifest

FORMAT = 2
FOLDS = 4
BATCH = 16
EPOCHS = 20
STEPS = (1200, 600, 300)  # per training: the largest number that fits into the time
FEW_STEPS = (200, 100)    # where the time is not enough for any of these
ROUNDS_OF_LONG = 3        # for more than the fewest of STEPS, the time has to be enough for this number of rounds
VARIANTS = (4, 2)         # even, as half of them may come from the text
LEAST_IMAGES = 4  # minimum number of images per class to which a trial is cut down
GENERATION_SHARE = 0.5  # maximum share of the time for generation
AMST_COST = 2.5  # cost of a step of AMST, in steps of plain training
ROUNDS = 10  # more would hardly narrow the interval: the real images stay the same
CONFIDENCE = 0.9

AUGMENTED = "real images, RandAugment"
WITHOUT: dict[str, dict[str, Any]] = {
    "real images": {"method": "real-only", "view": "weak"}, AUGMENTED: {"method": "real-only", "view": "randaugment"},
}
SYNTHETIC: dict[str, Any] = {"method": "amst", "view": "randaugment"}


@dataclass(frozen=True)
class Kind:
    """A kind of synthetic images.

    Attributes
    ----------
    preset : str
    text_share : float
        0, 0.5 or 1: the share of the images that are made from the text alone.
    """

    preset: str
    text_share: float = 0.0

    @property
    def name(self) -> str:
        """The name of its row."""
        none = ", no text" if self._usual else ""
        return f"preset {self.preset}" + {0.0: none, 0.5: ", half text", 1.0: ", text alone"}[self.text_share]

    @property
    def command(self) -> str:
        """The options of `dreamda generate` for such images."""
        given = f" --text-share {self.text_share:g}" if self.text_share != self._usual else ""
        return f"--preset {self.preset}{given}"

    @property
    def _usual(self) -> float:
        """The preset's own share."""
        return float(load_preset(self.preset).generate.get("text_share", 0.0))

    @property
    def folder(self) -> str:
        """The name of their folder; half of the images come from each of two."""
        return f"synthetic-{self.preset}" + ("-text" if self.text_share else "")


class Watch(Protocol):
    """Shows the progress of a part of the work; called with the finished amount and the total."""
    def __call__(self, done: float, total: int) -> None:
        ...


@dataclass(frozen=True)
class Plan:
    """The plan of a trial, made once and kept in trial.json.

    Attributes
    ----------
    per_class : int
        Maximum number of real images used per class.
    variants, steps, folds : int
    presets : tuple of str
    seconds : float
        Expected time of one round over all folds, including generation.
    text : str
        The preset whose images are also made from the text alone; empty if none are.
    """

    per_class: int
    variants: int
    steps: int
    folds: int
    presets: tuple[str, ...]
    seconds: float
    text: str = ""

    @property
    def made(self) -> tuple[Kind, ...]:
        """The kinds that are made; half of each takes images of both."""
        return (*map(Kind, self.presets), *([Kind(self.text, 1.0)] if self.text else []))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are compared."""
        return (*self.made, *([Kind(self.text, 0.5)] if self.text else []))


def make_plan(counts: Sequence[int], image_seconds: Mapping[str, float], step_seconds: float, minutes: float,
              text_seconds: float | None = None) -> Plan:
    """The largest trial that fits into the time.

    It has fewer steps and variants first, then no rows from the text, fewer than 300 steps, fewer images, and in the
    end fewer presets. More than 300 steps are taken only if there is time for several rounds of them.

    Parameters
    ----------
    counts : sequence of int
        Number of real images of each class.
    image_seconds : mapping of str to float
        Time per synthetic image of each preset.
    step_seconds : float
        Time per optimiser step of plain training.
    minutes : float
    text_seconds : float, optional
        Time per image from the text alone, with the options of the preset whose images take least time. Without it, no
        such images are made.

    Raises
    ------
    ParameterError
        Not even the smallest trial fits; the message names the minutes that it takes.
    """
    if min(counts) < 2:
        raise ParameterError(
            "real", "has a class with 1 image; a trial holds images back and trains on others, so it takes 2 or more")
    most = max(counts)
    sizes = [n for n in (most, 40, 20, 10, LEAST_IMAGES) if n <= most]
    ordered = sorted(image_seconds, key=lambda name: image_seconds[name])
    shapes = [(text, variants, steps) for text in ((False, ) if text_seconds is None else (True, False))
              for variants in VARIANTS for steps in STEPS]
    shapes += [(False, variants, steps) for steps in FEW_STEPS for variants in VARIANTS]
    least = math.inf
    for count in range(len(ordered), 0, -1):
        chosen = ordered[:count]
        for per_class in sizes:
            folds = min(FOLDS, *(min(n, per_class) for n in counts))
            images = sum(min(n, per_class) for n in counts)
            for text, variants, steps in shapes:
                each = sum(image_seconds[name] for name in chosen) + (text_seconds or 0.0) * text
                making = images * variants * each
                training = folds * steps * step_seconds * (len(WITHOUT) + AMST_COST * (count + 2 * text))
                rounds = ROUNDS_OF_LONG if steps > STEPS[-1] else 1
                least = min(least, making + training)
                if making + rounds * training <= 60 * minutes and making <= GENERATION_SHARE * 60 * minutes:
                    names = tuple(name for name in image_seconds if name in chosen)
                    return Plan(per_class, variants, steps, folds, names, round(making + training, 1),
                                ordered[0] if text else "")
    raise ParameterError(
        "minutes",
        f"{minutes:g} are too few: the smallest trial takes about {math.ceil(2 * least / 60)} minutes here; give it "
        "those, fewer classes, or a model that takes few steps")


@dataclass(frozen=True)
class Comparison:
    """The comparison of a kind of synthetic images with the better one of the rows without them.

    Attributes
    ----------
    kind : Kind
    gain, low, high : float
        The difference of the accuracies, and the limits of an interval that holds the true one with 90 % confidence.
    """

    kind: Kind
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """The answer of a trial: `word` is "helps", "hurts" or "unclear", and `sentence` explains it."""

    word: str
    sentence: str
    best: Comparison


@dataclass
class Trial:
    """The result of `try_dataset`.

    Attributes
    ----------
    plan : Plan
    accuracy : dict of str to float
        Of every row, over all real images that were held out.
    comparisons : list of Comparison
    verdict : Verdict or None
        None if the trial was stopped before its first round was complete.
    rounds : int
        Number of finished rounds over all folds.
    skipped : list of (str, str)
        Files left out, each with the reason.
    page : Path or None
    signal : int or None
        The signal that ended the trial early.
    """

    plan: Plan
    accuracy: dict[str, float] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    verdict: Verdict | None = None
    rounds: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    page: Path | None = None
    signal: int | None = None

    def __repr__(self) -> str:
        gains = (f"{c.kind.name} {100 * c.gain:+.1f} points ({100 * c.low:+.1f} to {100 * c.high:+.1f})"
                 for c in self.comparisons)
        return in_brackets("Trial",
                           self.verdict.word if self.verdict else "no verdict",
                           *gains,
                           self.skipped and f"{counted(len(self.skipped), 'file')} skipped",
                           self.signal and f"stopped by {signal.Signals(self.signal).name}")


def default_presets(pipeline: Pipeline) -> tuple[str, ...]:
    """The presets that suit a model: `fast` if it was distilled for few steps, else the other two."""
    return ("fast", ) if pipeline.schedule.few_steps else (BALANCED, "paper")


def try_dataset(real: str | Path,
                out: str | Path,
                pipeline: Pipeline,
                *,
                model: str = "",
                minutes: float = 30.0,
                presets: Sequence[str] = (),
                seed: int = 0,
                threads: int | None = None,
                workers: int = 2,
                environment: Mapping[str, Any] | None = None,
                watch: Callable[[str], contextlib.AbstractContextManager[Watch]] | None = None,
                tell: Callable[[str], None] = lambda text: None) -> Trial:
    """Measure on a data set whether synthetic images help.

    Parameters
    ----------
    real : path
        The data set, with one folder per class.
    out : path
        A new or empty folder, or the folder of the same trial, which then resumes. It is locked during the call, so
        that another process that writes there is refused.
    pipeline : dreamda.Pipeline
    model : str
        The model's name, for the records.
    minutes : float
        Time limit for all calls of this trial together. A training that has begun is finished.
    presets : sequence of str
        Default: `default_presets`.
    seed : int
    threads, workers : int, optional
        For training.
    environment : mapping, optional
        Recorded in run.json, see `generate_dataset`.
    watch : callable, optional
        Creates a progress display for a part of the work, in units of "image" or "training".
    tell : callable, optional
        Called with lines that describe the current work.

    Returns
    -------
    Trial

    Raises
    ------
    ValueError
        The data set or `out` cannot be used, another process writes `out`, or the time is too short.
    OutputError
        `out` could no longer be written.
    """
    if not minutes > 0 or not math.isfinite(minutes):
        raise ParameterError("minutes", f"{minutes!r} is not possible; use a number above 0")
    names = tuple(dict.fromkeys(presets or default_presets(pipeline)))
    for name in names:
        load_preset(name)
    real, out = Path(real), Path(out)
    if out.resolve() == real.resolve() or real.resolve() in out.resolve().parents:
        raise ParameterError("out", f"{out} lies in the data set {real}; give a folder elsewhere")
    with locked_folder(out):
        trial = _Trial(real, out, pipeline, names, minutes, seed, threads, workers, model, environment or {})
        return trial.run(watch or (lambda unit: contextlib.nullcontext(lambda done, total: None)), tell)


class _Trial:
    def __init__(self, real: Path, out: Path, pipeline: Pipeline, presets: tuple[str, ...], minutes: float, seed: int,
                 threads: int | None, workers: int, model: str, environment: Mapping[str, Any]) -> None:
        self.root, self.out, self.pipeline, self.minutes = real, out, pipeline, minutes
        self.seed, self.threads, self.workers = seed, threads, workers
        self.model, self.environment = model, environment
        self.folder = ImageFolder.scan(real)
        found = scan_real(real)
        self.classes = found.classes
        sides = [side for path in found.paths if (side := dimensions(path)) is not None]
        if not sides:
            raise ParameterError("real", f"{real}: no image can be read; the first is {found.paths[0]}")
        median = natural_size(None, sides)[0]
        self.size = (min(median[0], SMALL), min(median[1], SMALL))
        files = FolderImages(found.paths, self.size)
        loaded = files.load_many(range(len(files)), workers)
        self.skipped = [*found.ignored]
        keep, pixels, digests = [], [], []
        for number, each in enumerate(loaded):
            if isinstance(each, BrokenImageError):
                self.skipped.append((str(found.paths[number]), str(each)))
                continue
            keep.append(number)
            pixels.append(_fitted(each[0], self.size))
            digests.append(each[1])
        self.names = [found.names[i] for i in keep]
        self.labels, self.pixels, self.digests = found.labels[keep], pixels, digests
        self.counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        if not min(self.counts):
            raise ParameterError("real",
                                 f"{real}: no image of class {self.classes[self.counts.index(0)]!r} can be read")
        self.identity = {
            "format": FORMAT, "model_sha256": pipeline.fingerprint, "presets": list(presets), "seed": seed, "images":
            dict(zip(self.names, digests, strict=True))
        }
        self.presets = presets
        self.results: list[dict[str, Any]] = []
        self.spent = 0.0
        self.image_seconds: dict[str, float] = {}

    # ---- the folder

    def open(self, tell: Callable[[str], None]) -> Plan:
        """Open the folder; return its plan, or a new one."""
        path = self.out / "trial.json"
        if path.exists():
            there = read_json(path)
            for name, value in self.identity.items():
                if there.get("identity", {}).get(name) != value:
                    what = {"images": "data set REAL", "model_sha256": "model",
                            "format": "version of dreamda"}.get(name, f"`{name}`")
                    raise ParameterError("out", f"{self.out} holds a trial of another {what}; give another folder")
            try:
                return self.taken_up(there)
            except (KeyError, TypeError, AttributeError, ValueError):
                raise ParameterError("out", f"{path} is not as dreamda try writes it; give another folder") from None
        if any(self.out.iterdir()):
            raise ParameterError("out", f"{self.out} holds files but no trial.json; give a new or an empty folder")
        begun = time.monotonic()
        tell("measuring what an image and a training step take here")
        times = {
            name: self.measured(Kind(name)) for name in self.presets
        }
        cheapest = Kind(min(self.presets, key=lambda name: times[name]), 1.0)
        text = None if self.pipeline.conditioning == "none" else self.measured(cheapest)
        plan = make_plan(self.counts, times, self.step_seconds(), self.minutes, text)
        self.image_seconds = {Kind(name).name: times[name] for name in plan.presets}
        if plan.text and text is not None:
            self.image_seconds[cheapest.name] = text
        self.spent += time.monotonic() - begun
        self.plan = plan
        self.save()
        return plan

    def taken_up(self, there: dict[str, Any]) -> Plan:
        """Load the results so far from a trial.json, and return its plan."""
        plan = Plan(**there["plan"] | {"presets": tuple(there["plan"]["presets"])})
        if not (set(plan.presets) <= set(self.presets) and plan.text in ("", *plan.presets)):
            raise ValueError("not a plan of this trial")
        rows = {*WITHOUT, *(kind.name for kind in plan.kinds)}
        for result in there["results"]:
            held, right = result["held"], result["right"]
            if not (result["row"] in rows and 0 <= result["fold"] < plan.folds and 0 <= result["round"] < ROUNDS
                    and result["seconds"] >= 0 and len(held) == len(right)
                    and all(type(i) is int and 0 <= i < len(self.names) for i in held) and set(right) <= {0, 1}):
                raise ValueError("not a result of this trial")
        self.results, self.spent = there["results"], float(there["seconds"])
        self.image_seconds = {kind.name: float(there["image_seconds"][kind.name]) for kind in plan.made}
        return plan

    def save(self) -> None:
        """Write trial.json."""
        content = {
            "identity": self.identity, "plan": asdict(self.plan), "image_seconds": self.image_seconds, "seconds":
            round(self.spent, 1), "results": self.results
        }
        try:
            write_atomically(self.out / "trial.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
        except OSError as error:
            raise OutputError(
                error.errno, f"{self.out / 'trial.json'} cannot be written ({error.strerror}); fix that, "
                "then run the same command again") from error

    # ---- the work

    def options(self, kind: Kind, variants: int) -> GenerationOptions:
        return GenerationOptions(**load_preset(kind.preset).generate | {
            "variants": variants, "seed": self.seed, "text_share": kind.text_share})

    def measured(self, kind: Kind) -> float:
        """The time per image of a kind, measured by a few steps."""
        return float(describe_model(self.pipeline, **asdict(self.options(kind, VARIANTS[0])))["seconds_per_image"])

    def classifier(self, method: Mapping[str, Any], steps: int, round_: int) -> AMSTClassifier:
        return AMSTClassifier(**method,
                              batch_size=BATCH,
                              epochs=EPOCHS,
                              steps_per_epoch=max(1, steps // EPOCHS),
                              image_size=self.size,
                              threads=self.threads,
                              workers=self.workers,
                              random_state=self.seed + round_)

    def step_seconds(self) -> float:
        """Measure the time per step of plain training with RandAugment, without the first steps, which also create the
        network."""
        X, y = np.stack(self.pixels), self.labels
        times = []
        for steps in (EPOCHS, 3 * EPOCHS):
            begun = time.monotonic()
            self.classifier(WITHOUT[AUGMENTED], steps, 0).fit(X, y)
            times.append(time.monotonic() - begun)
        return max(1e-4, (times[1] - times[0]) / (2 * EPOCHS))

    def run(self, watch: Callable[[str], contextlib.AbstractContextManager[Watch]], tell: Callable[[str],
                                                                                                   None]) -> Trial:
        self.plan = self.open(tell)
        plan = self.plan
        chosen = np.concatenate([
            _in_random_order(np.flatnonzero(self.labels == label), self.seed, label)[:plan.per_class]
            for label in range(len(self.classes))
        ])
        chosen.sort()
        used = {self.names[i] for i in chosen}
        self.used = ImageFolder(self.folder.root, self.folder.classes,
                                tuple(image for image in self.folder.images if image.key in used), ())
        folds = _folds(self.labels[chosen], plan.folds, self.seed)
        images = len(chosen) * plan.variants
        tell(f"{len(chosen)} real images of {len(self.classes)} classes, {images} synthetic images for each of "
             f"{'; '.join(kind.name for kind in plan.made)}. {plan.folds} folds, trainings of {plan.steps} steps at "
             f"{self.size[0]} x {self.size[1]} pixels; about {plan.seconds / 60:.0f} of {self.minutes:g} minutes "
             "for the first round")
        trial = Trial(plan, skipped=self.skipped)
        self.prompts = conditions_of(self.used, self.pipeline) or choose_prompts(self.used)
        for kind in plan.made:
            if (stopped := self.generate(kind, watch)) is not None:
                trial.signal = stopped
                return trial
        self.train(trial, chosen, folds, watch)
        return self.conclude(trial, chosen)

    def generate(self, kind: Kind, watch: Callable[[str], contextlib.AbstractContextManager[Watch]]) -> int | None:
        begun, plan = time.monotonic(), self.plan
        with watch("image") as progress:
            report = generate_dataset(self.used,
                                      self.out / kind.folder,
                                      self.pipeline,
                                      self.options(kind, plan.variants),
                                      prompts=self.prompts,
                                      model=self.model,
                                      environment={**self.environment, "preset": kind.preset},
                                      progress=progress)
        self.spent += time.monotonic() - begun
        if report.made:
            self.image_seconds[kind.name] = report.seconds / report.made
        self.save()
        return report.signal

    def train(self, trial: Trial, chosen: NDArray[np.int64], folds: NDArray[np.int64],
              watch: Callable[[str], contextlib.AbstractContextManager[Watch]]) -> None:
        plan = self.plan
        X, y = np.stack([self.pixels[i] for i in chosen]), self.labels[chosen]
        made = {kind.name: self.read(kind, chosen) for kind in plan.kinds}
        rows = WITHOUT | {kind.name: SYNTHETIC for kind in plan.kinds}
        finished = {(r["round"], r["fold"], r["row"]) for r in self.results}
        each = plan.folds * len(rows)
        words = "finishing the training in hand; a second signal stops at once and loses it"
        with watch("training") as progress, StopOnSignals(words) as stop:
            round_ = 0
            while round_ < ROUNDS and (round_ == 0 or self.fits(each)):
                for fold in range(plan.folds):
                    for row, method in rows.items():
                        if (round_, fold, row) in finished:
                            continue
                        if stop.signal is not None:
                            trial.signal = stop.signal
                            return
                        begun = time.monotonic()
                        train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
                        X_made, y_made, groups_made = made.get(row, (None, None, None))
                        classifier = self.classifier(method, plan.steps, round_)
                        classifier.fit(X[train], y[train], X_made, y_made, groups=train, groups_synthetic=groups_made)
                        right = classifier.predict(X[held]) == y[held]
                        seconds = time.monotonic() - begun
                        self.spent += seconds
                        self.results.append({
                            "round": round_, "fold": fold, "row": row, "held": held.tolist(), "right":
                            right.astype(int).tolist(), "seconds": round(seconds, 2)
                        })
                        self.save()
                        progress(len(self.results), max(each * (round_ + 1), self.expected(each)))
                round_ += 1

    def expected(self, each: int) -> int:
        """The number of trainings for which the time is enough, in whole rounds."""
        mean = sum(r["seconds"] for r in self.results) / len(self.results)
        left = 60 * self.minutes - self.spent
        return min(ROUNDS * each, max(each, (len(self.results) + int(left / mean)) // each * each))

    def fits(self, each: int) -> bool:
        """Whether another round fits into the time."""
        mean = sum(r["seconds"] for r in self.results) / len(self.results)
        unfinished = len(self.results) % each  # of a round that was stopped
        return bool(unfinished) or self.spent + each * mean <= 60 * self.minutes

    def read(self, kind: Kind,
             chosen: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Read the synthetic images, their labels, and the positions of the real images that they were made from."""
        place = {self.names[i]: position for position, i in enumerate(chosen)}
        number = {label: i for i, label in enumerate(self.classes)}
        rows = [(self.out / each.folder / row["file_name"], row) for each in self.plan.made
                if each.preset == kind.preset for row in read_manifest(self.out / each.folder)
                if (each.text_share == 1) == is_from_text(kind.text_share, row["variant"])]
        files = FolderImages([path for path, _ in rows], self.size)
        files.read_all(self.workers)
        pixels = np.stack([_fitted(files[i], self.size) for i in range(len(files))])
        return (pixels, np.array([number[row["label"]] for _, row in rows]),
                np.array([place[row["seed_file"]] for _, row in rows]))

    def conclude(self, trial: Trial, chosen: NDArray[np.int64]) -> Trial:
        from .trial_page import trial_page

        plan, rows = self.plan, [*WITHOUT, *(kind.name for kind in self.plan.kinds)]
        each = plan.folds * len(rows)
        trial.rounds = len(self.results) // each
        if not trial.rounds:
            return trial
        right = right_by_image(self.results, rows, len(chosen), trial.rounds)
        trial.accuracy = {row: float(right[row].mean()) for row in rows}
        trial.comparisons, trial.verdict = judge(right, plan.kinds, self.fold_gains(rows, trial.rounds))
        trial.page = self.out / "trial.html"
        page = trial_page(trial, self.root, self.out, self.model or self.pipeline.folder.name, self.classes,
                          self.counts, self.size, {kind.name: self.seconds_of(kind) for kind in plan.kinds},
                          self.spent)
        try:
            write_atomically(trial.page, page.encode())
        except OSError as error:
            raise OutputError(error.errno, f"{trial.page} cannot be written ({error.strerror})") from error
        return trial

    def seconds_of(self, kind: Kind) -> float:
        """The time per image of a kind; that of half of each is the mean."""
        of = [self.image_seconds[each.name] for each in self.plan.made
              if each == kind or kind.text_share == 0.5 and each.preset == kind.preset]
        return sum(of) / len(of)

    def fold_gains(self, rows: Sequence[str], rounds: int) -> dict[tuple[str, str], NDArray[np.float64]]:
        """The differences in accuracy, one per training, between every kind and row without synthetic images."""
        scores = {(r["round"], r["fold"], r["row"]): float(np.mean(r["right"])) for r in self.results}
        places = [(round_, fold) for round_ in range(rounds) for fold in range(self.plan.folds)]
        return {(kind.name, row): np.array([scores[(*place, kind.name)] - scores[(*place, row)] for place in places])
                for kind in self.plan.kinds
                for row in WITHOUT}


def right_by_image(results: Sequence[Mapping[str, Any]], rows: Sequence[str], images: int,
                   rounds: int) -> dict[str, NDArray[np.float64]]:
    """For every row, the share of the rounds in which each image was classified correctly."""
    right = {row: np.zeros(images) for row in rows}
    for result in results:
        if result["round"] < rounds:
            right[result["row"]][result["held"]] += np.asarray(result["right"]) / rounds
    return right


def judge(right: Mapping[str, NDArray[np.float64]], kinds: Sequence[Kind],
          fold_gains: Mapping[tuple[str, str], NDArray[np.float64]]) -> tuple[list[Comparison], Verdict]:
    """Compare every kind with the better one of the rows without synthetic images, and give a verdict.

    The interval is the wider one of two: from the differences per image, and from the differences per training, which
    share images. With several kinds it is wider, so that the best one is not merely the luckiest.
    """
    against = max(WITHOUT, key=lambda row: right[row].mean())
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(kinds))
    comparisons = []
    for kind in kinds:
        by_image, by_training = right[kind.name] - right[against], fold_gains[kind.name, against]
        errors = [float(d.std(ddof=1) / math.sqrt(len(d))) for d in (by_image, by_training) if len(d) > 1]
        gain, half = float(by_image.mean()), z * max(errors)
        comparisons.append(Comparison(kind, gain, gain - half, gain + half))
    best = max(comparisons, key=lambda c: c.gain)
    numbers = f"{100 * best.gain:+.1f} points against {against} ({100 * best.low:+.1f} to {100 * best.high:+.1f})"
    if best.low > 0:
        return comparisons, Verdict("helps", f"Synthetic images help here, best with {best.kind.command}: {numbers}.",
                                    best)
    if all(c.high < 0 for c in comparisons):
        return comparisons, Verdict("hurts",
                                    f"Synthetic images hurt here; {best.kind.name} is the best of them: {numbers}.",
                                    best)
    return comparisons, Verdict(
        "unclear",
        f"No difference can be told from this trial: {best.kind.name} is at {numbers}. More minutes or more real "
        "images would narrow that.", best)


def _fitted(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    from ..data.images import fit

    return fit(pixels, size, "squash")


def _in_random_order(positions: NDArray[np.int64], seed: int, label: int) -> NDArray[np.int64]:
    return positions[np.argsort(keyed(seed, 1 << 49, (0, label, 0, 0)).random(len(positions)), kind="stable")]


def _folds(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of every image; the images of a class are distributed evenly."""
    result = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = _in_random_order(np.flatnonzero(labels == label), seed, int(label))
        result[members] = np.arange(len(members)) % folds
    return result
