"""The run folder of `dreamda generate`: synthetic images written so that nothing is lost, doubled or half-written.

    folder = ImageFolder.scan("photos")
    report = generate_dataset(folder, "synthetic", dreamda.Pipeline.load("fashion-mini"), GenerationOptions(variants=4, steps=20))

    OUT/<class>/<seed stem>-<variant:03d>.png     one synthetic image; what it was made from is in the PNG's text too
    OUT/metadata.jsonl                            one line an image, in the order of the seeds; written when a run ends
    OUT/run.json                                  the parameters, a run with others is refused; and what else repeats it (replay.py)
    OUT/.dreamda/                                 only while a run is going on, or after it was killed:
        lock                                      byte ranges: which part of the seeds somebody works on, and who is merging
        <part>.jsonl  <part>.tmp                  the lines of the images that are finished, and the file being written

An image becomes visible by a rename after an fsync, its line is written after that. A killed run therefore leaves either a finished
image with its line, or a finished image without one, which is made again to the same bytes. The order of events, the clock, the
sharding and the batching leave no trace in any of the files.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import reprlib
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..generation.options import GenerationOptions, with_todays_names
from ..networks.config import read_json
from ..data.files import BrokenImageError, read_bounded, read_json_lines
from ..data.folders import ImageFolder, ImageRef
from ..data.images import LoadedImage, read_image
from ..data.prompts import DEFAULT_TEMPLATE, prompts_from_template
from .files import OutputError, StopOnSignals
from .inspection import BITS, differences

WORK = ".dreamda"
RESERVED = ("run.json", "metadata.jsonl")
NOT_COMPARED = ("model", "real", "environment")  # of run.json: for the reader, and for repeating a run
SPACE = 1 << 40           # the seeds as a range of lock bytes; shard i/n locks [i/n, (i+1)/n) of it
MERGE = SPACE             # the lock byte of whoever creates, merges or tidies
MAX_SHARDS = 1 << 16
NAME_MAX = 255            # bytes of a file name
MAX_BATCH = 64            # seeds
SECONDS_A_BATCH = 10.0    # seeds are taken in batches of about this length: the time from a signal to the end
SECONDS_A_SAVE = 300.0    # of one seed's variants, where they take longer, so much is written at a time: what a kill loses


class PipelineLike(Protocol):
    """What `generate_dataset` needs of a `dreamda.Pipeline`."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def threads_matter(self) -> bool: ...
    @property
    def augment(self) -> Callable[..., np.ndarray]: ...


