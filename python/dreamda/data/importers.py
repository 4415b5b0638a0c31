"""The official archives of seven well-known data sets, made into image folders.

    report = import_dataset("oxford-pets", "downloads/pets", "pets")

    pets/train/<class>/Abyssinian_100.jpg     the official training images; pets/test/ the official test images
    pets/train/metadata.jsonl                 a prompt for each, {"file_name": ..., "text": ...}, as `dreamda generate` reads it
    stl10/unlabelled/images/000000.png        STL-10's unlabelled images, with labels of null, as `dreamda train` takes them for SYNTHETIC

An archive may be unpacked or not. It is read as a stream and nothing is ever unpacked: the only paths written are ours, made from names
that were checked. Where a data set has no official split (Caltech-101, Shenzhen), its sizes are those of the DreamDA paper, and which
images are in it is decided by a hash of their names (ours, so that it is the same everywhere).
"""
from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .folders import MAX_FILE_BYTES, MAX_PIXELS, BrokenImageError, decode_image, fill_template

CHUNK = 16                       # images in memory at a time; an X-ray has 10 MB
MAX_ANNOTATION_BYTES = 64 << 20
UNLABELLED = "unlabelled"
# What gzip, tar, zip and xz readers raise for a file that is damaged or something else.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


class Picture(NamedTuple):
    """One image on its way: where it belongs, its prompt, and the bytes of its file or its pixels, uint8 (H, W) or (H, W, 3)."""

    split: str
    label: str
    name: str
    text: str | None
    content: bytes | NDArray[np.uint8]


@dataclass
class ImportReport:
    """What `import_dataset` did.

    Attributes
    ----------
    counts : dict of str to int
        Images written of each split.
    classes : int
    split : str
        A sentence about where the split comes from.
    notes : list of str
        What differs from the published data set, and what was changed.
    skipped : list of (str, str)
        Images left out, each with the reason.
    complete : bool
        All published images are there.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    split: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True)
class DataSet:
    """What is published about a data set.

    Attributes
    ----------
    title : str
    archives : tuple of str
        Names of the official files.
    counts : dict of str to int
        Images of each split.
    classes : int
    read : callable
        Yields its pictures, ``read(source, report)``.
    split : str
    """

    title: str
    archives: tuple[str, ...]
    counts: dict[str, int]
    classes: int
    read: Callable[[_Source, ImportReport], Iterator[Picture]]
    split: str = "the official one"


def import_dataset(name: str, source: str | os.PathLike[str], out: str | os.PathLike[str], *,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> ImportReport:
    """Read the official archive of a data set and write it as an image folder with prompts.

    Every image is decoded once. One that is broken is left out and reported; one in a format that is not read elsewhere here (some of
    Oxford's .jpg files are GIFs) is written as PNG; all others keep their bytes.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    source : path
        The official archive, or a folder with the archives or with what they hold, at any depth.
    out : path
        New or empty. It appears when it is complete.
    progress : callable
        Called with the images written and the number published.

    Returns
    -------
    ImportReport

    Raises
    ------
    ValueError, OSError
        `source` is not this data set, lacks a file that nothing can be done without, or is damaged; or `out` cannot be used. Nothing is
        written then.
    ImportError
        Stanford Cars needs SciPy.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set called {name!r}; there are: {', '.join(DATASETS)}")
    about, out = DATASETS[name], Path(out)
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT {out} is there already; give a new or an empty folder")
    report = ImportReport(split=about.split)
    place = _Source(Path(source), about)
    missing = [parent for parent in out.parents if not parent.exists()]
    work = out.parent
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        work.chmod(0o777 & ~_umask())
        _write(about.read(place, report), work, report, lambda done: progress(done, sum(about.counts.values())))
        _compare(about, report)
        os.rename(work, out)
    except BaseException as error:
        if work != out.parent:
            shutil.rmtree(work, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and str(error.filename or work).startswith(str(work)):  # a full disk has no file name
            raise OSError(error.errno, f"OUT {out} cannot be written ({error.strerror}), and nothing of it was kept; put that right, then repeat") from error
        raise
    return report


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _compare(about: DataSet, report: ImportReport) -> None:
    report.complete = report.counts == about.counts and report.classes == about.classes and not report.skipped
    for split, published in about.counts.items():
        found = report.counts.get(split, 0)
        if found != published:
            report.notes.append(f"{split} has {found:,} of the {published:,} images that {about.title} is published with")
    if report.classes != about.classes:
        report.notes.append(f"there are {report.classes} of the {about.classes} classes")


# ---- writing

def _write(pictures: Iterator[Picture], root: Path, report: ImportReport, progress: Callable[[int], None]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    there: set[tuple[str, str, str]] = set()
    labels: set[str] = set()
    converted = 0
    with ThreadPoolExecutor(2) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for picture in chunk:
                if (key := picture[:3]) in there:
                    raise ValueError(f"{picture.label}/{picture.name} is there twice; give a folder that holds the data set once")
                there.add(key)
                (root / picture.split / picture.label).mkdir(parents=True, exist_ok=True)
            for picture, done in zip(chunk, pool.map(lambda p: _store(p, root), chunk), strict=True):
                if isinstance(done, BrokenImageError):
                    report.skipped.append((f"{picture.label}/{picture.name}", str(done)))
                    continue
                converted += done != picture.name
                row = {"file_name": f"{picture.label}/{done}", **({"text": picture.text} if picture.text is not None else {"label": None})}
                rows.setdefault(picture.split, []).append(row)
                if picture.split != UNLABELLED:
                    labels.add(picture.label)
            progress(sum(map(len, rows.values())))
    for split in sorted(rows, key=("train", "test", UNLABELLED).index):
        those = rows[split]
        those.sort(key=lambda row: row["file_name"])
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in those), encoding="utf-8")
        report.counts[split] = len(those)
    report.classes = len(labels)
    if converted:
        report.notes.append(f"{converted} images are GIFs under another name; they were written as PNG")


def _store(picture: Picture, root: Path) -> str | BrokenImageError:
    """Write one image; returns its file name, or what is wrong with it."""
    from PIL import Image

    name, content = picture.name, picture.content
    if isinstance(content, np.ndarray):
        content = _png(Image.fromarray(content))
    else:
        try:
            if content[:4] == b"GIF8":
                with Image.open(io.BytesIO(content), formats=("GIF",)) as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise BrokenImageError("too many pixels")
                    name, content = os.path.splitext(name)[0] + ".png", _png(image.convert("RGB"))
            else:
                decode_image(content)
        except BrokenImageError as error:
            return error
        except Exception as error:  # the file is untrusted, and Pillow's decoders raise whatever their format trips over
            return BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})")
    (root / picture.split / picture.label / name).write_bytes(content)
    return name


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


