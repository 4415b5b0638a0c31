"""`dreamda replay`: repeat a run from its records, and compare every image with the recorded one.

    run = RecordedRun.read("synthetic/run.json")
    report = replay(run, pipe, "again")                   # makes the images again, in a new folder
    report.same, report.differing, report.changed

run.json records the parameters, the model and the machine. For every image, metadata.jsonl records its real image, its
prompt, and the SHA-256 of both files. Nothing else is needed, not even the prompt file.
"""
from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..networks.config import read_json
from ..data.files import BrokenImageError, digest_if_readable, digest_of_image
from ..data.folders import ImageFolder, ImageRef
from ..data.images import read_image
from ..data.templates import Prompt
from ..generation.options import GenerationOptions, with_todays_options
from ..options import ParameterError, options_of
from ..text import counted, in_brackets
from .generate import PipelineLike, generate_dataset
from .inspection import BITS, differences
from .manifest import read_left_out, read_manifest
from .output import FORMAT, recorded_folder, recorded_labels
from .records import Names, names_of, with_real_names
from .safeguards import Recorded
from .verify import RecordedObjects

WORTH_TELLING = (*BITS, "threads", "cpu", "numpy", "pillow")


@dataclass(frozen=True, repr=False)
class RecordedRun:
    """The records of a run of `dreamda generate`. Create it with `RecordedRun.read`.

    Attributes
    ----------
    out : Path
        The folder of the run.
    run : dict
        run.json, with the current names of its fields.
    settings : GenerationOptions
    rows : list of dict
        metadata.jsonl, one row per image.
    recorded : dict
        run.json, unchanged.
    """

    out: Path
    run: dict[str, Any]
    settings: GenerationOptions
    rows: list[dict[str, Any]]
    recorded: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"RecordedRun({str(self.out)!r}: {counted(len(self.rows), 'image')} of {self.run['model']!r})"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RecordedRun:
        """Read OUT/run.json (or OUT) and OUT/metadata.jsonl.

        Raises
        ------
        FileNotFoundError, ValueError
            The files are missing or incomplete, or were not written by this version of dreamda.
        """
        path = Path(path)
        path = path / "run.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give the run.json of a folder made by dreamda generate")
        try:
            recorded = read_json(path)
        except ValueError:
            recorded = {}
        run, names = with_todays_options(recorded), list(options_of(GenerationOptions))
        needed = (*names, "dreamda", "dtype", "size", "model", "model_sha256")
        strings = [run.get("vae", ""), run.get("scheduler", ""), run.get("real", "")]
        strings += [run.get(name) for name in ("dtype", "model", "model_sha256")]
        if "variants" not in run:
            raise ValueError(f"{path} is not a run of dreamda generate")
        if run.get("format") not in (1, FORMAT) or run.get("dreamda") != __version__:
            raise ValueError(
                f"{path} was made by dreamda {run.get('dreamda')}, and this is {__version__}, whose files differ; "
                "install that version to repeat it")
        if missing := [name for name in needed if name not in run]:
            raise ValueError(f"{path} does not say {missing[0]!r}, without which the run cannot be repeated")
        size = run["size"]
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
                and all(isinstance(value, str) for value in strings) and _are_loras(run.get("loras", []))
                and _are_embeddings(run.get("embeddings", []))):
            raise ValueError(f"{path} is damaged: its size, dtype, model, vae, loras, scheduler, embeddings or real "
                             "is no value that dreamda writes")
        try:
            settings = GenerationOptions(**{name: run[name] for name in names})
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        metadata = path.with_name("metadata.jsonl")
        if not metadata.is_file():
            raise FileNotFoundError(
                f"{metadata}: no such file, so nothing is recorded to compare with; resume the run until it ends")
        rows = read_manifest(path.parent)
        for row in rows:
            fields = row.get("fields", {})
            if not (all(isinstance(row.get(k), str) for k in ("prompt", "sha256")) and _stem(row)
                    and isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values())):
                raise ValueError(f"{metadata}: what it says of {row['file_name']} is not a line of dreamda generate")
            if run.get("max_similarity") is not None and not _is_compared(row):
                raise ValueError(f"{metadata}: what it says of {row['file_name']} lacks the similarity or the redraws")
        return cls(path.parent, run, settings, rows, recorded)

    @property
    def environment(self) -> Mapping[str, Any]:
        """The record of the machine in run.json; empty if there is none."""
        about = self.run.get("environment")
        return about if isinstance(about, dict) else {}

    @property
    def real(self) -> Path | None:
        """The folder of the real images, if it is recorded; a relative path is relative to the run's folder."""
        return self.out / self.run["real"] if self.run.get("real") else None

    @property
    def model(self) -> str:
        """The model's folder if it still exists, else its name."""
        return self._place("model_folder", "model_index.json") or self.run["model"]

    @property
    def changes(self) -> dict[str, Any]:
        """The keywords of `dreamda.Pipeline.load` that changed the model.

        Files are given by their recorded paths if they still exist there, else by name.
        """
        found: dict[str, Any] = {}
        if named := self.run.get("vae", ""):
            found["vae"] = self._place("vae_folder", "config.json") or named
        for name, places, kept in (("loras", "lora_files", "scale"), ("embeddings", "embedding_files", "token")):
            if records := self.run.get(name, []):
                known = self.environment.get(places)
                files = known if isinstance(known, list) and len(known) == len(records) else [None] * len(records)
                found[name] = [
                    (file if isinstance(file, str) and os.path.isfile(file) else record["file"], record[kept])
                    for file, record in zip(files, records)]
        if scheduler := self.run.get("scheduler", ""):
            found["scheduler"] = scheduler
        return found

    def _place(self, name: str, file: str) -> str:
        folder = self.environment.get(name)
        return folder if isinstance(folder, str) and os.path.isfile(os.path.join(folder, file)) else ""


