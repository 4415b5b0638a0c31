"""`dreamda audit --withdraw`: the synthetic images that were made from a real image, or look like it.

    found = trace("photos/coat/7.jpg", ["synthetic"])
    found.traces[0]             # Trace(folder='synthetic', file='coat/7-000.png', reason='made from it', score=0.71)

What an image was made from is in metadata.jsonl, as the SHA-256 and the name of the real image's file. What looks like
it is found by comparing all images, as in an audit.
"""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..copies.index import CopyIndex
from ..copies.pictures import Pictures
from ..copies.thumbnails import views
from ..data.annotations.common import LABEL
from ..data.files import BrokenImageError, write_atomically
from ..data.images import read_image
from ..data.metadata import metadata_file, read_rows
from ..networks.config import read_json
from ..networks.threads import resolve_threads
from ..options import ParameterError
from ..text import counted, in_brackets
from .files import WITHDRAWAL, OutputError
from .safeguards import check_max_similarity

MAX_SIMILARITY = 0.9
MADE, SAME_NAME, ALIKE = "made from it", "made from a file of this name with another content", "looks like it"


class Trace(NamedTuple):
    """A synthetic image that has to do with the real one.

    Attributes
    ----------
    folder, file : str
        The folder as it was given, and the file in it.
    reason : str
        "made from it", "made from a file of this name with another content" or "looks like it".
    score : float or None
        How similar it is, 1 for the same picture; None if the real image is not there to compare with.
    """

    folder: str
    file: str
    reason: str
    score: float | None


