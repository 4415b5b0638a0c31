"""`dreamda generate`: make the synthetic images of a data set, in an order that lets it stop at any time.

    folder = ImageFolder.scan("photos")
    pipe = dreamda.Pipeline.load("fashion-mini")
    report = generate_dataset(folder, "synthetic", pipe, GenerationOptions(variants=4, steps=20))

The run takes one real image of each class in turn (a "seed" in the names of this file) and makes one variant of it, or
a few, see `variants_a_visit`. When every real image has its first variant, the second ones follow. So a run that is
stopped early leaves a balanced data set. The order changes no image, as an image's noise depends on its key. output.py
writes the files; safeguards.py compares new images with real ones.
"""
from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data.files import BrokenImageError, digest_if_readable
from ..data.folders import ImageFolder, ImageRef
from ..data.images import LoadedImage
from ..data.prompts import DEFAULT_TEMPLATE, Listed, Prompts, as_prompts, choose_prompts
from ..data.templates import Prompt
from ..generation.options import GenerationOptions
from ..options import ParameterError
from ..text import counted, in_brackets
from .checks import conditions_of
from .files import OutputError, StopOnSignals
from .inspection import BITS, differences
from .output import (PLACES, Finished, LeftOut, Part, RunFolder, check_out, output_stems, places, run_identity,
                     sample_of)
from .records import Names, changes_as_recorded, hashed, shown_path
from .safeguards import Comparison, Judge, Safeguards, noise_key
from .verify import Verify

MAX_BATCH = 512           # maximum number of images in a batch
SECONDS_A_BATCH = 10.0    # approximate time per batch, and so the time from a signal to the end of the run
# if the variants of one real image take longer, they are written about this often; a kill loses the later ones
SECONDS_A_SAVE = 300.0
ROWS_OF_A_VISIT = 4       # cost of reading, encoding and preparing a real image, in U-Net rows
REPEATED = 8              # work that is done once per visit takes at most about 1 / REPEATED of it


class PipelineLike(Protocol):
    """The part of the interface of `dreamda.Pipeline` that `generate_dataset` uses."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def threads_matter(self) -> bool: ...
    @property
    def _augment(self) -> Callable[..., np.ndarray]: ...


@dataclass(frozen=True)
class Piece:
    """Real images whose variants `first` to `last` (exclusive) are made in one call.

    A prompt may be a list with one for each variant up to `last`. For labelled images, `around` holds further arguments
    of `Pipeline._augment`. `redraw` counts how often the variant was made before, and was too similar to a real image.
    """

    seeds: list[tuple[ImageRef, LoadedImage]]
    prompts: list[str | list[str]]
    first: int
    last: int
    around: dict[str, Any] = field(default_factory=dict)
    redraw: int = 0

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, H, W, 3)."""
        return np.stack([seed.pixels for _, seed in self.seeds])

    @property
    def keys(self) -> list[str]:
        """The keys of the images' noise."""
        return [noise_key(image.key, self.redraw) for image, _ in self.seeds]

    def options(self, settings: GenerationOptions) -> GenerationOptions:
        """The run's options, with `last` as the number of variants, unless their starts are chosen together."""
        return settings if settings.diverse else replace(settings, variants=self.last)


class Engine(Protocol):
    """Makes the images of a run, until `stop()` is true or ``take`` returns None.

    ``take(images)`` returns a piece of about `images` images. The engine yields each piece with its synthetic images,
    uint8 (N, K, H, W, 3). For a piece of one real image it may yield only the first variants; a later piece then holds
    the others. ``within(images)`` reports progress between two yields.
    """

    def __call__(self, take: Callable[[int], Piece | None], settings: GenerationOptions, stop: Callable[[], bool],
                 within: Callable[[float], None]) -> Iterator[tuple[Piece, np.ndarray]]: ...


class EngineError(OSError):
    """An engine has lost its workers. Finished images stay, and the same call resumes the run."""


