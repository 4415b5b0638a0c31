"""Backbones made ready for training, and the file that holds a finished classifier.

    backbone = create_backbone("resnet18", size=(32, 32), batch=64, dtype="auto", threads=2, slots=2)
    load_pretrained(backbone, "resnet18.safetensors")
    model = TrainedModel.load("run/model.safetensors")
    model.predict_proba(images)                                  # uint8 (N, H, W, 3) -> float32 (N, classes)
"""
from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .amst import Backbone, Images, Network
from .views import SMALL, Views, ahead
from .weights import WeightFile

BACKBONES = ("resnet18", "resnet34", "resnet50")
STEMS = ("auto", "imagenet", "small")
SMALLEST = {"imagenet": 32, "small": 8}  # pixels: below that the last stage has nothing left to see
FORMAT = 1
_OTHER_HEADS = ("fc.", "head.", "classifier.")

Arrays = Mapping[str, NDArray[np.float32]]


def choose_stem(stem: str, size: tuple[int, int]) -> str:
    """"small" (3 x 3, stride 1, no pooling) for images up to 64 pixels, "imagenet" for larger ones, unless the caller chose.

    Raises
    ------
    ValueError
        An unknown stem, or images too small for it.
    """
    if stem not in STEMS:
        raise ValueError(f"--stem must be auto, imagenet or small; it is {stem!r}")
    if stem == "auto":
        stem = "small" if max(size) <= SMALL else "imagenet"
    if min(size) < SMALLEST[stem]:
        raise ValueError(f"images of {size[0]} x {size[1]} pixels are too small for the {stem} stem, which needs {SMALLEST[stem]}; "
                         + ("use --stem small or a larger --size" if stem == "imagenet" else "give a larger --size"))
    return stem


def create_backbone(name: str, *, size: tuple[int, int], batch: int, stem: str = "auto", width: int = 64, dtype: str = "auto",
                    threads: int | None = None, slots: int = 2) -> Backbone:
    """A backbone in the C core, not yet initialised.

    Parameters
    ----------
    name : {"resnet18", "resnet34", "resnet50"}
    size : (height, width)
        Of the images.
    batch : int
    stem : {"auto", "imagenet", "small"}
        See `choose_stem`.
    width : int
        Channels of the first stage, 64 as published.
    dtype : {"auto", "f32", "bf16"}
        bf16 is mixed precision: parameters, statistics and losses stay float32.
    threads : int, optional
        Default: all cores.
    slots : int
        Forward passes that may be under way before their backward pass.
    """
    from .models import resolve_dtype, resolve_threads

    if name not in BACKBONES:
        raise ValueError(f"--backbone must be {', '.join(BACKBONES[:-1])} or {BACKBONES[-1]}; it is {name!r}")
    config = {"backbone": name, "stem": choose_stem(stem, size), "in_channels": 3, "width": width}
    return _core.Trainer(config, batch=batch, height=size[0], width=size[1], dtype=resolve_dtype(dtype), threads=resolve_threads(threads),
                         slots=slots)


def load_pretrained(backbone: Backbone, path: str | os.PathLike[str]) -> None:
    """Take over the weights of a timm or torchvision safetensors file; its class head is left out.

    Raises
    ------
    ValueError
        The file is of another architecture: every tensor that differs is named. Or it holds no safetensors.
    FileNotFoundError
    """
    file = WeightFile(path)
    wanted = {**backbone.parameters, **backbone.buffers}
    there = {name for name in file.names() if not name.startswith(_OTHER_HEADS) and not name.endswith("num_batches_tracked")}
    problems = {
        "missing": [n for n in wanted if n not in there], "unexpected": sorted(there - wanted.keys()),
        "other shapes": [f"{n} {file.shape(n)} instead of {wanted[n].shape}" for n in wanted if n in there and file.shape(n) != wanted[n].shape]}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_shortened(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"--pretrained {path} is of another architecture than this backbone and stem ({found})")
    for name, array in wanted.items():
        values = file.read(name)
        if values.dtype == np.uint16:  # bfloat16: the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        array[...] = values


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


