"""OUT, the folder that `dreamda generate` writes. No file in it is lost, duplicated or half-written.

    OUT/<class>/<stem>-<variant:03d>.png          one synthetic image; its origin is also in the PNG's text
    OUT/metadata.jsonl                            one line per image, see manifest.py
    OUT/left_out.jsonl                            variants that stayed too similar to a real image (safeguards.py)
    OUT/run.json                                  the parameters, hashes of some real images, and the machine
    OUT/annotations.json, labels/, Annotations/, masks/     of labelled images, in their format (data/annotations/)
    OUT/.dreamda/                                 only during a run, or after it was killed:
        lock                                      held while metadata.jsonl or run.json is changed
        <part>.lock                               held by the process that works on this part of the real images
        <part>.tmp                                the file being written

In the names of this file, a seed is the real image that synthetic ones are made from; <stem> is the stem of its file.

An image is written under a temporary name, synced and renamed; then its line is added. So a killed run leaves only
finished images. An image without a line is made again, with the same bytes. The files of a finished run do not depend
on the order of work, the time, shards or batches.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import reprlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotations import READERS, Composition, Labels
from ..data.files import digest_if_readable
from ..data.folders import ImageFolder, ImageRef, SyntheticImage, check_outside
from ..data.templates import Prompt
from ..generation.options import TEXT_ALONE, GenerationOptions, is_from_text, with_todays_options
from ..generation.regions import KEEPS
from ..networks.config import read_json
from ..options import ParameterError, options_of
from .files import OutputError, open_in, try_lock, write_all
from .manifest import LEFT_OUT, encode_png, format_row, in_order, parse_row, read_left_out, read_rows
from .manifest import NAME as MANIFEST
from .records import Names, nearby, without_places
from .safeguards import Safeguards

WORK = ".dreamda"
RESERVED = ("run.json", MANIFEST, LEFT_OUT)
FORMAT = 2
# fields of run.json that may differ in a resumed run; separate functions check the last two
NOT_COMPARED = ("model", "vae", "loras", "scheduler", "embeddings", "real", "environment", "labels_path", "seed_images",
                "variants")
# fields that only runs with these options have
IF_USED = ("compose", "min_visibility", "verify_sha256", "verify_action")
NEEDS = {"min_visibility": "compose", "verify_action": "verify_sha256"}  # options of other ones
NOT_IN_ROWS = ("format", "real", "environment", "labels_path", "template", "prompts_sha256", "fields_sha256",
               "class_labels", "seed_images", "exclude_ids_sha256", "max_similarity", "redraw", "record_names",
               "text_share")
PLACES = ("real", "labels_path")
SEED_IMAGES = 16          # number of images whose SHA-256 is in run.json, to recognise the data set
SECONDS_A_SAVE = 60.0     # between two writes of the annotations during a run
MAX_SHARDS = 1 << 16
NAME_MAX = 255            # maximum length of a file name in bytes


# ---- run.json

def run_identity(folder: ImageFolder, settings: GenerationOptions, prompt_source: Mapping[str, Any],
                 safeguards: Safeguards = Safeguards()) -> dict[str, Any]:
    """The fields of run.json that are known before the model is loaded, besides `ImageFolder.identity`."""
    from .. import __version__

    numbers = {"class_labels": prompt_source["class_labels"]} if "class_labels" in prompt_source else {}
    excluded = "\n".join(f"{digest_if_readable(folder.path(image))} {image.key}" for image in folder.excluded)
    return {"format": FORMAT, "dreamda": __version__, "template": prompt_source.get("template"),
            "prompts_sha256": prompt_source.get("prompts_sha256"),
            "fields_sha256": prompt_source.get("fields_sha256"), **numbers, **asdict(settings), **asdict(safeguards),
            "exclude_ids_sha256": hashlib.sha256(excluded.encode()).hexdigest() if excluded else None}


def places(folder: ImageFolder, out: Path, record_names: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of run.json that say where things are, and the machine; see records.py."""
    if record_names == "hash":
        return {"environment": without_places(environment)}
    absolute = record_names == "paths"
    real = str(folder.root.absolute()) if absolute else nearby(folder.root, out)
    found: dict[str, Any] = {} if real is None else {"real": real}
    if folder.annotations is not None:
        labels = folder.annotations.path
        path = str(labels.absolute()) if absolute else nearby(labels, folder.root)
        found |= {} if path is None else {"labels_path": path}
    return found | {"environment": dict(environment) if absolute else without_places(environment)}


