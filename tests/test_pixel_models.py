"""Models in pixel space (UNet2DModel, as DDPMPipeline saves them): no VAE, no text, classes by number."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

import dreamda
from dreamda import Pipeline, _core, cli
from dreamda.data.class_labels import number_classes
from dreamda.data.folders import ImageFolder
from dreamda.generation.recursions import STREAM_BOTTLENECK, STREAM_START, STREAM_STEP
from dreamda.options import ParameterError
from networks import write_model, write_pixel_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
CLASSES = dict(num_class_embeds=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {
        "plain": {}, "classes": CLASSES, "grey": dict(in_channels=1, out_channels=1), "cut": dict(mid_block_type=None),
        "shifted": CLASSES | dict(resnet_time_scale_shift="scale_shift", downsample_padding=0, attention_head_dim=None),
        "number": dict(class_embed_type="timestep", center_input_sample=True)
    }
    for name, changes in made.items():
        write_pixel_model(folder / name, **changes)
    write_pixel_model(folder / "sample", dict(prediction_type="sample"))
    write_pixel_model(folder / "velocity", dict(prediction_type="v_prediction", clip_sample=False))
    return folder


def given(pipe):
    return {"class_labels": [0, 3, 1]} if pipe.conditioning == "class" else {}


@pytest.mark.parametrize("method", ["cycle", "asymmetric", "sdedit"])
@pytest.mark.parametrize("name", ["plain", "classes", "grey", "cut", "shifted", "number", "sample", "velocity"])
def test_every_model_and_method(models, name, method):
    """The batch, the threads and the variants made before change nothing; the perturbation and the class do."""
    pipe, one = (Pipeline.load(models / name, "f32", threads) for threads in (2, 1))
    options = dict(variants=2, steps=3, method=method, noise_scale=1.0)
    made = pipe.augment(IMAGES, keys=["a", "b", "c"], **given(pipe), **options)
    assert made.shape == (3, 2, 16, 16, 3) and made.dtype == np.uint8
    label = {"class_labels": 3} if pipe.conditioning == "class" else {}
    assert np.array_equal(made[1], one.augment(IMAGES[1], keys="b", **label, **options))
    assert not np.array_equal(made[:, 0], made[:, 1])
    if pipe.conditioning == "class":
        assert not np.array_equal(made[1], pipe.augment(IMAGES[1], keys="b", class_labels=2, **options))
    if name == "grey":
        assert np.ptp(made.astype(int), axis=-1).max() == 0


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_without_noise_the_image_comes_back(models, name):
    pipe = Pipeline.load(models / name, "f32", 1)
    made = pipe.augment(IMAGES, variants=1, steps=5, noise_scale=0, **given(pipe))
    assert np.array_equal(made[:, 0], IMAGES)


@pytest.mark.parametrize("prediction, clip", [("epsilon", True), ("epsilon", False), ("sample", True),
                                              ("v_prediction", False)])
def test_img2img_is_ddpm(tmp_path, prediction, clip):
    """Plain img2img with eta 1 takes the steps of Ho et al. (2020): the posterior's mean and variance."""
    folder = write_pixel_model(tmp_path / "m", dict(prediction_type=prediction, clip_sample=clip))
    pipe, unet = Pipeline.load(folder, "f32", 1), dreamda.UNet.load(folder / "unet", "f32", 1)
    steps, seed, x0 = 10, 5, IMAGES[0].transpose(2, 0, 1) / 127.5 - 1
    made = pipe.augment_latents(x0[None], variants=1, keys=[7], steps=steps, strength=0.8, method="sdedit",
                                noise_scale=2.0, seed=seed)[0, 0]
    alphas = pipe.schedule.alphas_cumprod
    timesteps = [i * 100 for i in range(8)][::-1]

    def draw(stream, step, shape=(3, 16, 16)):
        return _core.normals(seed, 7, 0, step, stream, 0 if stream != STREAM_BOTTLENECK else 1, shape)

    x = math.sqrt(alphas[700]) * x0 + math.sqrt(1 - alphas[700]) * draw(STREAM_START, 0)
    for index, t in enumerate(timesteps):
        a, p = alphas[t], alphas[t - 100] if t >= 100 else 1.0
        noise = 2 * draw(STREAM_BOTTLENECK, index, (16, 8, 8))
        out = unet(x[None].astype(np.float32), t, bottleneck_noise=noise[None])[0].astype(np.float64)
        image = {"epsilon": (x - math.sqrt(1 - a) * out) / math.sqrt(a), "sample": out,
                 "v_prediction": math.sqrt(a) * x - math.sqrt(1 - a) * out}[prediction]
        image = np.clip(image, -1, 1) if clip else image
        beta = 1 - a / p
        x = math.sqrt(p) * beta / (1 - a) * image + math.sqrt(1 - beta) * (1 - p) / (1 - a) * x
        x = x + math.sqrt(beta * (1 - p) / (1 - a)) * draw(STREAM_STEP, index)
    assert np.abs(made - x).max() < 2e-4 * np.abs(x).max()