def _is_compared(row: Mapping[str, Any]) -> bool:
    """Whether a row says how similar its image is to the real ones, and how often it was made again."""
    similarity, redraws = row.get("similarity"), row.get("redraws")
    return type(similarity) in (int, float) and type(redraws) is int and 0 <= redraws <= 1000


def _are_loras(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(lora, dict) and isinstance(lora.get("file"), str) and type(lora.get("scale")) in (int, float)
        for lora in value)


def _are_embeddings(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("file"), str) and isinstance(each.get("token"), str)
        for each in value)


@dataclass(repr=False)
class ReplayReport:
    """The result of `replay`.

    Attributes
    ----------
    total, same : int
        Number of recorded images, and of those repeated with the same bytes.
    differing : list of str
        File names of images that differ from the record, in the recorded order.
    first : str
        The difference of the first one.
    changed : list of (str, str)
        Real images that have changed, each with the reason. Their synthetic images are not repeated.
    altered : list of str
        Images in the run's own folder that have changed since they were recorded.
    environment : str
        Differences between this machine and the recorded one; empty if none can change pixels.
    signal : int or None
        The signal that ended the repetition early; then nothing was compared.
    """

    total: int = 0
    same: int = 0
    differing: list[str] = field(default_factory=list)
    first: str = ""
    changed: list[tuple[str, str]] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    environment: str = ""
    signal: int | None = None

    def __repr__(self) -> str:
        return in_brackets("ReplayReport",
                           f"{self.same:,} of {counted(self.total, 'image')} repeated to the same bytes",
                           self.differing and f"{len(self.differing):,} differ",
                           self.changed and f"{counted(len(self.changed), 'real image')} changed",
                           self.altered and f"{counted(len(self.altered), 'file')} of the run altered",
                           self.signal and f"stopped by {signal.Signals(self.signal).name}")


