"""Fuzzes whatever reads a file of somebody else, and the engine behind it. One table of targets, two ways to drive
them.

    python tests/fuzz/fuzz.py all --runs 20000                 # random, structure-aware mutations of real files
    python tests/fuzz/fuzz.py safetensors --coverage -runs=100000   # guided by coverage of the Python (needs atheris)

A finding is an exception that the target does not document, a crash, a hang, memory beyond the limit, or bytes of the
core that stay allocated. The input is left in the folder that is printed; `fuzz.py TARGET --input FILE` repeats it.
"""
from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
# thousands of shapes a minute: its 1024 would be gigabytes
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
HANG = 120            # seconds for one input, on a busy machine
# bytes of address space beyond what the process has at the start; not under AddressSanitizer, which maps terabytes
MEMORY = 3 << 30
NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 64, 255, 256, 4095, 65536, 1 << 20, (1 << 20) + 1, 2**31 - 1, 2**31, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64, -2**63, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308,
    float("nan"),
    float("inf"), -float("inf")
]
TEXTS = [
    "", "a", "..", "../../etc/passwd", "/etc/passwd", ".", "\0", "\n", "\x1b[31m", "\ud800", "\u202e", "猫", "%s%n",
    "{}", "$\\foo{", "a" * 5000, "F32", "BF16", "I64", "F8_E4M3", "U8", "CON", "__class__", "null", "a/b", "con\u0301"
]


# ------------------------------------------------------------------------------------------------ mutations


def mutated(data: bytes, rng: random.Random, others: list[bytes], shape: str) -> bytes:
    """A changed copy: of the JSON inside where there is some (mostly), else of the bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if shape != "bytes" and rng.random() < 0.8:
            data = _mutate_json(data, rng, shape)
        else:
            data = _mutate_bytes(data, rng, others)
    return data[: 1 << 20]


def _mutate_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at, kind = rng.randrange(len(data) + 1), rng.randrange(8)
    size = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), max(1, len(data)))
    if kind == 0:
        return data[:at] + rng.randbytes(size) + data[at + size:]
    if kind == 1:
        return data[:at] + rng.randbytes(size) + data[at:]
    if kind == 2:
        return data[:at] + data[at + size:]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + data[at: at + size] * rng.randrange(2, 20) + data[at:]
    if kind == 5 and data:
        at %= len(data)
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
    if kind == 6:
        number = rng.choice([n for n in NUMBERS if isinstance(n, int)])
        width = rng.choice((1, 2, 4, 8))
        return data[:at] + (number % (1 << 8 * width)).to_bytes(width, rng.choice(
            ("little", "big"))) + data[at + width:]
    other = rng.choice(others)
    return data[:at] + other[rng.randrange(len(other) + 1):]


def _mutate_json(data: bytes, rng: random.Random, shape: str) -> bytes:
    """`shape`: "json", "jsonl" (a line of it), or "safetensors" (its header; half of the time also the JSON inside its
    metadata)."""
    try:
        if shape == "safetensors":
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8: 8 + length])
            if rng.random() < 0.5 and isinstance(header.get("__metadata__", {}).get("dreamda"), str):
                header["__metadata__"]["dreamda"] = _dump(_changed(json.loads(header["__metadata__"]["dreamda"]), rng),
                                                          rng).decode()
                text = json.dumps(header).encode()
            else:
                text = _dump(_changed(header, rng), rng)
            return struct.pack("<Q", len(text)) + text + data[8 + length:]
        if shape == "jsonl":
            lines = data.split(b"\n")
            at = rng.randrange(len(lines))
            if rng.random() < 0.2:
                lines.insert(at, rng.choice(lines))
            else:
                lines[at] = _dump(_changed(json.loads(lines[at]), rng), rng)
            return b"\n".join(lines)
        return _dump(_changed(json.loads(data), rng), rng)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return _mutate_bytes(data, rng, [data])


def _dump(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    """One place of the value changed (in place): a random way down, which may stop at any container."""
    path: list[tuple[Any, Any]] = []
    at = value
    while isinstance(at, (dict, list)) and at and (not path or rng.random() < 0.8):
        path.append((at, rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))))
        at = path[-1][0][path[-1][1]]
    if not path or rng.random() < 0.02:
        return _hostile(rng, value)
    node, key = path[-1]
    kind = rng.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(TEXTS)] = node.pop(key)
    elif kind == 2 and isinstance(node, list):
        node.insert(key, rng.choice(node))
    elif kind == 3:
        node[key] = copy.deepcopy(node) if len(node) < 40 else []
    elif kind == 4 and isinstance(node[key], int) and abs(node[key]) < 1 << 62:
        node[key] = int(node[key]) + rng.choice((-1, 1, -8, 8))
    else:
        node[key] = _hostile(rng, node[key])
    return value


def _hostile(rng: random.Random, value: Any) -> Any:
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False, [], {}, [[]], {"content": []}))
    value = 0 if isinstance(value, (dict, list)) and len(value) > 8 else value  # several changes must not multiply
    if kind == 6:
        for _ in range(rng.choice((1, 10, 500))):
            value = [value]
        return value
    return [value] * rng.choice((0, 1, 2, 9, 300))


class Numbers:
    """Bytes as a source of decisions, for targets whose input is no file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, n: int) -> int:
        return (self.byte() << 8 | self.byte()) % n

    def size(self, usual: int) -> int:
        """Mostly 1 to `usual`; sometimes a size that should be refused."""
        return int(NUMBERS[self.below(29)]) if self.byte() > 247 else 1 + self.below(usual)


