"""SDXL from a folder to images: two text encoders, the pooled text, the size of the image.

The models are tiny and random, but whole folders. What diffusers' pipeline makes of them is compared in tests/parity.
"""
import json

import numpy as np
import pytest
from networks import XL_TEXT, write_network, write_sdxl
from random_weights import weight
from safetensors.numpy import load_file, save_file
from test_cli import run
from test_generate import lines, make_real, tree

from dreamda import Pipeline
from dreamda.networks.config import read_text_config
from dreamda.networks.hub import needed_files
from dreamda.options import ParameterError

COAT = "a photo of a coat"
OPTIONS = dict(variants=2, steps=4, strength=1.0, guidance_scale=3.0, noise_scale=1.0, seed=5)
IMAGE = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.load(folder, "f32", 1)


def changed(folder, part, **changes):
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- conditions


def test_a_prompt_is_read_by_both_text_encoders(pipe):
    """Inputs of the last layers side by side, without the final norm; the pooled text is the second's."""
    given = pipe.condition(COAT)
    first, second = pipe.text_encoder, pipe.text_encoder_2
    tokens = [encoder.tokenizer([COAT]) for encoder in (first, second)]
    assert tokens[0][0, -1] == 597 and tokens[1][0, -1] == 0, "they are padded differently"
    (hidden, none), (more, pooled) = (e.encode_for_xl(t) for e, t in zip((first, second), tokens))
    assert none is None and pooled.shape == (1, 20)
    assert np.array_equal(given["context"], np.concatenate([hidden[0], more[0]], axis=1))
    assert np.array_equal(given["text_embeds"], pooled[0]) and np.array_equal(pipe.context(COAT), given["context"])
    assert not np.allclose(more[0], second.encode_tokens(tokens[1])[0], atol=0.1)
    end = int((tokens[1][0] == 597).argmax())
    projection = weight("text_projection.weight", (20, 24))
    np.testing.assert_allclose(pooled[0], projection @ second.encode_tokens(tokens[1])[0, end], atol=1e-5)
    assert np.array_equal(pipe.condition(COAT, "plain")["context"], given["context"])


def test_an_empty_negative_prompt_is_zeros(pipe, tmp_path):
    """Where model_index.json says so; the empty prompt of the source is encoded all the same."""
    none, empty = pipe.condition(None), pipe.condition("")
    assert all(not none[name].any() and none[name].shape == empty[name].shape and empty[name].any() for name in empty)
    other = Pipeline.load(write_sdxl(tmp_path / "m", index={"force_zeros_for_empty_prompt": False}), "f32", 1)
    assert all(np.array_equal(other.condition(None)[name], empty[name]) for name in empty)
    assert other.fingerprint != pipe.fingerprint
    images = [p.augment(IMAGE, COAT, **OPTIONS) for p in (pipe, other)]
    assert not np.array_equal(*images)
    given = [p.augment(IMAGE, COAT, **OPTIONS | dict(negative_prompt="a bag")) for p in (pipe, other)]
    assert np.array_equal(*given) and not np.array_equal(given[0], images[1])


def test_weights_and_long_prompts(pipe):
    """Weights act on the hidden states of both; a long prompt has several chunks, and the pooled text of the first."""
    plain, heavy = pipe.condition("a coat"), pipe.condition("a (coat:1.5)")
    assert np.array_equal(plain["text_embeds"], heavy["text_embeds"])
    assert all(not np.allclose(a, b) for a, b in zip(np.split(plain["context"], [32], axis=1),
                                                     np.split(heavy["context"], [32], axis=1)))
    long = pipe.condition("a coat BREAK a bag")
    length = pipe.text_encoder.tokenizer.length
    assert long["context"].shape == (2 * length, 56) and np.array_equal(long["text_embeds"], plain["text_embeds"])
    assert not pipe.condition(None, chunks=2)["context"].any()
    assert pipe.augment(IMAGE, "a coat BREAK a bag", **OPTIONS).shape == (2, 16, 16, 3)


def test_the_size_is_an_input_of_the_unet(pipe):
    """Original size, crop and target size: those of the new image, whole."""
    rng = np.random.default_rng(0)
    x, context, pooled = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 8, 8), (2, 5, 56), (2, 20)))
    ids = np.float32([[16, 16, 0, 0, 16, 16]] * 2)
    known = pipe.unet(x, 500, context, text_embeds=pooled, time_ids=ids)
    for column in range(6):
        other = ids.copy()
        other[1, column] += 8
        out = pipe.unet(x, 500, context, text_embeds=pooled, time_ids=other)
        assert np.array_equal(out[0], known[0]) and not np.allclose(out[1], known[1], atol=1e-4)
    with pytest.raises(ValueError, match="text_embeds: this model takes it as an input; give text_embeds "):
        pipe.unet(x, 500, context, time_ids=ids)
    with pytest.raises(ValueError, match="time_ids"):
        pipe.unet(x, 500, context, text_embeds=pooled, time_ids=ids[:, :5])
    seen = []
    plan = pipe.unet.plan

    class Recorded:
        def __init__(self, plan):
            self.plan = plan

        def run(self, inputs):
            seen.append(inputs["time_ids"])
            return self.plan.run(inputs)

    pipe.unet.plan = lambda lane, **shape: Recorded(plan(lane, **shape))
    try:
        pipe.augment(IMAGE, COAT, **OPTIONS)
    finally:
        pipe.unet.plan = plan
    assert seen and all((each == ids[:1]).all() for each in seen)


