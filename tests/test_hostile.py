"""Files made to do harm: what they say is refused by name, nothing grows with a number in them, nothing is written
beside OUT.

Found by tests/fuzz, or thought of; the readers' own tests hold the plain cases.
"""
import io
import json
import os
import shutil
import struct
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from networks import CLIP, TINY_VAE, UNET, VAE
from standin import StandIn, pictures

import dreamda
from dreamda import _core
from dreamda.runs import train as train_run
from dreamda.runs.labelled import scan_labelled
from dreamda.training.backbone import load_pretrained
from dreamda.training.batches import Data
from dreamda.networks.config import read_scheduler_config, read_text_config, read_unet_config
from dreamda.data import ImageFolder
from dreamda.runs.generate import GenerationOptions, generate_dataset
from dreamda.training.heads import AMSTHeads
from dreamda.training.metrics import confusion_picture, evaluate_predictions
from dreamda.runs.pictures import contact_sheet, contact_sheet_of_run
from dreamda.generation.pipeline import BUNDLED
from dreamda.networks.tokenizer import Tokenizer
from dreamda.training.recipe import Recipe
from dreamda.training.saved import TrainedModel, load_arrays, save_arrays
from dreamda.training.stages import SUMS, Training
from dreamda.training.views import Views
from dreamda.networks.weights import WeightFile

MODEL = BUNDLED / "fashion-mini"
NAMES = ["a\nb", "\x1b[31mred\x07", "\u202egnp.", "$\\foo{", "%s{}", "猫", "-rf", "x" * 250, "a b", "~"]


# ------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "family, config", [("unet", UNET | {"layers_per_block": [1 << 20] * 2, "transformer_layers": [1 << 20] * 2}),
                       ("unet", UNET | {
                           "block_out_channels": [16] * 8, "layers_per_block": [1 << 20] * 8, "down_attention":
                           [True] * 8, "up_attention": [True] * 8, "transformer_layers": [1 << 20] * 8, "heads": [1] * 8
                       }), ("vae_encoder", VAE | {"layers_per_block": 1 << 20}),
                       ("vae_decoder", VAE | {"layers_per_block": 1 << 20, "block_out_channels": [16] * 8}),
                       ("tiny_vae_encoder", TINY_VAE | {"encoder_blocks": [1 << 20] * 2}),
                       ("tiny_vae_decoder", TINY_VAE | {"decoder_blocks": [1 << 20] * 2}),
                       ("clip_text", CLIP | {"num_hidden_layers": 1 << 20}),
                       ("unet", UNET | {"up_transformer_layers": [1 << 20] * 4}),
                       ("unet", UNET | {"mid_transformer_layers": 1 << 20})])
def test_models_without_end_are_refused_at_once(family, config):
    began = time.process_time()
    with pytest.raises(ValueError, match="operations|skip connections"):
        _core.Model(family, config)
    assert time.process_time() - began < 20


def test_thousands_of_layers_take_time_in_proportion():
    """A configuration may ask for 20,000 operations; planning and loading them must not take that many steps
    squared."""
    seconds = {}
    for layers in (200, 1000):
        model = _core.Model(
            "clip_text",
            CLIP | {"num_hidden_layers": layers, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1})
        began = time.process_time()
        plan = model.plan(rows=1, tokens=4, dtype="f32", threads=1)
        for name, shape in model.parameters():
            plan.load(name, np.zeros(shape, np.float32))
        seconds[layers] = time.process_time() - began
        assert plan.missing() == []
    assert seconds[1000] < 12 * seconds[200], seconds  # 5 times as many layers; squared, it was 33 times as long


@pytest.mark.parametrize("shift, channels", [(8.0, 16), (100.0, 16), (0.5, 1)])
def test_a_frequency_shift_that_divides_by_zero(shift, channels):
    with pytest.raises(ValueError, match="leaves no frequency"):
        _core.Model(
            "unet",
            UNET | {"freq_shift": shift, "block_out_channels": [channels, 16], "norm_num_groups": 1, "heads": [1, 1]})


