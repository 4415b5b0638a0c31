"""LoRA files: low-rank changes of a model's weights, added while the weights are read.

The change scale * (alpha / rank) * up @ down is added to a layer's weight; without an alpha, the fraction is 1. Files
from peft, from all versions of diffusers and from kohya's scripts are supported. Keys are matched with the names of the
model's parameters, so the separators and prefixes that a file uses do not matter.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..data.files import digest_of_file
from ..options import ParameterError
from ..text import counted
from .config import read_json, shown
from .weights import CONVERT_TENSORS, WeightFile, listed

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
_CALLED = {UNET: "U-Net", TEXT_ENCODER: "text encoder", TEXT_ENCODER_2: "second text encoder"}
_ARCHITECTURE = "it was made for another architecture; give a LoRA made for this kind of model"
# The file names that libraries use in a folder.
_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.[\w-]+)?\.weight", re.DOTALL)
_DOWN = ("A", "down")
# Prefixes of keys, with "_" for ".", and the network that each names; one that begins like another comes first.
_PREFIXES = {
    "base_model_model_": None,
    "lora_unet_": UNET,
    "unet_": UNET,
    "lora_te_": TEXT_ENCODER,
    "lora_te1_": TEXT_ENCODER,
    "lora_te2_": TEXT_ENCODER_2,
    "text_encoder_2_": TEXT_ENCODER_2,
    "text_encoder_": TEXT_ENCODER,
}
# The layers of the U-Net in Stability's code, whose names kohya's scripts use for SDXL, by those of diffusers.
_STABILITY_LAYERS = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
                     "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
                     "add_embedding.linear_2": "label_emb.0.2"}
_STABILITY_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
                     "conv_shortcut": "skip_connection"}
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?"
                    r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
# Methods with similar files, by the marks in their keys.
_OTHER_METHODS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a third factor (lora_mid)",
    "oft_": "OFT",
    "boft_": "BOFT",
    "lora_embedding_": "LoRA of embeddings",
    "lora_B.bias": "LoRA with biases",
    "lora_up.bias": "LoRA with biases",
}
# The names of layers in diffusers' first LoRA files.
_FIRST_NAMES = ((r"_processor_to_", "_to_"), (r"_self_attn_to_([qkv])$", r"_self_attn_\1_proj"),
                (r"_self_attn_to_out$", "_self_attn_out_proj"), (r"_to_out$", "_to_out_0"))


@dataclass(frozen=True)
class _Layer:
    """The factors of one layer, by their names in the file, and the scale of their product."""

    down: str
    up: str
    factor: float
    part: str | None  # which network the key names, if any


class Lora:
    """A LoRA file and its scale.

    Parameters
    ----------
    path : path
        A safetensors file, or a folder in which peft or diffusers saved one.
    scale : float

    Attributes
    ----------
    matched : dict
        (network, parameter) -> key of the layer in the file, filled by `match`.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is missing or damaged, is not a LoRA, or uses an unsupported method.
    """

    def __init__(self, path: str | os.PathLike[str], scale: float = 1.0) -> None:
        if not _is_number(scale):
            raise ParameterError("loras", f"{shown(scale)} is no scale for {path}; use a number such as 0.8")
        self.path, self.scale = _file(Path(os.path.abspath(path))), float(scale)
        self._weights = WeightFile(self.path, convert=CONVERT_TENSORS, numbers=(".alpha",))
        self._layers = self._read_layers()
        self._parts: set[str] = set()
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self.matched: dict[tuple[str, str], str] = {}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex; if peft's configuration is beside it, of both digests."""
        digest, config = digest_of_file(self.path), _peft_config(self.path)
        if config is None:
            return digest
        return hashlib.sha256(bytes.fromhex(digest) + bytes.fromhex(digest_of_file(config))).hexdigest()

    @property
    def unmatched(self) -> list[str]:
        """Keys of the layers that are meant for the networks seen so far but were found in none of them."""
        found = set(self.matched.values())
        return [key for key, layer in self._layers.items()
                if key not in found and (layer.part is None or layer.part in self._parts)]

    def describe(self) -> str:
        """One line that says how many weights it changes."""
        return f"LoRA {self.path} at scale {self.scale:g}: {counted(len(self.matched), 'weight')} changed"

    def warnings(self) -> list[str]:
        """Warnings about layers that have no effect."""
        if not (unmatched := self.unmatched):
            return []
        return [f"LoRA {self.path}: {len(unmatched)} of its {len(unmatched) + len(self.matched)} layers are not in "
                f"this model and have no effect: {listed(unmatched)}"]

    def match(self, part: str, parameters: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Find its layers among the parameters of a network.

        Parameters
        ----------
        part : {"unet", "text_encoder", "text_encoder_2"}
        parameters : iterable of (name, shape)

        Raises
        ------
        ValueError
            The shape of a layer does not fit the model's, or a layer has non-finite values.
        """
        self._parts.add(part)
        names: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, shape in parameters:
            if name.endswith(".weight") and len(shape) > 1:
                flat = name.removesuffix(".weight").replace(".", "_")
                names[flat] = names[flat.removeprefix("text_model_")] = name, shape
        if part == UNET:
            layers = [name.removesuffix(".weight") for name, _ in names.values()]
            names = {_flat(theirs): names[_flat(own)] for own, theirs in _stability_names(layers).items()} | names
        elsewhere = set(self.matched.values())
        for key, layer in self._layers.items():
            found = next((names[flat] for flat in _spellings(key) if flat in names), None)
            if found is None or layer.part not in (None, part) or key in elsewhere:
                continue
            name, shape = found
            place = part, name
            if place in self.matched:
                raise ValueError(f"{self.path}: its layers '{self.matched[place]}' and '{key}' are the same layer of "
                                 "the model; it is damaged")
            self._check_layer(key, layer, name, shape)
            self.matched[place], self._shapes[place] = key, shape

    def check(self) -> None:
        """Check that its layers were found in the networks that it was matched with.

        Raises ValueError if none was found, and warns of single layers that were not.
        """
        if {UNET, TEXT_ENCODER} <= self._parts and TEXT_ENCODER_2 not in self._parts:
            second = next((key for key, layer in self._layers.items() if layer.part == TEXT_ENCODER_2), None)
            if second is not None:
                raise ValueError(f"{self.path}: its layer '{second[:200]}' is for a second text encoder, as of SDXL: "
                                 + _ARCHITECTURE)
        for part in (*sorted(self._parts), None):
            keys = [key for key, layer in self._layers.items() if layer.part == part]
            if keys and not set(keys) & set(self.matched.values()):
                raise ValueError(f"{self.path}: none of its {len(keys)} layers"
                                 f"{f' for the {_CALLED[part]}' if part else ''} is in this model (the first is "
                                 f"'{keys[0][:200]}'): {_ARCHITECTURE}")
        if not self.matched:
            missing = " or ".join(_CALLED[part] for part in sorted(self._parts))
            raise ValueError(f"{self.path}: it has no layers for the {missing}, only others (the first is "
                             f"'{next(iter(self._layers))[:200]}')")
        for text in self.warnings():
            warnings.warn(text)

    def change(self, part: str, parameter: str) -> np.ndarray:
        """The change that is added to a matched parameter of a network: float32, in its shape."""
        layer = self._layers[self.matched[part, parameter]]
        down, up = (self._weights.read_float32(name) for name in (layer.down, layer.up))
        down, up = down.reshape(len(down), -1), up.reshape(len(up), -1)
        product = _core.linear(up, np.ascontiguousarray(down.T), np.zeros(down.shape[1], np.float32))
        return (product * np.float32(self.scale * layer.factor)).reshape(self._shapes[part, parameter])

    # ---- reading the file

    def _read_layers(self) -> dict[str, _Layer]:
        halves: dict[str, dict[bool, str]] = {}
        names = self._weights.names()
        for name in names:
            if method := next((m for mark, m in _OTHER_METHODS.items() if re.search(rf"[._]{re.escape(mark)}", name)),
                              None):
                raise ValueError(f"{self.path}: a file of {method} (it has '{name[:200]}'), which is not supported; "
                                 "use an ordinary LoRA, or merge it into the model with the program that made it")
            if found := _FACTOR.fullmatch(name):
                if halves.setdefault(found[1], {}).setdefault(found[2] in _DOWN, name) != name:
                    raise ValueError(f"{self.path}: its layer '{found[1][:200]}' is there twice")
        if not halves:
            raise ValueError(f"{self.path}: no LoRA: it has no names that end in lora_A.weight or lora_down.weight"
                             + (f" (the first is '{names[0][:200]}')" if names else ""))
        alphas = self._recorded_alphas()
        layers, there = {}, set(names)
        for key, both in halves.items():
            if len(both) == 1:
                raise ValueError(f"{self.path}: of its layer '{key[:200]}' one factor is missing; fetch it again")
            down, up = both[True], both[False]
            rank = self._weights.shape(down)[0] if self._weights.shape(down) else 0
            if not rank:
                raise ValueError(f"{self.path}: its layer '{key[:200]}' has no rank; it is damaged")
            alpha = f"{key}.alpha"
            factor = self._number(alpha) / rank if alpha in there else alphas.factor(key, rank)
            layers[key] = _Layer(down, up, factor, _part(key))
        return layers

    def _number(self, name: str) -> float:
        if math.prod(self._weights.shape(name)) != 1:
            raise ValueError(f"{self.path}: '{name[:200]}' has to be one number, its shape is "
                             f"{self._weights.shape(name)}")
        value = float(self._weights.read_float32(name).reshape(()))
        if not _is_number(value):
            raise ValueError(f"{self.path}: '{name[:200]}' is {value}; fetch it again")
        return value

    def _recorded_alphas(self) -> "_Alphas":
        """The alphas that newer files store outside of tensors."""
        from safetensors import safe_open

        config = _peft_config(self.path)
        if config is not None:
            return _Alphas(config, {None: read_json(config)})
        with safe_open(str(self.path), framework="numpy") as file:
            text = (file.metadata() or {}).get("lora_adapter_metadata")
        if text is None:
            return _Alphas(self.path, {})
        try:
            about = json.loads(text)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise ValueError(f"{self.path}: its metadata 'lora_adapter_metadata' is no JSON object; fetch it again")
        parts: dict[str | None, dict[str, Any]] = {}
        for name, value in about.items():
            part, _, field = name.partition(".")
            parts.setdefault(part, {})[field] = value
        return _Alphas(self.path, parts)

    def _check_layer(self, key: str, layer: _Layer, name: str, wanted: tuple[int, ...]) -> None:
        down, up = self._weights.shape(layer.down), self._weights.shape(layer.up)
        if (len(up) < 2 or up[:2] != (wanted[0], down[0]) or math.prod(up[2:]) != 1
                or _without_ones(down[1:]) != _without_ones(wanted[1:])):
            raise ValueError(f"{self.path}: its layer '{key[:200]}' of the shapes {up} and {down} does not fit the "
                             f"model's {name} {wanted}: {_ARCHITECTURE}")
        for half in (layer.down, layer.up):
            if not np.isfinite(self._weights.read_float32(half)).all():
                raise ValueError(f"{self.path}: '{half[:200]}' has values that are not finite; fetch it again")


class _Alphas:
    """The alphas in peft's configuration of a LoRA, by network; `None` stands for all networks."""

    def __init__(self, path: Path, configs: dict[str | None, dict[str, Any]]) -> None:
        self._path, self._configs = path, configs
        for about in configs.values():
            kind = about.get("peft_type") or "LORA"
            if kind != "LORA" or about.get("use_dora"):
                raise ValueError(f"{path}: made by {'DoRA' if kind == 'LORA' else shown(kind)}, which is not "
                                 "supported; use an ordinary LoRA")

    def factor(self, key: str, rank: int) -> float:
        """The scale of the product of a layer's factors."""
        about = self._configs.get(None) or self._configs.get(_part(key)) or {}
        alpha = about.get("lora_alpha", rank)
        patterns = about.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{self._path}: 'alpha_pattern' has to map layers to numbers, got {shown(patterns)}")
        for pattern, value in patterns.items():
            if re.fullmatch(r"\^?[\w.]+", pattern) is None:
                raise ValueError(f"{self._path}: 'alpha_pattern' has {shown(pattern)}, but only names of layers are "
                                 "supported")
            if f".{key}".endswith("." + pattern.removeprefix("^")):
                alpha = value
                break
        if not _is_number(alpha):
            raise ValueError(f"{self._path}: 'lora_alpha' has to be a number, got {shown(alpha)}")
        return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)