# ---- images


@pytest.mark.parametrize("method", ["cycle", "asymmetric", "sdedit"])
@pytest.mark.parametrize("options", [{}, dict(guidance_scale=0.0),
                                     dict(source_prompt="a bag", negative_prompt="a dress")],
                         ids=["guided", "one row", "prompts"])
def test_all_methods(pipe, method, options):
    """The same images whatever the batch; the variants differ, and so do the images of other prompts."""
    options = OPTIONS | dict(method=method) | options
    if method == "sdedit":
        options.pop("source_prompt", None)  # it has no source
    both = pipe.augment([IMAGE, 255 - IMAGE], [COAT, "a bag"], keys=[1, 2], **options)
    assert np.array_equal(both[1], pipe.augment(255 - IMAGE, "a bag", keys=[2], **options))
    assert not np.array_equal(both[0, 0], both[0, 1])
    assert not np.array_equal(both[1], pipe.augment(255 - IMAGE, COAT, keys=[2], **options))


def test_a_shared_source(pipe):
    """Its trajectory is one for all variants, with the conditions of the source."""
    options = OPTIONS | dict(share_source=True, source_prompt="a bag")
    both = pipe.augment([IMAGE, 255 - IMAGE], COAT, keys=[1, 2], **options)
    assert np.array_equal(both[0], pipe.augment(IMAGE, COAT, keys=[1], **options))
    assert not np.array_equal(both[0, 0], both[0, 1])


def test_no_change_without_noise(pipe):
    """Without noise and guidance, the target is its source: the text encoders and the size cancel."""
    z0 = pipe.encode(IMAGE, keys=[1])[None]
    same = pipe.augment_latents(z0, [COAT], variants=1, steps=5, noise_scale=0, guidance_scale=1, source_prompt=COAT,
                                source_guidance_scale=1)
    np.testing.assert_allclose(same[0, 0], z0[0], atol=1e-4)


@pytest.mark.parametrize("scheduler, changes, options", [
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, {}, dict(guidance_scale=0.0)),
    ({"_class_name": "LCMScheduler"}, {"time_cond_proj_dim": 8}, dict(guidance_scale=2.0)),
    ({}, {"mid_block_type": "UNetMidBlock2D", "layers_per_block": 2, "transformer_layers_per_block": [[2, 1], [1, 1]],
          "reverse_transformer_layers_per_block": [1, [1, 2, 1]]}, {}),
], ids=["turbo", "lcm", "ssd-1b"])
def test_variants_of_the_model(scheduler, changes, options, tmp_path):
    pipe = Pipeline.load(write_sdxl(tmp_path / "model", scheduler, **changes), "f32", 1)
    assert pipe.augment(IMAGE, COAT, **OPTIONS | dict(steps=2) | options).std() > 1


def test_the_memory_of_the_text_encoders_is_freed(tmp_path):
    """For a large image."""
    large = Pipeline.load(write_sdxl(tmp_path / "model", sample_size=40), "f32", 1)
    large.augment(np.zeros((80, 80, 3), np.uint8), COAT, **OPTIONS | dict(steps=1, variants=1))
    assert large.text_encoder._network._model is None and large.text_encoder_2._network._model is None
    assert list(large.networks) == ["unet", "vae", "text_encoder", "text_encoder_2"]


@pytest.mark.parametrize("file", ["text_encoder_2/config.json", "text_encoder_2/model.safetensors",
                                  "tokenizer_2/vocab.json", "tokenizer_2/tokenizer_config.json"])
def test_the_fingerprint_counts_the_second_text_encoder(pipe, tmp_path, file):
    other = write_sdxl(tmp_path / "model")
    assert Pipeline.load(other, "f32", 1).fingerprint == pipe.fingerprint
    path = other / file
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        tensors = load_file(path)
        tensors["text_projection.weight"][0, 0] += 1
        save_file(tensors, path)
    assert Pipeline.load(other, "f32", 1).fingerprint != pipe.fingerprint


# ---- LoRA