@dataclass(repr=False)
class Report:
    """The result of a call of `generate_dataset`.

    Attributes
    ----------
    made, present, total : int
        Number of synthetic images written now, found finished, and in this call's shard.
    skipped : list of (str, str)
        Real images (or folders) that were left out, each with the reason.
    seconds : float
        Time spent on `made`.
    signal : int or None
        The signal that ended the run early.
    notes : list of str
        Messages for the user.
    left_out : int
        Number of images of the shard that are left out, now or by an earlier call, because every redraw was too
        similar to a real image.
    lost : int
        Number of objects in new images that a `Verify` no longer recognised.
    """

    made: int = 0
    present: int = 0
    total: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    signal: int | None = None
    notes: list[str] = field(default_factory=list)
    left_out: int = 0
    lost: int = 0

    def __repr__(self) -> str:
        return in_brackets("Report",
                           f"{self.made:,} of {counted(self.total, 'image')} made",
                           self.present and f"{self.present:,} were there already",
                           self.left_out and f"{self.left_out:,} left out",
                           self.skipped and f"{counted(len(self.skipped), 'file')} skipped",
                           self.notes and counted(len(self.notes), "note"),
                           self.signal and f"stopped by {signal.Signals(self.signal).name}")


def generate_dataset(folder: ImageFolder,
                     out: str | os.PathLike[str],
                     pipeline: PipelineLike,
                     settings: GenerationOptions = GenerationOptions(),
                     *,
                     safeguards: Safeguards = Safeguards(),
                     prompts: Prompts | Mapping[str, str | Sequence[str | Prompt]] | None = None,
                     prompt_source: Mapping[str, Any] | None = None,
                     model: str = "",
                     changes: Mapping[str, Any] | None = None,
                     shard: tuple[int, int] = (0, 1),
                     environment: Mapping[str, Any] | None = None,
                     stems: Mapping[str, str] | None = None,
                     record: Mapping[str, Any] | None = None,
                     judge: Judge | None = None,
                     verify: Verify | None = None,
                     most: int | None = None,
                     progress: Callable[[float, int], None] | None = None,
                     engine: Engine | None = None) -> Report:
    """Make `settings.variants` synthetic images of every image in `folder`, into the folder `out`.

    Finished images in `out` are kept; interruptions and shards do not change the result. A real image that cannot be
    read is skipped and reported. On SIGINT or SIGTERM (in the main thread) the call finishes the current batch (of
    large images, the current variants) and returns; a second signal stops it at once.

    Parameters
    ----------
    folder : ImageFolder
        Or the ``folder()`` of annotations: images are then made at their own sizes, with annotations in the same
        format. Its method ``without`` leaves out images, such as those whose owners have withdrawn their consent.
    out : path
        A new or empty folder, or the folder of the same run, which may have had fewer variants.
    pipeline : dreamda.Pipeline
    settings : GenerationOptions
    safeguards : Safeguards
        For sensitive data: which new images are too similar to real ones, and what the records say.
    prompts : Prompts, or mapping of key to a prompt or to a sequence of prompts, optional
        For every image of `folder`, one for all variants or one for each; default:
        the template "a photo of a {}".
    prompt_source : mapping, optional
        The record of the prompts in run.json, ``{"template": ...}`` or ``{"prompts_sha256": ...}``; a run with
        another source is refused. Default: that of the `Prompts`.
    model, changes, environment : optional
        Recorded in run.json, not compared: the model's name, the keywords of `Pipeline.load` that changed it (``vae``,
        ``loras``, ``scheduler``, ``embeddings``), and other information for repeating the run. Differences from the
        environment in which the run began are listed in `Report.notes` if they can change pixels.
    stems : mapping of key to text, optional
        The part of the file names before the number of the variant; default: `output_stems`.
    shard : (i, n)
        Work on the i-th of n equal parts of the real images. Shards may run at the same time, also with one `out`.
    record : mapping, optional
        The run.json of a run that is repeated. `out` gets the same one, except for the data set's path and the
        environment. `safeguards` is then unused.
    judge : Judge, optional
        Decides whether new images are kept, instead of a comparison with the real images.
    verify : Verify, optional
        Judges the objects in new labelled images, such as a `dreamda.runs.verify.Verifier`.
    most : int, optional
        Make only this number of images, the first ones of this call's shard; a later call makes the others.
    progress : callable, optional
        Called with the number of images finished (with fractions) and their total.
    engine : Engine, optional
        Makes the images, for example `dreamda.distributed.RayWorkers.stream`. Default: `pipeline`, in this process.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        `out` holds another run or other files, is in use, or lies in the data set.
    OutputError
        `out` could no longer be written.
    """
    part = Part(*shard)
    check_options(folder, settings)
    if prompts is None:
        prompts = conditions_of(folder, pipeline) or choose_prompts(folder, DEFAULT_TEMPLATE,
                                                                    prompt_syntax=settings.prompt_syntax)
    prompts = as_prompts(prompts)
    prompt_source = prompts.source if prompt_source is None else prompt_source
    if lacking := next((image.key for image in folder.images if image.key not in prompts.texts), None):
        raise ParameterError("prompts", f"there is none for {lacking}; give one for every image")
    if isinstance(prompts.choice, Listed):
        for image in folder.images:
            prompts.of(image.key, settings.variants - 1)  # refuses too few prompts before the work
    record_names = safeguards.record_names if record is None else record.get("record_names", "paths")
    names = Names()
    if record_names == "hash":
        folder, names = hashed(folder)
        stems = names.stems if stems is None else stems
    run = {
        **run_identity(folder, settings, prompt_source, safeguards), "dtype": pipeline.dtype,
        "size": list(pipeline.size), "model_sha256": pipeline.fingerprint, "model": shown_path(model),
        **changes_as_recorded(changes or {}), "seed_images": sample_of(folder, names)
    } if record is None else dict(record)
    where = places(folder, Path(out), record_names, environment or {})
    run = {k: v for k, v in (run | where).items() if k in where or k not in PLACES} | folder.identity()
    run |= verify.identity if verify is not None else {}
    check_out(out, folder, run, names)
    pipeline._augment(np.empty((0, *pipeline.size, 3), np.uint8), [], [], settings)  # checks that need the model
    if judge is None and safeguards.max_similarity is not None:
        judge = Comparison.with_images_of(folder, safeguards)
    notice = "finishing the images in hand; a second signal stops at once and loses those"
    with StopOnSignals(notice) as stop, RunFolder(Path(out), folder, run, part, names) as run_folder:
        generation = _Generation(run_folder, pipeline, settings, prompts,
                                 output_stems(folder) if stems is None else stems, judge, verify, most, progress
                                 or (lambda done, total: None))
        return generation.run(engine or partial(_in_turn, pipeline), stop)