# Callers pass a file and its scale, or a `Lora`, which is used as it is.
LoraLike = tuple[str | os.PathLike[str], float] | Lora


@contextlib.contextmanager
def opened(loras: Sequence[LoraLike]) -> Iterator[list[Lora]]:
    """Open the LoRA files that a caller passes, to create networks with them.

    On exit, `Lora.check` is called for those that were opened here.

    Raises
    ------
    ParameterError
        Something other than pairs of a file and a number is given.
    """
    every: list[Lora] = []
    own: list[Lora] = []
    for given in loras:
        if not isinstance(given, Lora):
            if not isinstance(given, (tuple, list)) or len(given) != 2:
                raise ParameterError("loras", f"expected pairs (file, scale), got {shown(given)}")
            given = Lora(given[0], given[1])
            own.append(given)
        every.append(given)
    yield every
    for lora in own:
        lora.check()


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path}: neither {' nor '.join(_FILES)} is in it; name the LoRA's file itself")
    return found


def _peft_config(path: Path) -> Path | None:
    """peft's configuration beside a file that it saved."""
    config = path.with_name("adapter_config.json")
    return config if path.name == _FILES[1] and config.is_file() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(-1e30 < value < 1e30)


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _part(key: str) -> str | None:
    """The network that a key names."""
    flat = _flat(key).removeprefix("base_model_model_")
    return next((part for prefix, part in _PREFIXES.items() if flat.startswith(prefix)), None)


