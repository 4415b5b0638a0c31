"""Pascal VOC: an XML file for each image, with boxes whose corners are pixels counted from 1.

The files are untrusted: a file with a document type, which could bring in entities and other files, is refused.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from .common import Frame, Labels, Made, Thing, checked_box, read_text_file, write_if_other

CORNERS = ("xmin", "ymin", "xmax", "ymax")
# The elements that are true of the images made from an image. Others (source, owner, path) are about the real one.
KEPT_ELEMENTS = ("folder", "filename", "size", "segmented", "object")


class VocLabels(Labels):
    """Pascal VOC; see `dreamda.data.voc`."""

    format = "voc"
    place = "Annotations"

    def _read(self) -> Iterator[bytes]:
        folder = self.path / "Annotations" if (self.path / "Annotations").is_dir() else self.path
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; give the folder of Pascal VOC's XML files")
        self.searched = folder
        self._trees: dict[str, ElementTree.Element] = {}
        self._objects: dict[str, list[Thing]] = {}
        stems: dict[str, str] = {}
        for name in self._found:
            stems.setdefault(name.rpartition(".")[0], name)
        for path in sorted(folder.rglob("*.xml")):
            inside = path.relative_to(folder).as_posix()
            where = self._within(inside)
            content = read_text_file(path)
            yield f"{inside}\n".encode() + content
            root = _parsed(content)
            if isinstance(root, str):
                self.problems.append((where, root))
                continue
            size = tuple(_number(root.find(f"size/{side}")) for side in ("height", "width"))
            if not all(side is not None and side > 0 and side == int(side) for side in size):
                self.problems.append((where, "has no size with a width and a height"))
                continue
            parent, written = inside.rpartition("/")[0], (root.findtext("filename") or "").strip()
            in_place = f"{parent}/{written}" if parent else written
            name = in_place if in_place in self._found else stems.get(inside[:-4], written or inside)
            if self._image(name, where, (int(size[0] or 0), int(size[1] or 0))):
                self._trees[name], self._objects[name] = root, []
                for number, element in enumerate(root.findall("object"), 1):
                    thing = _checked(element, self._frames[name].size)
                    if isinstance(thing, str):
                        self.problems.append((f"{where} object {number}", thing))
                        root.remove(element)
                    else:
                        self._objects[name].append(thing)
        self._leave_out_others()

    def _things(self, name: str) -> list[Thing]:
        return self._objects[name]

    def write(self, out: Path, made: Iterable[Made]) -> None:
        """Write ``out/Annotations/*.xml``, without the elements that are about the real image."""
        for each in made:
            file, name = each.file, each.name
            root, frame = copy.deepcopy(self._trees[name]), self._frames[name]
            written = {placed.number for placed in self.objects(each)}
            for number, thing in enumerate(root.findall("object")):
                if number not in written:
                    root.remove(thing)
            for tag, text in (("folder", "images"), ("filename", file)):
                element = root.find(tag)
                if element is None:
                    element = ElementTree.SubElement(root, tag)
                element.text = text
            for element in [each for each in root if each.tag not in KEPT_ELEMENTS]:
                root.remove(element)
            if frame.orientation != 1:
                _turn(root, frame)
            content = ElementTree.tostring(root, encoding="unicode") + "\n"
            write_if_other(out / "Annotations" / (file.rpartition(".")[0] + ".xml"), content.encode())


def _parsed(content: bytes) -> ElementTree.Element | str:
    """The tree of an XML file, or the problem with it."""
    def refuse(*_: object) -> None:
        raise ValueError("has a document type, which is not read; remove it")

    try:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:
        return f"cannot be read as XML ({error})"
    except (ValueError, RecursionError) as error:
        return str(error)
    return root if root.tag == "annotation" else f"is no annotation of Pascal VOC: its element is {root.tag[:40]!r}"


def _number(element: ElementTree.Element | None) -> float | None:
    try:
        return float(element.text or "") if element is not None else None
    except ValueError:
        return None


def _checked(element: ElementTree.Element, size: tuple[int, int]) -> Thing | str:
    """An object, or the problem with it."""
    category = (element.findtext("name") or "").strip()
    if not category:
        return "has no name"
    corners = [_number(element.find(f"bndbox/{corner}")) for corner in CORNERS]
    if None in corners:
        return "has no box with " + ", ".join(CORNERS)
    left, top, right, bottom = (corner or 0.0 for corner in corners)
    box = checked_box([left - 1, top - 1, right - left + 1, bottom - top + 1], size)
    return box if isinstance(box, str) else Thing(category, box)


def _turn(root: ElementTree.Element, frame: Frame) -> None:
    """Convert boxes and size to the image as displayed."""
    for tag, side in zip(("height", "width"), frame.shown):
        element = root.find(f"size/{tag}")
        if element is not None:
            element.text = str(side)
    for box in root.iterfind("object/bndbox"):
        left, top, right, bottom = (_number(box.find(corner)) or 0.0 for corner in CORNERS)
        x, y, width, height = frame.box((left - 1, top - 1, right - left + 1, bottom - top + 1))
        for corner, value in zip(CORNERS, (x + 1, y + 1, x + width, y + height)):
            element = box.find(corner)
            if element is not None:
                element.text = f"{value:g}"
