"""Models in pixel space (UNet2DModel, as DDPMPipeline saves them): no VAE, no text, classes by number."""

import json
import math

import numpy as np
import pytest

import dreamda
from dreamda import Pipeline, _core
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


def test_a_pixel_model_with_other_parts(tmp_path):
    file = write_pixel_model(tmp_path / "m") / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="model_index.json: has a UNet2DModel and a vqvae, which do not go together"):
        Pipeline.load(tmp_path / "m")


@pytest.mark.parametrize("changes, message", [
    (dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"]), "'down_block_types' names 'CrossAttnDownBlock2D'"),
    (dict(mid_block_type="UNetMidBlock2DCrossAttn"), "'mid_block_type' is 'UNetMidBlock2DCrossAttn'"),
    (dict(attention_head_dim=5), "'attention_head_dim' is 5, which does not divide the 16 channels of level 1"),
    (dict(downsample_type="resnet"), "'downsample_type' is 'resnet', but only 'conv' is supported"),
    (dict(upsample_type="resnet"), "'upsample_type' is 'resnet', but only 'conv' is supported"),
    (dict(time_embedding_type="fourier"), "'time_embedding_type' is 'fourier'"),
    (dict(sample_size=None), "'sample_size' has to be a whole number or [height, width], got None"),
    (dict(class_embed_type="projection"), "'class_embed_type' is 'projection'"),
    (dict(attn_norm_num_groups=0), "'attn_norm_num_groups' has to be null or a whole number of 1 or more"),
    (dict(new_feature=1), "'new_feature' is unknown"),
])
def test_configurations_that_are_refused(tmp_path, changes, message):
    folder = write_pixel_model(tmp_path / "m")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError) as caught:
        Pipeline.load(folder)
    assert message in str(caught.value) and str(file) in str(caught.value)


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