@dataclass
class TrainedModel:
    """A finished classifier: f5 on its backbone, with everything that prediction needs.

    Attributes
    ----------
    backbone, stem, width : str, str, int
    size : (int, int)
        Height and width that images are resized to.
    mean, std : tuples of three floats
        Of the channels, in units of 0 to 1.
    classes : list of str or int
    weights : dict of str to float32 array
        Named as in torchvision and timm; f5 is ``fc``, so that PyTorch users can load the file into their own ResNet.
    about : dict
        Whatever else is worth knowing of the run, as JSON values.
    """

    backbone: str
    stem: str
    width: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[Any]
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._engine: tuple[Any, Backbone] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_engine", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def of(cls, network: Network, **about: Any) -> TrainedModel:
        """The classifier that a `Network` is now; the other attributes are given."""
        backbone, heads = network.backbone, network.heads
        weights = {name: array.copy() for name, array in (*backbone.parameters.items(), *backbone.buffers.items())}
        weights["fc.weight"], weights["fc.bias"] = heads.parameters["f5.weight"].copy(), heads.parameters["f5.bias"].copy()
        return cls(weights=weights, **about)

    def predict_proba(self, images: Images, *, dtype: str = "auto", threads: int | None = None, batch: int = 64, workers: int = 2
                      ) -> NDArray[np.float32]:
        """Class probabilities, float32 (N, classes), of uint8 images (H, W, 3) of any sizes."""
        found = np.empty((len(images), len(self.classes)), np.float32)
        for part, features in self._evaluate(images, dtype, threads, batch, workers):
            found[part] = _core.softmax(_core.linear(features, self.weights["fc.weight"], self.weights["fc.bias"]))
        return found

    def features(self, images: Images, *, dtype: str = "auto", threads: int | None = None, batch: int = 64, workers: int = 2) -> NDArray[np.float32]:
        """What the backbone makes of uint8 images (H, W, 3) of any sizes, float32 (N, features): the input of ``fc``."""
        found = np.empty((len(images), self.weights["fc.weight"].shape[1]), np.float32)
        for part, features in self._evaluate(images, dtype, threads, batch, workers):
            found[part] = features
        return found

    def _evaluate(self, images: Images, dtype: str, threads: int | None, batch: int, workers: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The features of one batch after another, with the rows that they are of."""
        views = Views(self.size, self.mean, self.std)
        with self._lock:
            if self._engine is None or self._engine[0] != (dtype, threads, batch):
                backbone = create_backbone(self.backbone, size=self.size, batch=batch, stem=self.stem, width=self.width, dtype=dtype,
                                           threads=threads, slots=1)
                for name, array in (*backbone.parameters.items(), *backbone.buffers.items()):
                    array[...] = self.weights[name]
                self._engine = (dtype, threads, batch), backbone
            backbone = self._engine[1]

            def load(number: int) -> NDArray[np.float32]:
                return np.stack([views.plain(images[i]) for i in range(number * batch, min((number + 1) * batch, len(images)))])

            for number, part in enumerate(ahead(load, 0, -(-len(images) // batch), workers)):
                yield slice(number * batch, number * batch + len(part)), backbone.evaluate(part)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whose header also holds the other attributes as JSON; all or nothing."""
        about = {k: v for k, v in asdict(self).items() if k != "weights"}
        save_arrays(path, self.weights, {"format": FORMAT, "kind": "model", **about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainedModel:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
        ValueError
            It is not such a file.
        """
        weights, about = load_arrays(path, "model")
        try:
            model = cls(weights=weights, **{**{k: v for k, v in about.items() if k not in ("format", "kind")},
                                            "size": tuple(about["size"]), "mean": tuple(about["mean"]), "std": tuple(about["std"])})
            complete = weights["fc.weight"].shape[0] == len(weights["fc.bias"]) == len(model.classes) and model.backbone in BACKBONES
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no model of dreamda train ({error})") from None
        if not complete:
            raise ValueError(f"{path} is no model of dreamda train: its head, its classes and its backbone contradict each other")
        return model


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """A safetensors file with `about` as JSON in its header, all or nothing, and on disk when this returns."""
    from safetensors.numpy import save

    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"dreamda": json.dumps(about, ensure_ascii=False, sort_keys=True)})
    write_atomically(path, content)


def load_arrays(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What `save_arrays` wrote; ValueError unless it is such a file of that kind."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("dreamda", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None
    if not isinstance(about, dict) or about.get("kind") != kind:
        raise ValueError(f"{path} was not written by dreamda train as a {kind}")
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has format {about.get('format')}; this version of dreamda reads format {FORMAT}")
    return arrays, about


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Make the file hold `content`, all or nothing: a temporary file beside it, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