def test_from_the_class_alone(models):
    pipe = Pipeline.load(models / "classes", "f32", 1)
    make = partial(pipe.augment, class_labels=1, keys=[1, 1, 1], variants=2, steps=3)
    made = make(IMAGES, text_share=0.5)
    assert np.array_equal(made[0, 1], made[2, 1]) and np.array_equal(made[:, 0], make(IMAGES)[:, 0])
    assert not np.array_equal(made[0, 1], make(IMAGES, class_labels=2, text_share=0.5)[0, 1])


def test_kept_pixels(models):
    mask = np.zeros((3, 16, 16), bool)
    mask[:, 4:12, 4:12] = True
    pipe = Pipeline.load(models / "classes", "f32", 1)
    made = pipe.augment(IMAGES, class_labels=1, masks=mask, keep="objects", variants=1, steps=3)
    assert all(np.array_equal(new[0][m], old[m]) for new, old, m in zip(made, IMAGES, mask))


def test_size_and_numbers(models):
    pipe = Pipeline.load(models / "plain", "f32", 1, size=(8, 20))
    assert pipe.augment(IMAGES[0], variants=1, steps=2).shape == (1, 8, 20, 3)
    assert pipe.vae_folder is None and list(pipe.networks) == ["unet"] and pipe.text_encoder is None
    assert len({Pipeline.load(models / name).fingerprint for name in ("plain", "classes", "sample")}) == 3


@pytest.mark.parametrize("name, call, message", [
    ("plain", dict(prompts="a cat"), "prompts: are not possible: this model reads no text; leave them out"),
    ("classes", dict(prompts="a cat"), "prompts: are not possible: this model reads no text; give class_labels"),
    ("plain", dict(class_labels=1), "class_labels: are not possible: this model is unconditional"),
    ("classes", {}, "class_labels: are missing: this model is class-conditional"),
    ("classes", dict(class_labels=4), "class_labels: '4' is not possible; use whole numbers from 0 to 3"),
    ("classes", dict(class_labels=-1), "class_labels: '-1' is not possible"),
    ("classes", dict(class_labels=[1, 2]), "class_labels: expected a whole number, or 3, one an image"),
    ("classes", dict(class_labels="1"), "class_labels: expected a whole number"),
    ("classes", dict(class_labels=1, guidance_scale=2.0), "guidance_scale: has no effect: this model reads no prompts"),
    ("plain", dict(negative_prompt="a dog"), "negative_prompt: has no effect"),
    ("plain", dict(text_share=0.5), "text_share: is not possible: this model reads neither prompts nor classes"),
])
def test_what_a_call_may_not_give(models, name, call, message):
    with pytest.raises(ParameterError) as caught:
        Pipeline.load(models / name, "f32", 1).augment(IMAGES, variants=1, steps=2, **call)
    assert str(caught.value).startswith(message)


def test_text_models_take_prompts(tmp_path):
    pipe = Pipeline.load(write_model(tmp_path / "m"), "f32", 1)
    for call, message in (({}, "prompts: are missing"), (dict(prompts="a", class_labels=1), "class_labels: are for")):
        with pytest.raises(ParameterError, match=message):
            pipe.augment(IMAGES[0], **call)


