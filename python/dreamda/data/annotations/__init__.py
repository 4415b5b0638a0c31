"""Annotated data sets for detection and segmentation, with one module per format.

    labels = coco("instances.json", "photos")
    labels.things("1.jpg")                              # categories, boxes, outlines
    labels.mask("1.jpg")                                # bool (H, W), for Pipeline.augment(masks=..., keep="objects")
"""
from __future__ import annotations

import os
from collections.abc import Callable

from .coco import CocoLabels
from .common import Frame, Labels, Made, Placed, Thing
from .compose import Composition
from .folder import AnnotatedFolder
from .masks import MaskLabels
from .voc import VocLabels
from .yolo import YoloLabels


def coco(file: str | os.PathLike[str], images: str | os.PathLike[str]) -> Labels:
    """Read COCO instances: polygons, run lengths (extra: labels), crowds and boxes.

    Parameters
    ----------
    file : path
        The JSON file.
    images : path
        The folder to which its file names are relative.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError, FileNotFoundError
        The whole file is invalid, or a path does not exist. Single invalid entries are listed in ``problems``.
    """
    return CocoLabels(file, images)


def yolo(file: str | os.PathLike[str], images: str | os.PathLike[str]) -> Labels:
    """Read an Ultralytics YOLO data set: boxes and polygons. An image without a text file has no objects.

    Parameters
    ----------
    file : path
        ``data.yaml``.
    images : path
        The folder of the images. The text files are looked up where Ultralytics does, then beside `file`.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError, FileNotFoundError
        As for `coco`.
    """
    return YoloLabels(file, images)


def voc(folder: str | os.PathLike[str], images: str | os.PathLike[str]) -> Labels:
    """Read Pascal VOC: boxes.

    Parameters
    ----------
    folder : path
        The folder of the XML files, or one with a folder Annotations that contains them.
    images : path
        The folder of the images.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError, FileNotFoundError
        As for `coco`.
    """
    return VocLabels(folder, images)


def masks(folder: str | os.PathLike[str], images: str | os.PathLike[str]) -> Labels:
    """Read semantic or instance masks: PNG files with a palette, or grey ones of 8 or 16 bits.

    Parameters
    ----------
    folder : path
        The folder with a PNG file for each image, named like the image.
    images : path
        The folder of the images.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError, FileNotFoundError
        As for `coco`.
    """
    return MaskLabels(folder, images)


READERS: dict[str, Callable[[str | os.PathLike[str], str | os.PathLike[str]], Labels]] = {
    "coco": coco, "yolo": yolo, "voc": voc, "masks": masks
}

__all__ = [
    "READERS", "AnnotatedFolder", "Composition", "Frame", "Labels", "Made", "Placed", "Thing", "coco", "masks", "voc",
    "yolo"
]