def recorded_labels(run: Mapping[str, Any], out: Path, root: Path,
                    path: str | os.PathLike[str] | None = None) -> Labels | None:
    """The annotations of the run in `out`, for the images in `root`; None for a run of class folders.

    Parameters
    ----------
    run : mapping
        run.json.
    out, root : Path
    path : path, optional
        Where the annotations are now; default: where run.json says.

    Raises
    ------
    ValueError
        run.json is damaged, or the annotations are missing or have changed.
    """
    if "labels" not in run:
        return None
    recorded = run.get("labels_path")
    if run["labels"] not in READERS or run.get("keep") not in KEEPS or not isinstance(recorded, (str, type(None))):
        raise ValueError(f"{out / 'run.json'} is damaged: its labels, labels_path or keep is no "
                         "value that dreamda writes")
    if path is None and recorded is None:
        raise ParameterError("labels", f"is not recorded in {out / 'run.json'}; give the place of the annotations")
    labels = READERS[run["labels"]](path if path is not None else root / str(recorded), root)
    if labels.sha256 != run.get("labels_sha256"):
        raise ValueError(f"{labels.path} is not what the run was made with; put the annotations of then there")
    return labels


def recorded_folder(run: Mapping[str, Any], root: Path, images: Sequence[ImageRef],
                    labels: Labels | None) -> ImageFolder:
    """The data set of a run, for these images in `root`; `labels` are those of `recorded_labels`."""
    if labels is not None:
        composition = Composition(**{name: run[name] for name in options_of(Composition) if name in run})
        if composition.compose and run.get("exclude_ids_sha256"):
            raise ParameterError("compose", "with `exclude_ids`: which images gave objects is not recorded, so the run "
                                            "cannot be repeated")
        return replace(labels.folder(run["keep"], composition), images=tuple(images), ignored=())
    return ImageFolder(root, tuple(sorted({image.label for image in images})), tuple(images), ())


