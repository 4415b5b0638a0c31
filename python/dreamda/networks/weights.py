"""Reads safetensors weights one tensor at a time, so that a model is never in memory twice. Pickles are never opened."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_LISTED = 2000  # SDXL's U-Net has 1680 parameters
MAX_DIMS = 8
_STEMS = ("diffusion_pytorch_model", "model")
# Before diffusers 0.14 the VAE's attention had these names.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_BUFFERS = ("position_ids", "num_batches_tracked")


class WeightFile:
    """The tensors of one safetensors file, or of a folder with one (also sharded, or in a `.fp16` variant).

    Parameters
    ----------
    path : path
        A `.safetensors` file, or a part of a diffusers folder such as `unet/`.
    prefix : str
        What every name should begin with; added where the file leaves it out (newer transformers do for CLIP).

    Attributes
    ----------
    files : list of Path

    Raises
    ------
    FileNotFoundError
        Nothing to load; where there are pickles instead, says how to convert them.
    ValueError
        A damaged or inconsistent file, or a tensor type other than F32, F16 and BF16.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        self.path = Path(path)
        self._tensors: dict[str, tuple[Path, np.dtype, tuple[int, ...], int, int]] = {}
        self.files = _files(self.path)
        for file in self.files:
            for name, entry in _read_header(file).items():
                canonical = _canonical(name, prefix)
                if canonical in self._tensors:
                    raise ValueError(f"{file}: tensor '{name}' is there twice")
                self._tensors[canonical] = (file, *entry)

    def names(self) -> list[str]:
        """Names in the order in which they lie in the files."""
        return sorted(self._tensors, key=lambda n: (self._tensors[n][0], self._tensors[n][3]))

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape as it is stored."""
        return self._tensors[name][2]

    def read(self, name: str) -> np.ndarray:
        """The tensor: float32, float16, or uint16 holding the bits of bfloat16."""
        file, dtype, shape, offset, nbytes = self._tensors[name]
        array = np.fromfile(file, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)
        if array.nbytes != nbytes:
            raise ValueError(f"{file}: tensor '{name}' ends early: the file is truncated, fetch it again")
        return array.reshape(shape)

    def place(self, name: str) -> tuple[Path, str, int]:
        """Where the tensor lies: file, NumPy's name of its type as `read` gives it, first byte."""
        file, dtype, _, offset, _ = self._tensors[name]
        return file, dtype.name, offset

    def check(self, parameters: Iterable[tuple[str, tuple[int, ...]]], ignore: tuple[str, ...] = ()) -> None:
        """Compares with the parameters that a model needs.

        Raises
        ------
        ValueError
            Listing every missing, unexpected and wrong-shaped tensor. Names that begin with one of `ignore` may be extra.
        """
        wanted = dict(parameters)
        missing = [n for n in wanted if n not in self._tensors]
        extra = [n for n in self._tensors if n not in wanted and not n.endswith(_BUFFERS) and not n.startswith(tuple(ignore))]
        wrong = [f"{n} {self.shape(n)} instead of {s}" for n, s in wanted.items() if n in self._tensors and not _fits(self.shape(n), s)]
        problems = [f"{kind}: {listed(names)}" for kind, names in
                    (("missing", missing), ("unexpected", extra), ("wrong shape", wrong)) if names]
        if problems:
            raise ValueError(f"{self.path}: the weights do not fit the configuration. " + "; ".join(problems))


def listed(names: Sequence[str]) -> str:
    """Names out of a file as text: all that a model could have, but not all that a file could hold."""
    shown = [n if len(n) <= 200 else n[:200] + "..." for n in names[:MAX_LISTED]]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return shape == wanted or (shape[:2] == wanted and set(shape[2:]) == {1})


def _canonical(name: str, prefix: str) -> str:
    if "attentions" in name:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
    return name if name.startswith(prefix) else prefix + name


def _files(path: Path) -> list[Path]:
    if path.suffix in _PICKLES:
        raise _pickle_error(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for stem in _STEMS:
        for variant in ("", ".fp16"):
            index = path / f"{stem}.safetensors.index{variant}.json"
            if index.is_file():
                return _shards(index)
            single = path / f"{stem}{variant}.safetensors"
            if single.is_file():
                return [single]
    for file in sorted(path.iterdir()):
        if file.suffix in _PICKLES:
            raise _pickle_error(file)
    raise FileNotFoundError(f"{path}: no .safetensors file in it; expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors")


def _pickle_error(path: Path) -> ValueError:
    return ValueError(
        f"{path}: pickled weights can run code and are never opened; convert them where PyTorch is installed: "
        "load the model with diffusers and call save_pretrained(FOLDER, safe_serialization=True)"
    )


def _shards(index: Path) -> list[Path]:
    from .config import read_json

    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise ValueError(f"{index}: 'weight_map' has to map tensor names to file names")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != index.parent or not os.path.isfile(file):
            raise ValueError(f"{index}: names '{file.name[:200]}', which is not in the same folder")
    return files


def _read_header(file: Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int, int]]:
    """name -> (dtype, shape, offset in the file, bytes). The safetensors library judges the header before we believe it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as checked:
            names = set(checked.keys())
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    tensors: dict[str, tuple[np.dtype, tuple[int, ...], int, int]] = {}
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            if name.endswith(_BUFFERS):
                continue
            raise ValueError(f"{file}: tensor '{name[:200]}' is {entry['dtype']}, but only F32, F16 and BF16 can be loaded")
        if len(entry["shape"]) > MAX_DIMS:
            raise ValueError(f"{file}: tensor '{name[:200]}' has {len(entry['shape'])} dimensions; no model has more than {MAX_DIMS}")
        tensors[name] = (dtype, tuple(entry["shape"]), 8 + length + begin, end - begin)
    return tensors