@dataclass(frozen=True)
class Piece:
    """Seeds whose variants from `first` on are to be made in one call; with a `first` above 0 it is one seed."""

    seeds: list[tuple[ImageRef, LoadedImage]]
    prompts: list[str]
    first: int

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, H, W, 3)."""
        return np.stack([seed.pixels for _, seed in self.seeds])

    @property
    def keys(self) -> list[str]:
        """What the noise of each follows."""
        return [image.key for image, _ in self.seeds]


class Engine(Protocol):
    """Makes the images of a run. Until `stop` says so it takes pieces with ``take(seeds)``, None at their end, and yields each with what
    was made of it, uint8 (N, K, H, W, 3): of one seed perhaps the first variants only, it is then handed out again for the others.
    ``within(images)`` may tell the progress between two yields."""

    def __call__(self, take: Callable[[int], Piece | None], settings: GenerationOptions, stop: Callable[[], bool],
                 within: Callable[[float], None]) -> Iterator[tuple[Piece, np.ndarray]]: ...


class EngineError(OSError):
    """An engine has lost what it computes on. What was finished stays, and the same call goes on from there."""


@dataclass
class Report:
    """What a call of `generate_dataset` did.

    Attributes
    ----------
    made, present, total : int
        Synthetic images written now, found finished, and belonging to this call's shard.
    skipped : list of (str, str)
        Seed images (or folders) left out, each with the reason.
    seconds : float
        Time spent on `made`.
    signal : int or None
        The signal that ended the run early.
    notes : list of str
        What the user should know.
    """

    made: int = 0
    present: int = 0
    total: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    signal: int | None = None
    notes: list[str] = field(default_factory=list)


def generate_dataset(folder: ImageFolder, out: str | os.PathLike[str], pipeline: PipelineLike, settings: GenerationOptions = GenerationOptions(), *,
                     prompts: Mapping[str, str] | None = None, prompt_source: Mapping[str, str | None] | None = None, model: str = "",
                     shard: tuple[int, int] = (0, 1), environment: Mapping[str, Any] | None = None, stems: Mapping[str, str] | None = None,
                     old_names: Mapping[str, str] = {}, progress: Callable[[float, int], None] | None = None,
                     engine: Engine | None = None) -> Report:
    """Make `settings.variants` synthetic images of every image in `folder`, into the folder `out`.

    What is already finished in `out` is kept; the result does not depend on how often the work was interrupted or how it was
    sharded. A seed image that cannot be read is skipped and reported. On SIGINT or SIGTERM (in the main thread) the images in hand
    are finished (of large ones the variants in hand), then the call returns; a second signal acts at once.

    Parameters
    ----------
    folder : ImageFolder
    out : path
        New, empty, or the folder of the same run.
    pipeline : dreamda.Pipeline
    settings : GenerationOptions
    prompts : mapping of key to prompt, optional
        For every image of `folder`; default: the template "a photo of a {}".
    prompt_source : mapping, optional
        What run.json says of the prompts, ``{"template": ...}`` or ``{"prompts_sha256": ...}``; a run from another source is refused.
    model, environment : optional
        For run.json, not compared: the model's name, and what else helps to repeat the run; what of it decides bits is in `Report.notes`
        where it differs from what the run was begun with.
    stems : mapping of key to text, optional
        What an image's files are called before the number of the variant; default: `output_stems`.
    old_names : mapping, optional
        What the records of the run call an option, where it was renamed since: ``{"method": "step"}``. To replay an old run.
    shard : (i, n)
        Do the i-th of n equal parts of the seeds. Shards may run at the same time, also on one `out`.
    progress : callable, optional
        Called with the number of images finished (with fractions) and their total.
    engine : Engine, optional
        Who makes the images, such as `dreamda.distributed.RayWorkers.stream`; default: `pipeline`, in this process.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        `out` holds another run or other files, is in use, or lies in the data set.
    OutputError
        `out` could not be written any more.
    """
    index, count = shard
    if not (0 <= index < count <= MAX_SHARDS):
        raise ValueError(f"--shard {index}/{count} must be i/n with 0 <= i < n, and n at most {MAX_SHARDS}")
    if prompts is None:
        prompts, prompt_source = prompts_from_template(folder), {"template": DEFAULT_TEMPLATE}
    stems = output_stems(folder) if stems is None else stems
    run = {**run_identity(settings, prompt_source or {}), "dtype": pipeline.dtype, "size": list(pipeline.size),
           "model_sha256": pipeline.fingerprint, "model": model, "real": str(folder.root.absolute()), "environment": dict(environment or {})}
    run = {old_names.get(name, name): value for name, value in run.items()}
    check_out(out, folder, run)
    pipeline.augment(np.empty((0, *pipeline.size, 3), np.uint8), [], keys=[], **asdict(settings))  # what only the model can refuse

    n = len(folder.images)
    mine = folder.images[-(-index * n // count): -(-(index + 1) * n // count)]
    report = Report(total=len(mine) * settings.variants, skipped=list(folder.ignored) if index == 0 else [])
    with StopOnSignals("finishing the images in hand; a second signal stops at once and loses those") as stop, _RunFolder(Path(out), folder, run, shard) as place:
        finished = place.finished()
        if index == 0:
            gone = {key for key, _ in finished} - {image.key for image in folder.images}
            report.skipped += [(key, "no longer in the data set; the images made from it were kept") for key in sorted(gone)]
        pending = deque((image, first) for image in mine
                        if (first := _first_missing(folder, image, settings.variants, finished)) < settings.variants)
        report.present = report.total - sum(settings.variants - first for _, first in pending)
        if differing := differences(place.run.get("environment"), run["environment"], _decides_bits(pipeline)):
            report.notes.append(f"this run was begun with {differing}: the images made from here on may differ in their last bits")
        begun = time.monotonic()
        computed, writing = report.present, None

        def take(count: int) -> Piece | None:
            while pending:
                first = pending[0][1]
                seeds: list[tuple[ImageRef, LoadedImage]] = []
                for _ in range(1 if first else count):
                    if not pending or pending[0][1] != first:
                        break
                    image, _ = pending.popleft()
                    try:
                        seeds.append((image, read_image(folder.path(image), pipeline.size)))
                    except BrokenImageError as error:
                        report.skipped.append((image.key, str(error)))
                if seeds:
                    if first and seeds[0][1].sha256 != finished.get((seeds[0][0].key, 0)):
                        first = 0  # the file has changed just now
                    return Piece(seeds, [prompts[image.key] for image, _ in seeds], first)
            return None

        def within(images: float) -> None:
            if progress:
                progress(computed + images, report.total)

        with ThreadPoolExecutor(1) as writer:  # an fsync takes milliseconds, in which the engine can go on
            for piece, made in (engine or partial(_in_turn, pipeline))(take, settings, lambda: stop.signal is not None, within):
                computed += made.shape[0] * made.shape[1]
                if piece.first + made.shape[1] < settings.variants:
                    image, seed = piece.seeds[0]
                    finished[image.key, 0] = seed.sha256
                    pending.appendleft((image, piece.first + made.shape[1]))
                within(0)
                if writing:
                    report.made += writing.result()
                writing = writer.submit(place.write, piece.seeds, stems, prompts, made, piece.first)
            if writing:
                report.made += writing.result()
        report.seconds = time.monotonic() - begun
        report.signal = stop.signal if pending else None
    return report


def _in_turn(pipeline: PipelineLike, take: Callable[[int], Piece | None], settings: GenerationOptions, stop: Callable[[], bool],
             within: Callable[[float], None]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The engine of one process: one piece after another."""
    batch = 1
    while not stop() and (piece := take(batch)):
        started = time.monotonic()
        share = len(piece.seeds) * (settings.variants - piece.first)
        enough = partial(_enough, stop, started + SECONDS_A_SAVE) if len(piece.seeds) == 1 else None
        made = pipeline.augment(piece.images, piece.prompts, keys=piece.keys, first=piece.first, stop=enough,
                                progress=partial(_scaled, within, share), **asdict(settings))
        batch = seeds_a_piece(settings, made, time.monotonic() - started)
        yield piece, made