@pytest.mark.parametrize("call, message", [
    (dict(vae="vae"), "vae: is not possible: this model works on pixels"),
    (dict(embeddings=["a.safetensors"]), "embeddings: is not possible"),
    (dict(size=(15, 16)), "size: 15 x 16 is not possible; use multiples of 2"),
])
def test_what_loading_may_not_give(models, call, message):
    with pytest.raises(ParameterError) as caught:
        Pipeline.load(models / "plain", "f32", 1, **call)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("changes, message", [
    (dict(out_channels=6), "in_channels 3 and out_channels 6 both have to be 3 (RGB) or 1 (grey); a model that also "
     "predicts its variance is not supported"),
    (dict(in_channels=4, out_channels=4), "in_channels 4 and out_channels 4 both have to be 3 (RGB) or 1 (grey)"),
    (dict(class_embed_type="identity"), "class_embed_type is identity, so its classes are vectors that no file holds"),
])
def test_folders_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        Pipeline.load(write_pixel_model(tmp_path / "m", **changes))
    assert message in str(caught.value) and str(tmp_path / "m") in str(caught.value)


def test_a_model_with_all_files_at_its_root(models, tmp_path):
    """As google/ddpm-cifar10-32 on the hub."""
    root = tmp_path / "root"
    shutil.copytree(models / "plain/unet", root)
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        shutil.copy(models / "plain" / file, root)
    made, same = (Pipeline.load(folder, "f32", 1) for folder in (root, models / "plain"))
    assert made.fingerprint == same.fingerprint
    assert np.array_equal(*(pipe.augment(IMAGES, variants=1, steps=2) for pipe in (made, same)))


def test_a_pixel_model_with_other_parts(tmp_path):
    file = write_pixel_model(tmp_path / "m") / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="model_index.json: has a UNet2DModel and a vqvae, which do not go together"):
        Pipeline.load(tmp_path / "m")


def test_the_network_alone(models):
    """What `UNet` asks of its caller."""
    rows, x = 2, np.zeros((2, 3, 16, 16), np.float32)
    plain, classes = (dreamda.UNet.load(models / name / "unet", "f32", 1) for name in ("plain", "classes"))
    assert plain(x, 5).shape == x.shape and not plain.takes_context and classes.takes_class_labels
    assert np.array_equal(classes(x, 5, class_labels=2), classes(x, 5, class_labels=[2] * rows))
    for network, call, message in ((plain, dict(context=np.zeros((2, 4, 8))), "context: this model takes no text"),
                                   (plain, dict(class_labels=1), "class_labels: this model has no class embedding"),
                                   (classes, {}, "class_labels: this model is class-conditional"),
                                   (classes, dict(class_labels=4), "expected whole numbers from 0 to 3, got 4"),
                                   (classes, dict(class_labels=0.5), "expected whole numbers from 0 to 3"),
                                   (classes, dict(class_labels=[1, 2, 3]), "one for each of 2 rows, got shape")):
        with pytest.raises(ValueError, match=message):
            network(x, 5, **call)
    with pytest.raises(ValueError, match="sample: 15 x 16 is not a multiple of 2"):
        plain(x[:, :, 1:], 5)


# ---- data sets


@pytest.fixture
def real(tmp_path):
    """Three images in each of four class folders, and captions that such a model cannot read."""
    rng = np.random.default_rng(1)
    for label in ("bag", "boot", "coat", "shirt"):
        (tmp_path / "real" / label).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "real" / label / f"{number}.png")
    return tmp_path / "real"


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def generate(real, out, model, *more):
    return run("generate", real, "--out", out, "--model", model, "--variants", 2, "--steps", 2, "--dtype", "f32",
               "--threads", 1, *more)


