"""What run.json and metadata.jsonl say of real images and of places on the machine that made them.

By default they name real images by their paths in the data set, and no folder above it: a place is recorded only
relative to another one that is next to it. `record_names` of `dreamda.runs.safeguards.Safeguards` can be

    names    as above
    paths    also the absolute paths of the data set, the annotations and the model's files
    hash     hashes in place of the names of real images, and no place at all

A hash is computed from the name and the content of the real image. So whoever has the data set finds the image of a
hash, and nobody finds it by guessing names. Whoever has the file of an image can confirm that it was used.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.files import BrokenImageError, digest_of_image
from ..data.folders import ImageFolder, ImageRef

# absolute paths in an environment
FILES_OF_MODEL = ("model_folder", "vae_folder", "lora_files", "embedding_files")
HASH_DIGITS = 32


@dataclass(frozen=True)
class Names:
    """The names under which real images are recorded. Without hashes, they are the images' own keys.

    Attributes
    ----------
    hashes : dict of str to str
        ``{key: "label/hash"}``; empty if names are recorded as they are.
    """

    hashes: Mapping[str, str] = field(default_factory=dict)

    def recorded(self, key: str) -> str:
        """The recorded name of a real image."""
        return self.hashes[key] if self.hashes else key

    def real(self, recorded: str) -> str:
        """The key of a recorded image; the recorded name itself if no image has it."""
        return self._keys.get(recorded, recorded)

    @property
    def stems(self) -> dict[str, str]:
        """The stems of the files made from each image, which must not contain its name either."""
        return {key: recorded.rpartition("/")[2] for key, recorded in self.hashes.items()}

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", {recorded: key for key, recorded in self.hashes.items()})

    _keys: Mapping[str, str] = field(init=False, repr=False, compare=False)


def hash_of(name: str, content: str) -> str:
    """The hash that names a real image, of its name in its class folder and of the SHA-256 of its file."""
    return hashlib.sha256(f"{name}/{content}".encode()).hexdigest()[:HASH_DIGITS]


def hashed(folder: ImageFolder) -> tuple[ImageFolder, Names]:
    """Read every image file, and name the images by hashes.

    Returns
    -------
    folder : ImageFolder
        Images that cannot be read have moved to `ignored`.
    names : Names
    """
    def one(image: ImageRef) -> str | BrokenImageError:
        try:
            content = digest_of_image(folder.path(image))
        except BrokenImageError as error:
            return error
        return f"{image.label}/{hash_of(image.name, content)}"

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(folder.images, pool.map(one, folder.images), strict=True))
    broken = tuple((image.key, str(error)) for image, error in found.items() if isinstance(error, BrokenImageError))
    kept = {image: name for image, name in found.items() if not isinstance(name, BrokenImageError)}
    return (replace(folder, images=tuple(kept), ignored=folder.ignored + broken),
            Names({image.key: name for image, name in kept.items()}))


def names_of(run: Mapping[str, Any], folder: ImageFolder) -> Names:
    """The recorded names of the images of a data set, in this run."""
    return hashed(folder)[1] if run.get("record_names") == "hash" else Names()


def with_real_names(rows: Iterable[Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    """Rows of metadata.jsonl whose ``seed_file`` is the key of the real image, also if hashes were recorded."""
    return [{**row, "seed_file": names.real(row["seed_file"])} for row in rows]


# ---- places

def nearby(place: Path, start: Path) -> str | None:
    """A place relative to the folder `start`, if it lies in it or directly beside it; else None.

    Such a path names no folder above the two.
    """
    relative = os.path.relpath(place.absolute(), start.absolute())
    parts = Path(relative).parts
    return relative if parts[0] != ".." or len(parts) == 2 and parts[1] != ".." else None


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as it may be recorded: as given if it only leads downwards from the current folder, else its last part."""
    given = Path(path)
    return given.name if given.is_absolute() or {"..", "~"} & set(given.parts) else str(path)


def without_places(environment: Mapping[str, Any]) -> dict[str, Any]:
    """An environment without the paths of the model's files."""
    return {name: value for name, value in environment.items() if name not in FILES_OF_MODEL}


def changes_as_recorded(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Pipeline.load` that changed a model, with their files by `shown_path`."""
    found = dict(changes)
    if "vae" in found:
        found["vae"] = shown_path(found["vae"])
    for name in ("loras", "embeddings"):
        if name in found:
            found[name] = [{**each, "file": shown_path(each["file"])} for each in found[name]]
    return found