def _stability_names(layers: Sequence[str]) -> dict[str, str]:
    """The names of a U-Net's layers in Stability's code, by those of diffusers.

    There, all ResNet blocks are numbered on the way down, where a downsampling counts too, and on the way up.
    """
    found = [(name, match.groups()) for name in layers if (match := _BLOCK.fullmatch(name))]
    sizes: dict[tuple[str, int], int] = {}  # ResNet blocks of each block
    attends = {(kind, block) for _, (kind, block, part, _, _) in found if part == "attentions"}
    for _, (kind, block, part, number, _) in found:
        if part == "resnets":
            place = kind, int(block or 0)
            sizes[place] = max(sizes.get(place, 0), int(number) + 1)

    def first(kind: str, block: int) -> int:
        before = [size for (each, index), size in sizes.items() if each == kind and index < block]
        return sum(before) + (1 + len(before) if kind == "down_blocks" else 0)

    names = {own: theirs for own, theirs in _STABILITY_LAYERS.items() if own in layers}
    for name, (kind, block, part, number, rest) in found:
        index, own = int(number), int(block or 0)
        if part == "resnets":
            rest = _STABILITY_RESNET.get(rest, rest)
        if kind == "mid_block":
            names[name] = f"middle_block.{1 if part == 'attentions' else 2 * index}.{rest}"
        elif part == "downsamplers":
            names[name] = f"input_blocks.{first(kind, own) + sizes[kind, own]}.0.op"
        elif part == "upsamplers":
            names[name] = (f"output_blocks.{first(kind, own) + sizes[kind, own] - 1}."
                           f"{2 if (kind, block) in attends else 1}.{rest}")
        else:
            side = "input_blocks" if kind == "down_blocks" else "output_blocks"
            names[name] = f"{side}.{first(kind, own) + index}.{int(part == 'attentions')}.{rest}"
    return names


def _spellings(key: str) -> list[str]:
    """The names that the layer of a key may have in the model, with "_" for "."."""
    flat = _flat(key)
    for prefix in _PREFIXES:
        flat = flat.removeprefix(prefix)
    old = flat
    for pattern, name in _FIRST_NAMES:
        old = re.sub(pattern, name, old)
    return [flat, old]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with 1 x 1 kernels dropped: a pointwise convolution is a matrix."""
    return shape[:1] if set(shape[1:]) <= {1} else shape