def images(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_a_run_its_shards_and_its_replay(models, real, tmp_path, capsys, name):
    out, parts = tmp_path / "out", tmp_path / "parts"
    assert generate(real, out, models / name) == 0
    printed = capsys.readouterr().out
    classes = name == "classes"
    says = "classes of the model: bag is 0, boot is 1, coat is 2, shirt is 3" if classes else "takes no prompts"
    assert says in printed
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    numbers = {"bag": "0", "boot": "1", "coat": "2", "shirt": "3"}
    assert len(rows) == 24 and all(row["prompt"] == (numbers[row["label"]] if classes else "") for row in rows)
    recorded = json.loads((out / "run.json").read_text())
    assert recorded.get("class_labels") == ({k: int(v) for k, v in numbers.items()} if classes else None)
    for part in ("1/2", "0/2"):
        assert generate(real, parts, models / name, "--shard", part) == 0
    assert images(parts) == images(out)
    for path in sorted(out.rglob("*.png"))[::5]:
        path.unlink()
    before = images(parts)
    assert generate(real, out, models / name) == 0 and images(out) == before
    again = "--out", tmp_path / "again", "--model", models / name, "--threads", 1
    assert run("replay", out / "run.json", real, *again) == 0
    assert "24" in capsys.readouterr().out and images(tmp_path / "again") == before


def test_few_steps_and_labelled_images(models, real, tmp_path):
    """LCM's sampler on a model in pixel space, and objects that stay."""
    assert generate(real, tmp_path / "few", models / "classes", "--scheduler", "lcm") == 0
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    for number in range(3):
        Image.fromarray(mask).save(masks / f"{number}.png")
    assert generate(real / "bag", tmp_path / "kept", models / "plain", "--masks", masks) == 0
    made = next((tmp_path / "kept").rglob("0-000.png"))
    kept = np.asarray(Image.open(made))[mask > 0]
    assert np.array_equal(kept, np.asarray(Image.open(real / "bag/0.png"))[mask > 0])


def test_names_of_classes(models, real, tmp_path, capsys):
    """The names in dreamda.json number the folders, which need not be all of the model's classes."""
    model = shutil.copytree(models / "classes", tmp_path / "named")
    (model / "dreamda.json").write_text(json.dumps({"classes": ["shirt", "coat", "boot", "bag"]}))
    shutil.rmtree(real / "boot")
    assert generate(real, tmp_path / "out", model) == 0
    assert "bag is 3, coat is 1, shirt is 0" in capsys.readouterr().out
    (model / "dreamda.json").write_text(json.dumps({"classes": ["shirt", "bag", "boot", "coat"]}))
    assert generate(real, tmp_path / "out", model) == 2
    assert "numbering of the classes" in capsys.readouterr().err


def test_the_order_of_sorted_names(tmp_path):
    folder = ImageFolder(tmp_path, ("b", "B", "10", "9"), (), ())
    assert number_classes(folder) == {"10": 0, "9": 1, "B": 2, "b": 3}


@pytest.mark.parametrize("model, about, more, message", [
    ("plain", {}, ["--template", "a {}"], "--template: has no effect"),
    ("classes", {}, ["--guidance-scale", "2"], "--guidance-scale: has no effect"),
    ("plain", {}, ["--negative-prompt", "x"], "--negative-prompt: has no effect"),
    ("classes", {}, ["--vae", "somewhere"], "--vae: is not possible: this model works on pixels"),
    ("classes", {"classes": ["bag", "boot", "coat"]}, [], "shirt is no class of"),
    ("classes", {"classes": ["bag", "boot", "coat", "shirt", "hat"]}, [], "'classes' has 5 names, and the U-Net 4"),
    ("classes", {"classes": ["bag", "bag"]}, [], "'classes' must be a list of different names"),
    ("classes", None, [], "has 3 class folders and"),
])
def test_commands_that_are_refused(models, real, tmp_path, capsys, model, about, more, message):
    """One sentence, exit 2, and nothing is written."""
    folder = shutil.copytree(models / model, tmp_path / "model")
    if about is None:
        shutil.rmtree(real / "coat")
    elif about:
        (folder / "dreamda.json").write_text(json.dumps(about))
    assert generate(real, tmp_path / "out", folder, *more) == 2
    error = capsys.readouterr().err
    assert message in error and not (tmp_path / "out").exists()


def test_inspect_and_dry_run(models, real, tmp_path, capsys):
    assert run("inspect", models / "classes", "--json", "--threads", 1) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["conditioning"] == "class" and list(about["parts"]) == ["unet"] and about["latent"] == [3, 16, 16]
    assert generate(real, tmp_path / "out", models / "plain", "--dry-run") == 0
    assert "24 images" in capsys.readouterr().out and not (tmp_path / "out").exists()
