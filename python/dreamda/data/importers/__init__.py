"""Convert the official archives of seven well-known data sets to image folders.

    report = import_dataset("oxford-pets", "downloads/pets", "pets")

    pets/train/<class>/Abyssinian_100.jpg     the official training images; pets/test/ the official test images
    pets/train/metadata.jsonl                 a prompt for each, {"file_name": ..., "text": ...}, for `dreamda generate`
    pets/train/classes.json                   the words of each class, for `dreamda generate --template`
    stl10/unlabelled/images/000000.png        STL-10's unlabelled images; `dreamda train` accepts them as SYNTHETIC

The source may be an archive or its unpacked files. An archive is read as a stream and never unpacked; all output paths
are built from checked names. A data set without an official split (Caltech-101, Shenzhen) is split in the sizes of the
DreamDA paper, by a hash of the image names, so the split is the same everywhere.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..files import BrokenImageError
from ..images import MAX_PIXELS, decode_image
from ..prompts import CLASSES_FILE
from . import caltech101, cifar10, fashion_mnist, oxford_pets, shenzhen_tb, stanford_cars, stl10
from .common import UNLABELLED, DataSet, ImportReport, Picture
from .source import Source

__all__ = ["DATASETS", "DataSet", "ImportReport", "Picture", "import_dataset"]

CHUNK = 16                       # images in memory at a time; an X-ray takes 10 MB
DATASETS: dict[str, DataSet] = {
    "caltech101": caltech101.DATA_SET,
    "stanford-cars": stanford_cars.DATA_SET,
    "oxford-pets": oxford_pets.DATA_SET,
    "shenzhen-tb": shenzhen_tb.DATA_SET,
    "stl10": stl10.DATA_SET,
    "fashion-mnist": fashion_mnist.DATA_SET,
    "cifar10": cifar10.DATA_SET,
}


def import_dataset(name: str, source: str | os.PathLike[str], out: str | os.PathLike[str], *,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> ImportReport:
    """Read the official archive of a data set and write it as an image folder with prompts.

    Every image is decoded once. Broken images are left out and reported. GIFs under another name (some of Oxford's .jpg
    files) are written as PNG; all other files are copied unchanged.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    source : path
        The official archive, or a folder with the archives or their contents, at any depth.
    out : path
        New or empty. It appears when it is complete.
    progress : callable
        Called with the number of images written and the number published.

    Returns
    -------
    ImportReport

    Raises
    ------
    ValueError, OSError
        `source` is not this data set, lacks an essential file, or is damaged; or `out` cannot be used. In these cases
        nothing is written.
    ImportError
        SciPy, which Stanford Cars needs, is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set called {name!r}; there are: {', '.join(DATASETS)}")
    about, out = DATASETS[name], Path(out)
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT {out} is there already; give a new or an empty folder")
    report = ImportReport(split=about.split)
    place = Source(Path(source), about.title, about.archives)
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
        # a full disk has no file name
        if isinstance(error, OSError) and str(error.filename or work).startswith(str(work)):
            raise OSError(
                error.errno,
                f"OUT {out} cannot be written ({error.strerror}), and nothing of it was kept; "
                "fix that, then repeat"
            ) from error
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
            report.notes.append(
                f"{split} has {found:,} of the {published:,} images that {about.title} is published with")
    if report.classes != about.classes:
        report.notes.append(f"there are {report.classes} of the {about.classes} classes")


# ---- writing

def _write(pictures: Iterator[Picture], root: Path, report: ImportReport, progress: Callable[[int], None]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    there: set[tuple[str, str, str]] = set()
    words: dict[str, dict[str, str]] = {}
    converted = 0
    with ThreadPoolExecutor(2) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for picture in chunk:
                if (key := picture[:3]) in there:
                    raise ValueError(
                        f"{picture.label}/{picture.name} is there twice; give a folder that holds the data set once")
                there.add(key)
                (root / picture.split / picture.label).mkdir(parents=True, exist_ok=True)
            for picture, done in zip(chunk, pool.map(lambda p: _store(p, root), chunk), strict=True):
                if isinstance(done, BrokenImageError):
                    report.skipped.append((f"{picture.label}/{picture.name}", str(done)))
                    continue
                converted += done != picture.name
                row = {
                    "file_name": f"{picture.label}/{done}",
                    **({"text": picture.text} if picture.text is not None else {"label": None})
                }
                rows.setdefault(picture.split, []).append(row)
                if picture.text is not None:
                    words.setdefault(picture.split, {})[picture.label] = _words(picture.text)
            progress(sum(map(len, rows.values())))
    for split in sorted(rows, key=("train", "test", UNLABELLED).index):
        those = rows[split]
        those.sort(key=lambda row: row["file_name"])
        (root / split / "metadata.jsonl").write_text("".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in those),
                                                     encoding="utf-8")
        report.counts[split] = len(those)
        if split in words:
            of_class = dict(sorted(words[split].items()))
            (root / split / CLASSES_FILE).write_text(json.dumps(of_class, indent=1, ensure_ascii=False) + "\n",
                                                     encoding="utf-8")
    report.classes = len({label for of_class in words.values() for label in of_class})
    if converted:
        report.notes.append(f"GIFs under another name, written as PNG: {converted}")


def _words(text: str) -> str:
    """The class in a prompt; all images of a class have the same prompt here."""
    return re.sub(r"^(?:a photo of )?(?:an? )?", "", text)


def _store(picture: Picture, root: Path) -> str | BrokenImageError:
    """Write one image; return its file name, or the error if it cannot be used."""
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
        # the file is untrusted, and Pillow's decoders may raise any exception
        except Exception as error:
            return BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})")
    (root / picture.split / picture.label / name).write_bytes(content)
    return name


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
