"""Ultralytics YOLO: ``data.yaml`` with the names of the classes, and a text file for each image.

A text file has one line per object: a box (class, centre, size) or a polygon (class, x, y, x, y, ...), as fractions of
the image's width and height. Ultralytics reads images as displayed, so the fractions refer to the turned image.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..yaml import SCALAR, scalar
from .common import Labels, Made, Thing, checked_box, checked_polygon, read_text_file, write_if_other
from .outlines import joined, outlines

SLACK = 0.01  # how far a fraction may lie outside [0, 1]


class YoloLabels(Labels):
    """Ultralytics YOLO; see `dreamda.data.yolo`."""

    format = "yolo"
    place = "data.yaml"

    def _read(self) -> Iterator[bytes]:
        content = read_text_file(self.path)
        yield content
        self._words = read_names(self.path, content)
        self._lines: dict[str, list[str]] = {}
        self._objects: dict[str, list[Thing]] = {}
        folder = self.searched = self._labels_folder()
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt") if path.is_file()}
        for name in self._found:
            text = name.rpartition(".")[0] + ".txt"
            lines: list[str] = []
            if text in files:
                files.discard(text)
                content = read_text_file(folder / text)
                yield f"{text}\n".encode() + content
                try:
                    lines = content.decode("utf-8-sig").splitlines()
                except UnicodeDecodeError:
                    raise ValueError(f"{folder / text} is not UTF-8 text; save it as such") from None
            if self._image(name, name, None):
                self._lines[name], self._objects[name] = [], []
                for number, line in enumerate(lines, 1):
                    self._take(name, f"{self._within(text)} line {number}", line)
        files -= {"classes.txt"}
        self.problems += [(self._within(text), "has no image in the folder of the images") for text in sorted(files)]
        self._tell_of_empty()

    def _labels_folder(self) -> Path:
        """The folder in which Ultralytics looks for labels.

        It is the images' folder with the last ``images`` in its path replaced by ``labels``, else beside data.yaml.
        """
        parts = list(self.root.absolute().parts)
        folders = [self.path.parent / "labels"]
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            folders.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
            folders.append(self.path.parent / "labels" / Path(*parts[last + 1 :]))
        for folder in folders:
            if folder.is_dir():
                return folder
        raise FileNotFoundError(f"{folders[0]}: no such folder; YOLO's text files belong there, or beside {self.path}")

    def _take(self, name: str, where: str, line: str) -> None:
        words = line.split()
        if not words:
            return
        thing = self._checked(name, words)
        if isinstance(thing, str):
            self.problems.append((where, thing))
        else:
            self._lines[name].append(line.strip())
            self._objects[name].append(thing)

    def _checked(self, name: str, words: list[str]) -> Thing | str:
        """The thing on a line, or the problem with the line."""
        try:
            shares = [float(word) for word in words[1:]]
            number = int(words[0])
        except ValueError:
            return "is not a class and numbers"
        if number not in self._words:
            return f"has the class {number}, which is not in {self.path.name}"
        if not all(-SLACK <= share <= 1 + SLACK for share in shares):
            return "has numbers that are not from 0 to 1"
        height, width = size = self.size(name)
        if len(shares) == 4:
            x, y, w, h = shares
            box = checked_box([(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], size)
            return box if isinstance(box, str) else Thing(self._words[number], box)
        scaled = [share * (height if i % 2 else width) for i, share in enumerate(shares)]
        points = checked_polygon(scaled)
        if isinstance(points, str):
            return points
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        box = checked_box([left, top, right - left, bottom - top], size)
        return box if isinstance(box, str) else Thing(self._words[number], box, (points, ))

    def _things(self, name: str) -> list[Thing]:
        return self._objects[name]

    def write(self, out: Path, made: Iterable[Made]) -> None:
        """Write ``out/labels/*.txt``, with the original lines, and ``out/data.yaml``."""
        for each in made:
            size = self.size(each.name)
            lines = [self._lines[name][index] if thing is None else _moved(self._lines[name][index], thing, size)
                     for name, index, thing in self.objects(each)]
            write_if_other(out / "labels" / (each.file.rpartition(".")[0] + ".txt"),
                           "".join(f"{line}\n" for line in lines).encode())
        names = "".join(f"  {number}: {json.dumps(word, ensure_ascii=False)}\n"
                        for number, word in sorted(self._words.items()))
        text = f"train: images\nval: images\nnc: {len(self._words)}\nnames:\n{names}"
        write_if_other(out / "data.yaml", text.encode())


def _moved(line: str, thing: Thing, size: tuple[int, int]) -> str:
    """The line of an object that is elsewhere, or partly hidden; its parts become one polygon."""
    polygons = thing.polygons or outlines(thing.pixels(size))
    shares = joined(polygons) / np.array([size[1], size[0]])
    return " ".join([line.split()[0], *(f"{share:.6g}" for share in shares.ravel().tolist())])


def read_names(path: Path, content: bytes) -> dict[int, str]:
    """Read the classes of a ``data.yaml``, by number.

    Of YAML, only the usual forms are supported: a list, or numbers with names, in brackets or one per line.
    """
    refused = ValueError(f"{path}: no 'names' that can be read; write names: [cat, dog], or a line for each: 0: cat")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None
    start = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        raise refused
    first = lines[start].partition(":")[2].strip()
    items: list[str] = []
    if first.startswith(("[", "{")):
        text = "\n".join([first, *lines[start + 1 :]])
        tokens = re.finditer(rf"{SCALAR}|[\[\]{{}},:]|#[^\n]*|\s+", text)
        item, end = "", 0
        for token in tokens:
            if token.start() != end:
                break
            end = token.end()
            if token[0] in "[{":
                if token.start():
                    raise refused  # a nested list
                continue
            if token[0] in "]},":
                items += [item] if item.strip() else []
                item = ""
                if token[0] in "]}":
                    break
            elif not token[0].startswith("#"):
                item += " " if token[0].isspace() else token[0]
        else:
            raise refused
        if item:
            raise refused
    elif not first or first.startswith("#"):
        for line in lines[start + 1 :]:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not re.match(r"\s|-", line):
                break
            items.append(line.strip().removeprefix("- ") if line.lstrip().startswith("- ") else line.strip())
    found: dict[int, str] = {}
    for position, item in enumerate(items):
        match = re.fullmatch(rf"(?:(\d+)\s*:\s+)?({SCALAR})\s*(?:\s#.*)?", item.strip())
        word = scalar(match[2]) if match else None
        if match is None or not word:
            raise refused
        found[int(match[1]) if match[1] else position] = word
    if len(found) != len(items) or not found:
        raise refused
    return found
