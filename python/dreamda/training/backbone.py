"""Backbones: ResNets of the C core, ready for training.

    backbone = create_backbone("resnet18", size=(32, 32), batch=64, dtype="auto", threads=2, slots=2)
    initialise(backbone, seed=0)
    load_pretrained(backbone, "resnet18.safetensors")
    folded = FoldedBackbone("resnet18", weights, size=(32, 32), batch=64)   # inference only, in little memory
"""
from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..networks.weights import CONVERT_TENSORS, WeightFile, listed
from ..options import ParameterError
from .views import SMALL

BACKBONES = ("resnet18", "resnet34", "resnet50")
STEMS = ("auto", "imagenet", "small")
SMALLEST = {"imagenet": 32, "small": 8}  # pixels; smaller images vanish before the last stage
LARGEST = 2048  # pixels; a batch of larger images would need tens of GiB
STREAM = 17  # stream of the keyed normals for the initial weights of backbones
# blocks, bottlenecks
ARCHITECTURES = {((2, 2, 2, 2), False): "resnet18", ((3, 4, 6, 3), False): "resnet34", ((3, 4, 6, 3), True): "resnet50"}
_OTHER_HEADS = ("fc.", "head.", "classifier.")

Floats = NDArray[np.float32]
Arrays = Mapping[str, Floats]


class Backbone(Protocol):
    """The part of the interface of ``dreamda._core.Trainer`` that `Training` uses."""

    @property
    def features(self) -> int: ...
    @property
    def parameters(self) -> Mapping[str, Floats]: ...
    @property
    def gradients(self) -> Mapping[str, Floats]: ...
    @property
    def moments(self) -> Mapping[str, Floats]: ...
    @property
    def buffers(self) -> Mapping[str, Floats]: ...

    def forward(self, images: Floats, slot: int = 0) -> Floats: ...
    def backward(self, d_features: Floats, slot: int = 0) -> None: ...
    def zero_grad(self) -> None: ...
    def gradient_norm(self) -> float: ...

    def step(self,
             lr: float,
             momentum: float,
             weight_decay: float,
             nesterov: bool = True,
             clip_norm: float = 0.0) -> None:
        ...
    def evaluate(self, images: Floats) -> Floats: ...


def choose_stem(stem: str, size: tuple[int, int]) -> str:
    """The stem to use; for "auto", the one that suits the size of the images.

    That is "small" (3 x 3, stride 1, no pooling) up to 64 pixels, and "imagenet" for larger images.

    Raises
    ------
    ValueError
        The stem is unknown, or the images are too small for it or too large to train on.
    """
    if stem not in STEMS:
        raise ParameterError("stem", f"{stem!r} is not possible; use auto, imagenet or small")
    if stem == "auto":
        stem = "small" if max(size) <= SMALL else "imagenet"
    if max(size) > LARGEST:
        raise ParameterError(
            "image_size",
            f"images of {size[0]} x {size[1]} pixels are too large to train on; give a size up to {LARGEST}")
    if min(size) < SMALLEST[stem]:
        raise ParameterError(
            "image_size",
            f"images of {size[0]} x {size[1]} pixels are too small for the {stem} stem, which needs {SMALLEST[stem]}; "
            + ("use `stem=small` or a larger size" if stem == "imagenet" else "give a larger size"))
    return stem


