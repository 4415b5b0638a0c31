"""Read safetensors weights one tensor at a time, so that a model is never in memory twice.

Pickles are never opened.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# Additional types for single numbers.
_NUMBERS: dict[str, np.dtype] = {"F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "I32": np.dtype("<i4")}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_LISTED = 5
MAX_DIMS = 8
_STEMS = ("diffusion_pytorch_model", "model")
# The names of the VAE's attention layers before diffusers 0.14.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_BUFFERS = ("position_ids", "num_batches_tracked")
# Prefixes that torch.compile and DataParallel add to every name.
_WRAPPERS = ("_orig_mod.", "module.")
_VARIANT = "fp16"
# How to convert pickles to safetensors where PyTorch is installed, by the kind of weights.
CONVERT_DIFFUSERS = "load the model with diffusers and call save_pretrained(FOLDER, safe_serialization=True)"
CONVERT_TRANSFORMERS = ("load the text encoder with transformers' CLIPTextModel and call "
                        "save_pretrained(FOLDER, safe_serialization=True)")
CONVERT_TENSORS = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'FILE.safetensors')"


class WeightFile:
    """The tensors of a safetensors file, or of a folder that contains one (also sharded, or as a `.fp16` variant).

    Parameters
    ----------
    path : path
        A `.safetensors` file, or a part of a diffusers folder such as `unet/`.
    prefix : str
        The prefix of every name; added if the file omits it (newer versions of transformers do so for CLIP).
    unprefixed : tuple of str
        Beginnings of names that never have the prefix.
    convert : str
        How to convert pickles of this kind of model, for the error message if there are only pickles.
    numbers : tuple of str
        Suffixes of the names of single numbers, which may also be F64, I64 and I32.

    Attributes
    ----------
    files : list of Path
        Absolute paths: tensors are read when they are needed, and the working folder may have changed by then.

    Raises
    ------
    FileNotFoundError
        There is nothing to load.
    OSError
        A file cannot be read.
    ValueError
        A file is damaged or inconsistent, there are pickles instead of safetensors, or a tensor has a type other than
        F32, F16 and BF16.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: str = "", unprefixed: tuple[str, ...] = (),
                 convert: str = CONVERT_DIFFUSERS, numbers: tuple[str, ...] = ()) -> None:
        self.path = Path(os.path.abspath(path))
        self._tensors: dict[str, tuple[Path, np.dtype, tuple[int, ...], int, int]] = {}
        self._identities: dict[Path, tuple[int, ...]] = {}
        self.files = _files(self.path, convert)
        for file in self.files:
            self._identities[file], tensors = _read_header(file, numbers)
            for name, entry in tensors.items():
                canonical = _canonical(name, prefix, unprefixed)
                if canonical in self._tensors:
                    raise ValueError(f"{file}: tensor '{name[:200]}' is there twice")
                self._tensors[canonical] = (file, *entry)

    def names(self) -> list[str]:
        """The names, in the order of the tensors in the files."""
        return sorted(self._tensors, key=lambda n: (self._tensors[n][0], self._tensors[n][3]))

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape of a tensor."""
        return self._tensors[name][2]

    def read(self, name: str) -> np.ndarray:
        """Read a tensor: float32, float16, or uint16 with the bits of bfloat16.

        Raises
        ------
        OSError
            The file cannot be opened.
        ValueError
            The file has changed since its header was read.
        """
        file, dtype, shape, offset, nbytes = self._tensors[name]
        self._check_unchanged(file)
        array = np.fromfile(file, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)
        if array.nbytes != nbytes:
            raise ValueError(f"{file}: tensor '{name}' ends early: the file is truncated, fetch it again")
        return array.reshape(shape)

    def read_float32(self, name: str) -> np.ndarray:
        """Read a tensor as a float32 array that the caller owns. Raises the same errors as `read`."""
        array = self.read(name)
        if array.dtype == np.uint16:  # bfloat16: the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)

    def place(self, name: str) -> tuple[Path, str, int]:
        """The location of a tensor: the file, NumPy's name of the type that `read` returns, and the byte offset.

        Raises the same errors as `read`.
        """
        file, dtype, _, offset, _ = self._tensors[name]
        self._check_unchanged(file)
        return file, dtype.name, offset

    def _check_unchanged(self, file: Path) -> None:
        with open(file, "rb") as stream:
            if _identity(stream.fileno()) != self._identities[file]:
                raise ValueError(f"{file}: it has changed since the model was loaded; load the model again")

    def check(self, parameters: Iterable[tuple[str, tuple[int, ...]]], ignore: tuple[str, ...] = ()) -> None:
        """Compare the tensors with the parameters that a model needs.

        Raises
        ------
        ValueError
            There are missing, unexpected or wrong-shaped tensors; the message counts them and names the first of each.
            Extra names are allowed if they begin with one of `ignore`.
        """
        wanted = dict(parameters)
        missing = [n for n in wanted if n not in self._tensors]
        extra = [
            n for n in self._tensors if n not in wanted and not n.endswith(_BUFFERS) and not n.startswith(tuple(ignore))
        ]
        wrong = [
            f"{n} {self.shape(n)} instead of {s}" for n, s in wanted.items()
            if n in self._tensors and not _fits(self.shape(n), s)
        ]
        problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in
                    (("missing", missing), ("unexpected", extra), ("of another shape", wrong)) if names]
        if problems:
            raise ValueError(f"{self.path}: the weights do not fit the configuration. " + "; ".join(problems))


def listed(names: Sequence[str]) -> str:
    """The first names as text, and the number of further ones."""
    shown = [n if len(n) <= 200 else n[:200] + "..." for n in names[:MAX_LISTED]]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return shape == wanted or (shape[:2] == wanted and set(shape[2:]) == {1})


def _canonical(name: str, prefix: str, unprefixed: tuple[str, ...]) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    if "attentions" in name:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
    return name if name.startswith((prefix, *unprefixed)) else prefix + name


def _files(path: Path, convert: str) -> list[Path]:
    """The files to read.

    In a folder, the choice is that of its library: diffusers prefers an index to a single file, transformers a single
    file to an index.
    """
    if path.suffix in _PICKLES:
        raise _pickle_error(path, convert)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for stem in _STEMS:
        for single, indices in (
            (f"{stem}.safetensors", (f"{stem}.safetensors.index.json", )),
                # The index of a variant has had three names.
            (f"{stem}.{_VARIANT}.safetensors",
             (f"{stem}.safetensors.index.{_VARIANT}.json", f"{stem}.safetensors.{_VARIANT}.index.json",
              f"{stem}.{_VARIANT}.safetensors.index.json")),
        ):
            index = next((path / name for name in indices if (path / name).is_file()), None)
            if (path / single).is_file() and (index is None or stem == "model"):
                return [path / single]
            if index is not None:
                return _shards(index)
    there = sorted(path.iterdir())
    others = [file.name for file in there if file.suffix == ".safetensors"]
    if others:
        raise FileNotFoundError(
            f"{path}: its .safetensors files ({listed(others)}) have other names than {_STEMS[0]}.safetensors or "
            f"{_STEMS[1]}.safetensors, and no index names them; rename the one to load, or fetch the folder again")
    for file in there:
        if file.suffix in _PICKLES:
            raise _pickle_error(file, convert)
    raise FileNotFoundError(
        f"{path}: no .safetensors file in it; expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors")


def _pickle_error(path: Path, convert: str) -> ValueError:
    return ValueError(
        f"{path}: pickled weights can run code and are never opened; convert them where PyTorch is installed: {convert}"
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


def _identity(descriptor: int) -> tuple[int, ...]:
    """Properties that change when a file is replaced or written to."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_header(
    file: Path,
    numbers: tuple[str, ...] = ()
) -> tuple[tuple[int, ...], dict[str, tuple[np.dtype, tuple[int, ...], int, int]]]:
    """Read a file's identity, and name -> (dtype, shape, offset in the file, number of bytes).

    The safetensors library checks the header first.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(file, "rb") as stream:
            identity = _identity(stream.fileno())
            stream.read(1)
            try:
                with safe_open(str(file), framework="numpy") as checked:
                    names = sorted(checked.keys())
            except (SafetensorError, OSError, ValueError, OverflowError) as error:
                raise ValueError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise OSError(error.errno, f"the weights cannot be read: {error.strerror}", str(file)) from None
    tensors: dict[str, tuple[np.dtype, tuple[int, ...], int, int]] = {}
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        dtype = (_DTYPES | _NUMBERS if name.endswith(numbers) else _DTYPES).get(entry["dtype"])
        if dtype is None:
            if name.endswith(_BUFFERS):
                continue
            raise ValueError(
                f"{file}: tensor '{name[:200]}' is {entry['dtype']}, but only F32, F16 and BF16 can be loaded")
        if len(entry["shape"]) > MAX_DIMS:
            raise ValueError(
                f"{file}: tensor '{name[:200]}' has {len(entry['shape'])} dimensions; no model has more than {MAX_DIMS}"
            )
        tensors[name] = (dtype, tuple(entry["shape"]), 8 + length + begin, end - begin)
    return identity, tensors
