"""COCO instances: one JSON file with images, categories, and annotations as boxes, polygons or run lengths."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .common import Frame, Labels, Made, Thing, checked_box, checked_polygon, read_text_file, write_if_other
from .outlines import outlines

# The fields of an image that are true of those made from it. Others (its address, its date) are about the real one.
KEPT_FIELDS = ("license", "licence")


class CocoLabels(Labels):
    """COCO instances; see `dreamda.data.coco`."""

    format = "coco"
    place = "annotations.json"

    def _read(self) -> Iterator[bytes]:
        content = read_text_file(self.path)
        yield content
        self._top = _read_top(self.path, content)
        self._words: dict[Any, str] = {}
        for category in self._top["categories"]:
            if not (isinstance(category, dict) and type(category.get("id")) is int
                    and isinstance(category.get("name"), str)):
                raise ValueError(f"{self.path}: a category is no object with an id and a name: {str(category)[:80]}")
            if self._words.setdefault(category["id"], category["name"]) != category["name"]:
                raise ValueError(f"{self.path}: two categories have the id {category['id']}")
        self._entries: dict[str, dict[str, Any]] = {}
        self._annotations: dict[str, list[dict[str, Any]]] = {}
        self._regions: dict[int, Thing] = {}
        of_id = self._read_images()
        for annotation in self._top["annotations"]:
            where = f"{self.path.name} annotation {annotation.get('id') if isinstance(annotation, dict) else '?'}"
            thing = self._checked(annotation, of_id, where)
            if isinstance(thing, str):
                self.problems.append((where, thing))
            elif thing is not None:
                self._annotations[of_id[annotation["image_id"]]].append(annotation)
                self._regions[id(annotation)] = thing
        self._leave_out_others()
        self._tell_of_empty()

    def _read_images(self) -> dict[Any, str]:
        of_id: dict[Any, str] = {}
        for entry in self._top["images"]:
            if not (isinstance(entry, dict) and type(entry.get("id")) is int):
                raise ValueError(f"{self.path}: an image is no object with an id: {str(entry)[:80]}")
            number, where = entry["id"], f"{self.path.name} image {entry['id']}"
            if number in of_id:
                raise ValueError(f"{self.path}: two images have the id {number}")
            of_id[number] = ""  # known, though perhaps not used
            name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
            if not isinstance(name, str) or not all(type(side) is int and side > 0 for side in size):
                self.problems.append((where, "needs the texts and numbers file_name, width and height"))
                continue
            name = os.path.normpath(name).replace(os.sep, "/")
            if self._image(name, where, size):  # type: ignore[arg-type]  # of two int, as just checked
                of_id[number] = name
                self._entries[name], self._annotations[name] = entry, []
        return of_id

    def _checked(self, annotation: Any, of_id: dict[Any, str], where: str) -> Thing | str | None:
        """An annotation, the problem with it, or None if its image is not used."""
        if not isinstance(annotation, dict):
            return "is no object"
        if type(annotation.get("image_id")) is not int or annotation["image_id"] not in of_id:
            return f"is for the image {str(annotation.get('image_id'))[:40]}, which is not in the file"
        category = annotation.get("category_id")
        if type(category) is not int or category not in self._words:
            return f"has the category {str(category)[:40]}, which is not in the file"
        name = of_id[annotation["image_id"]]
        if not name:
            return None
        size = self._frames[name].size
        box = checked_box(annotation.get("bbox"), size)
        if isinstance(box, str):
            return box
        crowd, segmentation = bool(annotation.get("iscrowd")), annotation.get("segmentation")
        if isinstance(segmentation, dict):
            mask = _decoded(segmentation, size)
            return mask if isinstance(mask, str) else Thing(self._words[category], box, mask=mask, ignored=crowd)
        polygons: list[NDArray[np.float64]] = []
        if segmentation is not None and not isinstance(segmentation, list):
            return "its segmentation is neither polygons nor run lengths"
        for values in segmentation or ():
            points = checked_polygon(values)
            if isinstance(points, str):
                return points
            polygons.append(points)
        return Thing(self._words[category], box, tuple(polygons), ignored=crowd)

    def _things(self, name: str) -> list[Thing]:
        return [self._regions[id(annotation)] for annotation in self._annotations[name]]

    def write(self, out: Path, made: Iterable[Made]) -> None:
        """Write ``out/annotations.json``: the contents of the original file, for the synthetic images.

        Of the fields of an image only its id, name, size and licence are written.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, each in enumerate(made, 1):
            height, width = size = self.size(each.name)
            kept = {field: value for field, value in self._entries[each.name].items() if field in KEPT_FIELDS}
            images.append({**kept, "id": number, "file_name": each.file, "width": width, "height": height})
            for name, index, thing in self.objects(each):
                annotation, frame = self._annotations[name][index], self._frames[name]
                annotation = _turned(annotation, frame) if thing is None else _moved(annotation, thing, size)
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
        top = {**self._top, "images": images, "annotations": annotations}
        write_if_other(out / "annotations.json", (json.dumps(top, ensure_ascii=False) + "\n").encode())


