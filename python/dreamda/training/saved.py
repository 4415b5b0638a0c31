"""`TrainedModel`, the file of a finished classifier; and files for the arrays of a run.

    model = TrainedModel.load("run/model.safetensors")
    model.predict_proba(images)                                  # uint8 (N, H, W, 3) -> float32 (N, classes)
"""
from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..data.files import write_atomically
from ..text import counted
from .backbone import BACKBONES, LARGEST, SMALLEST, FoldedBackbone
from .batches import Images, ahead
from .heads import LABELLING
from .views import FITS, SMALL, Views

if TYPE_CHECKING:
    from .stages import Network

BATCH_PIXELS = 1 << 24  # total of the images that are predicted together: 64 of up to 512 x 512
FORMAT = 1


@dataclass(repr=False)
class TrainedModel:
    """A finished classifier: f5, its backbone, and everything else that prediction needs.

    Attributes
    ----------
    backbone, stem, width : str, str, int
    size : (int, int)
        Height and width that images are resized to.
    mean, std : tuples of three floats
        Of the channels, for values from 0 to 1.
    classes : list of str or int
    fit : {"crop", "pad", "squash"}
        How images of another aspect ratio are treated; see `dreamda.training.views.Views`.
    weights : dict of str to float32 array
        Named as in torchvision and timm; f5 is ``fc``, so that PyTorch users can load the file into their own ResNet.
    about : dict
        More information about the run, as JSON values.
    """

    backbone: str
    stem: str
    width: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[Any]
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    fit: str = "crop"
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.classes[:5])) + (", ..." if len(self.classes) > 5 else "")
        return (
            f"TrainedModel({self.backbone}, width {self.width}, {self.stem} stem, images of {self.size[0]} x "
            f"{self.size[1]}, {counted(len(self.classes), 'class')}: {shown})")

    def __post_init__(self) -> None:
        self._engine: tuple[Any, FoldedBackbone] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_engine", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def of(cls, network: Network, pretraining: bool = False, **about: Any) -> TrainedModel:
        """The classifier of a `Network` in its current state; `about` gives the other attributes.

        f5 learns nothing in the pretrain stage: while `pretraining`, the mean of the labelling heads takes its place.
        """
        backbone, heads = network.backbone, network.heads
        weights = {name: array.copy() for name, array in (*backbone.parameters.items(), *backbone.buffers.items())}
        for kind in ("weight", "bias"):
            weights[f"fc.{kind}"] = np.mean(
                [heads.parameters[f"{name}.{kind}"] for name in (LABELLING if pretraining else ("f5", ))],
                axis=0,
                dtype=np.float32)
        return cls(weights=weights, **about)

    def predict_proba(self,
                      images: Images,
                      *,
                      dtype: str = "auto",
                      threads: int | None = None,
                      batch: int = 64,
                      workers: int = 2) -> NDArray[np.float32]:
        """Class probabilities, float32 (N, classes), of uint8 images (H, W, 3) of any sizes."""
        found = np.empty((len(images), len(self.classes)), np.float32)
        for part, features in self._evaluate(images, dtype, threads, batch, workers):
            found[part] = _core.softmax(_core.linear(features, self.weights["fc.weight"], self.weights["fc.bias"]))
        return found

    def features(self,
                 images: Images,
                 *,
                 dtype: str = "auto",
                 threads: int | None = None,
                 batch: int = 64,
                 workers: int = 2) -> NDArray[np.float32]:
        """The features of uint8 images (H, W, 3) of any sizes, float32 (N, features): the input of ``fc``."""
        found = np.empty((len(images), self.weights["fc.weight"].shape[1]), np.float32)
        for part, features in self._evaluate(images, dtype, threads, batch, workers):
            found[part] = features
        return found

    def _evaluate(self, images: Images, dtype: str, threads: int | None, batch: int,
                  workers: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the features of one batch after another, with their rows."""
        batch = max(1, min(batch, BATCH_PIXELS // (self.size[0] * self.size[1])))
        views = Views(self.size, self.mean, self.std, how=self.fit)
        with self._lock:
            if self._engine is None or self._engine[0] != (dtype, threads, batch):
                self._engine = None  # frees the memory of the previous one
                backbone = FoldedBackbone(self.backbone,
                                          self.weights,
                                          size=self.size,
                                          batch=batch,
                                          stem=self.stem,
                                          width=self.width,
                                          dtype=dtype,
                                          threads=threads)
                self._engine = (dtype, threads, batch), backbone
            backbone = self._engine[1]

            def load(number: int) -> NDArray[np.float32]:
                return np.stack(
                    [views.plain(images[i]) for i in range(number * batch, min((number + 1) * batch, len(images)))])

            for number, part in enumerate(ahead(load, 0, -(-len(images) // batch), workers)):
                yield slice(number * batch, number * batch + len(part)), backbone.evaluate(part)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, as a whole or not at all. Its header holds the other attributes as JSON."""
        about = {k: v for k, v in asdict(self).items() if k != "weights"}
        save_arrays(path, self.weights, {"format": FORMAT, "kind": "model", **about})

    @property
    def words(self) -> dict[str, str]:
        """Names of classes to show to people, if the data set's ``classes.json`` has any."""
        words = self.about.get("words")
        return {k: v for k, v in words.items() if isinstance(v, str)} if isinstance(words, dict) else {}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainedModel:
        """Read a file of `save`.

        Raises
        ------
        FileNotFoundError
        ValueError
            It is not such a file, or one of its tensors holds NaN or infinite values.
        """
        weights, about = load_arrays(path, "model")
        known: dict[str, Any] = {"fit": "crop"} | {k: about.get(k) for k in cls.__dataclass_fields__
                                                   if k != "weights" and (k != "fit" or k in about)}
        problem = _misfit(**known)
        head = [weights.get(name, np.empty(0)).shape for name in ("fc.weight", "fc.bias")]
        if problem is None and not (len(head[0]) == 2 and head[1] == head[0][:1] == (len(known["classes"]),)):
            problem = "its head and its classes contradict each other"
        if problem is not None:
            raise ValueError(f"{path} is no model of dreamda train: {problem}")
        if "fit" not in about and max(known["size"]) <= SMALL:
            known["fit"] = "squash"  # earlier versions did this with small images, and did not record it
        for name, array in weights.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(
                    f"{path}: tensor {name[:200]!r} is not float32, or holds NaN or infinite "
                    "values; fetch the file again")
        return cls(weights=weights, **known | {k: tuple(known[k]) for k in ("size", "mean", "std")})


def _misfit(backbone: Any, stem: Any, width: Any, size: Any, mean: Any, std: Any, classes: Any, fit: Any,
            about: Any) -> str | None:
    """The first problem of a model's attributes from a file; None if there is none."""
    def numbers(values: Any, count: int, low: float, kind: Any = (int, float)) -> bool:
        return (isinstance(values, list) and len(values) == count and not any(isinstance(v, bool) for v in values)
                and all(isinstance(v, kind) and low <= v <= LARGEST for v in values))

    smallest = SMALLEST.get(stem, 0) if isinstance(stem, str) else 0
    good = {
        "backbone": backbone in BACKBONES,
        "stem": isinstance(stem, str) and stem in SMALLEST,
        "width": numbers([width], 1, 1, int),
        "size": numbers(size, 2, smallest, int),
        "mean": numbers(mean, 3, -LARGEST),
        "std": numbers(std, 3, 1e-9),
        "about": isinstance(about, dict),
        "fit": isinstance(fit, str) and fit in FITS,
        "classes": isinstance(classes, list) and len({type(c) for c in classes}) == 1
                   and isinstance(classes[0], (str, int, float)),
    }
    wrong = [name for name, fine in good.items() if not fine]
    return f"its {wrong[0]!r} is missing or not possible" if wrong else None


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write a safetensors file with `about` as JSON in its header, as a whole or not at all, and sync it to disk."""
    from safetensors.numpy import save

    content = save({k: np.ascontiguousarray(v)
                    for k, v in arrays.items()}, {"dreamda": json.dumps(about, ensure_ascii=False, sort_keys=True)})
    write_atomically(path, content)


def load_arrays(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file of `save_arrays`; ValueError unless it is such a file, of that kind."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("dreamda", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None
    if not isinstance(about, dict) or about.get("kind") != kind:
        raise ValueError(f"{path} was not written by dreamda train as a {kind}")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {str(about.get('format'))[:100]}; this version of dreamda reads format {FORMAT}")
    return arrays, about