# ------------------------------------------------------------------------------------------------ targets


@dataclass(frozen=True)
class Target:
    """`make(folder)` prepares: it returns the seeds (real files) and the function that an input is given to."""

    make: Callable[[Path], tuple[list[bytes], Callable[[bytes], None]]]
    shape: str = "bytes"
    allowed: tuple[type[BaseException], ...] = (ValueError,)
    memory: bool = False  # MemoryError is an answer: the input asks for a size
    share: float = 1.0    # of the runs that "all" gives to a target


def configs(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    from batteries.unets import UNETS
    from dreamda.networks.config import read_scheduler_config, read_text_config, read_unet_config, read_vae_config
    from dreamda.generation.pipeline import BUNDLED

    readers = [(read_unet_config, "unet", "config.json"), (read_vae_config, "vae", "config.json"),
               (read_text_config, "text_encoder", "config.json"),
               (read_scheduler_config, "scheduler", "scheduler_config.json")]
    seeds = [(BUNDLED / "fashion-mini" / part / name).read_bytes() for _, part, name in readers]
    seeds += [json.dumps(entry["config"]).encode() for entry in UNETS]

    def run(data: bytes) -> None:
        from dreamda import _core

        for read, part, name in readers:
            (folder / name).write_bytes(data)
            try:
                config = read(folder)
            except ValueError as error:
                if str(folder) not in str(error) or len(str(error)) > 3000:
                    raise AssertionError(
                        f"the message does not name the file, or is {len(str(error))} "
                        f"characters long: {str(error)[:300]}"
                    ) from error
                continue
            for family in {
                    "unet": ["unet"], "vae": ["vae_encoder", "vae_decoder", "tiny_vae_encoder", "tiny_vae_decoder"],
                    "text_encoder": ["clip_text"]
            }.get(part, []):
                try:
                    _core.Model(family, config).parameters()
                except ValueError:
                    pass

    return seeds, run


def _tensors() -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save(
        {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3), "attentions.0.query.b": np.ones(
                (4, 4, 1, 1), np.float16), "position_ids": np.arange(4), "empty": np.empty((0, 3), np.float32)
        }, {"format": "pt"})