LAYERS = {
    "unet": ["conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q",
             "down_blocks.0.downsamplers.0.conv", "mid_block.attentions.0.proj_in", "mid_block.resnets.1.time_emb_proj",
             "up_blocks.0.upsamplers.0.conv", "up_blocks.1.resnets.1.conv_shortcut", "add_embedding.linear_1",
             "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2"],
    "text_encoder": ["text_model.encoder.layers.0.self_attn.q_proj"],
    "text_encoder_2": ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc2"],
}
# The same layers of the U-Net in Stability's code, which numbers all blocks on the way down and up.
STABILITY = ["input_blocks.0.0", "input_blocks.1.0.in_layers.2",
             "input_blocks.1.1.transformer_blocks.1.attn1.to_q", "input_blocks.2.0.op", "middle_block.1.proj_in",
             "middle_block.2.emb_layers.1", "output_blocks.1.1.conv", "output_blocks.3.0.skip_connection",
             "label_emb.0.0", "output_blocks.3.1.transformer_blocks.0.ff.net.2"]


def lora_file(path, folder, kohya):
    tensors = {}
    for part, names in LAYERS.items():
        weights = load_file(next((folder / part).glob("*.safetensors")))
        for number, name in enumerate(names):
            shape = weights[f"{name}.weight"].shape
            key = f"{part}.{name}"
            if kohya:
                named = STABILITY[number] if part == "unet" else name
                prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
                key = f"{prefix}_{named.replace('.', '_')}"
            rng = np.random.default_rng(number)
            halves = (2, *shape[1:]), (shape[0], 2, *[1] * len(shape[2:]))
            for half, size in zip(("lora_down", "lora_up") if kohya else ("lora_A", "lora_B"), halves):
                tensors[f"{key}.{half}.weight"] = rng.standard_normal(size, dtype=np.float32) / 4
    save_file(tensors, path)
    return path


def test_loras_of_both_text_encoders(folder, tmp_path):
    """In peft's names and in kohya's, with Stability's numbers of blocks: the same weights, those that NumPy adds."""
    files = [lora_file(tmp_path / f"{kohya}.safetensors", folder, kohya) for kohya in (False, True)]
    merged = tmp_path / "merged"
    write_sdxl(merged)
    tensors = load_file(files[0])
    for part, names in LAYERS.items():
        file = next((merged / part).glob("*.safetensors"))
        weights = load_file(file)
        for name in names:
            down, up = (tensors[f"{part}.{name}.lora_{half}.weight"] for half in "AB")
            product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            before = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = before + 0.5 * product.reshape(before.shape)
        save_file(weights, file)
    wanted = Pipeline.load(merged, "f32", 1)
    expected = wanted.condition(COAT) | {"image": wanted.augment(IMAGE, COAT, **OPTIONS)}
    for file in files:
        pipe = Pipeline.load(folder, "f32", 1, loras=[(file, 0.5)])
        assert sorted(pipe.loras[0].matched) == sorted((p, f"{name}.weight") for p in LAYERS for name in LAYERS[p])
        found = pipe.condition(COAT)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-4)
        assert np.abs(pipe.augment(IMAGE, COAT, **OPTIONS).astype(int) - expected["image"]).max() <= 1


# ---- textual inversion


def test_an_embedding_of_two_parts(folder, tmp_path):
    """Each text encoder gets its own vectors; the token is the file's name."""
    rng = np.random.default_rng(0)
    halves = {"clip_l": rng.standard_normal((2, 32), np.float32), "clip_g": rng.standard_normal((2, 24), np.float32)}
    save_file(halves, tmp_path / "style.safetensors")
    pipe = Pipeline.load(folder, "f32", 1, embeddings=[tmp_path / "style.safetensors"])
    for encoder, name in ((pipe.text_encoder, "clip_l"), (pipe.text_encoder_2, "clip_g")):
        ids = encoder.tokenizer(["a style"])[0]
        assert list(ids[2:4]) == [598, 599]
        assert np.array_equal(encoder._network._token_table()[598:], halves[name])
    given = pipe.condition("a style")
    assert not np.allclose(given["text_embeds"], pipe.condition("a coat")["text_embeds"], atol=1e-3)
    # the highest id is that of a new token, but the text ends at the end token
    ids = pipe.text_encoder_2.tokenizer(["a style"])
    assert list(pipe.text_encoder_2._ends(ids)) == [int((ids[0] == 597).argmax())] and ids.argmax() == 3


