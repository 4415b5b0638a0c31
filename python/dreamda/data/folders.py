"""Image folders: their classes and images, listed without decoding any image.

    folder = ImageFolder.scan("photos")                       # photos/<class>/*.jpg
    folder.path(folder.images[0])

All commands use the same rule to find image files (`list_images`): a file is an image if it has the extension of a
supported format, or if its first bytes are those of such a format. Files in unsupported formats are listed with the
reason.
"""
from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..text import counted, in_brackets
from .files import BrokenImageError, is_utf8, read_bounded, read_head
from .images import FORMATS, OTHER_FORMATS, RAW_SUFFIXES, SUFFIXES, LoadedImage, format_of, read_image
from .prompt_syntax import Syntax
from .templates import placed

if TYPE_CHECKING:
    from typing_extensions import Self

    from .annotations import Labels, Placed, Thing

SPLITS = ("train", "training", "trainval", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout",
          "unlabelled", "unlabeled")


class ImageRef(NamedTuple):
    """One image of an `ImageFolder`: its class and its file name.

    The name is relative to the class folder (``name.png`` or ``deeper/name.png``).
    """

    label: str
    name: str

    @property
    def key(self) -> str:
        """``label/name``: identifies the image in manifests and prompt files, and is the key of its noise."""
        return f"{self.label}/{self.name}"


class SyntheticImage(NamedTuple):
    """An image that was made from one of an `ImageFolder`.

    Attributes
    ----------
    file : str
        Relative to OUT.
    real : ImageRef
    variant : int
    dropped : collection of int
        The numbers of objects whose annotations are left out.
    """

    file: str
    real: ImageRef
    variant: int
    dropped: Collection[int] = ()


