"""Few-step models and another VAE as a user meets them: the command line, shards, resume, batches, replay, Ray.

The models are tiny and random, but whole folders that go all the way through the engine.
"""
import json
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from networks import write_lcm, write_model, write_tiny_vae, write_vae
from PIL import Image
from test_cli import run
from test_generate import lines, make_real, tree

from dreamda import VAE, Pipeline
from dreamda.distributed import Augmenter
from dreamda.generation.options import GenerationOptions
from dreamda.options import ParameterError
from dreamda.runs import generate, inspection

FEW = ["--variants", "3", "--steps", "2", "--guidance-scale", "2", "--source-guidance-scale", "2", "--noise-scale", "1",
       "--dtype", "f32", "--threads", "1"]
SETTINGS = GenerationOptions(variants=3, steps=2, guidance_scale=2, source_guidance_scale=2, noise_scale=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An LCM, an ordinary model, and VAEs that fit or do not fit them."""
    root = tmp_path_factory.mktemp("models")
    write_lcm(root / "lcm")
    write_model(root / "plain")
    write_model(root / "turbo", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"})
    write_model(root / "flow", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    write_tiny_vae(root / "tiny")
    write_tiny_vae(root / "sixteen", latent_channels=16)
    write_tiny_vae(root / "deep",
                   num_encoder_blocks=[1, 1, 1],
                   num_decoder_blocks=[1, 1, 1],
                   encoder_block_out_channels=[16] * 3,
                   decoder_block_out_channels=[16] * 3)
    write_vae(root / "other-scale", scaling_factor=0.13025)
    write_vae(root / "other-shift", shift_factor=0.1)
    shutil.copytree(root / "lcm", root / "narrow")
    config = root / "narrow/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 12}))
    return root


@pytest.fixture
def real(tmp_path):
    return make_real(tmp_path / "real").root


def test_more_steps_than_a_few_step_model_is_made_for_are_noted(models, real, tmp_path, capsys):
    command = ["generate", real, "--out", tmp_path / "out", "--model", models / "lcm", "--variants", "1", "--dry-run",
               "--threads", "1"]
    assert run(*command) == 0
    assert "made for about 1 to 8 steps, and will run 20: --preset fast takes 4" in capsys.readouterr().err
    assert run(*command, "--preset", "fast") == 0
    assert "is made for about" not in capsys.readouterr().err


def without_run(out):
    return {name: content for name, content in tree(out).items() if name != "run.json"}


# ---- what bad input gets

BAD = [
    (["--steps", "51"], "--steps: 51 exceeds the 50 of this model's schedule (LCMScheduler)"),
    (["--strength", "0.03"], "--strength: 0.03 leaves 1 timestep for 2 steps; "
                             "use at least 0.04, or fewer steps"),
    (["--model", "turbo", "--steps", "1"], "--strength: 0.8 of 1 steps leaves no step to run; use at least 1.0"),
    (["--guidance-scale", "0.5"], "--guidance-scale: 0.5 is not possible: this model takes the guidance as an input"),
    (["--source-guidance-scale", "0"], "--source-guidance-scale: 0 is not possible: this model takes the guidance"),
    (["--negative-prompt", "blur"], "--negative-prompt: is not possible: this model takes the guidance as an input"),
    (["--model", "plain", "--negative-prompt", "blur", "--guidance-scale", "1"],
     "--negative-prompt: has no effect without guidance, and --guidance-scale is 1; leave it empty"),
    (["--model", "narrow"], "time_embedding.cond_proj.weight (16, 8) instead of (16, 12)"),
    (["--model", "flow"], "'_class_name' is 'FlowMatchEulerDiscreteScheduler', whose noise schedule is not supported"),
    (["--vae", "sixteen"], "has the latent_channels 16, and the model's own VAE 4: it was made for other latents"),
    (["--vae", "deep"], "has the factor 4, and the model's own VAE 2"),
    (["--vae", "other-scale"], "has the scaling_factor 0.13025, and the model's own VAE 0.18215"),
    (["--vae", "other-shift"], "has the shift_factor 0.1, and the model's own VAE 0"),
    (["--vae", "lcm/unet"], "'_class_name' is 'UNet2DConditionModel', but only AutoencoderKL or AutoencoderTiny"),
    (["--vae", "lcm"], "is no folder of a VAE in diffusers' format: it has no config.json; give "),
    (["--vae", "nowhere"], "nowhere is no folder of a VAE in diffusers' format: it has no config.json"),
]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--preview", "2"]], ids=["generate", "dry-run", "preview"])
@pytest.mark.parametrize("arguments, sentence", BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence_exit_2_nothing_written(models, real, tmp_path, capsys, monkeypatch, arguments,
                                                          sentence, more):
    monkeypatch.chdir(models)
    before, models_before = tree(tmp_path), tree(models)
    assert run("generate", real, "--out", tmp_path / "out", "--model", "lcm", *FEW, *arguments, *more) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.startswith("dreamda: ") and captured.err.count("\n") == 1
    assert "images made" not in captured.out and "an image" not in captured.out
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["real"] and tree(models) == models_before


@pytest.mark.parametrize("vae", ["sixteen", "lcm/unet", "nowhere"])
def test_inspect_refuses_a_vae_in_the_same_way(models, capsys, monkeypatch, vae):
    monkeypatch.chdir(models)
    assert run("inspect", "lcm", "--vae", vae) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and vae in captured.err and captured.out == ""
    with pytest.raises((ValueError, ParameterError), match=vae):
        Pipeline.load("lcm", vae=vae)


# ---- the same bytes, however the work is done


@pytest.mark.parametrize("method", [["cycle"], ["cycle", "--share-source"], ["asymmetric"], ["sdedit"]], ids=" ".join)
def test_shards_and_interruptions(models, real, tmp_path, monkeypatch, method):
    """Two shards, the first of them stopped after every image, make what one run makes."""
    given = ["--model", models / "lcm", "--vae", models / "tiny", *FEW, "--method", *method]
    assert run("generate", real, "--out", tmp_path / "one", *given) == 0
    monkeypatch.setattr(generate, "SECONDS_A_BATCH", 0.0)
    augment = Pipeline._augment

    def interrupted(pipe, images, *arguments, **more):
        if len(images):
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(pipe, images, *arguments, **more)

    monkeypatch.setattr(Pipeline, "_augment", interrupted)
    parts, codes = [*given, "--shard", "0/2"], []
    while not codes or codes[-1] == 128 + signal.SIGTERM:
        codes.append(run("generate", real, "--out", tmp_path / "two", *parts))
        assert len(codes) < 20
    assert codes[-1] == 0 and len(codes) > 2
    monkeypatch.setattr(Pipeline, "_augment", augment)
    assert run("generate", real, "--out", tmp_path / "two", *given, "--shard", "1/2") == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len({row["sha256"] for row in lines(tmp_path / "one")}) == 18


@pytest.mark.parametrize("kind", ["lcm", "turbo"])
def test_batches_and_threads(models, real, kind):
    """Images do not depend on what else is in the call, nor on the number of lanes."""
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(real.glob("*/*.png"))])
    prompts, keys = [f"a photo of {n}" for n in range(6)], [f"k{n}" for n in range(6)]
    one, two = (Pipeline.load(models / kind, "f32", threads, vae=models / "tiny") for threads in (1, 2))
    settings = replace(SETTINGS, guidance_scale=1.0)
    together = two._augment(images, prompts, keys, settings)
    for n in range(6):
        assert np.array_equal(one._augment(images[n : n + 1], prompts[n : n + 1], keys[n : n + 1], settings)[0],
                              together[n])
    later = two._augment(images[:1], prompts[:1], keys[:1], settings, first=1)
    assert np.array_equal(later[0], together[0, 1:])
    augmenter = Augmenter(str(models / kind), dtype="f32", threads=1, vae=models / "tiny", explode=False,
                          **{name: getattr(settings, name) for name in ("variants", "steps", "noise_scale",
                                                                        "guidance_scale", "source_guidance_scale")})
    assert np.array_equal(augmenter({"image": images, "prompt": prompts, "key": keys})["image"], together)


# ---- another VAE


def test_images_pass_through_the_vae_that_is_given(models):
    pipe, vae = Pipeline.load(models / "lcm", "f32", 1, vae=models / "tiny"), VAE.load(models / "tiny", "f32", 1)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    z = pipe.encode(image)
    scaled = image.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(z, vae.encode(np.repeat(scaled, 6, axis=0))[:1])
    assert pipe.size == (16, 16) and pipe.vae_folder == models / "tiny" and pipe.vae.files[0].parent == models / "tiny"
    own = Pipeline.load(models / "lcm", "f32", 1)
    assert own.vae_folder == models / "lcm/vae" and not np.allclose(own.encode(image), z, atol=0.1)


def test_the_fingerprint_is_of_the_vae_and_not_of_its_place(models, tmp_path):
    shutil.copytree(models / "tiny", tmp_path / "elsewhere")
    shutil.copytree(models / "lcm/vae", tmp_path / "own")
    own, tiny, copy, same = (Pipeline.load(models / "lcm", "f32", 1, vae=vae).fingerprint
                             for vae in (None, models / "tiny", tmp_path / "elsewhere", tmp_path / "own"))
    assert tiny == copy and own == same and own != tiny


def test_the_vae_is_part_of_a_run(models, real, tmp_path, capsys):
    given = ["--model", models / "lcm", *FEW]
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    assert run("generate", real, "--out", tmp_path / "own", *given) == 0
    assert run("generate", real, "--out", tmp_path / "out", *given, "--vae", tmp_path / "tiny") == 0
    own, tiny = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("own", "out"))
    assert tiny["vae"] == "tiny" and tiny["model_sha256"] != own["model_sha256"] and "vae" not in own
    assert all(row["vae"] == "tiny" for row in lines(tmp_path / "out"))
    assert not {row["sha256"] for row in lines(tmp_path / "own")} & {row["sha256"] for row in lines(tmp_path / "out")}

    # resume: with the same one, wherever it is, and with no other
    before = tree(tmp_path / "out")
    capsys.readouterr()
    assert run("generate", real, "--out", tmp_path / "out", *given, "--vae", models / "tiny") == 0
    assert "18 were there already" in capsys.readouterr().out
    for other in ([], ["--vae", models / "lcm/vae"]):
        assert run("generate", real, "--out", tmp_path / "out", *given, *other) == 2
        said = capsys.readouterr().err
        assert "holds a run with another --model, --vae, --lora, --scheduler or --embedding; repeat that" in said
    assert run("generate", real, "--out", tmp_path / "own", *given, "--vae", models / "tiny") == 2
    assert tree(tmp_path / "out") == before


def test_replay_of_few_steps_with_another_vae(models, real, tmp_path, capsys, monkeypatch):
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert run("generate", real, "--out", "out", "--model", models / "lcm", "--vae", "tiny", *FEW,
               "--record-names", "paths") == 0
    monkeypatch.chdir("/")
    assert run("replay", tmp_path / "out", "--out", tmp_path / "again") == 0
    assert "18 of 18 images repeated to the same bytes" in capsys.readouterr().out
    assert without_run(tmp_path / "again") == without_run(tmp_path / "out")
    (tmp_path / "tiny").rename(tmp_path / "moved")
    assert run("replay", tmp_path / "out") == 2
    assert "--vae: tiny is no folder of a VAE" in capsys.readouterr().err
    assert run("replay", tmp_path / "out", "--vae", models / "lcm/vae") == 2
    said = capsys.readouterr().err
    assert "its files differ; give --model (and --vae, --lora, --embedding) where the run's own is now" in said
    assert run("replay", tmp_path / "out", "--vae", tmp_path / "moved") == 0


def test_a_run_without_the_option_replays(models, real, tmp_path, capsys):
    """As every run of an earlier version: nothing in its files tells of a VAE."""
    assert run("generate", real, "--out", tmp_path / "out", "--model", models / "lcm", *FEW) == 0
    assert "vae" not in (tmp_path / "out/run.json").read_text() + (tmp_path / "out/metadata.jsonl").read_text()
    assert run("replay", tmp_path / "out", "--model", models / "lcm") == 0


def test_a_run_whose_vae_is_no_text_is_damaged(models, real, tmp_path, capsys):
    assert run("generate", real, "--out", tmp_path / "out", "--model", models / "lcm", *FEW) == 0
    path = tmp_path / "out/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vae": 3}))
    assert run("replay", tmp_path / "out") == 2
    assert "is damaged: its size, dtype, model, vae, loras, scheduler, embeddings or real" in capsys.readouterr().err


def test_inspect_preview_and_dry_run_with_another_vae(models, real, tmp_path, capsys):
    given = ["--vae", models / "tiny", "--dtype", "f32", "--threads", "1"]
    assert run("inspect", models / "lcm", *given, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    tiny = VAE.load(models / "tiny", "f32", 1)
    assert about["vae_folder"] == str(models / "tiny") and about["steps_run"] == 4
    assert about["parts"]["vae"] == {"parameters": tiny.parameters, "bytes": tiny.files[0].stat().st_size}
    assert run("inspect", models / "lcm", *given) == 0
    assert f"with the VAE of {models / 'tiny'}" in capsys.readouterr().out
    command = ["generate", real, "--out", tmp_path / "out", "--model", models / "lcm", "--vae", models / "tiny", *FEW]
    assert run(*command, "--dry-run") == 0
    assert "18 images of 16 x 16" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["real"]
    assert run(*command, "--preview", "4") == 0 and len(lines(tmp_path / "out")) == 4
    assert run(*command) == 0 and len(lines(tmp_path / "out")) == 18


# ---- what an image costs


class Costs:
    """A clock that a pipeline's work moves on: 1 s for a row of the U-Net, 2 s to encode an image, 3 s to decode it."""

    def __init__(self, pipe, monkeypatch):
        self.now, plan = 0.0, pipe.unet.plan

        class Plan:
            def __init__(plan, made, rows):
                plan.made, plan.rows = made, rows

            def run(plan, inputs):
                self.now += plan.rows
                return plan.made.run(inputs)

        monkeypatch.setattr(pipe.unet, "plan", lambda lane, **shape: Plan(plan(lane, **shape), shape["rows"]))
        for name, seconds in (("encode", 2), ("decode", 3)):
            monkeypatch.setattr(pipe.vae, name, self.counted(getattr(pipe.vae, name), seconds))

    def counted(self, function, seconds):
        def call(x, *arguments):
            self.now += seconds * len(x)
            return function(x, *arguments)

        return call


@pytest.mark.parametrize("kind, options", [
    ("lcm", {}),
    ("lcm", dict(method="sdedit")),
    ("lcm", dict(method="cycle", share_source=True)),
    ("lcm", dict(method="asymmetric", steps=8)),
    ("turbo", dict(method="sdedit", steps=5, guidance_scale=0)),
    ("plain", dict(steps=20)),
    ("plain", dict(steps=20, guidance_low=0.3, guidance_high=0.7)),
    ("plain", dict(steps=20, text_share=1.0)),
    ("lcm", dict(method="asymmetric", text_share=1.0)),
    ("plain", dict(steps=10, share_source=True, source_prompt="a photo of a bag")),
], ids=str)
def test_the_estimate_of_inspect(models, monkeypatch, kind, options):
    """It is what the images of a run then cost: with few steps the VAE is most of that."""
    pipe = Pipeline.load(models / kind, "f32", 1)
    clock = Costs(pipe, monkeypatch)
    monkeypatch.setattr(inspection, "time", SimpleNamespace(monotonic=lambda: clock.now))
    about = inspection.describe_model(pipe, **options)
    assert about["seconds_per_row"] == pytest.approx(1)
    settings = GenerationOptions(**({"steps": 4} if kind == "lcm" else {}) | options)
    images = np.zeros((24, 16, 16, 3), np.uint8)  # as many as fill a group of the VAE
    begun, variants = clock.now, generate.variants_a_visit(settings)
    pipe._augment(images, "a photo", range(24), replace(settings, variants=variants))
    assert about["seconds_per_image"] == pytest.approx((clock.now - begun) / 24 / variants)


def test_a_single_step_is_enough(models, real, tmp_path):
    """An LCM runs all of `steps`: one, where a share of 0.8 of it would be none."""
    given = ["--model", models / "lcm", *FEW, "--steps", "1", "--method", "sdedit"]
    assert run("generate", real, "--out", tmp_path / "out", *given) == 0 and len(lines(tmp_path / "out")) == 18