def _enough(stop: Callable[[], bool], until: float) -> bool:
    return stop() or time.monotonic() > until


def _scaled(within: Callable[[float], None], share: int, done: int, of: int) -> None:
    within(share * done / max(of, 1))


def seeds_a_piece(settings: GenerationOptions, made: np.ndarray, seconds: float) -> int:
    """How many seeds the next piece should have, after one whose images `made` took so long."""
    took = seconds / (made.shape[0] * made.shape[1]) * settings.variants
    return max(1, min(MAX_BATCH, int(SECONDS_A_BATCH / max(took, 1e-6))))


def run_identity(settings: GenerationOptions, prompt_source: Mapping[str, str | None]) -> dict[str, Any]:
    """What run.json holds and compares that is known before the model is loaded."""
    from .. import __version__

    return {"format": 1, "dreamda": __version__, "template": prompt_source.get("template"),
            "prompts_sha256": prompt_source.get("prompts_sha256"), **asdict(settings)}


def output_stems(folder: ImageFolder) -> dict[str, str]:
    """The stem of every seed's output files, ``{key: stem}``.

    It is the seed's own stem, with hyphens for the slashes of deeper folders. Where two images of a class would get the same (``a.png``,
    ``a.jpg``) both get their full names, and where even these are the same, a part of their SHA-256 too. A name too long for the file
    system is cut and ends in a part of its SHA-256.
    """
    stems: dict[str, str] = {}
    by_class: dict[str, list[ImageRef]] = {}
    for image in folder.images:
        by_class.setdefault(image.label, []).append(image)
    for images in by_class.values():
        chosen = {image: _stem(image.name, 0) for image in images}
        for attempt in (1, 2):
            while True:  # a longer stem may be another image's shorter one: until nothing changes
                users: dict[str, list[ImageRef]] = {}
                for image, stem in chosen.items():
                    users.setdefault(stem, []).append(image)
                clashing = {i: _stem(i.name, attempt) for group in users.values() if len(group) > 1 for i in group}
                if clashing.items() <= chosen.items():
                    break
                chosen.update(clashing)
        stems.update((image.key, stem) for image, stem in chosen.items())
    return stems