@dataclass(frozen=True, repr=False)
class ImageFolder:
    """A data set laid out as ``root/<class>/<image>``.

    It also says how images are made from it, so that `dreamda generate` need not know what kind of data set it is; see
    `dreamda.data.annotations.AnnotatedFolder` for the other kind.

    Attributes
    ----------
    root : Path
    classes : tuple of str
        Folder names, sorted by code point.
    images : tuple of ImageRef
        Sorted by class, then by file name.
    ignored : tuple of (str, str)
        Paths that look like data but are not read, each with the reason.
    excluded : tuple of ImageRef
        Images that `without` has taken out.
    captions : bool
        Whether its metadata files and ``classes.json`` give prompts.
    """

    captions: ClassVar[bool] = True

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    ignored: tuple[tuple[str, str], ...]
    excluded: tuple[ImageRef, ...] = field(default=(), kw_only=True)

    def __repr__(self) -> str:
        about = f"{str(self.root)!r}: {counted(len(self.images), 'image')} of {counted(len(self.classes), 'class')}"
        return in_brackets("ImageFolder", about, self.ignored and f"{counted(len(self.ignored), 'file')} ignored",
                           self.excluded and f"{len(self.excluded):,} excluded")

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the classes and images of `root`, without decoding any image.

        Every folder in `root` is a class. Images in its subfolders belong to the class too. Hidden names (a leading
        dot) and files that are not images are skipped. Images beside the class folders, images in unsupported formats,
        and class folders without images are listed in `ignored`.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            `root` is not a folder.
        ValueError
            There are no class folders or no images; the name of a class folder cannot be used; or the folders in
            `root` are not classes but parts of a data set (``train``, ``test``).
        """
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such folder; give a folder that holds one folder of images per class")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; give a folder that holds one folder of images per class")
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        classes = [e.name for e in entries if e.is_dir() and not _is_hidden(e.name)]
        if not classes:
            raise ValueError(
                f"{root} has no class folders; put the images of each class in a folder of its "
                f"own: {root}/CLASS/image.png")
        _check_names(root, classes)
        ignored = [(_written(e.name), "an image beside the class folders; put it into that of its class")
                   for e in entries if not e.is_dir() and not _is_hidden(e.name) and _is_image(e.path) is True]
        images: list[ImageRef] = []
        for label in classes:
            found, left_out = list_images(root / label)
            images += [ImageRef(label, name) for name in found]
            ignored += [(_written(f"{label}/{name}"), reason) for name, reason in left_out]
            if not found:
                ignored.append((label, "a class folder without images"))
        _check_layout(root, classes, images)
        if not images:
            raise ValueError(
                f"{root} has class folders but no images in them; the formats read are {', '.join(FORMATS)}")
        return cls(root, tuple(classes), tuple(images), tuple(ignored))

    def path(self, image: ImageRef) -> Path:
        """The file of an image."""
        return self.root / image.label / image.name

    def without(self, names: Iterable[str]) -> Self:
        """The data set without some of its images, such as those whose owners have withdrawn their consent.

        Parameters
        ----------
        names : iterable of str
            Paths relative to `root` (``coat/1.png``), or file names (``1.png``): then all images of that name.

        Raises
        ------
        ValueError
            A name is that of no image, or no image is left.
        """
        out = {image for images in self.named(names).values() for image in images} | set(self.excluded)
        kept = tuple(image for image in self.images if image not in out)
        if not kept:
            raise ValueError(f"all images of {self.root} are excluded; none is left to make new ones from")
        return replace(self, images=kept, excluded=tuple(sorted(out)))

    def named(self, names: Iterable[str]) -> dict[str, list[ImageRef]]:
        """The images that each name means, as in `without`; none for a file that is not read anyway.

        Parameters
        ----------
        names : iterable of str

        Raises
        ------
        ValueError
            A name is that of no image.
        """
        found: dict[str, list[ImageRef]] = {name: [] for name, _ in self.ignored}
        for image in self.images + self.excluded:
            path = self.path(image).relative_to(self.root).as_posix()
            for name in {path, path.rpartition("/")[2]}:
                found.setdefault(name, []).append(image)
        wanted = list(dict.fromkeys(names))
        if unknown := [name for name in wanted if name not in found]:
            more = f" (and {len(unknown) - 1} more of the list)" if len(unknown) > 1 else ""
            raise ValueError(f"{shown(unknown[0], found)} is no image of {self.root}{more}; write paths relative to "
                             "that folder, or file names")
        return {name: found[name] for name in wanted}

    # ---- how images are made from it

    @property
    def annotations(self) -> Labels | None:
        """The annotations of the images, if they have any."""
        return None

    @property
    def sizes(self) -> list[tuple[int, int]] | None:
        """The height and width of what is made from each image; None if it is the model's size."""
        return None

    def describe(self) -> str:
        """What is made from the images, to continue a sentence that ends in their number."""
        return f" in {counted(len(self.classes), 'class')}"

    def placing(self, prompt_syntax: Syntax = "a1111") -> dict[str, Callable[[str], str]]:
        """For each image, by its key, a function that puts the words of its class after a text; see `placed`."""
        from .prompts import class_names

        names = {label: partial(placed, words=words, prompt_syntax=prompt_syntax)
                 for label, words in class_names(self).items()}
        return {image.key: names[image.label] for image in self.images}

    def identity(self) -> dict[str, Any]:
        """The fields that it adds to run.json."""
        return {}

    def read(self, image: ImageRef, size: tuple[int, int], fit: str) -> LoadedImage:
        """Read an image for a model of this size; BrokenImageError if it cannot be used."""
        return read_image(self.path(image), size, fit)

    @property
    def notes(self) -> list[str]:
        """Notes for the user about what is made."""
        return []

    @property
    def apart(self) -> bool:
        """Whether each variant of an image is made from a picture of its own."""
        return False

    def around(self, images: Sequence[ImageRef], variant: int, seed: int) -> dict[str, Any]:
        """Further arguments of `Pipeline._augment` for a variant of these images, or for all if none is `apart`."""
        return {}

    def donors(self, image: ImageRef, variant: int, seed: int) -> list[ImageRef]:
        """The images of which objects are placed in a variant of an image, in a run with this seed."""
        return []

    def objects(self, image: ImageRef, variant: int, seed: int) -> list[tuple[Placed, Thing]]:
        """The annotated objects of a variant of an image in a run with this seed, and where they are."""
        return []

    def write_annotations(self, out: Path, made: Iterable[SyntheticImage], seed: int) -> None:
        """Write the annotations of synthetic images of a run with this seed."""


def check_outside(out: str | os.PathLike[str], folder: Path, what: str = "the data set",
                  why: str = "its images would become seeds") -> None:
    """Raise ValueError if `out` is a folder of inputs, or lies in it: the next run would read what this one writes."""
    place, inputs = Path(out).resolve(), folder.resolve()
    if place == inputs or inputs in place.parents:
        raise ValueError(f"OUT {out} lies in {what} {folder}, where {why}; give a folder elsewhere")