@pytest.mark.parametrize("tensors, message", [
    ({"style": np.ones((1, 32), np.float32)}, "made for one text encoder, and this model has two"),
    ({"clip_l": np.ones((1, 32), np.float32), "clip_g": np.ones((2, 24), np.float32)}, "clip_l has 1 vectors and"),
    ({"clip_l": np.ones((1, 24), np.float32), "clip_g": np.ones((1, 24), np.float32)}, "its vectors have 24 values"),
    ({"clip_l": np.ones((1, 32), np.float32)}, "has the tensors clip_l and clip_g, and this file has clip_l"),
])
def test_embeddings_that_do_not_fit(tensors, message, folder, tmp_path):
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match=message):
        Pipeline.load(folder, "f32", 1, embeddings=[tmp_path / "style.safetensors"])


# ---- what does not fit together


def narrow(folder):
    (folder / "text_encoder_2/config.json").unlink()
    (folder / "text_encoder_2/model.safetensors").unlink()
    (folder / "text_encoder_2").rmdir()
    write_network(folder / "text_encoder_2", XL_TEXT | dict(projection_dim=16), ["clip_text"], read_text_config,
                  "model.safetensors")


REFUSED = {
    "no second encoder": (lambda f: changed(f, "model_index.json", text_encoder_2=[None, None]),
                          "its U-Net takes the pooled text of a second text encoder, and it has none"),
    "an ordinary U-Net": (lambda f: changed(f, "unet/config.json", addition_embed_type=None,
                                            addition_time_embed_dim=None, projection_class_embeddings_input_dim=None),
                          "the weights do not fit the configuration. 4 unexpected: add_embedding"),
    "another projection": (narrow, "takes a pooled text of 20 values, and its second text encoder gives 16"),
    "no projection": (lambda f: changed(f, "text_encoder_2/config.json", architectures=["CLIPTextModel"]),
                      "takes a pooled text of 20 values, and its second text encoder gives 0"),
    "another kind": (lambda f: changed(f, "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"]),
                     r"the text encoder_2 \['transformers', 'T5EncoderModel'\] is not supported, only "
                     "CLIPTextModelWithProjection is"),
    "a refiner": (lambda f: changed(f, "model_index.json", requires_aesthetics_score=True),
                  "'requires_aesthetics_score' is on, as of a refiner of SDXL"),
    "other lengths": (lambda f: changed(f, "tokenizer_2/tokenizer_config.json", model_max_length=12),
                      "the tokenizers of its two text encoders have other model_max_length: 16 and 12"),
    "no tokenizer": (lambda f: (f / "tokenizer_2/vocab.json").unlink(), "tokenizer_2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_do_not_fit_together(name, tmp_path):
    change, message = REFUSED[name]
    change(write_sdxl(tmp_path / "model"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Pipeline.load(tmp_path / "model", "f32", 1)
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_are_still_checked(pipe):
    with pytest.raises(ParameterError, match="prompts: "):
        pipe.augment(IMAGE, "a (coat:1.2.3)", **OPTIONS)


# ---- runs


def test_a_run_in_shards_and_its_replay(folder, tmp_path, capsys):
    """`dreamda generate`: the same images in one run, in shards, and replayed; `inspect` lists the second encoder."""
    real = make_real(tmp_path / "real").root
    common = ["generate", real, "--model", folder, "--variants", 2, "--steps", 2, "--dtype", "f32", "--threads", 1,
              "--negative-prompt", "a bag"]
    assert run(*common[:2], tmp_path / "whole", *common[2:]) == 0
    for shard in ("0/2", "1/2"):
        assert run(*common[:2], tmp_path / "parts", *common[2:], "--shard", shard) == 0

    def images(out):
        return {name: content for name, content in tree(out).items() if name.endswith(".png")}

    assert images(tmp_path / "whole") == images(tmp_path / "parts") and images(tmp_path / "whole")
    assert all(line["negative_prompt"] == "a bag" for line in lines(tmp_path / "whole"))
    assert run("replay", tmp_path / "whole", "--model", folder) == 0
    assert "repeated to the same bytes" in capsys.readouterr().out
    assert run("inspect", folder, "--json", "--threads", 1, "--dtype", "f32", "--steps", 2) == 0
    about = json.loads(capsys.readouterr().out)
    assert list(about["parts"]) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert all(part["parameters"] > 0 for part in about["parts"].values())


def test_files_of_the_hub():
    """Of SDXL's repository, one form of each network's weights."""
    wanted = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
              "text_encoder/model.safetensors", "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
              "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer_2/merges.txt", "tokenizer_2/vocab.json",
              "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
              "vae/diffusion_pytorch_model.safetensors"]
    others = ["sd_xl_base_1.0.safetensors", "text_encoder_2/model.fp16.safetensors", "text_encoder_2/model.onnx",
              "unet/diffusion_pytorch_model.fp16.safetensors", "vae_1_0/config.json", "vae_decoder/config.json",
              "vae_1_0/diffusion_pytorch_model.safetensors", "text_encoder_2/openvino_model.xml"]
    assert sorted(needed_files(wanted + others)) == wanted
