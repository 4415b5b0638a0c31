"""Weight files: what is read, what is mapped, and what damaged, foreign or dangerous files get."""

import json
import os
import shutil
import struct
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save, save_file

from dreamda.generation.pipeline import BUNDLED
from dreamda.networks.models import TextEncoder, UNet
from dreamda.networks.weights import WeightFile
from dreamda.training.backbone import load_pretrained

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def raw(tensors):
    """A safetensors file from {name: (dtype, shape, bytes)}: NumPy has no bfloat16."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_types(tmp_path):
    half, bits = A.astype(np.float16), (A.view(np.uint32) >> 16).astype(np.uint16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(
        raw({
            "f32": ("F32", [2, 3], A.tobytes()), "f16": ("F16", [2, 3], half.tobytes()), "bf16":
            ("BF16", [2, 3], bits.tobytes())
        }))
    for place in (file, tmp_path):
        weights = WeightFile(place)
        assert weights.names() == ["f32", "f16", "bf16"]
        for name, expected in (("f32", A), ("f16", half), ("bf16", bits)):
            got = weights.read(name)
            assert got.dtype == expected.dtype and np.array_equal(got, expected) and weights.shape(name) == (2, 3)


@pytest.mark.parametrize("name", [
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors"
])
def test_names_of_files(tmp_path, name):
    save_file({"a": A}, tmp_path / name)
    assert WeightFile(tmp_path).files == [tmp_path / name]


def test_full_precision_is_preferred(tmp_path):
    save_file({"a": A.astype(np.float16)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    save_file({"a": A}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert WeightFile(tmp_path).read("a").dtype == np.float32


def shards(folder, weight_map):
    save_file({"a": A}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": A + 1, "c": A + 2}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path):
    shards(
        tmp_path, {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c":
            "model-00002-of-00002.safetensors"
        })
    weights = WeightFile(tmp_path)
    assert weights.names() == ["a", "b", "c"] and len(weights.files) == 2
    assert np.array_equal(weights.read("c"), A + 2)


@pytest.mark.parametrize("weight_map, message", [({"a": "gone.safetensors"}, "gone.safetensors"),
                                                 ({"a": "../model.safetensors"}, "not in the same folder"),
                                                 ({"a": 3}, "'weight_map' has to map"),
                                                 ([], "'weight_map' has to map")])
def test_wrong_shards(tmp_path, weight_map, message):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"a": A}, tmp_path / "model.safetensors")
    shards(inside, weight_map)
    with pytest.raises(ValueError, match=message):
        WeightFile(inside)


def test_a_tensor_in_two_shards(tmp_path):
    shards(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    save_file({"a": A, "b": A}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="tensor 'a' is there twice"):
        WeightFile(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_not_opened(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    for place in (file, tmp_path):
        with pytest.raises(ValueError, match="never opened; convert them"):
            WeightFile(place)


def test_advice_fits_the_kind_of_model(tmp_path):
    model = Path(shutil.copytree(BUNDLED / "fashion-mini", tmp_path / "model"))
    for part in ("unet", "text_encoder"):
        file = next((model / part).glob("*.safetensors"))
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match="load the model with diffusers"):
        UNet.load(model / "unet")
    with pytest.raises(ValueError, match="load the text encoder with transformers' CLIPTextModel"):
        TextEncoder.load(model / "text_encoder")
    (tmp_path / "resnet18.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="safetensors.torch.save_file") as caught:
        load_pretrained(Mock(), tmp_path / "resnet18.pth")
    assert "diffusers" not in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .safetensors file"):
        WeightFile(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        WeightFile(tmp_path / "absent")


def test_every_truncation_is_noticed(tmp_path):
    whole = save({"a": A, "b": np.ones(5, np.float16)})
    file = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            WeightFile(file)


def test_a_file_that_shrinks_later(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": A}, file)
    weights = WeightFile(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="has changed since the model was loaded"):
        weights.read("a")
    with pytest.raises(ValueError, match="has changed since the model was loaded"):
        weights.place("a")


@pytest.mark.parametrize("change", ["replaced by a file of the same size", "written to", "touched"])
def test_a_file_that_changes_later(tmp_path, change):
    file = tmp_path / "model.safetensors"
    save_file({"a": A}, file)
    before = os.stat(file)
    weights = WeightFile(file)
    assert np.array_equal(weights.read("a"), A)
    if change == "written to":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns - 1))
        weights = WeightFile(file)
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    elif change == "touched":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        save_file({"a": A + 1}, tmp_path / "other")
        os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "other").replace(file)
    with pytest.raises(ValueError, match=f"{file}: it has changed since"):
        weights.read("a")


def test_a_file_that_cannot_be_read(tmp_path):
    """Not a ValueError: the file may be fine. (The memory of this process opens, but has nothing at address 0.)"""
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="the weights cannot be read: Input/output error.*model.safetensors"):
        WeightFile(tmp_path)
    file = tmp_path / "closed.safetensors"
    save_file({"a": A}, file)
    weights = WeightFile(file)
    file.chmod(0)
    if os.access(file, os.R_OK):
        return  # the superuser may read everything
    for attempt in (lambda: WeightFile(file), lambda: weights.read("a"), lambda: weights.place("a")):
        with pytest.raises(PermissionError, match="closed.safetensors"):
            attempt()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_is_refused_or_harmless(changes):
    content = bytearray(save({"a": A, "b": np.ones(5, np.float16)}))
    for place, value in changes:
        content[place % len(content)] = value
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        try:
            weights = WeightFile(file.name)
        except ValueError:
            return
        for name in weights.names():
            assert weights.read(name).shape == weights.shape(name)


@pytest.mark.parametrize("header", [{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 25]}}, {
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]}
}, {"a": {"dtype": "F32", "shape": [2, -3], "data_offsets": [0, 24]}},
                                    {"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 24]}}, {
                                        "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "b":
                                        {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}
                                    }, ])
def test_headers_that_contradict_themselves(tmp_path, header):
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        WeightFile(file)


def test_other_types_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw({"a": ("F64", [3], bytes(24))}))
    with pytest.raises(ValueError, match="tensor 'a' is F64"):
        WeightFile(file)


def test_check_counts_everything_and_names_five(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(
        {"fits": A, "extra": A, "wrong": A, "decoder.x": A, "embeddings.position_ids": np.arange(4, dtype=np.int64)},
        file)
    with pytest.raises(ValueError) as caught:
        WeightFile(file).check([("fits", (2, 3)), ("wrong", (3, 2)), ("gone", (1, )), ("gone.too", (1, ))],
                               ignore=("decoder.", ))
    text = str(caught.value)
    assert "2 missing: gone, gone.too;" in text and "1 unexpected: extra;" in text
    assert "1 of another shape: wrong (2, 3) instead of (3, 2)" in text
    assert "fits" not in text.split("configuration.")[1] and "position_ids" not in text and "decoder" not in text


def test_old_names_of_the_vae_attention(tmp_path):
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    file = tmp_path / "model.safetensors"
    square = np.ones((4, 4, 1, 1), np.float32)
    save_file({f"encoder.mid_block.attentions.0.{k}.weight": square for k in old}, file)
    weights = WeightFile(file)
    assert set(weights.names()) == {f"encoder.mid_block.attentions.0.{v}.weight" for v in old.values()}
    weights.check([(n, (4, 4)) for n in weights.names()])


def test_the_prefix_of_text_encoders(tmp_path):
    """transformers 5 leaves it out for CLIPTextModel; CLIPTextModelWithProjection has a tensor beside the text
    model."""
    save_file({"text_model.a": A, "text_projection.weight": A}, tmp_path / "old.safetensors")
    save_file({"a": A, "text_projection.weight": A}, tmp_path / "new.safetensors")
    for name in ("old", "new"):
        weights = WeightFile(tmp_path / f"{name}.safetensors", "text_model.", ("text_projection.",))
        assert set(weights.names()) == {"text_model.a", "text_projection.weight"}


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, wrapper):
    save_file({f"{wrapper}conv_in.weight": A, f"{wrapper}module_list.0.bias": A}, tmp_path / "model.safetensors")
    assert set(WeightFile(tmp_path).names()) == {"conv_in.weight", "module_list.0.bias"}


def test_a_single_file_beside_a_stale_index(tmp_path):
    """As their libraries choose: transformers ("model") reads the file, diffusers reads the shards."""
    shards(tmp_path, {"a": "gone.safetensors"})
    save_file({"whole": A}, tmp_path / "model.safetensors")
    assert WeightFile(tmp_path).names() == ["whole"]
    save_file({"whole": A}, tmp_path / "diffusion_pytorch_model.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"b": "model-00002-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}))
    assert WeightFile(tmp_path).names() == ["b", "c"]
    index.write_text(json.dumps({"weight_map": {"b": "gone.safetensors"}}))
    with pytest.raises(ValueError, match="names 'gone.safetensors', which is not in the same folder"):
        WeightFile(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json", "model.fp16.safetensors.index.json"])
def test_names_of_half_precision_indices(tmp_path, index):
    shards(
        tmp_path, {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c":
            "model-00002-of-00002.safetensors"
        })
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / index)
    assert WeightFile(tmp_path).names() == ["a", "b", "c"]


def test_safetensors_under_other_names(tmp_path):
    save_file({"a": A}, tmp_path / "diffusion_pytorch_model.non_ema.safetensors")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError,
                       match=r"\(diffusion_pytorch_model.non_ema.safetensors\) have other names than"):
        WeightFile(tmp_path)


def test_reading_holds_one_tensor_at_a_time():
    """The bundled U-Net reads to the values that the safetensors library gives."""
    from safetensors import safe_open

    weights = WeightFile(BUNDLED / "fashion-mini" / "unet")
    with safe_open(str(weights.files[0]), framework="numpy") as reference:
        for name in weights.names():
            assert np.array_equal(weights.read(name), reference.get_tensor(name))