def _stem(name: str, attempt: int) -> str:
    flat = (name if attempt else os.path.splitext(name)[0]).replace("/", "-")
    return _shortened(flat if attempt < 2 or "/" not in name else f"{flat}-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


def _shortened(stem: str) -> str:
    encoded = stem.encode()
    if len(encoded) <= NAME_MAX - len("-0000000.png"):
        return stem
    return f"{encoded[:200].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def check_out(out: str | os.PathLike[str], folder: ImageFolder, run: dict[str, Any]) -> None:
    """Raise ValueError unless `out` can take this run: it does not exist, is empty, or holds the same run. Writes nothing."""
    out = Path(out)
    for label in folder.classes:
        if label in RESERVED:
            raise ValueError(f"a class called {label!r} would collide with the file of that name in OUT; rename {folder.root / label}")
    if out.resolve() == folder.root.resolve() or folder.root.resolve() in out.resolve().parents:
        raise ValueError(f"OUT {out} lies in the data set {folder.root}, where its images would become seeds; give a folder elsewhere")
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise NotADirectoryError(f"OUT {out} is no folder; give a new or an empty one")
    there = _read_run(out)
    if there is None and any(entry.name != WORK for entry in os.scandir(out)):
        there = _read_run(out)  # another shard may have begun between the two looks
        if there is None:
            raise ValueError(f"OUT {out} holds files but no run.json, so they are not ours; give a new or an empty folder")
    if there is None:
        return
    others, there = [], with_todays_names(there)
    for name, value in with_todays_names(run).items():
        if name not in NOT_COMPARED and there.get(name) != value:
            option, shown = _OPTIONS.get(name, ("--" + name.replace("_", "-"), True))
            others.append(option + (f" {reprlib.repr(there.get(name))} (now {reprlib.repr(value)})" if shown else ""))
    if others:
        raise ValueError(f"OUT {out} holds a run with another {', '.join(others)}; repeat that or give another OUT")


_OPTIONS = {"format": ("format of run.json", True), "dreamda": ("version of dreamda", True), "model_sha256": ("--model", False),
            "prompts_sha256": ("--prompts file", False)}


def _read_run(out: Path) -> dict[str, Any] | None:
    path = out / "run.json"
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path)
    except (ValueError, FileNotFoundError):
        raise ValueError(f"{path} is not a run of dreamda; give another OUT") from None


def _first_missing(folder: ImageFolder, image: ImageRef, variants: int, finished: Mapping[tuple[str, int], str]) -> int:
    """The first variant that is missing, or was made from another file than is there now; `variants` where none is, also where the file
    has become unreadable since they were made."""
    made_from = [finished.get((image.key, variant)) for variant in range(variants)]
    if made_from[0] is None:
        return 0
    try:
        now = hashlib.sha256(read_bounded(folder.path(image))).hexdigest()
    except BrokenImageError:
        return variants if None not in made_from else 0
    return next((variant for variant, digest in enumerate(made_from) if digest != now), variants)


def _decides_bits(pipeline: PipelineLike) -> tuple[str, ...]:
    """What of the environment an image's bits depend on: small images are left to one thread each."""
    return (*BITS, "threads") if pipeline.threads_matter else BITS