def safetensors(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    from dreamda.networks.weights import WeightFile

    file = folder / "model.safetensors"

    def run(data: bytes) -> None:
        file.write_bytes(data)
        weights = WeightFile(folder, "text_model.")
        for name in weights.names():
            array = weights.read(name)
            assert array.shape == weights.shape(name) and array.nbytes <= len(data)
        weights.check([("text_model.a", (2, 3)), ("b", (4, 4))], ("empty",))

    return [_tensors()], run


def shards(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    from dreamda.networks.weights import WeightFile

    (folder / "model-1.safetensors").write_bytes(_tensors())
    (folder / "inside").mkdir()
    (folder / "inside" / "model-1.safetensors").write_bytes(_tensors())

    def run(data: bytes) -> None:
        (folder / "inside" / "model.safetensors.index.json").write_bytes(data)
        for file in WeightFile(folder / "inside").files:
            assert file.parent == folder / "inside"

    return [json.dumps({"metadata": {"total_size": 99}, "weight_map": {"a": "model-1.safetensors"}}).encode()], run


def classifier(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """A trained model, and what is done with it: prediction by both of its readers."""
    import numpy as np

    import dreamda
    from dreamda import _core
    from dreamda.training.saved import TrainedModel

    trainer = _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 1},
                            batch=2,
                            height=8,
                            width=8,
                            dtype="f32",
                            threads=1)
    weights = {n: a.copy() for n, a in (*trainer.parameters.items(), *trainer.buffers.items())}
    weights |= {"fc.weight": np.ones((2, trainer.features), np.float32), "fc.bias": np.zeros(2, np.float32)}
    model = TrainedModel("resnet18", "small", 1, (8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ["a", "b"], weights,
                         {"params": {"epochs": 3, "lr": 0.1}})
    file = folder / "model.safetensors"
    model.save(file)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)

    def run(data: bytes) -> None:
        file.write_bytes(data)
        dreamda.AMSTClassifier.load(file)
        found = TrainedModel.load(file)
        if found.size[0] * found.size[1] * found.width <= 1 << 14:
            found.predict_proba(pixels, dtype="f32", threads=1, batch=2, workers=0)

    return [file.read_bytes()], run


def checkpoint(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    import numpy as np

    from dreamda.training.batches import Data
    from dreamda.training.heads import AMSTHeads
    from dreamda.training.recipe import Recipe
    from dreamda.training.saved import load_arrays, save_arrays
    from dreamda.training.stages import Training
    from dreamda.training.views import Views
    from standin import StandIn, pictures

    images, labels = pictures(6)
    recipe = Recipe(epochs=3, batch_size=4)
    run_ = Training(StandIn(batch=4),
                    AMSTHeads(24, 3),
                    recipe,
                    Views((16, 16), (0.5, ) * 3, (0.2, ) * 3),
                    Data(images, labels, images),
                    workers=0)
    arrays, position = run_.state()
    file = folder / "checkpoint.safetensors"
    save_arrays(file, arrays, {"format": 1, "kind": "checkpoint", **position, "events": 2, "classes": ["a", "b", "c"]})

    def run(data: bytes) -> None:
        file.write_bytes(data)
        run_.load_state(*load_arrays(file, "checkpoint"))
        assert all(np.isfinite(a).all() for a in run_.network.backbone.parameters.values())
        assert 0 <= run_.epoch <= recipe.epochs and -1 <= run_.assigned.min() and run_.assigned.max() < 3

    return [file.read_bytes()], run


def tokenizer(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """vocab.json, merges.txt and tokenizer_config.json as one JSON object; texts that meet every character class."""
    from dreamda.generation.pipeline import BUNDLED
    from dreamda.networks.tokenizer import Tokenizer

    real = BUNDLED / "fashion-mini" / "tokenizer"
    vocabulary = json.loads((real / "vocab.json").read_text())
    small = {k: v for k, v in vocabulary.items() if v < 300 or k.startswith("<|")}
    merges = [
        m for m in (real / "merges.txt").read_text().split("\n")[1:]
        if m and set(m.split()) | {m.replace(" ", "")} <= small.keys()
    ]
    options = json.loads((real / "tokenizer_config.json").read_text())
    seeds = [
        json.dumps([vocab, ["#version: 0.2", *merges[:20]], options, special]).encode()
        for vocab, special in ((small, {}),
                               ({"a": 0, "b": 1, "ab</w>": 2, "a</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5},
                                {"pad_token": "a"}))
    ]

    def run(data: bytes) -> None:
        try:
            parts = json.loads(data)
        except (ValueError, RecursionError):
            parts = []
        parts = parts if isinstance(parts, list) else []
        for name, part in zip(("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
                              [*parts, *[data] * 4][:4],
                              strict=True):
            lines = part if name == "merges.txt" and isinstance(part, list) else None
            content = part if isinstance(
                part, bytes) else "\n".join(map(str, lines)) if lines is not None else json.dumps(part)
            (folder
             / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        tokens = Tokenizer(folder)(["a photo of a coat", "", "AB ab 猫 \x00\x1b <|endoftext|> 12 it's" * 3])
        assert tokens.shape[0] == 3 and tokens.min() >= 0

    return seeds, run


def _data_set(folder: Path) -> Any:
    from PIL import Image

    from dreamda.data import ImageFolder

    for name in ("real/a/1.png", "real/b/2.png", "out/a/1-000.png", "out/b/2-000.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return ImageFolder.scan(folder / "real")


def json_lines(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """Every reader of a metadata.jsonl or a file of prompts."""
    from dreamda.data import own_prompt_files, prompts_from_file
    from dreamda.runs.generate import GenerationOptions, generate_dataset
    from dreamda.runs.pictures import contact_sheet_of_run
    from dreamda.runs.labelled import scan_labelled

    data_set = _data_set(folder)
    rows = [{
        "file_name": f"{c}/{n}-000.png", "label": c, "seed_file": f"{c}/{n}.png", "seed_sha256": "0" * 64, "variant": 0,
        "prompt": "x", "size": [8, 8], "text": "y", "sha256": "1" * 64
    } for c, n in (("a", 1), ("b", 2))]
    seeds = [
        "\n".join(map(json.dumps, rows)).encode() + b"\n",
        "\n".join(json.dumps({"file_name": f"{c}/{n}.png", "text": "a photo"})
                  for c, n in (("a", 1), ("b", 2))).encode()
    ]

    class Pipeline:
        size, fingerprint, dtype, threads_matter = (8, 8), "f" * 64, "f32", False

        def _augment(self, images: Any, prompts: Any, keys: Any, options: Any, *, first: int = 0, **_: Any) -> Any:
            import numpy as np
            return np.zeros((len(images), options.variants - first, 8, 8, 3), np.uint8)

    runs = 0

    def run(data: bytes) -> None:
        nonlocal runs
        runs += 1
        for path in ("prompts.jsonl", "real/metadata.jsonl", "out/metadata.jsonl"):
            (folder / path).write_bytes(data)
        calls: list[Callable[[], Any]] = [
            lambda: prompts_from_file(data_set, folder / "prompts.jsonl"), lambda: own_prompt_files(data_set),
            lambda: scan_labelled(folder / "out", ["a", "b"], "X"),
            lambda: contact_sheet_of_run(folder / "out", folder / "real")
        ]
        if runs % 8 == 0:  # writes images, with an fsync each
            # goes on with foreign lines
            calls.append(
                lambda: generate_dataset(data_set, folder / "again", Pipeline(), GenerationOptions(variants=1)))
            shutil.rmtree(folder / "again", ignore_errors=True)
            (folder / "again").mkdir()
            generate_dataset(data_set, folder / "again", Pipeline(), GenerationOptions(variants=1))
            (folder / "again" / "metadata.jsonl").write_bytes(data)
        for call in calls:
            try:
                call()
            except ValueError:
                pass
        assert len(os.listdir(folder)) <= 4, "nothing is written outside of OUT"

    return seeds, run


def run_folders(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """run.json of both commands, and the log of a training run."""
    from dreamda.runs.generate import check_out
    from dreamda.runs.train import _check_same, _Folder

    data_set = _data_set(folder)
    identity = {
        "format": 1, "dreamda": "0.1.0", "epochs": 3, "classes": ["a", "b"], "size": [8, 8], "mean": [0.1, 0.2, 0.3],
        "image_size": [8, 8], "image_fit": "crop", "threads": 2
    }
    seeds = [json.dumps(identity, indent=1).encode(), json.dumps({"event": "epoch", "epoch": 1, "loss": 2.5}).encode()]
    (folder / "run").mkdir()

    def run(data: bytes) -> None:
        (folder / "run" / "run.json").write_bytes(data)
        (folder / "run" / "log.jsonl").write_bytes(data)
        for call in (lambda: check_out(folder / "run", data_set, identity),
                     lambda: _check_same(folder / "run", identity)):
            try:
                call()
            except ValueError as error:
                assert str(folder) in str(error) and len(str(error)) < 4000, str(error)[:300]
        _Folder(folder / "run", identity).log(2)

    return seeds, run


def images(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    import io
    import warnings

    import numpy as np
    from PIL import Image

    from dreamda.data import BrokenImageError, decode_image

    warnings.simplefilter("ignore")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    seeds = []
    for mode, kinds in (("RGB", ("PNG", "JPEG", "WEBP", "BMP", "TIFF")), ("L", ("PNG", "JPEG", "TIFF")),
                        ("RGBA", ("PNG", "WEBP", "TIFF")), ("P", ("PNG", "BMP")), ("CMYK", ("JPEG", "TIFF")),
                        ("1", ("PNG", "TIFF")), ("I;16", ("PNG", "TIFF")), ("F", ("TIFF", ))):
        image = Image.fromarray(pixels).convert("L").convert(mode) if mode in (
            "I;16", "F", "1") else Image.fromarray(pixels).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6
        for kind in kinds:
            for options in ({}, {"exif": exif}) if kind in (
                    "PNG", "JPEG", "WEBP") else ({}, {"compression": "tiff_lzw"}) if kind == "TIFF" else ({}, ):
                buffer = io.BytesIO()
                image.save(buffer, kind, **options)
                seeds.append(buffer.getvalue())

    def run(data: bytes) -> None:
        try:
            found = decode_image(data, (8, 8))
        except BrokenImageError:
            return
        assert found.shape == (8, 8, 3) and found.dtype == np.uint8

    return seeds, run


def graphs(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """Configurations of the right types and any numbers: the graph, the plan, and where it is small enough a run, at
    two shapes."""
    import numpy as np

    from dreamda import _core
    from dreamda.networks.models import resolve_dtype

    rng = random.Random(0)
    bf16 = ["f32", "bf16"] if resolve_dtype("auto") == "bf16" else ["f32"]

    def run(data: bytes) -> None:
        n = Numbers(data)
        family = ("unet", "vae_encoder", "vae_decoder", "tiny_vae_encoder", "tiny_vae_decoder", "clip_text")[n.below(6)]
        levels, wide = 1 + n.below(4 if n.byte() < 250 else 9), (8, 24, 70)[n.below(3)]
        widths = [n.size(wide) for _ in range(levels)]
        groups = n.size(8)
        if n.byte() < 200:  # mostly what fits together
            widths, groups = [w * groups if w < 1 << 16 else w for w in widths], groups
        heads = [n.size(4) for _ in range(levels)]
        if n.byte() < 200:
            heads = [h if 0 < h and w % h == 0 else 1 for h, w in zip(heads, widths, strict=True)]
        hidden, head = n.size(40), n.size(4)
        layers = [n.size(2) for _ in range(levels)]
        down, up = sum(layers), sum(layers) + levels
        if down > 100:  # refused whatever else there is
            down, up = 1, 1
        config = {
            "in_channels": n.size(5), "out_channels": n.size(5), "latent_channels": n.size(5), "block_out_channels":
            widths, "layers_per_block": layers if family == "unet" else n.size(2),
            "norm_num_groups": groups, "down_attention": [n.below(3) for _ in range(levels)], "up_attention":
            [n.below(3) for _ in range(levels)], "transformer_layers": [n.size(2) for _ in range(down)],
            "up_transformer_layers": [n.size(2) for _ in range(up)], "mid_transformer_layers": n.below(3),
            "heads": heads,
            "context_dim": n.size(30), "norm_eps": (1e-5, 0.0, 1e-30, 1.0, 1e6)[n.below(5)], "linear_projection":
            bool(n.below(2)), "flip_sin_to_cos": bool(n.below(2)), "freq_shift": (0.0, 1.0, 0.5, 8.0)[n.below(4)],
            "quant_conv": bool(n.below(2)), "post_quant_conv": bool(n.below(2)), "mid_attention": n.below(3),
            "mid_resnets": n.below(3), "mid_attention_groups": (0, groups)[n.below(2)], "class_embedding": n.below(4),
            "num_class_embeds": n.size(9), "scale_shift": bool(n.below(2)), "downsample_one_sided": bool(n.below(2)),
            "vocab_size": n.size(50), "hidden_size": hidden * head if hidden < 1 << 16 and n.byte() < 220 else hidden,
            "intermediate_size": n.size(60), "num_hidden_layers": n.size(2), "num_attention_heads": head,
            "max_position_embeddings": n.size(12), "hidden_act": ("quick_gelu", "gelu")[n.below(2)], "layer_norm_eps":
            (1e-5, 0.0)[n.below(2)], "time_cond_proj_dim": (0, 0, 4, 2, 7)[n.below(5)],
            "text_embeds_dim": (0, 0, n.size(9))[n.below(3)], "time_ids_dim": n.size(5),
            "projection_dim": (0, n.size(9))[n.below(2)], "encoder_channels": n.size(40),
            "decoder_channels": n.size(40), "encoder_blocks": [n.size(2) for _ in range(levels)
                                                               ], "decoder_blocks": [n.size(2) for _ in range(levels)]
        }
        factor = 1 if family == "unet" or n.byte() > 240 else 1 << (levels - 1)
        shape = {
            "rows": n.size(3), "height": n.size(6) * factor, "width": n.size(6) * factor, "tokens": n.size(9),
            "decoders": 1 + n.below(2), "dtype": bf16[n.below(len(bf16))], "threads": 1 + n.below(2)
        }
        before = _core.info()["live_bytes"]
        try:
            attended = shape["tokens"] if family == "clip_text" else shape["height"] * shape["width"] // (
                1 if family == "unet" else 4**(levels - 1))
            attention = shape["rows"] * attended * max(attended, shape["tokens"]) * max(*widths, hidden)
            _run_graph(np, _core.Model(family, config), shape, attention, rng)
        finally:
            after = _core.info()["live_bytes"]
            if sys.exc_info()[0] is None:
                assert after == before, f"{after - before} bytes stay"

    return [rng.randbytes(180) for _ in range(64)], run


def _run_graph(np: Any, model: Any, shape: dict[str, Any], attention: int, rng: random.Random) -> None:
    """`attention`: the most multiplications that one layer of it may take."""
    shapes = dict(model.parameters())
    if max(float(np.prod(s, dtype=float)) for s in shapes.values()) > 1 << 22:
        return  # no file holds these weights, and nothing is planned before they are checked
    if any(8192 < v <= 1 << 20 for v in shape.values() if isinstance(v, int)):
        return  # possible, slow to prepare, and not for a file to say
    plan = model.plan(**shape)
    work = sum(float(np.prod(s, dtype=float))
               for s in shapes.values()) * shape["rows"] * shape["height"] * shape["width"]
    if work > 1 << 27 or attention > 1 << 28 or plan.memory["arena"] > 1 << 26:
        return  # shapes are the caller's, not a file's: many seconds of such work would not be a finding
    generator = np.random.default_rng(rng.randrange(1 << 30))
    for name in plan.missing():
        plan.load(name, generator.standard_normal(shapes[name], np.float32) * 0.1)
    inputs = {
        name:
        generator.integers(0, 1, s, np.int32) if kind == "int32" else generator.integers(0, 99, s).astype(np.uint32)
        if kind == "uint32" else generator.standard_normal(s, np.float32)
        for name, (kind, s) in plan.inputs.items()
    }
    if rng.random() < 0.5:
        inputs.pop("noise", None)
    first, second = plan.run(inputs), plan.run(inputs)
    for name, (_, wanted) in plan.outputs.items():
        assert first[name].shape == wanted and np.array_equal(first[name], second[name], equal_nan=True), name


def trainers(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    import numpy as np

    from dreamda import _core

    rng = random.Random(0)

    def run(data: bytes) -> None:
        n = Numbers(data)
        config = {
            "backbone": ("resnet18", "resnet34", "resnet50", "resnet9")[n.below(4) if n.byte() > 200 else 0], "stem":
            ("small", "imagenet")[n.below(2)], "in_channels": n.size(4), "width": n.size(5)
        }
        least = 8 if config["stem"] == "small" else 32
        trainer = _core.Trainer(config,
                                batch=n.size(3),
                                height=least - (n.byte() > 240) + n.below(9),
                                width=least + n.below(9),
                                dtype="f32",
                                threads=1 + n.below(2),
                                slots=1 + n.below(3))
        batch = 1 + n.below(3)
        for array in trainer.parameters.values():
            array[...] = 0.1
        for _ in range(4):
            call, slot, channels = n.below(6), n.below(4), config["in_channels"]
            try:
                x = np.ones((batch, channels if channels < 99 else 1, least + n.below(9), least + n.below(9)),
                            np.float32)
                if call == 0:
                    trainer.forward(x, slot)
                elif call == 1:
                    trainer.backward(np.ones((batch, trainer.features), np.float32), slot)
                elif call == 2:
                    trainer.evaluate(x)
                elif call == 3:
                    trainer.step((0.1, -1.0, float("nan"))[n.below(3)], 0.9, 1e-4, True, (0.0, 1.0)[n.below(2)])
                else:
                    trainer.gradient_norm(), trainer.profile()
            except ValueError:
                pass

    return [rng.randbytes(40) for _ in range(32)], run


def model_folder(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The whole loader: one file of the bundled model is replaced; what loads also has to run. Input: which file, then
    its content."""
    import numpy as np

    import dreamda
    from dreamda import _core
    from dreamda.generation.pipeline import BUNDLED

    shutil.copytree(BUNDLED / "fashion-mini", folder / "model")
    files = sorted(p for p in (folder / "model").rglob("*") if p.is_file())
    originals = [f.read_bytes() for f in files]
    seeds = [bytes([i]) + content for i, content in enumerate(originals) if files[i].suffix != ".safetensors"]
    cut = [bytes([i]) + content for i, content in enumerate(originals) if files[i].suffix == ".safetensors"]
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    rng = random.Random(0)

    def run(data: bytes) -> None:
        at = (data[0] if data else 0) % len(files)
        content = data[1:]
        # too large for an input: the header, or a few bytes of the original, are changed here
        if files[at].suffix == ".safetensors":
            rng.seed(content)
            length = 8 + int.from_bytes(originals[at][:8], "little")
            content = mutated(originals[at][:length], rng, [originals[at][:length]],
                              "safetensors") + originals[at][length:]
            if rng.random() < 0.4:
                where = rng.randrange(length, len(originals[at]))
                content = originals[at][:where] + rng.choice(
                    (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff", b"")) + originals[at][where + 4:]
        files[at].write_bytes(content)
        try:
            pipe = dreamda.Pipeline.load(folder / "model", dtype="f32", threads=1, size=(32, 32))
            out = pipe.augment(pixels, ["a photo of a coat"], variants=1, steps=1, strength=1.0)
            assert out.shape == (1, 1, 32, 32, 3)
        except _core.Error as error:
            assert "not numbers" in str(error), error
        finally:
            files[at].write_bytes(originals[at])

    return [*seeds, *(c[:40] for c in cut)], run


def prompt_files(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """Values of fields as JSON, YAML and wildcards, lists of prompts, and the syntax of prompts."""
    from dreamda.data import choose_prompts, escape_prompt
    from dreamda.data.fields import read_fields
    from dreamda.data.prompt_syntax import parse_prompt, plain_text

    data_set = _data_set(folder)
    (folder / "wild").mkdir()
    files = [folder / "fields.json", folder / "fields.yaml", folder / "wild" / "style.txt", folder / "prompts.json"]

    def run(data: bytes) -> None:
        for file in files:
            file.write_bytes(data)
        calls: list[Callable[[], Any]] = [
            lambda: read_fields(files[0]), lambda: read_fields(files[1]), lambda: read_fields(files[2].parent),
            lambda: choose_prompts(data_set, file=files[3]),
            lambda: choose_prompts(data_set, data.decode(errors="replace"), fields=files[2].parent)
        ]
        for call in calls:
            try:
                call()
            except ValueError:
                pass
        text = data.decode(errors="replace").replace("BREAK", "")
        assert plain_text(escape_prompt(text)) == text
        parse_prompt(text)

    return [
        b'{"a": ["a {style} of a {}", "(x:1.2)"], "b": "[y] {red|blue} BREAK \\\\("}',
        b'{"style": ["photo", "sketch"], "templates": ["a {style} of a {}"], "about": "x"}',
        b"style: [photo, 'oil', \"x\"]  # x\nview:\n  - from above: it\n  - (a:1.2)\none: two\n",
        b"photo\n# x\nsketch\n", b"a ({class}:1.2) __style__ [{red|blue}] {{x}} \\( BREAK (b"
    ], run


TARGETS = {
    "configs": Target(configs, "json"),
    "safetensors": Target(safetensors, "safetensors"),
    "shards": Target(shards, "json"),
    "classifier": Target(classifier, "safetensors"),
    "checkpoint": Target(checkpoint, "safetensors"),
    "tokenizer": Target(tokenizer, "json"),
    "json_lines": Target(json_lines, "jsonl", share=0.5),
    "prompt_files": Target(prompt_files, "json"),
    "run_folders": Target(run_folders, "json"),
    "images": Target(images),
    "graphs": Target(graphs, memory=True, share=0.3),
    "trainers": Target(trainers, memory=True, share=0.3),
    "model_folder": Target(model_folder, allowed=(ValueError, FileNotFoundError), share=0.02),
}


# ------------------------------------------------------------------------------------------------ driving


class Finding(AssertionError):
    pass


class Driver:
    """Runs one target on inputs, and tells answers from findings."""

    def __init__(self, name: str, keep: Path) -> None:
        self.name, self.target, self.keep = name, TARGETS[name], keep
        self.folder = Path(
            tempfile.mkdtemp(prefix="dreamda-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.seeds, self._run = self.target.make(self.folder)
        self.runs = self.refused = 0
        # what a crash leaves; in memory, where that is possible
        self._last, self._watched = self.folder.with_suffix(f".{name}"), 0.0

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._last.unlink(missing_ok=True)

    def one(self, data: bytes) -> None:
        """Finding for what is not documented; a crash or hang ends the process, and leaves its input beside the working
        folder."""
        self.runs += 1
        with open(self._last, "wb", buffering=0) as file:
            file.write(data)
        now = time.monotonic()
        if now - self._watched > 1:
            faulthandler.dump_traceback_later(HANG, exit=True)
            self._watched = now
        try:
            self._run(data)
        except self.target.allowed:
            self.refused += 1
        except MemoryError as error:
            if not self.target.memory:
                raise self._found(data, error) from error
            self.refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._found(data, error) from error

    def _found(self, data: bytes, error: BaseException) -> Finding:
        import zlib

        file = self.keep / f"{self.name}-{zlib.crc32(data):08x}"
        file.write_bytes(data)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            f"{self.name}: {type(error).__name__}: {str(error)[:300]} at "
            f"{Path(last.filename).name}:{last.lineno}; input: {file}")

    def random(self, runs: int, seed: int, stop: float = float("inf")) -> None:
        """`runs` mutations of the seeds, and of mutations that were not refused; ends early at `stop`
        (time.monotonic)."""
        rng = random.Random(f"{seed}/{self.name}")
        pool = list(self.seeds)
        for data in self.seeds:
            self.one(data)
            if time.monotonic() > stop:
                return
        for _ in range(runs - len(self.seeds)):
            if time.monotonic() > stop or used_up():
                break
            refused = self.refused
            data = mutated(rng.choice(pool), rng, pool, self.target.shape)
            self.one(data)
            if self.refused == refused and len(pool) < 500 and len(data) < 4 * max(map(len, self.seeds)):
                pool.append(data)


def limit_memory() -> None:
    """No more than MEMORY beyond what is mapped now."""
    if os.environ.get("DREAMDA_SANITIZED"):
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped_memory() + MEMORY, resource.RLIM_INFINITY))


def mapped_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def used_up() -> bool:
    """oneDNN never unmaps some of the code it makes, a megabyte an input: at the limit everything would be refused, and
    nothing be tried."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and mapped_memory() > limit - (MEMORY >> 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of untrusted files.")
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="a target ends after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=Path, help="run this one input and nothing else")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are findings")
    parser.add_argument("--coverage", action="store_true", help="let atheris drive; further arguments are libFuzzer's")
    options, rest = parser.parse_known_args()
    keep = options.keep or Path(tempfile.mkdtemp(prefix="dreamda-findings-"))
    keep.mkdir(parents=True, exist_ok=True)
    faulthandler.enable()
    if options.coverage:
        return by_coverage(options.target, keep, [sys.argv[0], *rest])
    failed = 0
    for name in TARGETS if options.target == "all" else [options.target]:
        with Driver(name, keep) as driver:
            limit_memory()
            if options.input:
                driver.one(options.input.read_bytes())
                continue
            begun, found = time.monotonic(), 0
            runs = max(1, int(options.runs * (driver.target.share if options.target == "all" else 1)))
            seed = options.seed
            while driver.runs < runs and time.monotonic() < begun + options.seconds and not used_up():
                try:
                    driver.random(runs - driver.runs, seed, begun + options.seconds)
                except Finding as finding:
                    print(finding, flush=True)
                    found += 1
                    if found >= 20:
                        break
                seed += 1000
            failed += found
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(
                f"| {name} | {driver.runs} | {time.monotonic() - begun:.0f} | "
                f"{driver.refused / driver.runs:.0%} | {rss} | {found} |",
                flush=True)
    if failed:
        print(f"{failed} findings; inputs in {keep}")
    return 1 if failed else 0


def by_coverage(name: str, keep: Path, arguments: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["dreamda"]):
        import dreamda.data, dreamda.networks.config, dreamda.networks.models, dreamda.networks.tokenizer
        import dreamda.networks.weights, dreamda.generation.pipeline, dreamda.generation.schedulers
        import dreamda.training.stages, dreamda.training.classifier, dreamda.training.saved
        import dreamda.runs.generate, dreamda.runs.pictures, dreamda.runs.train
    driver = Driver(name, keep)
    corpus = keep / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for i, seed in enumerate(driver.seeds):
        (corpus / f"seed-{i}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = atheris.Mutate(data, len(data)) if rng.random() < 0.3 else mutated(
            data, rng, driver.seeds, driver.target.shape)
        return changed[:most]

    atheris.Setup([
        *arguments, f"-artifact_prefix={keep}/", f"-timeout={HANG}", "-rss_limit_mb=3000", "-max_len=100000",
        str(corpus)
    ],
                  driver.one,
                  custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
