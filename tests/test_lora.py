"""LoRA: every spelling of the keys changes the same weights, by what plain NumPy says; what is no LoRA for the model is
refused."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dreamda import cli
from dreamda.data import load_bundled
from dreamda.distributed import Augmenter
from dreamda.generation.pipeline import BUNDLED, Pipeline
from dreamda.networks.config import SAMPLERS
from dreamda.networks.lora import Lora
from dreamda.networks.models import TextEncoder, UNet
from dreamda.options import ParameterError

MODEL = BUNDLED / "fashion-mini"
WEIGHTS = {part: next((MODEL / part).glob("*.safetensors")) for part in ("unet", "text_encoder")}
RANK, ALPHA, SCALE = 3, 2.0, 0.7
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
# Layers of each network: matrices, convolutions of 1 and 3 pixels.
LAYERS = {
    "unet": [f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn2.to_out.0", f"{ATTENTION}.ff.net.0.proj",
             "down_blocks.1.attentions.0.proj_in", "up_blocks.0.resnets.0.conv1"],
    "text_encoder": ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.self_attn.out_proj",
                     "text_model.encoder.layers.0.mlp.fc1"],
}


def stored(part):
    """The model's tensors, under the names that libraries give the parameters."""
    tensors = load_file(WEIGHTS[part])
    return {name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}": value
            for name, value in tensors.items()}


def factors(part, layer):
    """down and up of a layer, from its name."""
    shape = stored(part)[f"{layer}.weight"].shape
    rng = np.random.default_rng(len(layer))
    down = rng.standard_normal((RANK, *shape[1:])).astype(np.float32) / 8
    up = rng.standard_normal((shape[0], RANK, *[1] * len(shape[2:]))).astype(np.float32) / 8
    return down, up


def spelled(middle, halves=("down", "up"), flat=False, prefixes=("unet.", "text_encoder."), alpha=False, change=str):
    """A function that writes a layer's keys in one library's way."""
    def write(part, layer, down, up):
        name = prefixes[part == "text_encoder"] + change(layer.replace(".", "_") if flat else layer)
        tensors = {f"{name}{middle}{half}.weight": value for half, value in zip(halves, (down, up))}
        return tensors | ({f"{name}.alpha": np.array(ALPHA, np.float32)} if alpha else {})

    return write


def first_name(layer):
    """diffusers' first files: LoRA was part of the attention processor."""
    for new, old in ((".attn1.", ".attn1.processor."), (".attn2.", ".attn2.processor."), ("q_proj", "to_q"),
                     ("out_proj", "to_out"), ("to_out.0", "to_out")):
        layer = layer.replace(new, old)
    return layer


KOHYA = dict(middle=".lora_", flat=True, alpha=True)
PEFT = dict(middle=".lora_", halves=("A", "B"))
SPELLINGS = {
    "peft": spelled(**PEFT),
    "peft with the adapter's name": spelled(".lora_", ("A.default_0", "B.default_0")),
    "one network alone": spelled(**PEFT, prefixes=("", "")),
    "one network of transformers 5": spelled(**PEFT, prefixes=("", ""), change=lambda n: n.removeprefix("text_model.")),
    "of peft itself": spelled(**PEFT, prefixes=("base_model.model.",) * 2),
    "diffusers": spelled(".lora."),
    "diffusers, text encoder": spelled(".lora_linear_layer."),
    "diffusers' first": spelled("_lora.", change=first_name),
    "kohya": spelled(**KOHYA, prefixes=("lora_unet_", "lora_te_")),
    "kohya, first of two encoders": spelled(**KOHYA, prefixes=("lora_unet_", "lora_te1_")),
    "kohya's halves, diffusers' names": spelled(".lora_", alpha=True),
}


def write_lora(path, spelling="peft", layers=LAYERS):
    write = SPELLINGS[spelling]
    tensors = {}
    for part, names in layers.items():
        for layer in names:
            tensors |= write(part, layer, *factors(part, layer))
    save_file(tensors, path)
    return path


def merged(folder, part, factor, layers=LAYERS):
    """A folder of a network whose weights NumPy has changed."""
    shutil.copytree(MODEL / part, folder)
    tensors = stored(part)
    for layer in layers[part]:
        down, up = (half.reshape(len(half), -1).astype(np.float64) for half in factors(part, layer))
        weight = tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight"] = (weight + factor * (up @ down).reshape(weight.shape)).astype(np.float32)
    save_file(tensors, folder / WEIGHTS[part].name)
    return folder