def list_images(root: str | os.PathLike[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """List the image files in a folder and its subfolders, by the rule that all commands use.

    Returns
    -------
    names : list of str
        Relative to `root`, with slashes, sorted by code point.
    ignored : list of (str, str)
        Files that look like images but are not read, each with the reason.
    """
    names: list[str] = []
    ignored: list[tuple[str, str]] = []
    pending = [""]
    while pending:
        inside = pending.pop()
        for entry in os.scandir(os.path.join(root, inside)):
            name = f"{inside}{entry.name}"
            if _is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            elif entry.is_dir():
                ignored.append((name, "a link to a folder; only links to class folders are followed"))
            elif (found := _is_image(entry.path)) is not True:
                ignored += [(name, found)] if found else []
            elif (problem := _name_problem(name)) is not None:
                ignored.append((name, problem))
            else:
                names.append(name)
    return sorted(names), sorted(ignored)


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file with a name on each, for `ImageFolder.without`; empty lines do not count.

    Raises
    ------
    ValueError
        The file is not UTF-8, or has no names.
    FileNotFoundError
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file; give a text file with the name of an image on each line")
    try:
        text = read_bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None
    except BrokenImageError as error:
        raise ValueError(f"{path}: {error}") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} has no names; write the name of an image on each line")
    return names


def folder_name(words: str) -> str:
    """Words as a folder name: ``Ram C/V`` -> ``Ram_C-V``.

    Spaces become underscores, and characters that a folder name cannot have become hyphens.
    """
    return re.sub(r"[^\w.+()&'-]", "-", words.replace(" ", "_")).lstrip(".") or "class"


def shown(name: str, others: Iterable[str] = ()) -> str:
    """A name in quotes, for an error message.

    Its code points are escaped if it looks the same as one of the others but differs from it.
    """
    looks = unicodedata.normalize("NFKC", name)
    return ascii(name) if any(other != name and unicodedata.normalize("NFKC", other) == looks
                              for other in others) else repr(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: str) -> bool | str:
    """Whether a file is a supported image; the reason if it is an unsupported one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return True
    found = format_of(read_head(path))
    if found in FORMATS and not (found == "TIFF" and suffix in RAW_SUFFIXES):
        return True  # the bytes decide: a JPEG without an extension, or named .heic
    other = "raw camera" if suffix in RAW_SUFFIXES else found or OTHER_FORMATS.get(suffix)
    return f"{other} images are not read; convert it to PNG or JPEG" if other else False


def _written(name: str) -> str:
    return name if is_utf8(name) else ascii(name)


def _name_problem(name: str) -> str | None:
    """The problem with a file name; None if there is none."""
    if is_utf8(name) and (name.isascii() or sys.getfilesystemencoding() == "utf-8"):
        return None
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8; rename it"
    return (f"its name is UTF-8, but the locale's encoding is {sys.getfilesystemencoding()}; "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1")


def _check_names(root: Path, classes: list[str]) -> None:
    looks: dict[str, str] = {}
    for label in classes:
        if problem := _name_problem(label):
            raise ValueError(f"the class folder {label!r} in {root} cannot be used: {problem}")
        other = looks.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            raise ValueError(
                f"the class folders {ascii(other)} and {ascii(label)} in {root} differ only in their Unicode "
                "normalisation; merge them")


def _check_layout(root: Path, classes: list[str], images: list[ImageRef]) -> None:
    """Refuse folders that are not classes: parts of a data set, and a folder around the class folders."""
    direct = {image.label for image in images if "/" not in image.name}
    inner: dict[str, set[str]] = {}
    for image in images:
        if "/" in image.name:
            inner.setdefault(image.label, set()).add(image.name.split("/")[0])
    parts = [label for label in inner if label.lower() in SPLITS and label not in direct]
    if parts:
        there = ", ".join(f"{label}/ ({len(inner[label])} class folder{'s' * (len(inner[label]) > 1)})"
                          for label in parts)
        raise ValueError(
            f"{root} holds the parts of a data set, not classes: {there}; give one of them, such as {root / parts[0]}")
    for label, folders in inner.items():
        if inside := sorted(folder for folder in folders if folder.lower() in SPLITS):
            raise ValueError(f"{root / label} holds the part {inside[0]}/ of a data set; the parts must be outermost: "
                             f"{inside[0]}/{label}/image.png. Then give the folder of one part")
    if len(inner) == len(classes) == 1 and not direct:
        label, folders = next(iter(inner.items()))
        names = ", ".join(sorted(folders)[:3]) + (", ..." if len(folders) > 3 else "")
        raise ValueError(
            f"{root} holds one folder, {label}, which holds folders ({names}) and no images of its own: if those are "
            f"the classes, give {root / label}; if {label} is the class, put its images directly into it")