def _read_top(path: Path, content: bytes) -> dict[str, Any]:
    try:
        top = json.loads(content)
        json.dumps(top, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({str(error)[:80]})") from None
    lists = ("images", "annotations", "categories")
    if not (isinstance(top, dict) and all(isinstance(top.get(name), list) for name in lists)):
        raise ValueError(f"{path} is no COCO instances file: it needs the lists images, annotations and categories")
    return top


def _masks() -> Any:
    """pycocotools' functions for run lengths."""
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError('run lengths in COCO files need pycocotools: pip install "dreamda-c[labels]"') from None
    return mask


def _decoded(segmentation: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_] | str:
    """The mask of run lengths, or the problem with them."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        return f"its run lengths are for {str(segmentation.get('size'))[:40]} instead of {list(size)} (height, width)"
    tools, pixels = _masks(), size[0] * size[1]
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != pixels:
            return f"its run lengths do not add up to the {pixels} pixels of the image"
        packed = tools.frPyObjects({"size": list(size), "counts": counts}, *size)
    elif isinstance(counts, str) and counts.isascii():
        packed = {"size": list(size), "counts": counts.encode()}
        # pycocotools refuses run lengths that are too long, and leaves uninitialised memory if they are too short
        if not _is_refused(tools, packed, pixels - 1) or _is_refused(tools, packed, pixels):
            return f"its run lengths do not add up to the {pixels} pixels of the image"
    else:
        return "its run lengths are neither numbers nor a text"
    mask: NDArray[np.bool_] = tools.decode(packed) > 0
    return mask if mask.any() else "its run lengths hold no pixel"


def _is_refused(tools: Any, packed: dict[str, Any], pixels: int) -> bool:
    try:
        tools.decode({"size": [pixels, 1], "counts": packed["counts"]})
    except ValueError:
        return True
    return False


def _encoded(mask: NDArray[np.bool_], text: bool) -> dict[str, Any]:
    """A mask as run lengths: as a text, or as numbers."""
    if text:
        counts = _masks().encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    else:
        flat = np.concatenate([[False], mask.ravel("F")])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def _moved(annotation: dict[str, Any], thing: Thing, size: tuple[int, int]) -> dict[str, Any]:
    """An annotation for an object that is elsewhere, or partly hidden, with an outline of the same form."""
    segmentation = annotation.get("segmentation")
    mask = thing.pixels(size)
    if isinstance(segmentation, dict):
        outline: Any = _encoded(mask, isinstance(segmentation["counts"], str))
    else:
        outline = [points.ravel().tolist() for points in thing.polygons or outlines(mask)]
    area = {"area": float(mask.sum())} if "area" in annotation else {}
    return {**annotation, "bbox": list(thing.box), "segmentation": outline, **area}


def _turned(annotation: dict[str, Any], frame: Frame) -> dict[str, Any]:
    """An annotation for the image as displayed."""
    if frame.orientation == 1:
        return annotation
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        text = isinstance(segmentation["counts"], str)
        mask = frame.array(_decoded(segmentation, frame.size))  # type: ignore[arg-type]  # it has been read before
        segmentation = _encoded(mask, text)
    elif segmentation:
        segmentation = [frame.points(np.array(p, np.float64).reshape(-1, 2)).ravel().tolist() for p in segmentation]
    turned = {**annotation, "bbox": list(frame.box(annotation["bbox"]))}
    return turned if segmentation is None else {**turned, "segmentation": segmentation}