@dataclass(repr=False)
class Traces:
    """The result of `trace`.

    Attributes
    ----------
    traces : list of Trace
        In the order of the folders, those made from the image first.
    images : int
        Number of synthetic images that were looked at.
    skipped : list of (str, str)
        Images that could not be read, each with the reason.
    notes : list of str
        What a reader of the result must know.
    """

    traces: list[Trace]
    images: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return in_brackets("Traces", f"{len(self.traces):,} of {counted(self.images, 'image')}",
                           self.skipped and f"{len(self.skipped):,} skipped")

    def write(self, out: str | os.PathLike[str]) -> None:
        """Write withdrawal.json into the folder `out`; OutputError if that is not possible."""
        content = {"images": self.images, "traces": [each._asdict() for each in self.traces], "notes": self.notes,
                   "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped]}
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
            write_atomically(Path(out) / WITHDRAWAL, json.dumps(content, indent=1, ensure_ascii=False).encode())
        except OSError as error:
            raise OutputError(error.errno, f"{out} cannot be written ({error.strerror}); fix that, or give another "
                              "place") from error


def trace(image: str | os.PathLike[str],
          synthetic: Sequence[str | os.PathLike[str]],
          *,
          max_similarity: float | None = None,
          threads: int | None = None) -> Traces:
    """Find the synthetic images that were made from a real image, or look like it.

    Parameters
    ----------
    image : path
        The real image. If the file is gone, the records are searched for its name only.
    synthetic : sequence of path
        Folders of synthetic images.
    max_similarity : float, optional
        More similar images look like it; default: 0.9.
    threads : int, optional

    Returns
    -------
    Traces

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        A folder does not exist; or the image does not, and the records do not have its name.
    ValueError
        The image cannot be read, or a folder has no images.
    """
    limit = MAX_SIMILARITY if max_similarity is None else max_similarity
    check_max_similarity(limit)
    path = Path(image)
    index, sha256 = None, ""
    if path.exists():
        try:
            real = read_image(path)
        except BrokenImageError as error:
            raise ValueError(f"{path}: {error}; give the image as it was") from None
        thumbnails, sha256 = np.stack(views(real.pixels)), real.sha256
        index = CopyIndex(thumbnails, np.zeros(len(thumbnails), np.int64))
    found = Traces([], 0)
    sources: set[str] = set()
    workers = resolve_threads(threads)
    for folder in synthetic:
        masks = "masks" if _run(folder) else ""  # of a run with annotations
        pictures = Pictures.read(folder, without=masks, threads=workers)
        found.images += len(pictures.names)
        found.skipped += [(f"{folder}/{name}", reason) for name, reason in pictures.skipped]
        recorded, known, named = _recorded(pictures, path, sha256)
        found.notes += _notes(folder, index is not None, known, len(pictures.names))
        sources |= named
        scores: list[float | None] = [None] * len(pictures.names)
        if index is not None:
            scores = index.nearest(pictures.whole, threads=workers).score.astype(float).round(4).tolist()
        here = [Trace(str(folder), name, reason, score) for name, score in zip(pictures.names, scores, strict=True)
                if (reason := recorded.get(name) or (ALIKE if score is not None and score > limit else ""))]
        found.traces += sorted(here, key=lambda each: (each.reason == ALIKE, -(each.score or 0), each.file))
    if len(path.parts) == 1 and len(sources) > 1:
        found.notes.append(f"{path} is the name of {len(sources):,} real images: {', '.join(sorted(sources)[:5])}"
                           f"{', ...' if len(sources) > 5 else ''}; give one of these names for that image alone")
    if index is None and not found.traces:
        hashed = [str(folder) for folder in synthetic if _run(folder).get("record_names") == "hash"]
        if hashed:
            raise FileNotFoundError(f"{path}: no such file, and {hashed[0]} records hashes instead of names; give the "
                                    "file of the image")
        raise FileNotFoundError(f"{path}: no such file, and no synthetic image is recorded as made from one of that "
                                "name; give the file, or its name in the data set")
    return found


def _recorded(pictures: Pictures, image: Path, sha256: str) -> tuple[dict[str, str], int, set[str]]:
    """What metadata.jsonl says.

    The images that were made from the real image, each with the reason; the number of images whose origin is recorded;
    and the names of real images that are meant, if the file is gone.
    """
    path = metadata_file(pictures.root)
    found: dict[str, str] = {}
    known: set[str] = set()
    named: set[str] = set()
    for _, row in read_rows(path) if path is not None else ():
        name, seed, objects = row.get("file_name"), row.get("seed_file"), row.get("objects_from")
        if not (isinstance(name, str) and isinstance(seed, str)):
            continue
        known.add(name)
        sources = {**(objects if isinstance(objects, dict) else {}), seed: row.get("seed_sha256")}
        if sha256 and sha256 in sources.values():
            found[name] = MADE
        elif those := [source for source in sources if source and _is_named(source, image, exists=bool(sha256))]:
            found[name] = SAME_NAME if sha256 else MADE
            if not sha256:
                named.update(those)
    return found, len(known.intersection(pictures.names)), named


def _is_named(seed: str, image: Path, exists: bool) -> bool:
    """Whether a recorded name is that of the image: its last parts; if the file is gone, its file name will do."""
    parts = PurePosixPath(seed).parts
    if len(image.parts) == 1:
        return not exists and image.name == parts[-1]
    keys = [parts] + ([parts[1:]] if parts[0] == LABEL else [])
    return any(image.parts[-len(key):] == key for key in keys if len(key) > 1 or not exists)


def _run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / "run.json"
    return read_json(path) if path.is_file() else {}


def _notes(folder: str | os.PathLike[str], exists: bool, known: int, images: int) -> list[str]:
    """What the records of a folder cannot tell, with records of `known` of its images."""
    notes, run = [], _run(folder)
    if not known:
        notes.append(f"{folder} has no metadata that names real images, so what its images were made from is unknown")
    elif known < images:
        notes.append(f"{folder} has no record of what {images - known:,} of its {images:,} images were made from")
    if run.get("record_names") == "hash" and not exists:
        notes.append(f"{folder} records hashes instead of names: only with the file of the image can be found what was "
                     "made from it")
    if run.get("compose"):
        notes.append(f"{folder} was made with --compose, and which images gave it objects is not recorded")
    return notes