def check_options(folder: ImageFolder, settings: GenerationOptions) -> None:
    """Refuse options that do not suit a data set; ParameterError names the option."""
    if folder.apart and settings.diverse:
        raise ParameterError("diverse", "chooses the starts of all variants of an image together, and with `compose` "
                                        "each is made from a picture of its own; leave one of the two off")
    if folder.annotations is not None and settings.text_share:
        raise ParameterError("text_share", "is for class folders: annotations are about the real image, of which these "
                                           "variants know nothing; leave it at 0")


class Job(NamedTuple):
    """Variants `first` to `last` (exclusive) of a real image, made for the `redraw`-th time again."""

    image: ImageRef
    first: int
    last: int
    redraw: int = 0


class WorkList:
    """The images that are still to be made, in order. It skips finished ones, and notices changed real images.

    Parameters
    ----------
    folder : ImageFolder
    seeds : sequence of ImageRef
        In the order of the visits, see `in_turn`.
    size : (height, width)
        At which the real images are read.
    fit : str
        See `dreamda.data.images.fit`.
    variants, visit : int
        Number of variants of each real image, and how many of them a visit makes.
    made : dict
        The finished images, ``{(key, variant): SHA-256 of the real image}``.
    together : bool
        A visit makes all variants, starting with the first missing one.
    most : int, optional
        Leave out all images after this number of images.

    Attributes
    ----------
    total, present : int
        Number of images in the list, and of those that were finished at the start.
    skipped : dict
        Real images that could not be read, each with the reason.
    """

    def __init__(self,
                 folder: ImageFolder,
                 seeds: Sequence[ImageRef],
                 size: tuple[int, int],
                 fit: str,
                 variants: int,
                 visit: int,
                 made: dict[tuple[str, int], str],
                 together: bool = False,
                 most: int | None = None) -> None:
        self._folder, self._seeds, self._size, self._fit = folder, seeds, size, fit
        self._variants, self._visit, self._together = variants, visit, together
        self._made = made
        self.total = len(seeds) * variants if most is None else min(most, len(seeds) * variants)
        begun = {key for key, _ in made}
        self._now = {image.key: digest_if_readable(folder.path(image)) for image in seeds if image.key in begun}
        self.skipped: dict[str, str] = {}
        self._first: deque[Job] = deque()
        self._others = self._walk()
        self.present = self.total - sum(not self._is_finished(*each) for each in self._images())

    def __bool__(self) -> bool:
        """Whether any image is still to be made."""
        if not self._first and (job := next(self._others, None)) is not None:
            self._first.append(job)
        return bool(self._first)

    def take(self, images: int) -> Piece | None:
        """A piece of about `images` images, of real images that lack the same variants; None if nothing is left.

        Its prompts are empty.
        """
        seeds: list[tuple[ImageRef, LoadedImage]] = []
        first, last, redraw = 0, 1, 0
        while self:
            job = self._first[0]
            if seeds and (job[1:] != (first, last, redraw) or (len(seeds) + 1) * (last - first) > images):
                break
            self._first.popleft()
            if job.image.key in self.skipped:
                continue
            try:
                seed = self._folder.read(job.image, self._size, self._fit)
            except BrokenImageError as error:
                self.skipped[job.image.key] = str(error)
                continue
            if seeds and seed.pixels.shape != seeds[0][1].pixels.shape:
                self._first.appendleft(job)
                break
            has_changed = self._now.get(job.image.key, seed.sha256) != seed.sha256
            if has_changed:
                self._made_again(job.image, seed.sha256)
            self._now[job.image.key] = seed.sha256
            if has_changed and job.redraw:
                continue  # the variant begins again with the image's own noise
            first, last, redraw = job[1:]
            seeds.append((job.image, seed))
        return Piece(seeds, [], first, last, redraw=redraw) if seeds else None

    def _made_again(self, image: ImageRef, sha256: str) -> None:
        """The real image has changed: make its earlier variants again."""
        stale = [variant for variant in range(self._variants) if self._made.get((image.key, variant), sha256) != sha256]
        for variant in stale:
            del self._made[image.key, variant]
        if stale and self._together:
            self._first.append(Job(image, stale[0], self._variants))
        else:
            self._first += [Job(image, variant, variant + 1) for variant in stale]

    def done(self, piece: Piece, variants: int, again: Sequence[Job] = ()) -> None:
        """Mark the first `variants` variants of each real image in a piece as finished, but for those to make again."""
        for image, seed in piece.seeds:
            for variant in range(piece.first, piece.first + variants):
                self._made[image.key, variant] = seed.sha256
            if self._now[image.key] != seed.sha256:  # a later piece has found that the file changed
                self._made_again(image, self._now[image.key] or "")
                again = [job for job in again if job.image != image]
            elif piece.first + variants < piece.last:
                self._first.appendleft(Job(image, piece.first + variants, piece.last))
        self._first.extendleft(reversed(again))

    def count(self, variants: Collection[tuple[str, int]]) -> int:
        """The number of these variants, ``(key, variant)``, that are in the list and finished."""
        return sum((image.key, variant) in variants and self._is_finished(image, variant)
                   for image, variant in self._images()) if variants else 0

    def _is_finished(self, image: ImageRef, variant: int) -> bool:
        """Whether the image exists and was made from the current content of the real image.

        If the real image can no longer be read, its images are kept.
        """
        made, now = self._made.get((image.key, variant)), self._now.get(image.key)
        return made is not None and now in (None, made)

    def _images(self) -> Iterator[tuple[ImageRef, int]]:
        """Every image of the list, in order."""
        every = ((image, variant) for first in range(0, self._variants, self._visit) for image in self._seeds
                 for variant in range(first, min(first + self._visit, self._variants)))
        return islice(every, self.total)

    def _walk(self) -> Iterator[Job]:
        job: Job | None = None
        for image, variant in self._images():
            going_on = job is not None and (job.image, job.last) == (image, variant) and variant % self._visit
            if self._is_finished(image, variant) and not (going_on and self._together):
                continue
            if job is not None and going_on:
                job = job._replace(last=variant + 1)
                continue
            if job is not None:
                yield job
            job = Job(image, variant, variant + 1)
        if job is not None:
            yield job