# ---- reading: folders and archives as places with files

class _Folder:
    """A folder; names begin with its own, so that 101_ObjectCategories may itself be given."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.title = str(path)
        self._paths: dict[str, Path] = {}
        for top, folders, files in os.walk(self.root):
            folders[:] = sorted(f for f in folders if _visible(f))
            for name in sorted(files):
                full = Path(top, name)
                if _visible(name):
                    self._paths[full.relative_to(self.root.parent).as_posix()] = full

    def names(self) -> list[str]:
        return list(self._paths)

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for name, path in self._paths.items():
            if name in wanted:
                if not path.is_file():
                    raise ValueError(f"{path} is no regular file; remove it")
                with open(path, "rb") as file:
                    yield name, file


class _Archive:
    """A .tar, .tar.gz, .tgz or .zip, read from the front for every question. Only regular files in it are seen."""

    def __init__(self, title: str, open_file: Callable[[], IO[bytes]], is_zip: bool) -> None:
        self.title, self.open, self.is_zip = title, open_file, is_zip
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        if self._names is None:
            self._names = [name for name, _ in self._members()]
        return self._names

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for name, open_member in self._members():
            if name in wanted:
                with open_member() as file:
                    yield name, file

    def _members(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        with _whole(self.title), self.open() as file:
            if self.is_zip:
                with zipfile.ZipFile(file) as archive:
                    for info in archive.infolist():
                        if not info.is_dir() and _visible(info.filename):
                            yield info.filename, partial(archive.open, info)
            else:
                with tarfile.open(fileobj=file, mode="r|*") as archive:
                    for member in archive:
                        if member.isreg() and _visible(member.name.removeprefix("./")):
                            yield member.name, cast("Callable[[], IO[bytes]]", partial(archive.extractfile, member))  # None is not for regular files


@contextlib.contextmanager
def _whole(what: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise ValueError(f"{what} is damaged or no archive ({str(error) or type(error).__name__}); download it again") from error


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class _Found(NamedTuple):
    place: _Folder | _Archive
    matches: dict[str, re.Match[str]]


class _Source:
    """Where the files of a data set are looked for: SRC, and official archives in it, and official archives in those."""

    def __init__(self, path: Path, about: DataSet) -> None:
        self.path, self.about = path, about
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; give a folder that holds {_all(about.archives)}")
        self.places: list[_Folder | _Archive] = []
        if path.is_dir():
            folder = _Folder(path)
            self.places.append(folder)
            for name in folder.names():
                if _is_archive(name) and os.path.basename(name) in about.archives:
                    file = folder.root.parent / name
                    self.places.append(_Archive(str(file), partial(_open_file, file), zipfile.is_zipfile(file)))
        else:
            if not path.is_file():
                raise ValueError(f"{path} is neither a file nor a folder")
            if not zipfile.is_zipfile(path) and not _is_archive(path.name):
                raise ValueError(f"{path} is neither a zip nor a tar archive; give a folder that holds {_all(about.archives)}")
            self.places.append(_Archive(str(path), partial(_open_file, path), zipfile.is_zipfile(path)))

    def find(self, pattern: str) -> _Found:
        """The files whose names match, all of them from the first place that has any."""
        known = re.compile(pattern)
        for place in (*self.places, *self._nested):
            matches = {name: match for name in place.names() if (match := known.search(name))}
            if matches:
                return _Found(place, matches)
        return _Found(self.places[0], {})

    @cached_property
    def _nested(self) -> list[_Archive]:
        return [_Archive(f"{place.title}: {name}", partial(_open_inside, place, name), name.endswith(".zip"))
                for place in self.places if isinstance(place, _Archive) and place.is_zip
                for name in place.names() if _is_archive(name) and os.path.basename(name) in self.about.archives]

    def require(self, pattern: str, what: str) -> _Found:
        """`find`, and ValueError where there is none."""
        found = self.find(pattern)
        if not found.matches:
            raise ValueError(f"{self.path} has no {what}, so it is not {self.about.title}, or not all of it; found: {self._summary()}; "
                             f"give {_all(self.about.archives)}, or what they hold")
        return found

    def file(self, pattern: str, what: str) -> bytes | None:
        """The bytes of the one small file that matches; None where there is none."""
        found = self.find(pattern)
        for name, file in found.place.read({*list(found.matches)[:1]}):
            return _bounded(file, MAX_ANNOTATION_BYTES, f"{found.place.title}: {name}")
        return None

    def required_file(self, pattern: str, what: str) -> bytes:
        self.require(pattern, what)
        content = self.file(pattern, what)
        assert content is not None
        return content

    def _summary(self) -> str:
        seen = Counter("/".join(name.split("/")[:-1][:3]) + "/*" + os.path.splitext(name)[1] for place in self.places for name in place.names())
        if not seen:
            return "nothing"
        shown = [f"{name} ({count})" for name, count in seen.most_common(4)]
        return ", ".join(shown) + (", ..." if len(seen) > 4 else "")


def _is_archive(name: str) -> bool:
    return name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def _open_file(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _open_inside(place: _Archive, name: str) -> IO[bytes]:
    """A member of a zip archive that is an archive itself."""
    return zipfile.ZipFile(place.open()).open(name)


def _all(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _bounded(file: IO[bytes] | gzip.GzipFile, limit: int, what: str) -> bytes:
    with _whole(what):
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{what} is larger than the {limit >> 20} MiB that are read")
    return content


def _records(file: IO[bytes], size: int, what: str) -> Iterator[bytes]:
    """Pieces of `size` bytes; ValueError where the last one is torn."""
    while True:
        with _whole(what):
            record = file.read(size)
            while 0 < len(record) < size and (more := file.read(size - len(record))):
                record += more
        if not record:
            return
        if len(record) < size:
            raise ValueError(f"{what} ends within an image; download it again")
        yield record


def _images(found: _Found, place_of: dict[str, tuple[str, str, str, str]]) -> Iterator[Picture]:
    """The image files of `found` that have a place, {name: (split, label, file name, text)}."""
    for name, file in found.place.read(place_of):
        split, label, stem, text = place_of[name]
        yield Picture(split, label, stem, text, _bounded(file, MAX_FILE_BYTES, f"{found.place.title}: {name}"))


def _drawn(names: Iterable[str], count: int) -> set[str]:
    """`count` of the names, the same everywhere."""
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())[:count])


# ---- the data sets

CALTECH_WORDS = {
    "Faces": "person's face", "Faces_easy": "person's face, close-up", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane",
    "binocular": "pair of binoculars", "car_side": "car from the side", "cougar_body": "cougar", "cougar_face": "cougar's face",
    "crocodile_head": "crocodile's head", "flamingo_head": "flamingo's head", "garfield": "cartoon cat Garfield", "snoopy": "cartoon dog Snoopy",
    "scissors": "pair of scissors", "water_lilly": "water lily", "yin_yang": "yin yang symbol", "buddha": "buddha statue", "brain": "human brain",
}
CALTECH_TRAINING = 30            # images a class, the protocol of the data set's authors; of 101 classes they are the paper's 3,030
SHENZHEN_TRAINING = 0.7          # of each class: 228 + 235, the paper's 463


def _caltech101(source: _Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)101_ObjectCategories/([^/]+)/(image_\d+\.jpg)$", "101_ObjectCategories/<class>/image_0001.jpg")
    of_class: dict[str, list[str]] = {}
    for name, match in found.matches.items():
        of_class.setdefault(match[1], []).append(name)
    if background := of_class.pop("BACKGROUND_Google", None):
        report.notes.append(f"the class BACKGROUND_Google ({len(background)} images) was left out, as in the paper")
    places = {}
    for label, names in of_class.items():
        training = _drawn((f"{label}/{found.matches[n][2]}" for n in names), CALTECH_TRAINING)
        text = fill_template("a photo of a {}", CALTECH_WORDS.get(label, label))
        for name in names:
            stem = found.matches[name][2]
            places[name] = ("train" if f"{label}/{stem}" in training else "test", label, stem, text)
    yield from _images(found, places)


def _cars(source: _Source, report: ImportReport) -> Iterator[Picture]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError('Stanford Cars has its labels in MATLAB files, which SciPy reads: pip install "dreamda-c[datasets]"') from None

    def variable(content: bytes, file: str, name: str) -> NDArray[Any]:
        try:
            return np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True, variable_names=[name])[name])
        except Exception as error:  # the file is untrusted, and SciPy raises whatever it trips over
            raise ValueError(f"{source.path}: {file} is no MATLAB file with {name!r} in it ({str(error) or type(error).__name__})") from error

    cars = [str(c) for c in variable(source.required_file(r"(?:^|/)cars_meta\.mat$", "cars_meta.mat"), "cars_meta.mat", "class_names")]
    for split, folder, file in (("train", "cars_train", "cars_train_annos.mat"), ("test", "cars_test", "cars_test_annos_withlabels.mat")):
        pattern = rf"(?:^|/){re.escape(file)}$"
        content = source.required_file(pattern, file) if split == "train" else source.file(pattern, file)
        if content is None:
            report.notes.append(f"{file} is missing (the devkit's cars_test_annos.mat has no labels), so there are no test images")
            continue
        rows = variable(content, file, "annotations")
        if not {"class", "fname"} <= set(rows.dtype.names or ()):
            raise ValueError(f"{source.path}: {file} has no fields class and fname but {', '.join(rows.dtype.names or ('none',))}")
        image = rf"(?:^|/){folder}/(\d+\.jpg)$"
        found = source.require(image, f"{folder}/00001.jpg") if split == "train" else source.find(image)
        if not found.matches:
            report.notes.append(f"{folder}/ is missing, so there are no test images")
            continue
        at = {match[1]: name for name, match in found.matches.items()}
        places = {}
        for row in rows:
            number, name = int(row["class"]), str(row["fname"])
            if not 1 <= number <= len(cars):
                raise ValueError(f"{source.path}: {file} gives {name} the class {number}; cars_meta.mat has {len(cars)}")
            car = " ".join(cars[number - 1].split())
            if name in at:
                places[at[name]] = (split, _folder_name(car), name, fill_template("a photo of a {}", car))
            else:
                report.skipped.append((f"{folder}/{name}", f"named by {file}, but not there"))
        yield from _images(found, places)


def _folder_name(words: str) -> str:
    """Words as a folder name: underscores for spaces, hyphens for what has no place in it (``Ram C/V`` -> ``Ram_C-V``)."""
    return re.sub(r"[^\w.+()&'-]", "-", words.replace(" ", "_")).lstrip(".") or "class"


def _pets(source: _Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)images/([A-Za-z_]+)_(\d+)\.jpg$", "images/Abyssinian_1.jpg")
    at = {f"{match[1]}_{match[2]}": name for name, match in found.matches.items()}
    places = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        pattern = rf"(?:^|/)annotations/{file}$"
        content = source.required_file(pattern, f"annotations/{file}") if split == "train" else source.file(pattern, file)
        if content is None:
            report.notes.append(f"annotations/{file} is missing, so there are no test images")
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = re.fullmatch(r"([A-Za-z_]+)_(\d+) (\d+) ([12]) (\d+)", line.strip())
            if not match:
                raise ValueError(f'{source.path}: annotations/{file} line {number} is not "name class species breed": {line[:60]!r}')
            stem = f"{match[1]}_{match[2]}"
            text = fill_template("a photo of a {}", f"{match[1]}, a breed of {'cat' if match[4] == '1' else 'dog'}")
            if stem in at:
                places[at[stem]] = (split, match[1], f"{stem}.jpg", text)
            else:
                report.skipped.append((f"images/{stem}.jpg", f"named by annotations/{file}, but not there"))
    yield from _images(found, places)


def _shenzhen(source: _Source, report: ImportReport) -> Iterator[Picture]:
    found = source.require(r"(?:^|/)CXR_png/(CHNCXR_\d{4}_([01])\.png)$", "CXR_png/CHNCXR_0001_0.png")
    places: dict[str, tuple[str, str, str, str]] = {}
    for digit, label, text in (("0", "normal", "a chest X-ray of a healthy patient, normal lungs"),
                               ("1", "tuberculosis", "a chest X-ray of a patient with pulmonary tuberculosis")):
        names = {match[1]: name for name, match in found.matches.items() if match[2] == digit}
        training = _drawn(names, round(SHENZHEN_TRAINING * len(names)))
        places |= {at: ("train" if name in training else "test", label, name, text) for name, at in names.items()}
    yield from _images(found, places)


STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _stl10(source: _Source, report: ImportReport) -> Iterator[Picture]:
    pixels = 3 * 96 * 96
    labels: dict[str, NDArray[np.uint8]] = {}
    for split in ("train", "test"):
        pattern, what = rf"(?:^|/){split}_y\.bin$", f"stl10_binary/{split}_y.bin"
        content = source.required_file(pattern, what) if split == "train" else source.file(pattern, what)
        if content is None:
            report.notes.append(f"{what} is missing, so there are no test images")
            continue
        labels[split] = np.frombuffer(content, np.uint8)
        if len(labels[split]) == 0 or labels[split].min() < 1 or labels[split].max() > 10:
            raise ValueError(f"{source.path}: {split}_y.bin must hold a byte from 1 to 10 for each image")
    source.require(r"(?:^|/)train_X\.bin$", "stl10_binary/train_X.bin")
    found = source.find(r"(?:^|/)(train|test|unlabeled)_X\.bin$")
    there = {match[1] for match in found.matches.values()}
    report.notes += [f"{part}_X.bin is missing" for part in ("test", "unlabeled") if part not in there]
    for name, file in found.place.read(found.matches):
        part, what = found.matches[name][1], f"{found.place.title}: {name}"
        if part != "unlabeled" and part not in labels:
            continue
        number = -1
        for number, record in enumerate(_records(file, pixels, what)):
            image = np.frombuffer(record, np.uint8).reshape(3, 96, 96).transpose(2, 1, 0)  # each channel is stored column by column
            if part == "unlabeled":
                yield Picture(UNLABELLED, "images", f"{number:06d}.png", None, image)
            elif number < len(labels[part]):
                label = STL_CLASSES[labels[part][number] - 1]
                yield Picture(part, label, f"{number:05d}.png", fill_template("a photo of a {}", label), image)
        if part != "unlabeled" and number + 1 != len(labels[part]):
            raise ValueError(f"{what} has {number + 1:,} images, but {part}_y.bin {len(labels[part]):,} labels; download them again")


FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")


def _fashion(source: _Source, report: ImportReport) -> Iterator[Picture]:
    report.notes.append("images were padded with 2 black pixels on each side to 32 x 32, as the bundled model fashion-mini has seen them")
    for split, stem in (("train", "train"), ("test", "t10k")):
        arrays = []
        for kind, dimensions in (("images", 3), ("labels", 1)):
            pattern, what = rf"(?:^|/){stem}-{kind}[-.]idx{dimensions}-ubyte(\.gz)?$", f"{stem}-{kind}-idx{dimensions}-ubyte.gz"
            found = source.require(pattern, what) if split == "train" else source.find(pattern)
            if not found.matches:
                report.notes.append(f"{what} is missing, so there are no test images")
                break
            name = min(found.matches)
            for _, file in found.place.read({name}):
                arrays.append(_idx(file, name.endswith(".gz"), dimensions, f"{found.place.title}: {name}"))
        if len(arrays) < 2:
            continue
        images, labels = arrays
        if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
            raise ValueError(f"{source.path}: the {stem} files do not belong together: images {images.shape}, labels {labels.shape}")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = FASHION_CLASSES[label]
            yield Picture(split, name, f"{number:05d}.png", fill_template("a photo of a {}", name), np.pad(image, 2))


def _idx(file: IO[bytes], compressed: bool, dimensions: int, what: str) -> NDArray[np.uint8]:
    """An array in the IDX format of MNIST: 0, 0, 8 (bytes), the number of dimensions, each as a big-endian number, then the bytes."""
    with gzip.open(file) if compressed else contextlib.nullcontext(file) as stream:
        content = _bounded(stream, MAX_ANNOTATION_BYTES, what)
    shape = tuple(int.from_bytes(content[4 + 4 * i: 8 + 4 * i], "big") for i in range(dimensions))
    data = content[4 + 4 * dimensions:]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(data) != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{what} is no IDX file of bytes with {dimensions} dimensions, or not all of it; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _cifar10(source: _Source, report: ImportReport) -> Iterator[Picture]:
    found = source.find(r"(?:^|/)(?:data_batch_([1-5])|test_batch)\.bin$")
    if not found.matches:
        pickled = source.find(r"cifar-10-batches-py/|cifar-10-python\.tar\.gz$").matches or source.path.name == "cifar-10-python.tar.gz"
        if pickled:
            raise ValueError(f"{source.path} is the Python version of CIFAR-10, made of pickles, and those are never opened here; "
                             "give the binary version, cifar-10-binary.tar.gz")
    source.require(r"(?:^|/)data_batch_[1-5]\.bin$", "cifar-10-batches-bin/data_batch_1.bin")
    there = {os.path.basename(name) for name in found.matches}
    report.notes += [f"{name} is missing" for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin") if name not in there]
    for name, file in found.place.read(found.matches):
        batch, what = found.matches[name][1], f"{found.place.title}: {name}"
        for number, record in enumerate(_records(file, 1 + 3072, what)):
            if record[0] > 9:
                raise ValueError(f"{what}: image {number} has the label {record[0]}; CIFAR-10's are 0 to 9")
            label = CIFAR_CLASSES[record[0]]
            image = np.frombuffer(record, np.uint8, offset=1).reshape(3, 32, 32).transpose(1, 2, 0)
            yield Picture("train" if batch else "test", label, f"{batch}-{number:05d}.png" if batch else f"{number:05d}.png",
                          fill_template("a photo of a {}", label), image)


DATASETS: dict[str, DataSet] = {
    "caltech101": DataSet("Caltech-101", ("caltech-101.zip", "101_ObjectCategories.tar.gz"), {"train": 3030, "test": 5647}, 101, _caltech101,
                          "none is official; 30 training images a class as in the paper, drawn by a hash of their names"),
    "stanford-cars": DataSet("Stanford Cars", ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"),
                             {"train": 8144, "test": 8041}, 196, _cars),
    "oxford-pets": DataSet("Oxford-IIIT Pets", ("images.tar.gz", "annotations.tar.gz"), {"train": 3680, "test": 3669}, 37, _pets),
    "shenzhen-tb": DataSet("the Shenzhen tuberculosis set", ("ChinaSet_AllFiles.zip",), {"train": 463, "test": 199}, 2, _shenzhen,
                           "none is official; 70 % of each class for training (the paper's 463), drawn by a hash of their names"),
    "stl10": DataSet("STL-10", ("stl10_binary.tar.gz",), {"train": 5000, "test": 8000, UNLABELLED: 100_000}, 10, _stl10),
    "fashion-mnist": DataSet("Fashion-MNIST", ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
                                               "t10k-labels-idx1-ubyte.gz"), {"train": 60_000, "test": 10_000}, 10, _fashion),
    "cifar10": DataSet("CIFAR-10", ("cifar-10-binary.tar.gz",), {"train": 50_000, "test": 10_000}, 10, _cifar10),
}
