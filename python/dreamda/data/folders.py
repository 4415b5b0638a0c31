"""Image folders in: classes, prompts, decoded pixels, and the real images that come with the package.

    folder = ImageFolder.scan("photos")                       # photos/<class>/*.jpg
    prompts = prompts_from_template(folder, "a photo of a {}")
    pixels = read_image(folder.path(folder.images[0]), (512, 512)).pixels      # uint8 (512, 512, 3)

Everything read here is untrusted: sizes are bounded, only regular files of a few formats are opened, and whatever is wrong with
one image file becomes a `BrokenImageError`.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".svg", ".tga")
MAX_PIXELS = 89_478_485          # Pillow's own limit for decompression bombs: 256 MiB of RGB
MAX_FILE_BYTES = 512 << 20
MAX_LINE_BYTES = 1 << 20          # of JSON Lines
DEFAULT_TEMPLATE = "a photo of a {}"


class BrokenImageError(ValueError):
    """An image file that cannot be used: unreadable, truncated, too large, or not one of the formats read."""


class LostImageError(BrokenImageError):
    """An image that was there when the run began, and has gone, become unreadable or changed since; the message names it."""


class ImageRef(NamedTuple):
    """One image of an `ImageFolder`: its class and its file name inside the class folder."""

    label: str
    name: str

    @property
    def key(self) -> str:
        """``label/name``: names the image in manifests and prompt files, and keys its noise."""
        return f"{self.label}/{self.name}"


@dataclass(frozen=True)
class ImageFolder:
    """A data set laid out as ``root/<class>/<image>``.

    Attributes
    ----------
    root : Path
    classes : tuple of str
        Folder names, sorted by code point.
    images : tuple of ImageRef
        Sorted by class, then by file name.
    ignored : tuple of (str, str)
        What looks like data and is not read, each with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    ignored: tuple[tuple[str, str], ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the classes and images of `root`, without opening any image.

        Hidden names (a leading dot) and files that are no images are passed over. Images beside the class folders, folders inside of
        those, images in formats that are not read and empty class folders are listed in `ignored`.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            `root` is no folder.
        ValueError
            There are no class folders or no images, or a class folder has a name that cannot be used.
        """
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such folder; give a folder that holds one folder of images per class")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file; give a folder that holds one folder of images per class")
        classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
        if not classes:
            raise ValueError(f"{root} has no class folders; put the images of each class in a folder of its own: {root}/CLASS/image.png")
        images: list[ImageRef] = []
        ignored = [(e.name if _is_utf8(e.name) else ascii(e.name), "an image beside the class folders; put it into that of its class")
                   for e in sorted(os.scandir(root), key=lambda e: e.name)
                   if os.path.splitext(e.name)[1].lower() in SUFFIXES and e.name[0] != "." and not e.is_dir()]
        for label in classes:
            if not _is_utf8(label):
                raise ValueError(f"the class folder {label!r} in {root} has a name that is not UTF-8; rename it")
            before = len(images)
            for entry in sorted(os.scandir(root / label), key=lambda e: e.name):
                suffix = os.path.splitext(entry.name)[1].lower()
                where = f"{label}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    ignored.append((where, "a folder inside a class folder; only the images directly in it are read"))
                elif suffix in OTHER_SUFFIXES:
                    ignored.append((where, f"{suffix} images are not read; convert it to PNG or JPEG"))
                elif suffix in SUFFIXES and not _is_utf8(entry.name):
                    ignored.append((ascii(where), "its name is not UTF-8; rename it"))
                elif suffix in SUFFIXES:
                    images.append(ImageRef(label, entry.name))
            if len(images) == before:
                ignored.append((label, "a class folder without images"))
        if not images:
            raise ValueError(f"{root} has class folders but no images in them; the formats read are {' '.join(s[1:] for s in SUFFIXES)}")
        return cls(root, tuple(classes), tuple(images), tuple(ignored))

    def path(self, image: ImageRef) -> Path:
        """The file of an image."""
        return self.root / image.label / image.name


class LoadedImage(NamedTuple):
    """Pixels uint8 (H, W, 3), and the SHA-256 (hex) of the file that they come from."""

    pixels: np.ndarray
    sha256: str


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> LoadedImage:
    """Read one image file as RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit gray is scaled to 8 bits, and of several frames the
    first is taken. With `size` the image is resized to it as a whole (bicubic, aspect ratio not kept), as the authors of DreamDA do.

    Parameters
    ----------
    path : path
    size : (height, width), optional

    Raises
    ------
    BrokenImageError
        For whatever is wrong with this file; the message does not repeat its name.
    """
    data = read_bounded(path)
    return LoadedImage(decode_image(data, size), hashlib.sha256(data).hexdigest())


def decode_image(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3); see `read_image`."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            image: Image.Image = file
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} that are read; make it smaller")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise BrokenImageError("32-bit pixels have no defined range; save it with 8 or 16 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            return np.array(image)
    except BrokenImageError:
        raise
    except Exception as error:  # the file is untrusted, and Pillow's decoders raise whatever their format trips over
        if type(error).__name__ == "UnidentifiedImageError":
            raise BrokenImageError("not an image, or not in a format that is read (PNG, JPEG, WebP, BMP, TIFF)") from error
        raise BrokenImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error


def read_bounded(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`; everything else is a `BrokenImageError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block the run
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise BrokenImageError("not a regular file")
            if info.st_size > MAX_FILE_BYTES:
                raise BrokenImageError(f"{info.st_size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
            content = file.read(info.st_size + 1)  # `read` takes memory for all that it is allowed to return
            if len(content) > info.st_size:
                raise BrokenImageError("grew while it was read")
            return content
    except OSError as error:
        raise BrokenImageError(f"cannot be read ({error.strerror})") from error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def class_words(label: str) -> str:
    """A folder name as words for a prompt: ``soccer_ball`` -> ``soccer ball``; hyphens stay (``t-shirt``)."""
    return " ".join(label.replace("_", " ").split())


def fill_template(template: str, label: str) -> str:
    """Put a class into a prompt template.

    An article ``a`` or ``an`` right before the ``{}`` is made to fit the first letter of the class (``an ankle boot``). The rule looks
    at the letter, not at the sound; where it is wrong (``an hourglass``), write the prompts into a file.

    >>> fill_template("a photo of a {}", "ankle_boot")
    'a photo of an ankle boot'
    """
    words = class_words(label)
    before, after = template.split("{}")
    if match := re.search(r"\b([Aa])n?(\s+)$", before):
        before = before[: match.start()] + match[1] + ("n" if words[:1].lower() in "aeiou" else "") + match[2]
    return before + words + after


def prompts_from_template(folder: ImageFolder, template: str = DEFAULT_TEMPLATE) -> dict[str, str]:
    """One prompt for every image, ``{key: prompt}``; ValueError unless `template` holds ``{}`` exactly once."""
    if template.count("{}") != 1:
        raise ValueError(f'--template {template!r} must hold {{}} once, where the class name goes: "{DEFAULT_TEMPLATE}"')
    if not _is_utf8(template):
        raise ValueError(f"--template {template!r} is not UTF-8")
    return {image.key: fill_template(template, image.label) for image in folder.images}


def prompts_from_file(folder: ImageFolder, path: str | os.PathLike[str]) -> dict[str, str]:
    """Prompts from a JSON Lines file, ``{"file_name": ..., "text": ...}`` a line, as ``{key: prompt}``.

    A file name is relative to the data set (``class/image.png``), or plain (``image.png``) where only one class has it. Other fields
    are ignored, so Hugging Face's ImageFolder ``metadata.jsonl`` can be given as it is.

    Raises
    ------
    ValueError
        A line is no such object, names an image that is not there, or contradicts an earlier line; or an image has no line.
    OSError
        The file cannot be read.
    """
    keys = {image.key for image in folder.images}
    plain: dict[str, list[str]] = {}
    for image in folder.images:
        plain.setdefault(image.name, []).append(image.key)
    prompts: dict[str, str] = {}
    for number, row in read_json_lines(path):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f'{path} line {number} must have the texts "file_name" and "text"')
        if not _is_utf8(text):
            raise ValueError(f'{path} line {number}: the "text" holds half of a surrogate pair; write the character itself')
        found = [name] if name in keys else plain.get(name, [])
        if not found:
            raise ValueError(f"{path} line {number} names {name!r}, which is no image of {folder.root}; remove the line or add the image")
        if len(found) > 1:
            raise ValueError(f"{path} line {number}: {name!r} is in several classes; write it as {found[0]!r}")
        if prompts.setdefault(found[0], text) != text:
            raise ValueError(f"{path} line {number} gives {name!r} a second text; keep one of the lines")
    missing = [image.key for image in folder.images if image.key not in prompts]
    if missing:
        raise ValueError(f"{path} has no line for {len(missing)} of the {len(keys)} images; the first is {missing[0]!r}")
    return prompts


def own_prompt_file(folder: ImageFolder) -> Path | None:
    """``metadata.jsonl`` in the data set, where its lines have a ``text`` field; else None."""
    path = folder.root / "metadata.jsonl"
    if path.is_file() and any("text" in row for _, row in read_json_lines(path)):
        return path
    return None


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON Lines file, one by one, each with its line number; ValueError names the first line that is none."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{path} line {number} is longer than the {MAX_LINE_BYTES >> 20} MiB that are read; write one object a line")
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is no JSON object; write one object a line")
            yield number, row


@dataclass(frozen=True)
class BundledImages:
    """Real images that come with the package; arrays are uint8 (N, 32, 32, 3), labels index `class_names`.

    Attributes
    ----------
    seeds, seed_labels : uint8 (100, 32, 32, 3), int64 (100,)
    test, test_labels : uint8 (1000, 32, 32, 3), int64 (1000,)
    class_names : tuple of str
    """

    seeds: np.ndarray
    seed_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def folder(self, root: str | os.PathLike[str], part: str = "seeds") -> ImageFolder:
        """The images of a part, "seeds" or "test", as a data set at `root`, not yet written; ValueError if something else is there."""
        root = Path(root)
        labels = [name.replace(" ", "_") for name in self.class_names]
        numbers = self.seed_labels if part == "seeds" else self.test_labels
        images = sorted(ImageRef(labels[label], f"{number:03d}.png") for number, label in enumerate(numbers))
        folder = ImageFolder(root, tuple(sorted(labels)), tuple(images), ())
        if os.path.lexists(root):
            known = {*(root / label for label in labels), *(folder.path(image) for image in images)}
            foreign = sorted(set(root.rglob("*")) - known)
            if foreign or not root.is_dir():
                raise ValueError(f"{foreign[0] if foreign else root} is not one of the bundled images; give another folder")
        return folder

    def write(self, folder: ImageFolder, part: str = "seeds") -> None:
        """Write the images of the part into the data set that `folder` returned, as PNG files."""
        from PIL import Image

        pixels = self.seeds if part == "seeds" else self.test
        for image in folder.images:
            path = folder.path(image)
            buffer = io.BytesIO()
            Image.fromarray(pixels[int(path.stem)]).save(buffer, "PNG", compress_level=6)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != buffer.getvalue():
                path.write_bytes(buffer.getvalue())


def load_bundled(name: str = "fashion-mini") -> BundledImages:
    """Load the bundled Fashion-MNIST images, which the bundled model of the same name has never seen.

    They are the first 10 (seeds) and the next 100 (test) of every class among the last 10,000 training images, padded by 2 to 32 x 32
    and made RGB, as for the model's training (benchmarks/recipes/make_bundled_data.py).

    Parameters
    ----------
    name : {"fashion-mini"}

    Returns
    -------
    dreamda.data.BundledImages

    Raises
    ------
    ValueError
        There are no others.
    """
    if name != "fashion-mini":
        raise ValueError(f"no bundled images called {name!r}; there are: fashion-mini")
    with np.load(Path(__file__).parents[1] / "bundled" / "fashion-mini.npz", allow_pickle=False) as file:
        padded = {k: np.pad(file[k], ((0, 0), (2, 2), (2, 2))) for k in ("seeds", "test")}
        return BundledImages(
            seeds=np.repeat(padded["seeds"][..., None], 3, axis=3), seed_labels=file["seed_labels"].astype(np.int64),
            test=np.repeat(padded["test"][..., None], 3, axis=3), test_labels=file["test_labels"].astype(np.int64),
            class_names=tuple(str(c) for c in file["class_names"]))