def replay(recorded: RecordedRun,
           pipeline: PipelineLike,
           out: str | os.PathLike[str],
           *,
           real: str | os.PathLike[str] | None = None,
           labels: str | os.PathLike[str] | None = None,
           environment: Mapping[str, Any] | None = None,
           progress: Callable[[float, int], None] | None = None) -> ReplayReport:
    """Make all images of a run again in the folder `out`, and compare the SHA-256 of every file with the record.

    Parameters
    ----------
    recorded : RecordedRun
    pipeline : dreamda.Pipeline
        The run's model, with its dtype and size.
    out : path
        A new or empty folder, or the folder of the same repetition, which then resumes; not the run's own folder.
    real, labels : path, optional
        The current places of the real images, and of their annotations if the run had any; default: the recorded ones.
    environment : mapping, optional
        The environment of this machine, for `ReplayReport.environment` and the new run.json.
    progress : callable, optional
        As in `generate_dataset`.

    Raises
    ------
    FileNotFoundError, ValueError
        The model or the folder of real images is not that of the run, or `out` is the run's own folder.
    OutputError
        `out` could no longer be written.
    """
    run, out, root = recorded.run, Path(out), recorded.real if real is None else Path(real)
    if (pipeline.fingerprint, pipeline.dtype, list(pipeline.size)) != (run["model_sha256"], run["dtype"], run["size"]):
        what = "another model: its files differ" if pipeline.fingerprint != run[
            "model_sha256"] else "loaded with another dtype or size"
        raise ValueError(
            f"{recorded.out / 'run.json'}: the model given is {what}; give --model (and --vae, --lora, --embedding) "
            "where the run's own is now")
    if out.exists() and out.resolve() == recorded.out.resolve():
        raise ValueError(f"OUT {out} is the run that is to be repeated; give a new folder, or none")
    if root is None:
        raise ParameterError("real",
                             f"is not recorded in {recorded.out / 'run.json'}; give the folder of the real images")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: the real images of the run are not there; give the folder where they are now, before OUT")
    report = ReplayReport(total=len(recorded.rows),
                          environment=differences(recorded.environment, environment or {}, WORTH_TELLING))
    for row in recorded.rows:
        there = recorded.out / row["file_name"]
        if there.is_file() and digest_if_readable(there) != row["sha256"]:
            report.altered.append(row["file_name"])

    annotated = recorded_labels(run, recorded.out, root, labels)
    names = Names()
    if run.get("record_names") == "hash":
        names = names_of(run, ImageFolder.scan(root) if annotated is None else annotated.folder())
    rows = with_real_names(recorded.rows, names)
    wanted = {row["seed_file"]: row for row in rows}
    made_from: dict[str, set[str]] = {}
    for row in rows:
        made_from.setdefault(row["seed_file"], set()).add(row["seed_sha256"])
    images = tuple(sorted(ImageRef(*key.split("/", 1)) for key in wanted))
    folder = recorded_folder(run, root, images, annotated)
    judge = None
    if run.get("max_similarity") is not None:
        judge = Recorded(rows, with_real_names(read_left_out(recorded.out), names))
    for image in images:
        try:
            now = digest_of_image(folder.path(image))
        except BrokenImageError as error:
            report.changed.append((image.key, str(error)))
            continue
        if made_from[image.key] != {now}:
            report.changed.append((image.key, "is not the file that the run was made from"))
    lost = {key for key, _ in report.changed}
    folder = replace(folder, images=tuple(image for image in images if image.key not in lost))
    done = generate_dataset(folder,
                            out,
                            pipeline,
                            recorded.settings,
                            prompts=_prompts(rows, recorded.settings.variants),
                            model=run["model"],
                            environment=environment,
                            stems={key: _stem(row)
                                   for key, row in wanted.items()},
                            record=recorded.recorded,
                            judge=judge,
                            verify=RecordedObjects(rows) if "verify_sha256" in run else None,
                            progress=progress)
    report.signal = done.signal
    for row in rows if done.signal is None else ():
        if row["seed_file"] in lost:
            continue
        if digest_if_readable(out / row["file_name"]) == row["sha256"]:
            report.same += 1
        else:
            report.first = report.first or _how(out / row["file_name"], recorded.out / row["file_name"])
            report.differing.append(row["file_name"])
    return report


def _prompts(rows: Sequence[Mapping[str, Any]], variants: int) -> dict[str, list[Prompt]]:
    """The prompts of every variant of the recorded images; one that was not made gets another one's."""
    found: dict[str, dict[int, Prompt]] = {}
    for row in rows:
        found.setdefault(row["seed_file"], {})[row["variant"]] = Prompt(row["prompt"], row.get("fields", {}))
    return {
        key: [made.get(variant, next(iter(made.values()))) for variant in range(variants)]
        for key, made in found.items()
    }


def _stem(row: Mapping[str, Any]) -> str:
    """The stem of the files of a real image; empty if the row cannot have been written by `dreamda generate`."""
    label, slash, name = row["file_name"].partition("/")
    seed_label, _, seed_name = row["seed_file"].partition("/")
    ending = f"-{row['variant']:03d}.png"
    plain = (slash and label == seed_label == row["label"] and "/" not in name
             and not {label, *seed_name.split("/")} & {"", ".", ".."})
    return name.removesuffix(ending) if plain and name.endswith(ending) else ""


def _how(new: Path, old: Path) -> str:
    try:
        made, was = read_image(new).pixels.astype(int), read_image(old).pixels.astype(int)
    except BrokenImageError:
        return "it was not made, or the recorded one is gone"
    if made.shape != was.shape:
        return f"{made.shape[0]} x {made.shape[1]} pixels instead of {was.shape[0]} x {was.shape[1]}"
    off = np.abs(made - was)
    if not off.any():
        return "its pixels are equal, the file is packed otherwise"
    return f"its pixels differ by up to {off.max()} of 255, by {off.mean():.3f} on average"
