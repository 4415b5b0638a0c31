"""Tiny networks against what diffusers and transformers computed for them (tests/golden/make_networks.py), without
PyTorch."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "golden"
sys.path.insert(0, str(HERE))
from make_networks import CASES, inputs  # noqa: E402
from random_weights import weight  # noqa: E402

from dreamda import _core  # noqa: E402
from dreamda.networks.config import read_text_config, read_unet_config, read_vae_config  # noqa: E402
from dreamda.networks.models import UNet, VAE, TextEncoder, guidance_input, resolve_dtype  # noqa: E402

GOLDEN = np.load(HERE / "networks.npz")
HAS_BF16 = resolve_dtype("auto") == "bf16"
BF16 = pytest.param("bf16",
                    marks=pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 instructions"))
# f32: sums in another order. bf16: eight bits of mantissa through a few dozen layers (PyTorch's own is about the same).
BARS = {"f32": 1e-10, "bf16": 2e-3}


def plan(family, config, dtype, **shape):
    model = _core.Model(family, config)
    result = model.plan(dtype=dtype, threads=2, **shape)
    shapes = dict(model.parameters())
    for name in result.missing():
        result.load(name, weight(name, shapes[name]))
    return result


def stored(folder, family, read):
    """The folder of a configuration, with its weights."""
    save_file({key: weight(key, shape) for key, shape in _core.Model(family, read(folder)).parameters()},
              folder / "model.safetensors")
    return folder


def networks(name, folder, dtype):
    """A function from inputs to the outputs that the golden file names."""
    kind, config, shape = CASES[name]
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "clip":
        text = plan("clip_text", read_text_config(folder), dtype, rows=shape[0], tokens=shape[1])
        return text.run
    if kind == "clip_projection":
        text = TextEncoder.load(stored(folder, "clip_text", read_text_config), dtype=dtype, threads=2)
        return lambda x: dict(zip(("hidden", "penultimate", "text_embeds"),
                                  (text.encode_tokens(x["tokens"]), *text.encode_for_xl(x["tokens"]))))
    if kind == "vae":
        rows, height, width = shape
        read = read_vae_config(folder)
        encoder = plan("vae_encoder", read, dtype, rows=rows, height=height, width=width)
        decoder = plan("vae_decoder", read, dtype, rows=rows, height=height, width=width)
        return lambda x: encoder.run({"image": x["image"]}) | decoder.run({"latent": x["latent"]})
    if kind == "tiny_vae":
        shapes = [
            p for half in ("encoder", "decoder")
            for p in _core.Model(f"tiny_vae_{half}", read_vae_config(folder)).parameters()
        ]
        save_file({key: weight(key, shape) for key, shape in shapes}, folder / "diffusion_pytorch_model.safetensors")
        tiny = VAE.load(folder, dtype, 2)
        return lambda x: dict(encoded=tiny.moments(x["image"])[0], image=tiny.decode(x["latent"]))
    rows, height, width, *tokens = shape
    read = read_unet_config(folder)
    length = {"tokens": tokens[0]} if tokens else {}
    unet = plan("unet", read, dtype, rows=rows, height=height, width=width, decoders=2, **length)

    def run(x):
        guidance = {"guidance": guidance_input(x["guidance_scale"], rows)} if "guidance_scale" in x else {}
        sample = {"sample": 2 * x["sample"] - 1} if read["center_input_sample"] else {}
        return unet.run({k: v
                         for k, v in x.items() if k != "guidance_scale"} | guidance | sample
                        | {"noise_scale": np.ones(rows, np.float32)})

    return run


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
    assert all(np.array_equal(first[k], out[k])
               for k in out), "the same inputs give the same bits, whatever ran between"


def test_guidance_as_an_input(tmp_path):
    """One number stands for every row; a model without the input, or a call without the number, gets a sentence."""
    x = inputs("lcm", 0)
    models = {}
    for name in ("lcm", "sd1"):
        (folder := tmp_path / name).mkdir()
        (folder / "config.json").write_text(json.dumps(CASES[name][1]))
        save_file(
            {key: weight(key, shape)
             for key, shape in _core.Model("unet", read_unet_config(folder)).parameters()},
            folder / "diffusion_pytorch_model.safetensors")
        models[name] = UNet.load(folder, "f32", 2)
    arguments = x["sample"], x["timestep"], x["context"]
    lcm = models["lcm"](*arguments, guidance_scale=x["guidance_scale"])
    assert models["lcm"].takes_guidance and np.allclose(lcm, GOLDEN["lcm.0.sample"], atol=1e-4)
    one, same = models["lcm"](*arguments, guidance_scale=2.5), models["lcm"](*arguments, guidance_scale=[2.5] * 3)
    assert np.array_equal(one, same) and not np.allclose(one, lcm, atol=1e-3)
    with pytest.raises(ValueError, match="guidance_scale: this model takes the guidance as an input"):
        models["lcm"](*arguments)
    for wrong in ([1, 2], float("nan"), [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="guidance_scale: expected a finite number, or one for each of 3 rows"):
            models["lcm"](*arguments, guidance_scale=wrong)
    with pytest.raises(ValueError, match="guidance_scale: this model does not take the guidance as an input"):
        models["sd1"](*arguments, guidance_scale=2.0)