def in_turn(images: Sequence[ImageRef]) -> list[ImageRef]:
    """The first image of every class, then the second of every class, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for image in images:
        seen[image.label] = seen.get(image.label, -1) + 1
        ranked.append((seen[image.label], image))
    return [image for _, image in sorted(ranked)]


def variants_a_visit(settings: GenerationOptions) -> int:
    """How many variants of a real image are made before the turn of the next one.

    It is one, unless the next visit would repeat much of the work: with `share_source`, with the inversion of
    "asymmetric", and with few steps. With `diverse` it is all of them, as their starts are chosen together.
    """
    if settings.diverse:
        return settings.variants
    steps = max(1, int(settings.steps * settings.strength))  # at least one, as an LCM runs all of `steps`
    own_source = settings.method == "cycle" and not settings.share_source
    once = ROWS_OF_A_VISIT + (steps if settings.share_source or settings.method == "asymmetric" else 0)
    each = steps * (1 + (settings.guidance_scale != 1) + own_source)
    return min(settings.variants, math.ceil(REPEATED * once / each))


class _Generation:
    """One call of `generate_dataset` on an open run folder: lists, makes, writes and reports the missing images."""

    def __init__(self, run_folder: RunFolder, pipeline: PipelineLike, settings: GenerationOptions,
                 prompts: Prompts, stems: Mapping[str, str], judge: Judge | None, verify: Verify | None,
                 most: int | None, progress: Callable[[float, int], None]) -> None:
        self.run_folder, self.settings, self.prompts = run_folder, settings, prompts
        self.stems, self.judge, self.verify, self.progress = stems, judge, verify, progress
        folder, part = run_folder.folder, run_folder.part
        left_out, finished = run_folder.left_out(), run_folder.finished()
        made = left_out | finished
        visit = variants_a_visit(settings)
        if folder.apart or most is not None and not settings.diverse:
            visit = 2 if 0 < settings.text_share < 1 else 1  # a preview shows both kinds
        elif folder.sizes is not None and not pipeline.threads_matter:
            visit = settings.variants  # small images share a call of the U-Net if they have the same size
        gone = {key for key, _ in made} - {image.key for image in folder.images}
        self.work = WorkList(folder, part.of(in_turn(folder.images)), pipeline.size, settings.fit, settings.variants,
                             visit, made, settings.diverse, most)
        without = self.work.count(left_out.keys() - finished.keys())
        self.report = Report(present=self.work.present - without, total=self.work.total, left_out=without)
        if part.index == 0:
            self.report.skipped = [
                *folder.ignored,
                *((key, "no longer in the data set; the images made from it were kept") for key in sorted(gone))
            ]
        bits = (*BITS, "threads") if pipeline.threads_matter else BITS  # each small image is made by one thread
        if differing := differences(run_folder.run.get("environment"), run_folder.environment, bits):
            self.report.notes.append(
                f"this run was begun with {differing}: the images made from here on may differ in their last bits")
        self.computed = self.work.present

    def run(self, engine: Engine, stop: StopOnSignals) -> Report:
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as writer:  # the engine works on during an fsync, which takes milliseconds
            writing: Future[int] | None = None
            for piece, made in engine(self._take, self.settings, lambda: stop.signal is not None, self._within):
                made = made[:, : piece.last - piece.first]
                finished, left_out, again = self._judged(piece, made)
                self.computed += made.shape[0] * made.shape[1] - len(again)
                self.work.done(piece, made.shape[1], again)
                self._within(0)
                if writing:
                    self.report.made += writing.result()
                writing = writer.submit(self._write, finished, left_out)
            if writing:
                self.report.made += writing.result()
        self.report.seconds = time.monotonic() - begun
        self.report.skipped += self.work.skipped.items()
        self.report.signal = stop.signal if self.work else None
        return self.report

    def _take(self, images: int) -> Piece | None:
        piece, folder = self.work.take(images), self.run_folder.folder
        if piece is None:
            return None
        seeds, settings = [image for image, _ in piece.seeds], piece.options(self.settings)
        return replace(piece, prompts=[self.prompts.variants(image.key, piece.first, settings.variants)
                                       for image in seeds],
                       around=folder.around(seeds, piece.first, self.settings.seed))

    def _within(self, images: float) -> None:
        self.progress(min(self.computed + images, self.report.total), self.report.total)

    def _judged(self, piece: Piece, made: np.ndarray) -> tuple[list[Finished], list[LeftOut], list[Job]]:
        """The new images to write, the variants to leave out, and those to make again."""
        finished: list[Finished] = []
        left_out: list[LeftOut] = []
        again: list[Job] = []
        for (image, seed), variants in zip(piece.seeds, made, strict=True):
            about = image, self.stems[image.key], seed.sha256
            prompts = [self.prompts.of(image.key, piece.first + number) for number in range(len(variants))]
            if self.judge is None:
                finished.append(Finished(*about, prompts, piece.first, variants))
                continue
            for variant, (pixels, prompt) in enumerate(zip(variants, prompts, strict=True), piece.first):
                judgement = self.judge(image.key, variant, piece.redraw, pixels)
                if judgement.redraw is not None:
                    again.append(Job(image, variant, variant + 1, judgement.redraw))
                elif not judgement.keep:
                    left_out.append(LeftOut(*about, variant, judgement.similarity))
                else:
                    finished.append(Finished(*about, [prompt], variant, pixels[None],
                                             {"similarity": judgement.similarity, "redraws": piece.redraw}))
        return [part for each in finished for part in self._verified(each)], left_out, again

    def _verified(self, each: Finished) -> Iterator[Finished]:
        """New images with what is found of the objects in them."""
        if self.verify is None:
            yield each
            return
        for variant, (pixels, prompt) in enumerate(zip(each.pixels, each.prompts, strict=True), each.first):
            found = self.verify(each.image, variant, pixels)
            self.report.lost += len(found.get("lost", ()))
            yield replace(each, prompts=[prompt], first=variant, pixels=pixels[None], about={**each.about, **found})

    def _write(self, finished: Sequence[Finished], left_out: Sequence[LeftOut]) -> int:
        """Write images and what is left out; return the number of images."""
        written = self.run_folder.write(finished)
        self.run_folder.leave_out(left_out)
        self.report.left_out += len(left_out)
        return written


def _in_turn(pipeline: PipelineLike, take: Callable[[int], Piece | None], settings: GenerationOptions,
             stop: Callable[[], bool], within: Callable[[float], None]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The engine of one process: one piece after another."""
    images = 1
    while not stop() and (piece := take(images)):
        started = time.monotonic()
        share = len(piece.seeds) * (piece.last - piece.first)
        enough = partial(_enough, stop, started + SECONDS_A_SAVE) if len(piece.seeds) == 1 else None
        made = pipeline._augment(piece.images,
                                 piece.prompts,
                                 piece.keys,
                                 piece.options(settings),
                                 first=piece.first,
                                 stop=enough,
                                 progress=partial(_scaled, within, share),
                                 **piece.around)
        images = images_a_piece(made, time.monotonic() - started)
        yield piece, made


def _enough(stop: Callable[[], bool], until: float) -> bool:
    return stop() or time.monotonic() > until


def _scaled(within: Callable[[float], None], share: int, done: int, of: int) -> None:
    within(share * done / max(of, 1))


def images_a_piece(made: np.ndarray, seconds: float) -> int:
    """The number of images for the next piece, if the images `made` of the last one took `seconds`."""
    each = seconds / (made.shape[0] * made.shape[1])
    return max(1, min(MAX_BATCH, int(SECONDS_A_BATCH / max(each, 1e-6))))