def copied(tmp_path, part, name, **changes):
    """The bundled model with some values of one file changed."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    content = json.loads((MODEL / part / name).read_text()) | changes
    (folder / part / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("changes", [{"beta_start": 0.0, "beta_end": 0.0}, {"beta_start": 0.0, "beta_end": 0.5}, {
    "beta_start": 0.99, "beta_end": 0.999
}, {"trained_betas": [0] * 10}, {"trained_betas": [0.9] * 1000}, {"trained_betas": [1e-300] * 10}])
def test_schedules_that_divide_by_zero(tmp_path, changes):
    folder = copied(tmp_path, "scheduler", "scheduler_config.json", **changes) / "scheduler"
    with pytest.raises(ValueError,
                       match="scheduler_config.json: the betas have to leave some noise .* and some signal"):
        read_scheduler_config(folder)


def test_a_sample_size_that_no_memory_holds(tmp_path):
    with pytest.raises(ValueError, match=r"size: 2097152 x 2097152 is not possible"):
        dreamda.Pipeline.load(copied(tmp_path, "unet", "config.json", sample_size=1 << 20))


@pytest.mark.parametrize("value", [[], [None, {}], ["x", "y" * 100_000]])
def test_an_odd_text_encoder(tmp_path, value):
    with pytest.raises(ValueError, match="model_index.json: the text encoder .* is not supported") as caught:
        dreamda.Pipeline.load(copied(tmp_path, ".", "model_index.json", text_encoder=value))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", [
    '{"in_channels": ' + "9" * 5000 + "}", '{"in_channels": "' + "x" * 1_000_000 + '"}',
    '{"in_channels": -' + "9" * 4000 + "}", '{"block_out_channels": ' + "[" * 900 + "]" * 900 + "}",
    '{"block_out_channels": [1], "in_channels": {"a": [1e999]}}', '{"_class_name": ' + "[" * 900 + "]" * 900 + "}"
])
@pytest.mark.parametrize("read", [read_unet_config, read_text_config])
def test_messages_name_the_file_and_stay_short(tmp_path, read, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize("key", ["norm_eps", "freq_shift"])
def test_negative_numbers_are_refused_with_their_file(tmp_path, key):
    folder = copied(tmp_path, "unet", "config.json", **{key: -1.0}) / "unet"
    with pytest.raises(ValueError, match=f"config.json: '{key}' has to be 0 or more, got -1"):
        read_unet_config(folder)


@pytest.mark.parametrize("size", [2**31, -2**31 - 1, 2**63, -2**64, 10**400])
def test_sizes_beyond_an_int_get_the_usual_sentence(size):
    model = _core.Model("clip_text", CLIP)
    for name in ("rows", "tokens", "threads", "decoders"):
        with pytest.raises(ValueError, match="is not possible"):
            model.plan(**{"rows": 1, "tokens": 4, "dtype": "f32", "threads": 1, name: size})
    config = {"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 8}
    for name in ("batch", "height", "slots"):
        with pytest.raises(ValueError, match="not possible"):
            _core.Trainer(config, **{"batch": 2, "height": 8, "width": 8, "dtype": "f32", "threads": 1, name: size})


def test_shards_with_names_that_no_file_can_have(tmp_path):
    for name in ("x" * 300, "\0", "\ud800", ".", ".."):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match="which is not in the same folder"):
            WeightFile(tmp_path)


# ------------------------------------------------------------------------------------------------ weights and
# tokenizers


def test_weights_with_nan_are_named(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2:] = b"\xff\xff"  # the last element, whether float16, bfloat16 or float32
    file.write_bytes(content)
    pipe = dreamda.Pipeline.load(folder, dtype="f32", threads=1)
    with pytest.raises(
            ValueError,
            match=
            "unet/diffusion_pytorch_model.safetensors: parameter '.*' holds NaN or infinite values: the file is damaged"
    ):
        pipe.unet.plan(rows=1, height=8, width=8, tokens=16)


def test_weights_that_change_after_they_were_listed(tmp_path):
    """The header is read at once, the tensors with the first plan: a file that is gone or another one by then is named,
    not read."""
    folder = shutil.copytree(MODEL, tmp_path / "model")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    unet = dreamda.UNet.load(folder / "unet", dtype="f32", threads=1)
    file.rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match=str(file)):
        unet.plan(rows=1, height=8, width=8, tokens=16)
    for other in (content[:-1], content):  # truncated; the same bytes, but who could know
        file.write_bytes(other)
        with pytest.raises(ValueError,
                           match=f"{file}: it has changed since the model was loaded; load the model again"):
            unet.plan(rows=1, height=8, width=8, tokens=16)
    (tmp_path / "aside").replace(file)
    assert unet.plan(rows=1, height=8, width=8, tokens=16).missing() == []


def test_models_survive_another_working_folder(tmp_path, monkeypatch):
    """Weights are read with the first plan; by then a relative path may mean another place."""
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    unet = dreamda.UNet.load("model/unet", dtype="f32", threads=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert unet.plan(rows=1, height=8, width=8, tokens=16).missing() == []


def tensors(shape, count=1):
    """A safetensors file whose tensors have `shape` and one element each."""
    header = {f"t{i:06d}": {"dtype": "F32", "shape": shape, "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * count)


def test_tensors_of_very_many_dimensions(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(tensors([1] * 1000))
    with pytest.raises(ValueError, match="'t000000' has 1000 dimensions"):
        WeightFile(tmp_path)


def test_lists_of_misfits_end(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(tensors([1], 5000))
    with pytest.raises(ValueError, match=r"5000 unexpected: t000000, t000001, .*, t000004 and 4995 more$") as caught:
        WeightFile(tmp_path).check([("a", (1,))])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("file, content", [("tokenizer_config.json", '{"bos_token": {"content": []}}'),
                                           ("tokenizer_config.json", '{"pad_token": {"content": {"a": 1}}}'),
                                           ("tokenizer_config.json", '{"eos_token": [[]]}'), ("vocab.json", "{}"),
                                           ("vocab.json", '{"<|startoftext|>": true, "<|endoftext|>": false}')])
def test_tokenizers_of_odd_types(tmp_path, file, content):
    folder = shutil.copytree(MODEL / "tokenizer", tmp_path / "tokenizer")
    (folder / "special_tokens_map.json").unlink()
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=file):
        Tokenizer(folder)


# ------------------------------------------------------------------------------------------------ trained models and
# checkpoints


ABOUT = {
    "format": 1, "kind": "model", "backbone": "resnet18", "stem": "small", "width": 8, "size": [16, 16], "mean":
    [0.5] * 3, "std": [0.5] * 3, "classes": ["a", "b"], "about": {}
}
HEAD = {"fc.weight": np.zeros((2, 64), np.float32), "fc.bias": np.zeros(2, np.float32)}


def stored(path, about, arrays=HEAD):
    path.write_bytes(save(arrays, {"dreamda": about if isinstance(about, str) else json.dumps(about)}))
    return path


@pytest.mark.parametrize("about", [
    "[" * 100_000, "9" * 5000, "[]", "null",
    *(json.dumps(ABOUT | change)
      for change in ({"size": [16]}, {"size": ["a", 2]}, {"size": [16, 1 << 20]}, {"size": 16}, {"mean": "abc"},
                     {"mean": [0.5] * 4}, {"std": [0.5, 0.5, 0]}, {"std": [1, 1, float("nan")]}, {"width": "8"},
                     {"width": 0}, {"width": True}, {"stem": []}, {"stem": "auto"}, {"backbone": ["resnet18"]},
                     {"classes": {"a": 1, "b": 2}}, {"classes": [["a"], ["b"]]}, {"classes": ["a", 1]}, {"classes": []},
                     {"classes": ["a", "b", "c"]}, {"about": []}, {"format": [[1]]}, {"kind": "checkpoint"}))
])
def test_headers_of_trained_models(tmp_path, about):
    with pytest.raises(ValueError, match="m.safetensors") as caught:
        TrainedModel.load(stored(tmp_path / "m.safetensors", about))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("params", [3, [], "x"])
def test_parameters_of_a_saved_classifier(tmp_path, params):
    file = stored(tmp_path / "m.safetensors", ABOUT | {"about": {"params": params}})
    with pytest.raises(ValueError, match="was not saved by AMSTClassifier"):
        dreamda.AMSTClassifier.load(file)


@pytest.mark.parametrize("change, message",
                         [({"fc.weight": np.zeros((), np.float32)}, "its head and its classes"),
                          ({"fc.weight": np.zeros((2, 64, 1), np.float32)}, "its head and its classes"),
                          ({"fc.bias": np.full(2, np.nan, np.float32)}, "'fc.bias' is not float32, or holds NaN"),
                          ({"x": np.full(1, np.inf, np.float32)}, "'x' is not float32"),
                          ({"fc.bias": np.zeros(2, np.float64)}, "'fc.bias' is not float32")])
def test_tensors_of_trained_models(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        TrainedModel.load(stored(tmp_path / "m.safetensors", ABOUT, HEAD | change))


def test_a_trained_model_without_its_backbone_is_refused_by_name(tmp_path):
    model = TrainedModel.load(stored(tmp_path / "m.safetensors", ABOUT))
    with pytest.raises(ValueError,
                       match="the model's conv1.weight is missing; a resnet18 of width 8 and this stem needs"):
        model.predict_proba(np.zeros((1, 16, 16, 3), np.uint8), dtype="f32", threads=1)


def test_a_trained_model_takes_no_memory_that_its_file_does_not_hold(tmp_path):
    """A width of 2048 would be 140 GiB; it is refused before any of them is taken."""
    arrays = HEAD | {
        "conv1.weight": np.zeros((2048, 3, 3, 3), np.float32), "layer4.0.conv1.weight": np.zeros(
            (64, 32, 3, 3), np.float32)
    }
    model = TrainedModel.load(stored(tmp_path / "m.safetensors", ABOUT | {"width": 2048}, arrays))
    before = _core.info()["live_bytes"]
    with pytest.raises(ValueError,
                       match=r"bn1.weight is missing; a resnet18 of width 2048 and this stem needs \(2048,\)"):
        model.predict_proba(np.zeros((1, 16, 16, 3), np.uint8), dtype="f32", threads=1)
    assert _core.info()["live_bytes"] == before


def test_pretrained_weights_with_nan_are_named(tmp_path):
    backbone = StandIn()
    wanted = {k: np.zeros(v.shape, np.float32) for k, v in {**backbone.parameters, **backbone.buffers}.items()}
    wanted["bn1.bias"][3] = np.nan
    (tmp_path / "p.safetensors").write_bytes(save(wanted))
    with pytest.raises(ValueError, match="pretrained: .*p.safetensors: parameter 'bn1.bias' holds NaN"):
        load_pretrained(backbone, tmp_path / "p.safetensors")


@pytest.mark.parametrize("change, message",
                         [({"epoch": -1}, "position"), ({"epoch": -10**30}, "position"), ({"epoch": 4}, "position"),
                          ({"step": 10**9}, "position"), ({"round": "1"}, "position"), ({"epoch": 1.5}, "position"),
                          ({"sums": []}, "position"), ({"step": 1, "sums": {}}, "position"), ({"best": 3}, "position"),
                          ({"best": {"accuracy": "x"}}, "position"), ({"epoch": None}, "position"),
                          ({"sums": dict.fromkeys(SUMS, float("nan")), "step": 1}, "position"),
                          ({"assigned": np.full(6, 3, np.int32)}, "labels of the synthetic images"),
                          ({"assigned": np.full(6, -2, np.int32)}, "labels of the synthetic images"),
                          ({"assigned": np.full(6, 0.5, np.float32)}, "labels of the synthetic images"),
                          ({"backbone.bn1.bias": np.full(24, np.inf, np.float32)}, "holds NaN or infinite")])
def test_positions_and_arrays_of_checkpoints(tmp_path, change, message):
    images, labels = pictures(6)
    run = Training(StandIn(batch=4),
                   AMSTHeads(24, 3),
                   Recipe(epochs=3, batch_size=4),
                   Views((16, 16), (0.5, ) * 3, (0.2, ) * 3),
                   Data(images, labels, images),
                   workers=0)
    arrays, position = run.state()
    arrays |= {k: v for k, v in change.items() if isinstance(v, np.ndarray)}
    position |= {k: v for k, v in change.items() if k in position}
    save_arrays(tmp_path / "c.safetensors", arrays, {"format": 1, "kind": "checkpoint", **position})
    before = run.network.state()
    with pytest.raises(ValueError, match=message):
        run.load_state(*load_arrays(tmp_path / "c.safetensors", "checkpoint"))
    assert all(np.array_equal(v, before[k]) for k, v in run.network.state().items()), "nothing is changed then"


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{", b"[1]", b'{"epoch": 1}', b"\xff"])
def test_logs_of_training_runs(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b'{"event": "epoch"}\n' + line + b"\n")
    with pytest.raises(ValueError, match="log.jsonl holds a line that is no record"):
        train_run._Folder(tmp_path, {}).log(2)
    assert (tmp_path / "log.jsonl").read_bytes().endswith(line + b"\n"), "and nothing of it is lost"


# ------------------------------------------------------------------------------------------------ run folders


class Grey:
    """A pipeline that makes grey images at once."""

    size, fingerprint, dtype, threads_matter = (8, 8), "f" * 64, "f32", False

    def _augment(self, images, prompts, keys, options, *, first=0, **_):
        return np.full((len(images), options.variants - first, 8, 8, 3), 99, np.uint8)


@pytest.fixture
def real(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "real" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "real" / label / "1.png")
    return ImageFolder.scan(tmp_path / "real")


def paths(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "change",
    [{"label": ".."}, {"label": "/etc"}, {"label": "\0"}, {"label": ""}, {"label": "b"}, {"file_name": "../x.png"},
     {"file_name": "a/../../x.png"}, {"file_name": "/etc/passwd"}, {"file_name": "a/"}, {"file_name": "a"},
     {"file_name": "a/\0"}, {"prompt": "\ud800"}, {"variant": True}, {"variant": 0.0}, {"seed_file": "../1.png"},
     {"seed_file": "b/1.png"}, {"seed_sha256": None}, "[" * 100_000, "9" * 5000])
def test_foreign_lines_in_the_manifest_are_refused(tmp_path, real, change):
    """With its line number; the manifest stays as it is, and nothing is made or written elsewhere."""
    out = tmp_path / "out"
    generate_dataset(real, out, Grey(), GenerationOptions(variants=1))
    lines = (out / "metadata.jsonl").read_text().splitlines()
    lines[1] = change if isinstance(change, str) else json.dumps(json.loads(lines[0]) | change)
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    before, content = paths(tmp_path), (out / "metadata.jsonl").read_bytes()
    with pytest.raises(ValueError, match="metadata.jsonl line 2 is no"):
        generate_dataset(real, out, Grey(), GenerationOptions(variants=1))
    assert (out / "metadata.jsonl").read_bytes() == content
    assert [p for p in paths(tmp_path) if ".dreamda" not in p] == before
    with pytest.raises(ValueError, match="metadata.jsonl line 2 is no"):
        contact_sheet_of_run(out, real.root)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"label": "\\ud800"}', "9" * 5000,
             json.dumps({"label": "..", "file_name": "../x"})])
def test_foreign_lines_in_a_journal_are_left_out(tmp_path, real, line):
    generate_dataset(real, tmp_path / "whole", Grey(), GenerationOptions(variants=1))
    (tmp_path / "out/.dreamda").mkdir(parents=True)
    (tmp_path / "out/.dreamda/0-of-1.jsonl").write_text(line + "\n")
    shutil.copy(tmp_path / "whole/run.json", tmp_path / "out/run.json")
    generate_dataset(real, tmp_path / "out", Grey(), GenerationOptions(variants=1))
    assert (tmp_path / "out/metadata.jsonl").read_bytes() == (tmp_path / "whole/metadata.jsonl").read_bytes()


def test_a_run_json_that_is_no_file_does_not_block(tmp_path, real):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/run.json")
    with pytest.raises(ValueError, match="run.json is not a run of dreamda"):
        generate_dataset(real, tmp_path / "out", Grey(), GenerationOptions(variants=1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_class_folders_with_any_name(tmp_path):
    """Every name that a file system takes goes through generation, the table and the pictures; no control character
    comes out."""
    for label in NAMES:
        (tmp_path / "real" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "real" / label / "1.png")
    folder = ImageFolder.scan(tmp_path / "real")
    generate_dataset(folder, tmp_path / "out", Grey(), GenerationOptions(variants=1))
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == sorted(NAMES)
    assert scan_labelled(tmp_path / "out", sorted(NAMES), "X").labels.tolist() == list(range(len(NAMES)))
    metrics = evaluate_predictions(np.eye(len(NAMES)), np.arange(len(NAMES)), NAMES)
    table = metrics.table()
    assert len(table.splitlines()) == len(NAMES) + 2 and all(line.isprintable() and len(line) < 200
                                                             for line in table.splitlines())
    assert contact_sheet_of_run(tmp_path / "out", tmp_path / "real").width > 100
    contact_sheet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 1, 8, 8, 3), np.uint8), ["a\nb\x00"])
    if sys.modules.get("matplotlib") or pytest.importorskip("matplotlib"):
        confusion_picture(metrics).savefig(io.BytesIO())