def create_backbone(name: str,
                    *,
                    size: tuple[int, int],
                    batch: int,
                    stem: str = "auto",
                    width: int = 64,
                    dtype: str = "auto",
                    threads: int | None = None,
                    slots: int = 2) -> Backbone:
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
        Default: the number that `dreamda.networks.threads.thread_limits` leave.
    slots : int
        Number of forward passes that may wait for their backward pass at the same time.
    """
    from ..networks.models import resolve_dtype
    from ..networks.threads import resolve_threads

    return _core.Trainer(_config(name, stem, size, width),
                         batch=batch,
                         height=size[0],
                         width=size[1],
                         dtype=resolve_dtype(dtype),
                         threads=resolve_threads(threads),
                         slots=slots)


def _config(name: str, stem: str, size: tuple[int, int], width: int) -> dict[str, str | int]:
    if name not in BACKBONES:
        raise ParameterError("backbone",
                             f"{name!r} is not possible; use {', '.join(BACKBONES[:-1])} or {BACKBONES[-1]}")
    return {"backbone": name, "stem": choose_stem(stem, size), "in_channels": 3, "width": width}


class FoldedBackbone:
    """A backbone for inference, without gradients or momentum: each batch norm is folded into its convolution.

    Its features are those of ``Backbone.evaluate``.

    Parameters
    ----------
    name : {"resnet18", "resnet34", "resnet50"}
    weights : dict of str to float32 array
        Parameters and running statistics, named as in torchvision; others are ignored. They are packed; the arrays
        themselves are not kept.
    size, batch, stem, width, dtype, threads
        As for `create_backbone`.

    Raises
    ------
    ValueError
        A tensor is missing or has the wrong shape. This is checked before memory is allocated.
    """

    def __init__(self,
                 name: str,
                 weights: Arrays,
                 *,
                 size: tuple[int, int],
                 batch: int,
                 stem: str = "auto",
                 width: int = 64,
                 dtype: str = "auto",
                 threads: int | None = None) -> None:
        from ..networks.models import resolve_dtype, resolve_threads

        model = _core.Model("resnet", _config(name, stem, size, width))
        for tensor, shape in model.parameters():
            found = weights[tensor].shape if tensor in weights else None
            if found != shape:
                raise ValueError(
                    f"the model's {tensor} is {'missing' if found is None else f'of shape {found}'}; a {name} of "
                    f"width {width} and this stem needs {shape}")
        self._plan = model.plan(rows=batch,
                                height=size[0],
                                width=size[1],
                                dtype=resolve_dtype(dtype),
                                threads=resolve_threads(threads))
        for tensor in self._plan.missing():
            self._plan.load(tensor, weights[tensor])
        self.batch = batch

    def evaluate(self, images: Floats) -> Floats:
        """Features, float32 (N, features), of 1 to `batch` normalised images, float32 (N, 3, height, width)."""
        rows = len(images)
        if rows < self.batch:
            images = np.concatenate([images, np.zeros((self.batch - rows, *images.shape[1:]), np.float32)])
        return self._plan.run({"images": images})["features"][:rows]


def initialise(backbone: Backbone, seed: int) -> None:
    """Set the initial weights as torchvision does: convolutions He-normal (fan out), norms 1 and 0.

    Equal seeds give bitwise identical weights.
    """
    for name, parameter in backbone.parameters.items():
        if parameter.ndim > 1:
            fan_out = parameter.shape[0] * math.prod(parameter.shape[2:])
            parameter[...] = np.float32(math.sqrt(2 / fan_out)) * _core.normals(seed, zlib.crc32(name.encode()), 0, 0,
                                                                                STREAM, 0, parameter.shape)
        else:
            parameter[...] = 1 if name.endswith("weight") else 0
    for name, buffer in backbone.buffers.items():
        buffer[...] = 1 if name.endswith("running_var") else 0
    for moment in backbone.moments.values():
        moment[...] = 0


def load_pretrained(backbone: Backbone, path: str | os.PathLike[str]) -> None:
    """Load the weights of a timm or torchvision safetensors file, without its class head.

    Raises
    ------
    ParameterError
        The file is of another architecture (the message names the option that fits it, or tensors that differ), is not
        a safetensors file, or holds NaN or infinite values.
    FileNotFoundError
    """
    file = WeightFile(path, convert=CONVERT_TENSORS)
    wanted = {**backbone.parameters, **backbone.buffers}
    there = {
        name
        for name in file.names() if not name.startswith(_OTHER_HEADS) and not name.endswith("num_batches_tracked")
    }
    shapes = {name: file.shape(name) for name in there}
    problems = {
        "missing": [n for n in wanted if n not in there], "unexpected":
        sorted(there - wanted.keys()), "other shapes": [
            f"{n} {shapes[n]} instead of {wanted[n].shape}" for n in wanted
            if n in there and shapes[n] != wanted[n].shape
        ]
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise ParameterError(
            "pretrained",
            f"{path} is of another architecture than this backbone and stem{_advice(shapes, wanted)} ({found})")
    for name, array in wanted.items():
        values = file.read_float32(name)
        if not np.isfinite(values).all():
            raise ParameterError(
                "pretrained",
                f"{path}: parameter '{name}' holds NaN or infinite values: the file is damaged, fetch it again")
        array[...] = values


def _advice(shapes: Mapping[str, tuple[int, ...]], wanted: Arrays) -> str:
    """The option that would fit the file, as the end of a clause; empty if it is not a known ResNet."""
    def blocks(names: Iterable[str]) -> tuple[int, ...]:
        return tuple(len({n.split(".")[1] for n in names if n.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4))

    first, own = shapes.get("conv1.weight"), wanted["conv1.weight"].shape
    if first is None or len(first) != 4:
        return ""
    kind = (blocks(shapes), "layer1.0.conv3.weight" in shapes)
    if kind != (blocks(wanted), "layer1.0.conv3.weight" in wanted):
        return f": it is a {ARCHITECTURES[kind]}; use `backbone={ARCHITECTURES[kind]}`" if kind in ARCHITECTURES else ""
    if first[2:] != own[2:]:
        stem = "imagenet" if first[2] == 7 else "small"
        return f": it has the {stem} stem; use `stem={stem}`" if first[2] in (3, 7) else ""
    return f": it has width {first[0]}; use `width={first[0]}`" if first[0] != own[0] else ""
