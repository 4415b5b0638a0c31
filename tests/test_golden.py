"""Tiny networks against what diffusers and transformers computed for them (tests/golden/make_networks.py), without PyTorch."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent / "golden"
sys.path.insert(0, str(HERE))
from make_networks import CASES, inputs  # noqa: E402
from random_weights import weight  # noqa: E402

from dreamda import _core  # noqa: E402
from dreamda.networks.config import read_text_config, read_unet_config, read_vae_config  # noqa: E402
from dreamda.networks.models import resolve_dtype  # noqa: E402

GOLDEN = np.load(HERE / "networks.npz")
HAS_BF16 = resolve_dtype("auto") == "bf16"
BF16 = pytest.param("bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 instructions"))
# f32: sums in another order. bf16: eight bits of mantissa through a few dozen layers (PyTorch's own is about the same).
BARS = {"f32": 1e-10, "bf16": 2e-3}


def plan(family, config, dtype, **shape):
    model = _core.Model(family, config)
    result = model.plan(dtype=dtype, threads=2, **shape)
    shapes = dict(model.parameters())
    for name in result.missing():
        result.load(name, weight(name, shapes[name]))
    return result


def networks(name, folder, dtype):
    """A function from inputs to the outputs that the golden file names."""
    kind, config, shape = CASES[name]
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "clip":
        text = plan("clip_text", read_text_config(folder), dtype, rows=shape[0], tokens=shape[1])
        return text.run
    if kind == "vae":
        rows, height, width = shape
        read = read_vae_config(folder)
        encoder = plan("vae_encoder", read, dtype, rows=rows, height=height, width=width)
        decoder = plan("vae_decoder", read, dtype, rows=rows, height=height, width=width)
        return lambda x: encoder.run({"image": x["image"]}) | decoder.run({"latent": x["latent"]})
    rows, height, width, tokens = shape
    unet = plan("unet", read_unet_config(folder), dtype, rows=rows, height=height, width=width, tokens=tokens, decoders=2)
    return lambda x: unet.run(x | {"noise_scale": np.ones(rows, np.float32)})


@pytest.mark.parametrize("dtype", ["f32", BF16])
@pytest.mark.parametrize("name", CASES)
def test_networks_match_pytorch(name, dtype, tmp_path):
    run = networks(name, tmp_path, dtype)
    first = None
    for turn in (0, 1, 0):
        out = run(inputs(name, turn))
        for key in (k for k in GOLDEN.files if k.startswith(f"{name}.{turn}.")):
            expected = GOLDEN[key].astype(np.float64)
            error = np.sum((out[key.split(".")[-1]] - expected) ** 2) / np.sum(expected**2)
            assert error <= BARS[dtype], f"{key}: NMSE {error:.1e}"
        first = first or out
    assert all(np.array_equal(first[k], out[k]) for k in out), "the same inputs give the same bits, whatever ran between"