def predict(unet):
    rng = np.random.default_rng(0)
    shape = 1, unet.config["in_channels"], 8, 8
    return unet(rng.standard_normal(shape), 500, rng.standard_normal((1, 7, unet.config["context_dim"])))


def embed(encoder):
    return encoder.encode_tokens(np.arange(1, 11)[None])


NETWORKS = {"unet": (UNet, predict), "text_encoder": (TextEncoder, embed)}


def close(x, expected):
    return np.sum((x - expected) ** 2) <= 1e-10 * np.sum(expected.astype(np.float64) ** 2)


def load(part, *loras, **options):
    return NETWORKS[part][0].load(MODEL / part, dtype="f32", threads=1, loras=loras, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the networks give with the change added by NumPy: with and without alpha, and unchanged."""
    root = tmp_path_factory.mktemp("merged")
    found = {}
    for part, (kind, run) in NETWORKS.items():
        found[part, None] = run(load(part))
        for factor in (SCALE, SCALE * ALPHA / RANK):
            folder = merged(root / f"{part}-{factor}", part, factor)
            found[part, factor] = run(kind.load(folder, dtype="f32", threads=1))
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_changes_the_same_weights(spelling, expected, tmp_path):
    attention = {part: names[:2] for part, names in LAYERS.items()}
    file = write_lora(tmp_path / "a.safetensors", spelling, attention if spelling == "diffusers' first" else LAYERS)
    for part, (kind, run) in NETWORKS.items():
        lora = Lora(file, SCALE)
        result = run(load(part, lora))
        assert lora.unmatched == [] or spelling.startswith("one network") or spelling == "of peft itself"
        if spelling == "diffusers' first":
            assert list(lora.matched) == [(part, f"{layer}.weight") for layer in attention[part]]
            folder = merged(tmp_path / part, part, SCALE, attention)
            assert close(result, run(kind.load(folder, dtype="f32", threads=1)))
            continue
        assert sorted(lora.matched) == sorted((part, f"{layer}.weight") for layer in LAYERS[part])
        factor = SCALE * ALPHA / RANK if "kohya" in spelling else SCALE
        assert close(result, expected[part, factor])
        assert not close(result, expected[part, None])


def test_several_add_up_and_are_read_again(expected, tmp_path):
    """Also with the weights' memory given back between; a scale of 0 leaves the model as it is."""
    file = write_lora(tmp_path / "a.safetensors")
    unet = load("unet", (file, 1.0), (str(file), SCALE - 1.0))
    assert close(first := predict(unet), expected["unet", SCALE])
    unet.unload()
    assert np.array_equal(predict(unet), first)
    assert np.array_equal(predict(load("unet", (file, 0))), expected["unet", None])


def test_alphas_as_whole_numbers(expected, tmp_path):
    """As diffusers converts to kohya's names."""
    file = write_lora(tmp_path / "a.safetensors", "kohya")
    save_file({k: np.array(2 if k.endswith(".alpha") else v, np.int64 if k.endswith(".alpha") else None)
               for k, v in load_file(file).items()}, file)
    assert close(predict(load("unet", (file, SCALE))), expected["unet", SCALE * ALPHA / RANK])


def test_half_precision(expected, tmp_path):
    file = write_lora(tmp_path / "a.safetensors")
    save_file({name: value.astype(np.float16) for name, value in load_file(file).items()}, file)
    assert np.sum((predict(load("unet", (file, SCALE))) - expected["unet", SCALE]) ** 2) < 1e-4


def test_alphas_in_pefts_configurations(expected, tmp_path):
    """adapter_config.json beside what peft saves, and the metadata of diffusers' newer files."""
    def config(**about):
        return {"peft_type": "LORA", "r": RANK, "lora_alpha": 9.0} | about

    patterns = {"alpha_pattern": {layer.removeprefix("down_"): ALPHA for layer in LAYERS["unet"]}}
    file = write_lora(tmp_path / "adapter_model.safetensors", "of peft itself", {"unet": LAYERS["unet"]})
    tensors, seen = load_file(file), {Lora(tmp_path).sha256}
    for about in (config(lora_alpha=ALPHA), config(lora_alpha=ALPHA / np.sqrt(RANK), use_rslora=True),
                  config(alpha_pattern={f"^{layer}": ALPHA for layer in LAYERS["unet"]})):
        (tmp_path / "adapter_config.json").write_text(json.dumps(about))
        lora = Lora(tmp_path, SCALE)
        seen.add(lora.sha256)
        assert close(predict(load("unet", lora)), expected["unet", SCALE * ALPHA / RANK])
    assert len(seen) == 4, "the configuration is part of what the LoRA is"
    named = {f"unet.{name.removeprefix('base_model.model.')}": value for name, value in tensors.items()}
    for about in ({"unet.lora_alpha": ALPHA}, {"unet.lora_alpha": 9} | {f"unet.{k}": v for k, v in patterns.items()}):
        save_file(named, tmp_path / "b.safetensors", {"lora_adapter_metadata": json.dumps(about)})
        good = "alpha_pattern" not in str(about)
        result = predict(load("unet", (tmp_path / "b.safetensors", SCALE)))
        assert close(result, expected["unet", SCALE * ALPHA / RANK]) == good, "part of a name is another name"


def test_layers_that_are_not_in_the_model_are_named(tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "kohya")
    tensors = load_file(file)
    tensors |= {name.replace("up_blocks_0", "up_blocks_9"): value for name, value in tensors.items()}
    save_file(tensors, file)
    with pytest.warns(UserWarning, match="1 of its 6 layers are not in this model and have no effect: lora_unet_up"):
        load("unet", (file, 1.0))


DOWN, UP = "lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight"
WIDTH, IN = (load_file(WEIGHTS["unet"])["conv_in.weight"].shape[axis] for axis in (0, 1))


def layer(name="lora_unet_conv_in", rank=2, width=WIDTH, channels=IN, kernel=3, **more):
    return {
        f"{name}.lora_down.weight": np.ones((rank, channels, kernel, kernel), np.float32),
        f"{name}.lora_up.weight": np.ones((width, rank, 1, 1), np.float32), **more
    }


def one(key, value=1.0):
    return {key: np.full((2, 2), value, np.float32)}


# name -> (tensors, what the message says)
REFUSED = {
    "LoHa": (one("lora_unet_conv_in.hada_w1_a"), "a file of LoHa"),
    "LoKr": (one("lora_unet_conv_in.lokr_w1"), "a file of LoKr"),
    "DoRA of kohya": (layer() | one("lora_unet_conv_in.dora_scale"), "a file of DoRA"),
    "DoRA of peft": (layer() | one("unet.conv_in.lora_magnitude_vector"), "a file of DoRA"),
    "three factors": (layer() | one("lora_unet_conv_in.lora_mid.weight"), "LoCon with a third factor"),
    "biases": (layer() | one("unet.conv_in.lora_B.bias"), "LoRA with biases"),
    "no LoRA": (one("conv_in.weight"), r"no LoRA: it has no names .* \(the first is 'conv_in.weight'\)"),
    "nothing": ({}, "no LoRA"),
    "another architecture": (layer("lora_unet_input_blocks_70_1_proj_in"), "none of its 1 layers for the U-Net is in"),
    "another width": (layer(width=WIDTH + 1), "does not fit the model's conv_in.weight"),
    "other inputs": (layer(channels=IN + 1), "does not fit the model's conv_in.weight"),
    "another kernel": (layer(kernel=1), "does not fit the model's conv_in.weight"),
    "other ranks": (layer() | {UP: np.ones((WIDTH, 3), np.float32)}, "does not fit the model's conv_in.weight"),
    "no rank": (layer(rank=0), "has no rank"),
    "a number for a matrix": (layer() | {DOWN: np.array(1, np.float32)}, "has no rank"),
    "half a layer": ({DOWN: layer()[DOWN]}, "one factor is missing"),
    "not finite": (layer() | {UP: np.full((WIDTH, 2), np.nan, np.float32)}, "values that are not finite"),
    "an infinite alpha": (layer() | {"lora_unet_conv_in.alpha": np.float32([np.inf])}, "'lora_unet_conv_in.alpha' is"),
    "two alphas": (layer() | {"lora_unet_conv_in.alpha": np.ones(2, np.float32)}, "has to be one number"),
    "twice": (layer() | layer("unet.conv_in"), "are the same layer of the model"),
    "text alone": (layer("lora_te_text_model_encoder_layers_0_mlp_fc1"), "it has no layers for the U-Net, only others"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_for_the_model_is_refused(name, tmp_path):
    tensors, message = REFUSED[name]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load("unet", (tmp_path / "a.safetensors", 1.0))
    assert str(tmp_path / "a.safetensors") in str(caught.value) and "\n" not in str(caught.value)


def test_a_lora_with_a_second_text_encoder_is_for_sdxl(tmp_path):
    """A U-Net alone ignores such layers; a model without a second text encoder refuses them."""
    file = tmp_path / "a.safetensors"
    save_file(layer() | layer("lora_te2_text_model_encoder_layers_0_mlp_fc1"), file)
    assert predict(load("unet", (file, 1.0))).shape
    with pytest.raises(ValueError, match="'lora_te2_text_model_encoder_layers_0_mlp_fc1' is for a second text encoder"):
        Pipeline.load(MODEL, "f32", 1, loras=[(file, 1.0)])


# adapter_config.json -> what the message says
CONFIGS = {
    '{"peft_type": "LOHA"}': "made by 'LOHA'",
    '{"use_dora": true}': "made by DoRA",
    '{"lora_alpha": "2"}': "'lora_alpha' has to be a number",
    '{"lora_alpha": 1e999}': "'lora_alpha' has to be a number",
    '{"alpha_pattern": [1]}': "'alpha_pattern' has to map layers to numbers",
    r'{"alpha_pattern": {".*\\.attn": 1}}': "only names of layers are supported",
    "[]": "expected a JSON object",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_wrong_configurations_of_peft(text, tmp_path):
    save_file(layer(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=CONFIGS[text]):
        Lora(tmp_path)


def test_files_that_are_not_there_or_no_safetensors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Lora(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="neither pytorch_lora_weights.safetensors nor"):
        Lora(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="never opened; convert them"):
        Lora(tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Lora(tmp_path / "a.safetensors")
    save_file(layer(), tmp_path / "a.safetensors", {"lora_adapter_metadata": "["})
    with pytest.raises(ValueError, match="'lora_adapter_metadata' is no JSON object"):
        Lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize("loras", ["a.safetensors", ["a.safetensors"], [("a.safetensors",)],
                                   [("a.safetensors", "1")], [("a.safetensors", float("nan"))]])
def test_other_things_than_pairs(loras):
    with pytest.raises(ParameterError, match="^loras: "):
        UNet.load(MODEL / "unet", loras=loras)


# ---- in a pipeline, and in a run


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two of the bundled images, as a data set."""
    bundled = load_bundled("fashion-mini")
    root = tmp_path_factory.mktemp("real")
    for label in (0, 1):
        (root / str(label)).mkdir()
        Image.fromarray(bundled.seeds[10 * label]).save(root / str(label) / "0.png")
    return root


def command(*arguments):
    return cli.main([*map(str, arguments)])


OPTIONS = ("--model", "fashion-mini", "--steps", 2, "--variants", 1, "--threads", 1, "--dtype", "f32")


def test_a_pipeline_and_its_fingerprint(tmp_path):
    """Both networks are changed; the file's content and the scale are what counts."""
    file, copy = write_lora(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    shutil.copy(file, copy)
    loras = [[], [(file, 1.0)], [(copy, 1)], [(file, 0.5)], [(file, 0.5), (copy, 0.5)]]
    own, one, same, less, two = (Pipeline.load(MODEL, "f32", 1, loras=each) for each in loras)
    assert one.fingerprint == same.fingerprint
    assert len({pipe.fingerprint for pipe in (own, one, less, two)}) == 4
    layers = [(part, f"{layer}.weight") for part in LAYERS for layer in LAYERS[part]]
    assert sorted(one.loras[0].matched) == sorted(layers)
    assert not np.array_equal(own.context("a photo of a coat"), one.context("a photo of a coat"))
    text = write_lora(tmp_path / "text.safetensors", layers={"text_encoder": LAYERS["text_encoder"]})
    assert len(Pipeline.load(MODEL, "f32", 1, loras=[(text, 1.0)]).loras[0].matched) == 3


def test_a_run_with_a_lora(real, tmp_path, capsys):
    """run.json has it; with another one, or another scale, the run is not resumed; it is replayed, also when the file
    has moved."""
    file, out = write_lora(tmp_path / "a:1.safetensors"), tmp_path / "out"
    assert command("generate", real, out, *OPTIONS, "--lora", f"{file}:0.5", "--lora", file, "--record-names",
                   "paths") == 0
    assert "scale 0.5: 8 weights changed" in capsys.readouterr().out
    run = json.loads((out / "run.json").read_text())
    sha256 = Lora(file).sha256
    assert run["loras"] == [{"file": file.name, "scale": scale, "sha256": sha256} for scale in (0.5, 1.0)]
    plain = tmp_path / "plain"
    assert command("generate", real, plain, *OPTIONS) == 0
    assert "loras" not in json.loads((plain / "run.json").read_text())
    assert (plain / "0" / "0-000.png").read_bytes() != (out / "0" / "0-000.png").read_bytes()
    assert command("generate", real, out, *OPTIONS, "--lora", file) == 2
    assert "another --model, --vae, --lora, --scheduler or --embedding" in capsys.readouterr().err
    assert command("replay", out) == 0
    moved = file.rename(tmp_path / "moved.safetensors")
    assert command("replay", out) == 2
    assert command("replay", out, "--lora", moved) == 2
    assert "the run has 2, and 1 are given" in capsys.readouterr().err
    assert command("replay", out, "--lora", moved, "--lora", moved) == 0
    assert "2 of 2 images repeated to the same bytes" in capsys.readouterr().out


def test_other_processes_get_the_same_model(tmp_path):
    """Pickled arguments make the same pipeline, and a pickled LoRA can still be described."""
    file = write_lora(tmp_path / "a.safetensors")
    augmenter = Augmenter(str(MODEL), dtype="f32", threads=1, loras=[(str(file), 0.5)], scheduler="lcm")
    pipe = Pipeline.load(MODEL, "f32", 1, loras=[(file, 0.5)], scheduler="lcm")
    assert pickle.loads(pickle.dumps(augmenter)).pipeline.fingerprint == pipe.fingerprint
    assert pickle.loads(pickle.dumps(pipe.loras[0])).describe() == pipe.loras[0].describe()


@pytest.mark.parametrize("given, message", [
    ("gone.safetensors:0.5", "gone.safetensors: no such file"),
    ("gone.safetensors:half", "gone.safetensors:half: no such file"),
    ("a.safetensors:nan", "--lora: nan is no scale for a.safetensors"),
    ("wrong.safetensors", "none of its 1 layers for the U-Net is in this model"),
])
def test_wrong_loras_on_the_command_line(given, message, real, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(layer(), "a.safetensors")
    save_file(layer("lora_unet_input_blocks_70_1_proj_in"), "wrong.safetensors")
    assert command("generate", real, "out", *OPTIONS, "--lora", given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_dry_run_and_inspect_say_what_is_added(real, tmp_path, capsys):
    file = write_lora(tmp_path / "a.safetensors")
    assert command("generate", real, tmp_path / "out", *OPTIONS, "--lora", file, "--dry-run") == 0
    assert "a.safetensors at scale 1: 8 weights changed" in capsys.readouterr().out
    assert command("inspect", "fashion-mini", "--lora", file, "--scheduler", "lcm", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["loras"] == [Pipeline.load(MODEL, loras=[(file, 1.0)]).loras[0].describe()]
    assert (about["scheduler"], about["steps_run"]) == ("lcm", 4)


# ---- LCM-LoRA: the sampler changes with the weights


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_sampler_on_the_models_own_noise_schedule(name):
    """As diffusers' from_config: the class changes, and what the file says of the betas stays."""
    own, other = Pipeline.load(MODEL).schedule, Pipeline.load(MODEL, scheduler=name)
    assert other.schedule.name == SAMPLERS[name]["_class_name"]
    assert np.array_equal(own.alphas_cumprod, other.schedule.alphas_cumprod)
    assert other.fingerprint != Pipeline.load(MODEL).fingerprint


def test_an_lcm_lora_makes_images_in_few_steps(real, tmp_path, capsys):
    file, out = write_lora(tmp_path / "lcm.safetensors", "kohya"), tmp_path / "out"
    options = [*OPTIONS, "--lora", file, "--steps", 4, "--guidance-scale", 1, "--method", "sdedit"]
    assert command("generate", real, out, *options, "--scheduler", "lcm", "--record-names", "paths") == 0
    run = json.loads((out / "run.json").read_text())
    assert run["scheduler"] == "lcm" and command("replay", out) == 0
    pipe = Pipeline.load(MODEL, "f32", 1, loras=[(file, 1.0)], scheduler="lcm")
    steps = []
    pipe.augment(np.zeros((32, 32, 3), np.uint8), "a photo of a coat", variants=1, steps=4, method="sdedit",
                 callback_on_step_end=lambda step, timestep, *_: steps.append(timestep))
    assert steps == [799, 599, 399, 199]
    assert command("generate", real, out, *options) == 2
    assert command("generate", real, tmp_path / "b", *options, "--scheduler", "karras") == 2
    error = capsys.readouterr().err
    assert "--scheduler: 'karras' is unknown; use one of lcm, tcd" in error and not (tmp_path / "b").exists()