def _lock(fd: int, kind: int, start: int, length: int, *, wait: bool = False) -> bool:
    """Lock (or with F_UNLCK unlock) bytes of an open file description; False where another one holds them."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_free(fd: int, start: int, length: int) -> bool:
    """Nobody but this open file description holds a lock on any of the bytes."""
    query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, query))[0] == fcntl.F_UNLCK


def _span(part: str) -> tuple[int, int]:
    """The lock bytes (start, length) of a part called ``i-of-n``."""
    index, count = map(int, part.split("-of-"))
    start = -(-index * SPACE // count)
    return start, -(-(index + 1) * SPACE // count) - start


class _RunFolder:
    """OUT while one call works on one part of the seeds (see the file's head for its layout and order of events)."""

    def __init__(self, out: Path, folder: ImageFolder, run: dict[str, Any], shard: tuple[int, int]) -> None:
        self.out, self.folder, self.run = out, folder, run
        self.part = f"{shard[0]}-of-{shard[1]}"

    def __enter__(self) -> _RunFolder:
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
            except OSError as error:
                raise OSError(error.errno, f"OUT {self.out} cannot be written ({error.strerror}); put that right or give another OUT") from error
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        self._is_new = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        self._out = _opened(stack, self.out, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(WORK, dir_fd=self._out)
            with contextlib.ExitStack() as attempt, contextlib.suppress(FileNotFoundError):  # whoever was last may be tidying up
                self._work = _opened(attempt, WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self._out)
                self._locks = _opened(attempt, "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, self._work)
                _lock(self._locks, fcntl.F_WRLCK, MERGE, 1, wait=True)
                if os.path.samestat(os.fstat(self._locks), os.stat("lock", dir_fd=self._work, follow_symlinks=False)):
                    stack.push(attempt.pop_all())
                    break
        check_out(self.out, self.folder, self.run)
        if not _lock(self._locks, fcntl.F_WRLCK, *_span(self.part)):
            raise ValueError(f"OUT {self.out} is being written by another process; wait for it, or give both disjoint parts with --shard i/n")
        self._tidy((".tmp",))
        there = _read_run(self.out)
        self._begun = there is None
        if there is None:
            self._replace("run.json", (json.dumps(self.run, indent=1, ensure_ascii=False) + "\n").encode(), self._out)
        else:
            self.run = there  # the same but for what is not compared, and a resumed run must not change that half-way
        self._journal = _opened(stack, f"{self.part}.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, self._work)
        content = _read_all(self._journal)
        os.ftruncate(self._journal, content.rfind(b"\n") + 1)  # a line torn by a power cut
        _lock(self._locks, fcntl.F_UNLCK, MERGE, 1)

    def finished(self) -> dict[tuple[str, int], str]:
        """The images that are there: {(seed key, variant): SHA-256 of the seed}."""
        there: dict[str, set[str]] = {}
        done: dict[tuple[str, int], str] = {}
        for row in self._rows():
            label = row["label"]
            if label not in there:
                try:
                    there[label] = set(os.listdir(self.out / label))
                except OSError:
                    there[label] = set()
            if row["file_name"].removeprefix(label + "/") in there[label]:
                key, sha256 = (row["seed_file"], row["variant"]), row["seed_sha256"]
                if done.setdefault(key, sha256) != sha256 and self._tells(row):
                    done[key] = sha256
        return done

    def write(self, seeds: Sequence[tuple[ImageRef, LoadedImage]], stems: Mapping[str, str], prompts: Mapping[str, str],
              made: np.ndarray, first: int) -> int:
        """Write the variants from `first` on, uint8 (N, K, H, W, 3), of N seeds: of each the images, then their lines. Returns how many."""
        with self._reporting():
            for (image, seed), variants in zip(seeds, made, strict=True):
                self._write_seed(image, stems[image.key], seed.sha256, prompts[image.key], variants, first)
        return made.shape[0] * made.shape[1]

    def _write_seed(self, image: ImageRef, stem: str, seed_sha256: str, prompt: str, variants: np.ndarray, first: int) -> None:
        parameters = {k: v for k, v in self.run.items() if k not in ("format", "real", "environment", "template", "prompts_sha256")}
        lines = []
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileExistsError):
                os.mkdir(image.label, dir_fd=self._out)
                os.fsync(self._out)
            target = _opened(stack, image.label, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self._out)
            for variant, pixels in enumerate(variants, first):
                name = f"{stem}-{variant:03d}.png"
                row = {"file_name": f"{image.label}/{name}", "label": image.label, "seed_file": image.key, "seed_sha256": seed_sha256,
                       "variant": variant, "prompt": prompt, **parameters}
                png = encode_png(pixels, row)
                self._replace(name, png, target, sync_folder=False)
                lines.append(json.dumps({**row, "sha256": hashlib.sha256(png).hexdigest()}, ensure_ascii=False) + "\n")
            os.fsync(target)
        end = os.fstat(self._journal).st_size
        try:
            _write_all(self._journal, "".join(lines).encode())
            os.fsync(self._journal)
        except OSError:
            os.ftruncate(self._journal, end)
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            try:
                with self._reporting():
                    self._finish(failed=kind is not None)
            except (OutputError, ValueError):
                if kind is None:  # else the first error is the one to report
                    raise

    def _finish(self, failed: bool) -> None:
        _lock(self._locks, fcntl.F_WRLCK, MERGE, 1, wait=True)
        lines: dict[tuple[str, str, int], str] = {}
        for row in self._rows():
            key = row["label"], row["seed_file"].removeprefix(row["label"] + "/"), row["variant"]
            line = json.dumps(row, ensure_ascii=False) + "\n"
            if lines.setdefault(key, line) != line and self._tells(row):
                lines[key] = line
        content = "".join(lines[k] for k in sorted(lines)).encode()
        path = self.out / "metadata.jsonl"
        if content and not (path.is_file() and path.read_bytes() == content):
            self._replace("metadata.jsonl", content, self._out)
        self._tidy((".tmp", ".jsonl"))
        if _is_free(self._locks, 0, SPACE):
            if failed and self._begun and set(os.listdir(self._out)) == {"run.json", WORK}:
                os.unlink("run.json", dir_fd=self._out)  # nothing came of it, and the mend may be another option
            os.unlink("lock", dir_fd=self._work)
            with contextlib.suppress(OSError):  # somebody put a file of his own there
                os.rmdir(WORK, dir_fd=self._out)
                if self._is_new and not os.listdir(self._out):
                    os.rmdir(self.out)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """All lines known: of metadata.jsonl, then of every part's own file. An image made again has several (`_tells`)."""
        path = self.out / "metadata.jsonl"
        for number, row in read_json_lines(path) if path.exists() else ():
            if not is_row(row):
                raise ValueError(f"{path} line {number} is not a line of dreamda generate; put it right, or give another OUT")
            yield row
        for name in sorted(os.listdir(self._work)):
            if name.endswith(".jsonl"):
                with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._work), "rb") as file:
                    for line in file:
                        try:
                            row = json.loads(line)
                        except (ValueError, RecursionError):
                            continue  # another process is writing it just now
                        if is_row(row):
                            yield row

    def _tells(self, row: dict[str, Any]) -> bool:
        """Whether a line is about the file that is there now: which of several is the newest, the order of parts does not say."""
        try:
            return hashlib.sha256((self.out / row["file_name"]).read_bytes()).hexdigest() == row.get("sha256")
        except OSError:
            return False

    def _tidy(self, suffixes: tuple[str, ...]) -> None:
        """Remove what parts have left that nobody else works on; the caller holds the merge lock."""
        for name in os.listdir(self._work):
            part, suffix = os.path.splitext(name)
            if suffix in suffixes and _is_part(part) and _is_free(self._locks, *_span(part)):
                os.unlink(name, dir_fd=self._work)

    def _replace(self, name: str, content: bytes, folder: int, *, sync_folder: bool = True) -> None:
        """Make `name` in the open folder hold `content`, all or nothing."""
        temporary = f"{self.part}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=self._work)
        try:
            try:
                _write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self._work, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=self._work)  # on a full disk its bytes are wanted for the lines that are still to come
            raise
        if sync_folder:
            os.fsync(folder)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(error.errno, f"OUT {self.out} cannot be written ({error.strerror}); what is finished stays: "
                                           "put that right, then the same command goes on from here") from error


def encode_png(pixels: np.ndarray, about: Mapping[str, Any]) -> bytes:
    """A PNG of `pixels`, uint8 (H, W, 3), with `about` as JSON in its text field "dreamda"; equal arguments give equal bytes."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("dreamda", json.dumps(about, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()


def _is_part(name: str) -> bool:
    match = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", name)
    return match is not None and int(match[1]) < int(match[2]) <= MAX_SHARDS


def is_row(row: Any) -> bool:
    """An image's line: texts and numbers as they were written, and names that stay inside of OUT."""
    if not (isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("file_name", "label", "seed_file", "seed_sha256"))):
        return False
    folder, _, name = row["file_name"].partition("/")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return (type(row.get("variant")) is int and folder == row["label"] == row["seed_file"].partition("/")[0]
            and not {folder, name} & {"", ".", ".."} and not set("/\0") & set(name) and "\0" not in folder)


def _opened(stack: contextlib.ExitStack, path: str | Path, flags: int, folder: int | None = None) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666, dir_fd=folder)
    stack.callback(os.close, fd)
    return fd


def _read_all(fd: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        return file.read()


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view):]