def sample_of(folder: ImageFolder, names: Names = Names()) -> dict[str, str]:
    """SHA-256 of a few images, evenly spread over the data set, by name; unreadable images are left out."""
    n = len(folder.images)
    chosen = [folder.images[i * n // SEED_IMAGES] for i in range(SEED_IMAGES)] if n > SEED_IMAGES else folder.images
    digests = {names.recorded(image.key): digest_if_readable(folder.path(image)) for image in chosen}
    return {key: digest for key, digest in digests.items() if digest}


def check_out(out: str | os.PathLike[str], folder: ImageFolder, run: Mapping[str, Any],
              names: Names | None = None) -> None:
    """Raise ValueError unless `out` does not exist, is empty, or holds the same run. Writes nothing.

    The same run has the same parameters (more variants are allowed) and the same data set. A data set is recognised by
    its images, not by its path: at least half of the real images listed in run.json must be unchanged. So images
    may be added, some may be changed or removed, and the folder may move; but another data set is refused. The data
    set is not checked if the run records hashes and `names` is None.
    """
    out = Path(out)
    for label in folder.classes:
        if label in RESERVED:
            raise ValueError(
                f"a class called {label!r} would collide with the file of that name in OUT; "
                f"rename {folder.root / label}")
    check_outside(out, folder.root)
    if folder.annotations is not None:
        folder.annotations.check_out(out)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise NotADirectoryError(f"OUT {out} is no folder; give a new or an empty one")
    there = _read_run(out)
    if there is None and any(entry.name != WORK for entry in os.scandir(out)):
        there = _read_run(out)  # another shard may have begun in the meantime
        if there is None:
            raise ValueError(
                f"OUT {out} holds files but no run.json, so dreamda did not write them; give a new or an empty folder")
    if there is None:
        return
    then = _as_today(there)
    others = []
    now = _as_today(run)
    now |= {name: None for name in IF_USED if name in then and name not in now}
    for name, value in now.items():
        if name in NEEDS and None in (then.get(NEEDS[name]), now.get(NEEDS[name])):
            continue  # one of the two runs is without the other option, which is named
        if name not in NOT_COMPARED and then.get(name) != value:
            option, shown = _OPTIONS.get(name, ("--" + name.replace("_", "-"), True))
            others.append(option + (f" {_told(then.get(name))} (now {_told(value)})" if shown else ""))
    if others:
        raise ValueError(f"OUT {out} holds a run with another {', '.join(others)}; repeat that or give another OUT")
    _check_variants(out, there, run)
    if names is not None or there.get("record_names") != "hash":
        _check_data_set(out, there, folder, names or Names())


def _told(value: Any) -> str:
    return "not given" if value is None else reprlib.repr(value)


_OPTIONS = {
    "exclude_ids_sha256": ("--exclude-ids list", False),
    "labels": ("format of annotations", True), "labels_sha256": ("content of the annotations", False),
    "format": ("format of run.json", True), "dreamda": ("version of dreamda", True),
    "model_sha256": ("--model, --vae, --lora, --scheduler or --embedding", False),
    "prompts_sha256": ("--prompts file", False), "fields_sha256": ("--fields", False),
    "class_labels": ("numbering of the classes", True), "verify_sha256": ("--verify model", False)
}


def _as_today(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run.json with the current names of its fields."""
    names = "hash" if run.get("record_names") == "hash" else "names"  # places are not compared
    return with_todays_options(run) | ({"format": FORMAT} if run.get("format") == 1 else {}) | {"record_names": names}


def _check_variants(out: Path, there: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Refuse a number of variants that would change existing images."""
    then, now = there.get("variants"), run.get("variants")
    if now is None or then == now:
        return
    if type(then) is int and then < now:
        if there.get("diverse"):
            reason = "--diverse chooses the starts of all variants together"
        elif there.get("format") == 1:
            reason = "it was begun by an earlier version, which wrote the number into every image"
        else:
            return
        raise ValueError(
            f"OUT {out} holds a run with --variants {then} (now {now}), and {reason}; repeat that or give another OUT")
    raise ValueError(
        f"OUT {out} holds a run with --variants {reprlib.repr(then)} (now {now}), which can grow but not shrink; "
        "repeat that or give another OUT")


def _check_data_set(out: Path, there: Mapping[str, Any], folder: ImageFolder, names: Names) -> None:
    known = there.get("seed_images")
    if not isinstance(known, dict):  # written by an earlier version
        rows = in_order(read_rows(out / MANIFEST)) if (out / MANIFEST).is_file() else []
        known = {row["seed_file"]: row["seed_sha256"] for row in rows[:: max(1, len(rows) // SEED_IMAGES)]}
    images = {names.recorded(image.key): image for image in folder.images}
    same = sum(key in images and digest_if_readable(folder.path(images[key])) == digest
               for key, digest in known.items())
    if 2 * same < len(known):
        place = f" ({there['real']})" if "real" in there else ""
        raise ValueError(
            f"OUT {out} holds images made from another data set{place}: of {len(known)} "
            f"real images compared, {same} are unchanged in {folder.root}; give another OUT")


def _read_run(out: Path) -> dict[str, Any] | None:
    path = out / "run.json"
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path)
    except (ValueError, FileNotFoundError):
        raise ValueError(f"{path} is not a run of dreamda; give another OUT") from None


# ---- names

def _file_name(stem: str, variant: int) -> str:
    return f"{stem}-{variant:03d}.png"


def output_stems(folder: ImageFolder) -> dict[str, str]:
    """The stem of the output files of every real image, ``{key: stem}``.

    It is the stem of the real image, with hyphens for the slashes of deeper folders. If two images of a class would get
    the same one (``a.png``, ``a.jpg``), both get their full names. If these are also the same, a part of their SHA-256
    is added. A name too long for the file system is cut and ends in a part of its SHA-256.
    """
    stems: dict[str, str] = {}
    by_class: dict[str, list[ImageRef]] = {}
    for image in folder.images:
        by_class.setdefault(image.label, []).append(image)
    for images in by_class.values():
        chosen = {image: _stem(image.name, 0) for image in images}
        for attempt in (1, 2):
            while True:  # a longer stem may be another image's shorter one, so repeat until nothing changes
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
    return _shortened(
        flat if attempt < 2 or "/" not in name else f"{flat}-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


def _shortened(stem: str) -> str:
    encoded = stem.encode()
    if len(encoded) <= NAME_MAX - len("-0000000.png"):
        return stem
    return f"{encoded[:200].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}"


@dataclass(frozen=True)
class Part:
    """The i-th of n equal parts of the real images; `str` gives the name of its files."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MAX_SHARDS:
            raise ValueError(
                f"--shard {self.index}/{self.count} must be i/n with 0 <= i < n, and n at most {MAX_SHARDS}")

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part | None:
        """The part with this name; None if it is not the name of a part."""
        match = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", text)
        return cls(int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) <= MAX_SHARDS else None

    def of(self, images: Sequence[ImageRef]) -> Sequence[ImageRef]:
        """This part of a list."""
        n = len(images)
        return images[-(-self.index * n // self.count): -(-(self.index + 1) * n // self.count)]

    def overlaps(self, other: Part) -> bool:
        """Whether an image can be in both parts."""
        return self.index * other.count < (other.index + 1) * self.count and other.index * self.count < (
            self.index + 1) * other.count


# ---- the folder

@dataclass(frozen=True)
class Finished:
    """Synthetic images of one real image, with their prompts: the variants from `first` on, uint8 (K, H, W, 3).

    `about` holds further fields of their rows.
    """

    image: ImageRef
    stem: str
    seed_sha256: str
    prompts: list[Prompt]
    first: int
    pixels: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A variant of a real image that stayed too similar to a real image; without a similarity there is no record."""

    image: ImageRef
    stem: str
    seed_sha256: str
    variant: int
    similarity: float | None


class RunFolder:
    """OUT, open for one call that works on one part of the real images. For its layout see the top of this file.

    Parameters
    ----------
    out : Path
    folder : ImageFolder
        The data set.
    run : dict
        The content of a new run.json.
    part : Part
    names : Names

    Attributes
    ----------
    run : dict
        The content of run.json.
    environment : dict
        The environment of this call; `run` holds that of the first call.

    Raises
    ------
    ValueError
        On entry: OUT holds another run, or another process works on some of the real images.
    OSError
        On entry: OUT cannot be written.
    """

    def __init__(self, out: Path, folder: ImageFolder, run: dict[str, Any], part: Part,
                 names: Names = Names()) -> None:
        self.out, self.folder, self.run, self.part, self.environment = out, folder, run, part, run["environment"]
        self.names = names
        self._next_save = time.monotonic() + SECONDS_A_SAVE  # of annotations
        self._digests: dict[str, str] = {}  # of images that give objects

    def __enter__(self) -> RunFolder:
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"OUT {self.out} cannot be written ({error.strerror}); fix that, or give another OUT"
                ) from error
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        self._is_new = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        self._out = open_in(stack, self.out, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(WORK, dir_fd=self._out)
            # another process may be removing the folder
            with contextlib.ExitStack() as attempt, contextlib.suppress(FileNotFoundError):
                self._work = open_in(attempt, WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self._out)
                self._mutex = open_in(attempt, "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, self._work)
                fcntl.flock(self._mutex, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(self._mutex), os.stat("lock", dir_fd=self._work, follow_symlinks=False)):
                    stack.push(attempt.pop_all())
                    break
        check_out(self.out, self.folder, self.run, self.names)
        if any(other.overlaps(self.part) for other in self._held()):
            raise ValueError(
                f"OUT {self.out} is being written by another process; wait for it, or give both "
                "disjoint parts with --shard i/n")
        self._tidy()
        try_lock(open_in(stack, f"{self.part}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, self._work))
        self._begin()
        self._cut_torn_lines()
        self._adopt_journals()
        fcntl.flock(self._mutex, fcntl.LOCK_UN)

    def _begin(self) -> None:
        """Write run.json, or update it; the caller holds the mutex."""
        there = _read_run(self.out)
        self._begun = there is None
        now = {**there, "variants": self.run["variants"]} if there is not None else self.run
        if "seed_images" in now:
            now["seed_images"] = self.run["seed_images"]
        if now != there:
            self._replace("run.json", (json.dumps(now, indent=1, ensure_ascii=False) + "\n").encode(), self._out)
        self.run = now  # a resumed run keeps the fields that are not compared

    def left_out(self) -> dict[tuple[str, int], str]:
        """The variants that were left out: {(key, variant): SHA-256 of the real image}."""
        return {(self.names.real(row["seed_file"]), row["variant"]): row["seed_sha256"]
                for row in read_left_out(self.out)}

    def finished(self) -> dict[tuple[str, int], str]:
        """The finished images: {(key, variant): SHA-256 of the real image}."""
        there: dict[str, set[str]] = {}
        done: dict[tuple[str, int], str] = {}
        for row in read_rows(self.out / MANIFEST) if (self.out / MANIFEST).exists() else ():
            label = row["label"]
            if label not in there:
                try:
                    there[label] = set(os.listdir(self.out / label))
                except OSError:
                    there[label] = set()
            if row["file_name"].removeprefix(label + "/") in there[label]:
                done[self.names.real(row["seed_file"]), row["variant"]] = row["seed_sha256"]
        return done

    def write(self, finished: Sequence[Finished]) -> int:
        """Write images, then their lines; return the number of images."""
        lines: list[str] = []
        with self._reporting():
            try:
                for each in finished:
                    self._write_images(each, lines)
                for label in {each.image.label for each in finished}:
                    with contextlib.ExitStack() as stack:
                        os.fsync(open_in(stack, label, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self._out))
            finally:  # images written before an error get their lines
                if lines:
                    self._append(MANIFEST, "".join(lines).encode())
            if self.folder.annotations is not None:
                self._save_annotations()
        return len(lines)

    def leave_out(self, variants: Sequence[LeftOut]) -> None:
        """Record variants that are left out. Images of an earlier version of the real image are removed."""
        lines = []
        with self._reporting():
            for each in variants:
                label = each.image.label
                (self.out / label / _file_name(each.stem, each.variant)).unlink(missing_ok=True)
                if each.similarity is None:
                    continue
                lines.append(format_row({
                    "label": label, "seed_file": self.names.recorded(each.image.key), "seed_sha256": each.seed_sha256,
                    "variant": each.variant, "similarity": each.similarity
                }))
            if lines:
                self._append(LEFT_OUT, "".join(lines).encode())

    def _write_images(self, each: Finished, lines: list[str]) -> None:
        label = each.image.label
        with contextlib.suppress(FileExistsError):
            os.mkdir(label, dir_fd=self._out)
            os.fsync(self._out)
        with contextlib.ExitStack() as stack:
            target = open_in(stack, label, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self._out)
            for variant, (pixels, prompt) in enumerate(zip(each.pixels, each.prompts, strict=True), each.first):
                name = _file_name(each.stem, variant)
                row = {
                    "file_name": f"{label}/{name}", "label": label, "seed_file": self.names.recorded(each.image.key),
                    "seed_sha256": each.seed_sha256, "variant": variant, "prompt": prompt.text,
                    **({"fields": prompt.fields} if prompt.fields else {}), **self._donors(each.image, variant),
                    **each.about, **self._in_rows(variant)
                }
                png = encode_png(pixels, row)
                self._replace(name, png, target, sync_folder=False)
                lines.append(format_row({**row, "sha256": hashlib.sha256(png).hexdigest()}))

    def _donors(self, image: ImageRef, variant: int) -> dict[str, Any]:
        """The field of a row that tells which images gave objects, with their SHA-256; none if no image did."""
        donors = self.folder.donors(image, variant, self.run["seed"])
        for donor in donors:
            if donor.key not in self._digests:
                self._digests[donor.key] = digest_if_readable(self.folder.path(donor)) or ""
        found = {self.names.recorded(donor.key): self._digests[donor.key] for donor in donors}
        return {"objects_from": found} if found else {}

    def _in_rows(self, variant: int) -> dict[str, Any]:
        """The parameters that an image depends on; the number of variants only if starts are chosen together."""
        together = self.run["format"] == 1 or self.run["diverse"]
        found = {k: v for k, v in self.run.items() if k not in NOT_IN_ROWS and (together or k != "variants")}
        if is_from_text(self.run.get("text_share", 0.0), variant):
            found |= {"from_text": True, **TEXT_ALONE}
        return found

    def _append(self, name: str, lines: bytes) -> None:
        fcntl.flock(self._mutex, fcntl.LOCK_EX)
        try:
            with contextlib.ExitStack() as stack:  # opened again, as another part may have replaced it by a sorted file
                fd = open_in(stack, name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, self._out)
                end = _cut_torn_line(fd)
                try:
                    write_all(fd, lines)
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, end)
                    raise
        finally:
            fcntl.flock(self._mutex, fcntl.LOCK_UN)

    def _cut_torn_lines(self) -> None:
        """Remove incomplete last lines after a kill; the caller holds the mutex."""
        for name in (MANIFEST, LEFT_OUT):
            with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
                _cut_torn_line(open_in(stack, name, os.O_RDWR | os.O_NOFOLLOW, self._out))

    def _adopt_journals(self) -> None:
        """Take over lines that match the files from <part>.jsonl, where earlier versions kept them during a run."""
        for name in sorted(os.listdir(self._work)):
            if not name.endswith(".jsonl"):
                continue
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._work), "rb") as file:
                rows = [row for line in file if (row := parse_row(line)) and self._tells(row)]
            if rows:
                with contextlib.ExitStack() as stack:
                    fd = open_in(stack, MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, self._out)
                    write_all(fd, "".join(map(format_row, rows)).encode())
                    os.fsync(fd)
            os.unlink(name, dir_fd=self._work)

    def _tells(self, row: Mapping[str, Any]) -> bool:
        """Whether a line describes the current content of its file."""
        digest = digest_if_readable(self.out / row["file_name"])
        return digest is not None and digest == row.get("sha256")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            try:
                with self._reporting():
                    self._finish(failed=kind is not None)
            except (OutputError, ValueError):
                if kind is None:  # otherwise the first error is reported
                    raise

    def _finish(self, failed: bool) -> None:
        fcntl.flock(self._mutex, fcntl.LOCK_EX)
        left_out = in_order(read_left_out(self.out))
        if (self.out / MANIFEST).exists():
            gone = {(row["seed_file"], row["variant"]) for row in left_out}
            rows = [row for row in in_order(read_rows(self.out / MANIFEST))
                    if (row["seed_file"], row["variant"]) not in gone or (self.out / row["file_name"]).exists()]
            made = {(row["seed_file"], row["variant"]) for row in rows}
            left_out = [row for row in left_out if (row["seed_file"], row["variant"]) not in made]
            self._rewrite(MANIFEST, rows)
            self._write_annotations(rows)
        if (self.out / LEFT_OUT).exists():
            self._rewrite(LEFT_OUT, left_out)
        os.unlink(f"{self.part}.lock", dir_fd=self._work)
        self._tidy()
        if not self._held():
            if failed and self._begun and set(os.listdir(self._out)) == {"run.json", WORK}:
                os.unlink("run.json", dir_fd=self._out)  # no image was made, so another command may use the folder
            os.unlink("lock", dir_fd=self._work)
            with contextlib.suppress(OSError):  # it holds a file that is not ours
                os.rmdir(WORK, dir_fd=self._out)
                if self._is_new and not os.listdir(self._out):
                    os.rmdir(self.out)

    def _write_annotations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the annotations of the images that are there; the caller holds the mutex."""
        drop = self.run.get("verify_action") == "drop"
        self.folder.write_annotations(
            self.out,
            (SyntheticImage(row["file_name"], ImageRef(*self.names.real(row["seed_file"]).split("/", 1)),
                            row["variant"], {each["number"] for each in row.get("lost", ())} if drop else ())
             for row in rows if (self.out / row["file_name"]).is_file()), self.run["seed"])

    def _save_annotations(self) -> None:
        """Write the annotations during a run, so often that this takes at most a hundredth of the time."""
        begun = time.monotonic()
        if begun < self._next_save:
            return
        fcntl.flock(self._mutex, fcntl.LOCK_EX)
        try:
            self._write_annotations(in_order(read_rows(self.out / MANIFEST)))
        finally:
            fcntl.flock(self._mutex, fcntl.LOCK_UN)
        now = time.monotonic()
        self._next_save = now + max(SECONDS_A_SAVE, 100 * (now - begun))

    def _rewrite(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the content of a file of JSON Lines, if it changes."""
        content = "".join(map(format_row, rows)).encode()
        if content != (self.out / name).read_bytes():
            self._replace(name, content, self._out)

    def _held(self) -> list[Part]:
        """The parts that other processes work on; the caller holds the mutex."""
        held = []
        for name in os.listdir(self._work):
            part = Part.parse(name.removesuffix(".lock")) if name.endswith(".lock") else None
            if part is not None:
                with contextlib.ExitStack() as stack:
                    if not try_lock(open_in(stack, name, os.O_RDWR | os.O_NOFOLLOW, self._work)):
                        held.append(part)
        return held

    def _tidy(self) -> None:
        """Remove the files of killed processes; the caller holds the mutex."""
        held = self._held()
        for name in os.listdir(self._work):
            stem, suffix = os.path.splitext(name)
            if suffix in (".tmp", ".lock") and (part := Part.parse(stem)) is not None and part not in held:
                os.unlink(name, dir_fd=self._work)

    def _replace(self, name: str, content: bytes, folder: int, *, sync_folder: bool = True) -> None:
        """Replace the content of `name` in the open folder, as a whole or not at all."""
        temporary = f"{self.part}.tmp"
        fd = os.open(temporary,
                     os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                     0o666,
                     dir_fd=self._work)
        try:
            try:
                write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self._work, dst_dir_fd=folder)
        except OSError:
            # on a full disk, free space for the lines that must still be written
            os.unlink(temporary, dir_fd=self._work)
            raise
        if sync_folder:
            os.fsync(folder)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                error.errno, f"OUT {self.out} cannot be written ({error.strerror}); finished images stay: "
                "fix that, then run the same command again to resume") from error


def _cut_torn_line(fd: int) -> int:
    """Cut an open file after its last complete line, and return its size."""
    size = end = os.fstat(fd).st_size
    while end:
        begin = max(0, end - 4096)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        end = begin + newline + 1 if newline >= 0 else begin
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(fd, end)
    return end
