"""The reverse process on the bundled model: against the recursions written plainly, invariants, bits, and what bad
input gets."""

import inspect
import json
import math
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import dreamda
from dreamda import Pipeline, _core, normals
from dreamda.networks.config import read_scheduler_config
from dreamda.networks.hub import BUNDLED
from dreamda.networks.models import resolve_dtype
from dreamda.generation import recursions
from dreamda.generation.options import GenerationOptions, is_from_text
from dreamda.generation.pipeline import image_key
from dreamda.generation.recursions import (CANDIDATES, STREAM_BOTTLENECK, STREAM_CANDIDATE, STREAM_POSTERIOR,
                                           STREAM_START, STREAM_STEP, choose_diverse)
from dreamda.generation.lanes import group_size
from dreamda.generation.schedulers import Schedule
from dreamda.generation.tiles import Tiles
from dreamda.options import ParameterError

HAS_BF16 = resolve_dtype("auto") == "bf16"
MODEL = BUNDLED / "fashion-mini"
COAT, BOOT = "a photo of a coat", "a photo of an ankle boot"


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.load("fashion-mini", dtype="f32", threads=2)


@pytest.fixture(scope="module")
def unet():
    return dreamda.UNet.load(MODEL / "unet", dtype="f32", threads=1)


@pytest.fixture(scope="module")
def seeds():
    return dreamda.load_bundled().seeds[[40, 90, 41]]


@pytest.fixture(scope="module")
def z0(pipe, seeds):
    return pipe.encode(seeds, keys=range(3))


@contextmanager
def scheduled(pipe, **changes):
    """The pipeline with another noise schedule."""
    before = pipe.schedule
    pipe.schedule = Schedule(read_scheduler_config(MODEL / "scheduler") | changes)
    try:
        yield pipe
    finally:
        pipe.schedule = before


# ------------------------------------------------------------------------------------------------ the recursions,
# written plainly


class Plain:
    """One variant of one image at a time, one U-Net row at a time, float64, and the noise z formed as in the authors'
    code."""

    def __init__(self,
                 pipe,
                 unet,
                 z0,
                 prompt,
                 image,
                 variant,
                 *,
                 steps,
                 strength=0.8,
                 eta=1.0,
                 guidance_scale=2.0,
                 noise_scale=1.0,
                 negative_prompt="",
                 source_prompt="",
                 source_guidance_scale=1.5,
                 share_source=False,
                 share_start=None,
                 seed=0,
                 guidance_low=0.0,
                 guidance_high=1.0):
        self.__dict__.update(locals())
        self.share_start = share_source if share_start is None else share_start
        config = read_scheduler_config(MODEL / "scheduler")
        betas = np.linspace(math.sqrt(config["beta_start"]), math.sqrt(config["beta_end"]), 1000) ** 2
        self.table = np.cumprod(1 - betas)
        self.stride = 1000 // steps
        self.timesteps = [i * self.stride + 1 for i in range(int(steps * strength))][::-1]
        self.own = 0 if share_source else variant

    def alpha(self, t):
        return self.table[t] if t >= 0 else self.table[0]

    def draw(self, stream, variant, step=0):
        return normals(self.seed, self.image, variant, step, stream, 0, self.z0.shape).astype(np.float64)

    def row(self, x, t, prompt, step=0, noise_row=None):
        shape = (1, 128, 4, 4)
        noise = None
        if noise_row is not None:
            noise = self.noise_scale * normals(self.seed, self.image, self.variant, step, STREAM_BOTTLENECK, noise_row,
                                               shape[1:])[None]
        return self.unet(x[None].astype(np.float32), t, self.pipe.context(prompt)[None],
                         bottleneck_noise=noise)[0].astype(np.float64)

    def target(self, x, t, step, noisy=True):
        text = self.row(x, t, self.prompt, step, 1 if noisy else None)
        if not self.guidance_low <= t / 1000 < self.guidance_high:
            return text
        empty = self.row(x, t, self.negative_prompt, step, 0 if noisy else None)
        return empty + self.guidance_scale * (text - empty)

    def split(self, out, x, a):
        """Noise and clean image."""
        schedule = self.pipe.schedule
        noise = math.sqrt(a) * out + math.sqrt(1 - a) * x if schedule.prediction_type == "v_prediction" else out
        clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        return noise, clean if schedule.clip is None else np.clip(clean, -schedule.clip, schedule.clip)

    def ddim(self, out, x, t, z):
        a_t, a_p = self.alpha(t), self.alpha(t - self.stride)
        sigma = self.sigma(t)
        noise, clean = self.split(out, x, a_t)
        return math.sqrt(a_p) * clean + math.sqrt(1 - a_p - sigma**2) * noise + sigma * z

    def sigma(self, t):
        a_t, a_p = self.alpha(t), self.alpha(t - self.stride)
        return self.eta * math.sqrt(max(0, (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)))

    def start(self, variant):
        a = self.alpha(self.timesteps[0])
        return math.sqrt(a) * self.z0 + math.sqrt(1 - a) * self.draw(STREAM_START, 0 if self.share_start else variant)

    def cycle(self):
        x, source = self.start(self.variant), self.start(self.own)
        for i, t in enumerate(self.timesteps):
            p = t - self.stride
            a_t, a_p, sigma = self.alpha(t), self.alpha(p), self.sigma(t)
            empty, text = self.row(source, t, ""), self.row(source, t, self.source_prompt)
            out = empty + self.source_guidance_scale * (text - empty)
            if p <= 0:
                following = self.z0.astype(np.float64)
            else:
                e = (source - math.sqrt(a_t) * self.z0) / math.sqrt(1 - a_t)
                following = math.sqrt(a_p) * self.z0 + math.sqrt(1 - a_p - sigma**2) * e + sigma * self.draw(
                    STREAM_STEP, self.own, i)
            z = (following - self.ddim(out, source, t, 0)) / sigma
            x, source = self.ddim(self.target(x, t, i), x, t, z), following
        return x

    def asymmetric(self):
        x = self.z0.astype(np.float64)
        for t in self.timesteps[::-1]:
            noise, clean = self.split(self.row(x, t, self.source_prompt), x, self.alpha(t - self.stride))
            x = math.sqrt(self.alpha(t)) * clean + math.sqrt(1 - self.alpha(t)) * noise
        for i, t in enumerate(self.timesteps):
            a_t, a_p, sigma = self.alpha(t), self.alpha(t - self.stride), self.sigma(t)
            noise, _ = self.split(self.target(x, t, i, noisy=False), x, a_t)
            _, clean = self.split(self.target(x, t, i), x, a_t)
            x = math.sqrt(a_p) * clean + math.sqrt(1 - a_p - sigma**2) * noise + sigma * self.draw(
                STREAM_STEP, self.variant, i)
        return x

    def sdedit(self):
        x = self.start(self.variant)
        for i, t in enumerate(self.timesteps):
            x = self.ddim(self.target(x, t, i), x, t, self.draw(STREAM_STEP, self.variant, i))
        return x


@pytest.mark.parametrize("schedule", [{}, {"prediction_type": "v_prediction"}, {"clip_sample": True}],
                         ids=["epsilon", "velocity", "clipped"])
@pytest.mark.parametrize(
    "options",
    [
        dict(method="cycle"),
        dict(method="cycle", share_source=True),
        dict(method="cycle", share_start=True, eta=0.4),
        dict(method="cycle", share_start=False, share_source=True),
        dict(method="cycle", source_prompt="a photo of a bag", source_guidance_scale=2.0),
        dict(method="cycle", source_prompt="a photo of a bag", source_guidance_scale=1.0, share_source=True),
        dict(method="cycle", guidance_scale=1.0),
        dict(method="asymmetric", guidance_scale=3.0),
        dict(method="asymmetric", guidance_scale=1.0, eta=0.0, source_prompt=COAT),
        dict(method="sdedit", noise_scale=2.0),
        dict(method="cycle", negative_prompt="a photo of a bag", source_prompt=COAT),
        dict(method="asymmetric", negative_prompt="a photo of a bag"),
        dict(method="cycle", guidance_low=0.3, guidance_high=0.5),
        dict(method="cycle", share_source=True, guidance_high=0.601),
        dict(method="asymmetric", guidance_low=0.401),
        dict(method="sdedit", guidance_low=0.3, guidance_high=0.7),
        dict(method="sdedit", share_start=True, noise_scale=0.0),
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_against_the_plain_recursions(pipe, unet, z0, schedule, options):
    options = dict(steps=5, noise_scale=3.0) | options
    with scheduled(pipe, **schedule):
        made = pipe.augment_latents(z0[:2], [COAT, BOOT], [0, 1], variants=2, seed=2**33 + 5, **options)
        rest = {k: v for k, v in options.items() if k != "method"}
        plain = Plain(pipe, unet, z0[1], BOOT, 1, 1, seed=2**33 + 5, **rest)
        expected = getattr(plain, options["method"])()
    error = np.mean((made[1, 1] - expected) ** 2) / np.mean(expected**2)
    assert error < 1e-9, f"relative squared error {error:.1e}"  # 1e-11 seen, over 4 steps


# ------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("options", [dict(), dict(eta=0.0), dict(share_source=True), dict(share_start=True)], ids=str)
def test_without_a_difference_the_cycle_returns_the_seed(pipe, z0, guidance, options):
    made = pipe.augment_latents(z0[:2], [COAT, COAT],
                                variants=2,
                                steps=6,
                                noise_scale=0,
                                guidance_scale=guidance,
                                source_prompt=COAT,
                                source_guidance_scale=guidance,
                                **options)
    assert np.array_equal(made, np.repeat(z0[:2, None], 2, axis=1))


@pytest.mark.parametrize(
    "options", [dict(), dict(share_source=True),
                dict(method="asymmetric", eta=0.0),
                dict(method="sdedit")], ids=str)
def test_variants_differ_from_each_other_and_from_the_seed(pipe, seeds, options):
    made = pipe.augment(seeds[:1], [COAT], variants=3, steps=6, **options).astype(int)
    assert made.shape == (1, 3, 32, 32, 3)
    for i in range(3):
        assert np.abs(made[0, i] - seeds[0]).mean() > 1
        for j in range(i):
            assert np.abs(made[0, i] - made[0, j]).mean() > 0.1


def test_variants_have_starts_of_their_own_by_default(pipe, z0):
    """More variety at no cost; a shared source trajectory has one start, and so have its variants."""
    options = dict(variants=2, steps=5, noise_scale=0)
    assert np.array_equal(pipe.augment_latents(z0[:1], [COAT], **options),
                          pipe.augment_latents(z0[:1], [COAT], share_start=False, **options))
    assert not np.array_equal(pipe.augment_latents(z0[:1], [COAT], **options),
                              pipe.augment_latents(z0[:1], [COAT], share_start=True, **options))
    assert np.array_equal(pipe.augment_latents(z0[:1], [COAT], share_source=True, **options),
                          pipe.augment_latents(z0[:1], [COAT], share_source=True, share_start=True, **options))


def test_the_perturbation_is_what_tells_variants_of_one_source_apart(pipe, z0):
    made = pipe.augment_latents(z0[:1], [COAT], variants=2, steps=5, share_source=True, noise_scale=0)
    assert np.array_equal(made[0, 0], made[0, 1])


def test_the_class_survives(pipe, seeds):
    """Not black, not noise: at moderate settings a variant stays nearer to its own seed than to one of another
    class."""
    made = pipe.augment(seeds[:2], [COAT, BOOT], variants=2, steps=10, guidance_scale=4.0).astype(float)
    distance = np.abs(made[:, :, None] - seeds[:2].astype(float)[None, None]).mean(axis=(3, 4, 5))
    assert (distance[0, :, 0] < 0.6 * distance[0, :, 1]).all() and (distance[1, :, 1] < 0.6 * distance[1, :, 0]).all()


@pytest.mark.parametrize("step, fixed", [("cycle", 1), ("asymmetric", 0), ("sdedit", 0)])
def test_unguided_steps_compute_no_unconditional_row(pipe, z0, step, fixed, monkeypatch):
    rows, done, plan = [], [], pipe.unet.plan
    monkeypatch.setattr(pipe.unet, "plan", lambda lane, **shape: (rows.append(shape["rows"]), plan(lane, **shape))[1])
    options = dict(variants=2, steps=5, method=step)

    def made(**interval):
        rows.clear(), done.clear()
        return pipe.augment_latents(z0[:1], [COAT], progress=lambda *share: done.append(share), **options | interval)

    made(guidance_low=0.3, guidance_high=0.5)  # of 601, 401, 201 and 1
    units = group_size(fixed + 2, *z0.shape[2:])
    unguided, guided = (units * (fixed + n) for n in (1, 2))
    assert rows[-4:] == [unguided, guided, unguided, unguided]
    assert done[-1][0] == done[-1][1] and all(a[0] < b[0]
                                              for a, b in zip(done, done[1:])), "progress counts the rows that are run"
    assert np.array_equal(made(guidance_low=0.7), made(guidance_scale=1)), "an interval without a step is no guidance"
    assert np.array_equal(made(guidance_low=0.001, guidance_high=0.602),
                          made()), "an interval with every step is plain guidance"


# ------------------------------------------------------------------------------------------------ from the text alone


@pytest.mark.parametrize("share, variants, from_text", [
    (0.0, 9, []), (1.0, 4, [0, 1, 2, 3]), (0.5, 6, [1, 3, 5]), (0.25, 9, [3, 7]), (0.75, 8, [1, 2, 3, 5, 6, 7]),
    (0.1, 30, [9, 19, 29]), (0.3, 20, [3, 6, 9, 13, 16, 19]), (1 / 3, 9, [2, 5, 8]), (0.7, 10, [1, 2, 4, 5, 7, 8, 9]),
    (0.9, 10, list(range(1, 10))), (1e-9, 10_000, [])])
def test_which_variants_are_from_the_text(share, variants, from_text):
    assert [k for k in range(variants) if is_from_text(share, k)] == from_text


@pytest.mark.parametrize("mode", [
    dict(), dict(share_source=True), dict(share_start=True, noise_scale=3.0, eta=0.5), dict(source_prompt="a bag"),
    dict(method="asymmetric"), dict(method="sdedit", diverse=True), dict(guidance_low=0.3, guidance_high=0.7),
    dict(negative_prompt="a bag", strength=0.4)], ids=str)
def test_a_share_from_the_text_alone(pipe, unet, seeds, z0, mode):
    """These variants are img2img of nothing from pure noise, and the others are what they are without them."""
    make = partial(pipe.augment_latents, z0[:2], [COAT, BOOT], [0, 1], variants=4, steps=4, seed=6)
    shown = {name: mode[name] for name in ("eta", "guidance_low", "guidance_high", "negative_prompt") if name in mode}
    text = pipe.augment_latents(np.zeros_like(z0[:2]), [COAT, BOOT], [0, 1], variants=4, steps=4, seed=6,
                                method="sdedit", strength=1.0, noise_scale=0.0, **shown)
    seen = []
    half = make(text_share=0.5, progress=lambda *share: seen.append(share), **mode)
    assert np.array_equal(half[:, 1::2], text[:, 1::2]) and np.array_equal(half[:, ::2], make(**mode)[:, ::2])
    assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1
    if "source_prompt" not in mode:
        assert np.array_equal(make(text_share=1.0, **mode), text)
    if mode:
        return
    expected = Plain(pipe, unet, 0 * z0[1], BOOT, 1, 3, seed=6, steps=4, strength=1.0, noise_scale=0.0).sdedit()
    assert np.mean((half[1, 3] - expected) ** 2) < 1e-9 * np.mean(expected ** 2)
    same = pipe.augment(seeds[:2], COAT, keys=[7, 7], variants=2, steps=4, text_share=0.5)
    assert np.array_equal(same[0, 1], same[1, 1]), "it does not depend on the image"
    assert not np.array_equal(same[0, 0], same[1, 0])


def test_images_are_not_encoded_for_the_text_alone(pipe, seeds, monkeypatch):
    settings = GenerationOptions(variants=2, steps=3, text_share=0.5)
    make = partial(pipe._augment, seeds[:1], [COAT], ["a"])
    both = make(settings)
    monkeypatch.setattr(pipe.vae, "encode", None)
    assert np.array_equal(make(settings, first=1), both[:, 1:])
    assert np.array_equal(make(replace(settings, text_share=1.0))[:, 1:], both[:, 1:])


# ------------------------------------------------------------------------------------------------ bits

MODES = [dict(method="cycle"), dict(method="cycle", share_source=True), dict(method="cycle", source_prompt="a bag"),
         dict(method="cycle", guidance_low=0.1, guidance_high=0.4), dict(method="asymmetric"),
         dict(method="cycle", share_source=True, text_share=0.5),
         dict(method="sdedit", share_start=False, diverse=True)]


@pytest.mark.parametrize(
    "dtype",
    ["f32", pytest.param("bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 instructions"))])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_image_alone_equals_itself_among_others(seeds, dtype, mode):
    pipe = Pipeline.load(MODEL, dtype=dtype, threads=2)
    prompts, keys = [COAT, BOOT, "a photo of a dress"], ["coat/1.png", "boot/2.png", 77]
    options = dict(variants=3, steps=4, seed=9, **mode)
    together = pipe.augment(seeds, prompts, keys=keys, **options)
    for i in (0, 2):
        assert np.array_equal(together[i:i + 1],
                              pipe.augment(seeds[i:i + 1], prompts[i:i + 1], keys=keys[i:i + 1], **options))
    if mode != MODES[-1]:  # which dissimilar noises are chosen depends on how many
        assert np.array_equal(together[:1, :2],
                              pipe.augment(seeds[:1], prompts[:1], keys=keys[:1], **options | {"variants": 2}))
    backwards = pipe.augment(seeds[::-1], prompts[::-1], keys=keys[::-1], **options)
    assert np.array_equal(together, backwards[::-1])


def test_blocks_of_images_leave_no_trace(pipe, z0, monkeypatch):
    whole = pipe.augment_latents(z0, [COAT] * 3, variants=2, steps=4, share_source=True)
    monkeypatch.setattr(pipe, "_blocks", lambda n, *_: [slice(0, 1), slice(1, 3)])
    seen = []
    assert np.array_equal(whole, pipe.augment_latents(z0, [COAT] * 3, variants=2, steps=4, share_source=True,
                                                      progress=lambda done, total: seen.append(done / total)))
    assert seen == sorted(seen) and seen[-1] == 1


def test_threads_leave_no_trace(pipe, seeds):
    one = Pipeline.load(MODEL, dtype="f32", threads=1)
    assert np.array_equal(one.augment(seeds[:2], [COAT, BOOT], variants=2, steps=4),
                          pipe.augment(seeds[:2], [COAT, BOOT], variants=2, steps=4))


def test_calls_from_many_threads(pipe, seeds):
    expected = pipe.augment(seeds[:1], [COAT], variants=2, steps=4)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(pipe.augment(seeds[:1], [COAT], variants=2, steps=4)))
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 3 and all(np.array_equal(r, expected) for r in results)


def test_close_gives_all_memory_back_and_the_pipeline_goes_on(seeds):
    before = _core.info()["live_bytes"]
    with Pipeline.load(MODEL, dtype="f32", threads=1) as pipe:
        first = pipe.augment(seeds[:1], [COAT], variants=1, steps=4)
        assert _core.info()["live_bytes"] > before
    assert _core.info()["live_bytes"] <= before
    assert np.array_equal(first, pipe.augment(seeds[:1], [COAT], variants=1, steps=4))


def test_what_a_pipeline_shows_of_itself(pipe):
    assert repr(pipe) == "<dreamda.Pipeline 'fashion-mini': 32 x 32 pixels, f32, 2 threads>"
    assert repr(pipe.unet) == "<dreamda.UNet 'fashion-mini/unet': 4,731,364 parameters, f32, 2 threads>"
    assert repr(pipe.vae).startswith("<dreamda.VAE 'fashion-mini/vae': ")
    assert repr(pipe.text_encoder).startswith("<dreamda.TextEncoder 'fashion-mini/text_encoder': ")
    assert repr(dreamda.VAE.load(MODEL / "vae", "f32", threads=1)).endswith("f32, 1 thread>")


def test_seeds_keys_and_variants_all_matter(pipe, z0):
    def made(seed=0, key=0):
        return pipe.augment_latents(z0[:1], [COAT], keys=[key], variants=1, steps=4, seed=seed)

    base = made()
    assert np.array_equal(base, made())
    for other in (made(seed=1), made(seed=2**32), made(key=1), made(key=2**63), made(key="0")):
        assert not np.array_equal(base, other)
    assert np.array_equal(made(key="a.png"), made(key=image_key("a.png")))
    assert image_key("a.png") == 0x58BF5F803512077F


def test_the_noises_are_the_published_ones(pipe, seeds):
    mean = pipe.encode(seeds[:1], sample=False)
    sampled = pipe.encode(seeds[:1], keys=["k"], seed=3)
    _, std = pipe.vae.moments(np.repeat(seeds[:1].transpose(0, 3, 1, 2) / np.float32(127.5) - 1, 2, axis=0))
    noise = normals(3, image_key("k"), 0, 0, STREAM_POSTERIOR, 0, mean.shape[1:])
    np.testing.assert_allclose(sampled[0] - mean[0], std[0] * noise * pipe.vae.config["scaling_factor"], atol=2e-6)


def test_dissimilar_noises(pipe, z0):
    rng = np.random.default_rng(0)
    base = rng.standard_normal(50)
    candidates = np.stack([base, base + 0.1 * rng.standard_normal(50), 2 * base, -base, rng.standard_normal(50)])
    assert choose_diverse(candidates, 1) == [0]
    assert choose_diverse(candidates, 3) == [0, 3, 4]
    assert sorted(choose_diverse(candidates, 5)) == list(range(5))
    options = dict(variants=2, steps=4, method="sdedit", eta=0.0, guidance_scale=1.0)
    drawn = np.stack([normals(0, 0, m, 0, STREAM_CANDIDATE, 0, z0.shape[1:]) for m in range(CANDIDATES * 2)])
    first, second = choose_diverse(drawn, 2)
    diverse = pipe.augment_latents(z0[:1], [COAT], share_start=False, diverse=True, **options)
    assert first == 0 and second > 0 and not np.array_equal(diverse[0, 0], diverse[0, 1])
    assert not np.array_equal(diverse, pipe.augment_latents(z0[:1], [COAT], share_start=False, **options))


def test_dissimilar_noises_are_chosen_once_an_image(pipe, z0, monkeypatch):
    """Not once in every lane: functools.cached_property has no lock since Python 3.12."""
    calls = []
    monkeypatch.setattr(recursions, "choose_diverse", lambda *arguments:
                        (calls.append(0), time.sleep(0.05), choose_diverse(*arguments))[2])
    pipe.augment_latents(z0, [COAT] * 3, variants=9, steps=2, method="sdedit", diverse=True, share_start=False)
    assert len(calls) == 3


# ------------------------------------------------------------------------------------------------ images and progress


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A picture in another size than the model's, as a file."""
    path = tmp_path_factory.mktemp("photo") / "coat.png"
    Image.fromarray(dreamda.load_bundled().seeds[40]).resize((57, 40)).save(path)
    return path


ONE = {"path": lambda path: path, "name": str, "Pillow": Image.open, "array": lambda path: np.asarray(Image.open(path))}


@pytest.mark.parametrize("kind", ONE)
def test_one_image_of_any_kind(pipe, photo, kind):
    options = dict(variants=2, steps=3)
    expected = pipe.augment(np.asarray(Image.open(photo))[None], [COAT], **options)
    assert expected.shape == (1, 2, 32, 32, 3)
    assert np.array_equal(pipe.augment(ONE[kind](photo), COAT, **options), expected[0])
    assert np.array_equal(pipe.augment([ONE[kind](photo)], [COAT], **options), expected)
    assert np.array_equal(pipe.encode(ONE[kind](photo), keys="a"), pipe.encode([photo], keys=["a"])[0])


def test_images_of_several_sizes_and_kinds(pipe, seeds, photo):
    options = dict(variants=2, steps=3)
    together = pipe.augment([seeds[1], photo, Image.open(photo).convert("L")], [BOOT, COAT, COAT], **options)
    assert np.array_equal(together[0], pipe.augment(seeds[1], BOOT, **options))
    assert np.array_equal(together[1], pipe.augment(photo, COAT, **options))
    assert np.array_equal(
        together,
        pipe.augment([seeds[1], photo, np.asarray(Image.open(photo).convert("L").convert("RGB"))], [BOOT, COAT, COAT],
                     **options))
    assert np.array_equal(pipe.augment(seeds[:2], COAT, **options), pipe.augment(seeds[:2], [COAT, COAT], **options))


def test_noise_follows_the_pixels_unless_keys_say_otherwise(pipe, seeds):
    """Every batch of a loop gets noise of its own, and an image the same in every batch."""
    options = dict(variants=1, steps=2, method="sdedit")
    both = pipe.augment(seeds[:2], COAT, **options)
    assert np.array_equal(both[1:], pipe.augment(seeds[1:2], COAT, **options))
    twins = pipe.augment([seeds[0], seeds[0]], COAT, **options)
    assert np.array_equal(twins[0], twins[1])
    named = pipe.augment([seeds[0], seeds[0]], COAT, keys=["a", "b"], **options)
    assert not np.array_equal(named[0], named[1])
    assert np.array_equal(pipe.augment(seeds[0], COAT, keys="a", **options), named[0])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_callback_after_every_step(pipe, seeds, mode, monkeypatch):
    monkeypatch.setattr(pipe, "_blocks", lambda n, *_: [slice(0, 1), slice(1, 3)])
    seen, last = {}, {}

    def callback(step, timestep, latents, units):
        assert len(latents) == len(units)
        for unit, latent in zip(units, latents):
            seen.setdefault(unit, []).append((step, timestep))
            last[unit] = latent.copy()

    options = dict(variants=2, steps=4, seed=1, **mode)
    made = pipe.augment(seeds, COAT, callback_on_step_end=callback, **options)
    assert np.array_equal(made, pipe.augment(seeds, COAT, **options))
    timesteps = {0: [501, 251, 1], 1: [751, 501, 251, 1] if "text_share" in mode else [501, 251, 1]}
    assert seen == {(i, k): list(enumerate(timesteps[k])) for i in range(3) for k in range(2)}
    decoded = pipe._decode(np.stack([last[2, 1]]), Tiles.whole((16, 16)), None)
    assert np.array_equal(decoded[0], made[2, 1])


def test_a_callback_may_end_the_call(pipe, seeds):
    def callback(step, timestep, latents, units):
        if step == 1:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        pipe.augment(seeds, COAT, variants=3, steps=4, callback_on_step_end=callback)


def test_other_sizes_are_resized(pipe, seeds):
    large = np.asarray(Image.fromarray(seeds[0]).resize((57, 40)))[None]
    # the centre
    small = np.asarray(Image.fromarray(large[0]).resize((32, 32), Image.Resampling.BICUBIC,
                                                        box=(8.5, 0, 48.5, 40)))[None]
    assert np.array_equal(pipe.encode(large, keys=[0]), pipe.encode(small, keys=[0]))


def test_another_working_size(seeds):
    pipe = Pipeline.load("fashion-mini", dtype="f32", threads=2, size=(48, 36))
    assert pipe.size == (48, 36)
    assert pipe.augment(seeds[:1], [COAT], variants=2, steps=3).shape == (1, 2, 48, 36, 3)
    for size in ((33, 32), (0, 32), (32, 10**6), 32, "32x32"):
        with pytest.raises(ValueError, match="^size: "):
            Pipeline.load("fashion-mini", size=size)


def test_large_images_take_all_threads(seeds, monkeypatch):
    monkeypatch.setattr("dreamda.generation.lanes.SMALL", 255)
    pipe = Pipeline.load("fashion-mini", dtype="f32", threads=2)
    options = dict(variants=2, steps=3)
    together = pipe.augment(seeds[:2], [COAT, BOOT], **options)
    kept = _core.info()["live_bytes"]
    assert np.array_equal(together[1:], pipe.augment(seeds[1:2], [BOOT], **options))
    pipe.text_encoder.close()
    text = kept - _core.info()["live_bytes"]
    pipe.unet.close(), pipe.vae.close()
    assert kept - _core.info()["live_bytes"] == text, "no other plan had been kept"


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_large_images_stop_between_variants_and_go_on_to_the_same_bits(seeds, monkeypatch, mode):
    monkeypatch.setattr("dreamda.generation.lanes.SMALL", 255)
    monkeypatch.setattr("dreamda.generation.lanes.POSITIONS", 256)  # one variant a group, as at 512 pixels
    pipe = Pipeline.load(MODEL, dtype="f32", threads=2)
    options = GenerationOptions(variants=4, steps=2, seed=9, **mode)
    make = partial(pipe._augment, seeds[:1], [COAT], ["coat/1.png"], options)
    asked = []
    begun = make(stop=lambda: asked.append(0) or len(asked) == 2)
    rest = make(first=2, stop=lambda: False)
    assert begun.shape[1] == 2 and np.array_equal(make(), np.concatenate([begun, rest], axis=1))
    for wrong in (4, -1, 0.5):
        with pytest.raises(ParameterError, match="^first: "):
            make(first=wrong)
    with pytest.raises(ParameterError, match="^stop: "):
        pipe._augment(seeds[:2], [COAT, BOOT], None, options, stop=lambda: True)


@pytest.mark.parametrize("mode", MODES[-3:], ids=str)
def test_small_images_go_on_from_any_variant(pipe, seeds, mode):
    options = GenerationOptions(variants=3, steps=3, **mode)
    whole = pipe._augment(seeds[:2], [COAT, BOOT], None, options)
    assert np.array_equal(whole[:, 1:], pipe._augment(seeds[:2], [COAT, BOOT], None, options, first=1))
    make = partial(pipe._augment, seeds[:1], [COAT], None, replace(options, variants=40))
    begun = make(stop=lambda: True)
    made = begun.shape[1]
    assert 0 < made < 40
    assert np.array_equal(make(), np.concatenate([begun, make(first=made)], axis=1))


def test_no_parameter_of_runs_is_public(pipe):
    assert not {"first", "stop"} & set(inspect.signature(pipe.augment).parameters)


def test_no_images(pipe):
    for mode in MODES:
        assert pipe.augment(np.empty((0, 32, 32, 3), np.uint8), [], variants=2, steps=4,
                            **mode).shape == (0, 2, 32, 32, 3)


def test_a_progress_bar(pipe, seeds, capsys):
    plain = pipe.augment(seeds, [COAT] * 3, variants=2, steps=4)
    capsys.readouterr()
    assert np.array_equal(plain, pipe.augment(seeds, [COAT] * 3, variants=2, steps=4, progress=True))
    assert "100%" in (shown := capsys.readouterr().err) and "6.0/6" in shown
    pipe.augment(seeds, [COAT] * 3, variants=2, steps=4, progress=False)
    pipe.augment(seeds[:0], [], variants=2, steps=4, progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_progress_counts_to_the_end(pipe, seeds, mode):
    seen = []
    pipe.augment(seeds, [COAT] * 3, variants=3, steps=4, progress=lambda done, total: seen.append(done / total), **mode)
    assert seen == sorted(seen) and 0 < seen[0] < 0.5 and seen[-1] == 1


def test_an_error_in_a_lane_arrives(pipe, seeds):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.augment(seeds, [COAT] * 3, variants=3, steps=4, progress=stop)
    assert pipe.augment(seeds[:1], [COAT], variants=1, steps=4).any(), "and the pipeline still works"


def test_pixels_that_are_not_numbers_are_an_error(pipe, seeds, monkeypatch):
    monkeypatch.setattr(pipe.vae, "decode", lambda z, lane: np.full((len(z), 3, 32, 32), np.nan, np.float32))
    with pytest.raises(dreamda.Error, match="not numbers; use dtype f32"):
        pipe.augment(seeds[:1], [COAT], variants=1, steps=4)


@pytest.mark.parametrize(
    "change, message",
    [(dict(images=np.zeros((1, 32, 32, 3), np.float32)), "images: expected uint8"),
     (dict(images=np.zeros((32, 32), np.uint8)), "images: expected uint8"),
     (dict(images=[np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)]),
      "images: expected uint8 (H, W, 3), and number 1 is uint8 (32, 32)"),
     (dict(images=[Image.new("F", (8, 8))]),
      "images: number 0: 32-bit or signed values have no defined black and white"),
     (dict(images=["no-such.png"]), "images: no-such.png: cannot be read"),
     (dict(images=np.zeros((1, 32, 32, 4), np.uint8)), "images: expected uint8"),
     (dict(images=np.zeros((1, 0, 32, 3), np.uint8)), "images: expected uint8"),
     (dict(prompts=[]), "prompts: expected a text for all, or 1 texts"),
     (dict(prompts=[None]), "prompts: expected a text for all, or 1 texts"),
     (dict(keys=[]), "keys: expected 1, one an image, got 0"),
     (dict(keys=["a", "b"]), "keys: expected 1, one an image, got 2"), (dict(keys=[-1]), "keys: -1 is not possible"),
     (dict(keys=[1.5]), "keys: 1.5 is not possible"), (dict(variants=0), "variants: 0 is not possible"),
     (dict(variants=1.5), "variants: 1.5 is not possible"), (dict(variants=True), "variants: True is not possible"),
     (dict(steps=0), "steps: 0 is not possible"), (dict(steps=1001), "steps: 1001 is not possible"),
     (dict(steps=10, strength=0.05), "strength: 0.05 of 10 steps leaves no step to run; use at least 0.1"),
     (dict(strength=0), "strength: 0 is not possible"), (dict(strength=1.01), "strength: 1.01 is not possible"),
     (dict(strength=float("nan")), "strength: nan is not possible; use a number above 0, at most 1"),
     (dict(strength="1"), "strength: '1' is not possible"), (dict(eta=-0.1), "eta: -0.1 is not possible"),
     (dict(eta=1.1), "eta: 1.1 is not possible"),
     (dict(guidance_scale=float("inf")), "guidance_scale: inf is not possible; use a number of 0 or more"),
     (dict(source_guidance_scale=None), "source_guidance_scale: None is not possible"),
     (dict(noise_scale=-1), "noise_scale: -1 is not possible"),
     (dict(guidance_low=0.5, guidance_high=0.5), "guidance_low: 0.5 is not below guidance_high, which is 0.5"),
     (dict(guidance_low=-0.1), "guidance_low: -0.1 is not possible; use a number from 0 to 1"),
     (dict(guidance_high=1.5), "guidance_high: 1.5 is not possible"),
     (dict(guidance_high=float("nan")), "guidance_high: nan is not possible"),
     (dict(seed=-1), "seed: -1 is not possible"), (dict(seed=2**64), "seed: 18446744073709551616 is not possible"),
     (dict(method="ddim"), "method: 'ddim' is not possible; use one of cycle, asymmetric, sdedit"),
     (dict(source_prompt=None), "source_prompt: None is not possible; use a text"),
     (dict(source_prompt="a bag", method="sdedit"), "source_prompt: method=sdedit has no source"),
     (dict(source_prompt="a bag", text_share=1), "source_prompt: text_share=1 leaves no source"),
     (dict(text_share=1.5), "text_share: 1.5 is not possible; use a number from 0 to 1"),
     (dict(text_share=0.5, keep="none"), "text_share: is not possible with masks, which are about the real image"),
     (dict(share_source=True, method="asymmetric"), "share_source: method=asymmetric has no source trajectory"),
     (dict(diverse=True, share_start=True), "diverse: chooses among noisy starts, so it needs share_start=False"),
     (dict(diverse=True, share_start=False, method="asymmetric"), "diverse: "), ],
    ids=lambda v: str(v)[:40],
)
def test_bad_arguments(pipe, change, message):
    arguments = dict(images=np.zeros((1, 32, 32, 3), np.uint8), prompts=[COAT], variants=1, steps=4) | change
    with pytest.raises(ParameterError) as caught:
        pipe.augment(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_latents(pipe, z0):
    with pytest.raises(ValueError, match=r"^z0: expected \(N, 4, h, w\)"):
        pipe.augment_latents(z0[:, :3], [COAT] * 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'variant'"):
        pipe.augment_latents(z0, [COAT] * 3, variant=3)


# ------------------------------------------------------------------------------------------------ the networks alone


def test_unet_alone(pipe, z0):
    context = np.stack([pipe.context(COAT), pipe.context("")])
    plain, bottleneck = pipe.unet(z0[:2], 500, context, return_bottleneck=True)
    assert plain.shape == (2, 4, 16, 16) and bottleneck.shape == (2, 128, 4, 4) and plain.dtype == np.float32
    assert np.array_equal(plain, pipe.unet(z0[:2].astype(np.float64), np.array([500, 500]), context))
    noise = np.random.default_rng(0).standard_normal(bottleneck.shape)
    noisy, clean = pipe.unet(z0[:2], 500, context, bottleneck_noise=noise, return_bottleneck=True)
    assert np.array_equal(clean, bottleneck) and not np.array_equal(noisy, plain)
    assert np.array_equal(pipe.unet(z0[:2], 500, context, bottleneck_noise=np.zeros_like(noise)), plain)
    for bad in (dict(sample=z0[0]), dict(context=context[:1]), dict(context=context[..., :5]), dict(timestep=[1, 2, 3]),
                dict(bottleneck_noise=noise[:1]), dict(sample=z0[:2, :3])):
        with pytest.raises(ValueError):
            pipe.unet(**dict(sample=z0[:2], timestep=500, context=context) | bad)


def test_vae_alone(pipe, seeds):
    x = seeds.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    z = pipe.vae.encode(x)
    assert z.shape == (3, 4, 16, 16)
    assert np.abs(pipe.vae.decode(z) - x).mean() < 0.05
    with pytest.raises(ValueError, match="not a multiple of the VAE's factor 2"):
        pipe.vae.encode(x[..., :31])


def test_text_encoder_alone(pipe):
    both = pipe.text_encoder([COAT, ""])
    assert both.shape == (2, 16, 64)
    assert np.array_equal(both[1:], pipe.text_encoder([""]))
    ids = pipe.text_encoder.tokenizer([COAT])
    for length in (1, 7, 16):
        # causal
        np.testing.assert_allclose(pipe.text_encoder.encode_tokens(ids[:, :length]), both[:1, :length], atol=1e-5)
    with pytest.raises(ValueError):
        pipe.text_encoder.encode_tokens(np.zeros((1, 17), np.int32))
    with pytest.raises(ValueError):
        pipe.text_encoder.encode_tokens(np.full((1, 4), 598, np.int32))
    with pytest.raises(ValueError, match="some of the numbers do not fit"):
        pipe.text_encoder.encode_tokens(np.full((1, 4), 2**32 + 5, np.int64))


def test_a_text_encoder_without_tokenizer(tmp_path):
    shutil.copytree(MODEL / "text_encoder", tmp_path / "text_encoder")
    encoder = dreamda.TextEncoder.load(tmp_path / "text_encoder", dtype="f32")
    with pytest.raises(ValueError, match="without a tokenizer; pass tokenizer=FOLDER"):
        encoder([COAT])


@pytest.mark.parametrize("dtype", ["float32", "fp16", None])
def test_unknown_dtypes(dtype):
    with pytest.raises(ValueError, match="^dtype: .* is unknown; use auto, f32 or bf16"):
        Pipeline.load("fashion-mini", dtype=dtype)


@pytest.mark.parametrize("threads", [0, -1, 1.5, 5000])
def test_impossible_threads(threads):
    with pytest.raises(ValueError, match="^threads: "):
        Pipeline.load("fashion-mini", threads=threads)


def test_few_plans_are_kept():
    unet = dreamda.UNet.load(MODEL / "unet", dtype="f32", threads=1)
    context = np.zeros((1, 4, 64), np.float32)
    for _ in range(2):
        for side in range(8, 24, 2):
            unet(np.zeros((1, 4, side, side)), 1, context)
    assert len(unet._networks[0]._plans) == 4


# ------------------------------------------------------------------------------------------------ model folders


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_fingerprint_is_of_what_is_loaded(folder):
    first = Pipeline.load(MODEL).fingerprint
    assert len(first) == 64 and first == Pipeline.load(folder).fingerprint
    (folder / "unet" / "notes.txt").write_text("unused")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unused")
    assert first == Pipeline.load(folder).fingerprint
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=0)
    second = Pipeline.load(folder).fingerprint
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert len({first, second, Pipeline.load(folder).fingerprint}) == 3


@pytest.mark.parametrize("kind", ["float16", "shards"])
def test_other_weight_files(folder, seeds, kind):
    """The bundled weights are float16; as float32, in shards, they give the same bits, and names without "text_model."
    do too."""
    expected = Pipeline.load(MODEL, dtype="f32").augment(seeds[:1], [COAT], variants=1, steps=4)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    if kind == "float16":
        save_file({k: v.astype(np.float16)
                   for k, v in tensors.items()}, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    else:
        names, weight_map = sorted(tensors), {}
        for i in range(2):
            shard = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
            save_file({n: tensors[n].astype(np.float32) for n in names[i::2]}, file.with_name(shard))
            weight_map |= dict.fromkeys(names[i::2], shard)
        file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": weight_map}))
    text = folder / "text_encoder" / "model.safetensors"
    save_file({k.removeprefix("text_model."): v for k, v in load_file(text).items()}, text)
    assert np.array_equal(expected, Pipeline.load(folder, dtype="f32").augment(seeds[:1], [COAT], variants=1, steps=4))


def test_misfits_are_all_listed(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    tensors["conv_out.bias"] = np.zeros(5, np.float16)
    tensors["more"] = np.zeros(5, np.float16)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        Pipeline.load(folder)
    assert all(s in str(caught.value) for s in ("1 missing: conv_in.weight", "1 unexpected: more",
                                               "1 of another shape: conv_out.bias (5,) instead of (4,)"))


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("unet", dict(in_channels=5), "in_channels 5 and out_channels 4 do not fit the VAE's latent_channels 4"),
        ("unet", dict(cross_attention_dim=32), "weights do not fit"),
        ("unet", dict(mid_block_type=None), "46 unexpected: mid_block"),
        ("text_encoder", dict(max_position_embeddings=8), "model_max_length 16 exceeds"),
    ],
)
def test_contradictory_folders(folder, part, changes, message):
    edit(folder / part / "config.json", **changes)
    if "in_channels" in changes:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        tensors["conv_in.weight"] = np.zeros((64, 5, 3, 3), np.float16)
        save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        Pipeline.load(folder)


def test_a_tokenizer_of_another_model(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=77)
    with pytest.raises(ValueError, match="model_max_length 77 exceeds .*'max_position_embeddings' 16"):
        Pipeline.load(folder)
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=16)
    edit(folder / "tokenizer" / "vocab.json", more=5000)
    with pytest.raises(ValueError, match="5001 tokens exceed the text encoder's 'vocab_size' 598"):
        Pipeline.load(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"])
def test_missing_parts(folder, part):
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=part):
        Pipeline.load(folder)


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors"])
def test_single_files_are_no_models(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="is a file, but a folder .* convert it"):
        Pipeline.load(tmp_path / name)


@pytest.mark.parametrize("name", ["", "no-such-model", "/no/such/folder", "a/b/c", "../x", "~/model"])
def test_no_such_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Pipeline.load(name)


def test_the_text_encoder_of_large_images_gives_its_memory_back():
    small = dreamda.Pipeline.load("fashion-mini", dtype="f32")
    expected = small.context(COAT)
    size = (72, 72)  # 36 x 36 latents: more than a small image has
    large = dreamda.Pipeline.load("fashion-mini", dtype="f32", size=size)
    z0 = np.zeros((1, 4, 36, 36), np.float32)
    large.augment_latents(z0, [COAT], variants=1, steps=1, strength=1.0, tile_size=72)
    before = dreamda.info()["live_bytes"]
    assert large.text_encoder._network._model is None and np.array_equal(large.context(COAT), expected)
    again = large.text_encoder([COAT])[0]
    assert np.array_equal(again, expected), "read from the file again, the same bits"
    assert dreamda.info()["live_bytes"] > before
    large.text_encoder.unload()
    assert dreamda.info()["live_bytes"] == before


# ------------------------------------------------------------------------------------------------ few steps


@pytest.fixture(scope="module")
def lcm(tmp_path_factory):
    """The bundled model as a latent consistency model: the guidance as an input, whose weights are random."""
    folder = shutil.copytree(MODEL, tmp_path_factory.mktemp("lcm") / "model")
    config = json.loads((folder / "unet/config.json").read_text()) | {"time_cond_proj_dim": 64}
    (folder / "unet/config.json").write_text(json.dumps(config))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = {name: np.asarray(tensor) for name, tensor in load_file(weights).items()}
    tensors["time_embedding.cond_proj.weight"] = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float16)
    save_file(tensors, weights)
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text()) | {"_class_name": "LCMScheduler"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "LatentConsistencyModelPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    return Pipeline.load(folder, dtype="f32", threads=2)


FEW = [("lcm", dict(steps=4)), ("lcm", dict(steps=2, eta=0.5)), ("TCDScheduler", dict(steps=4, eta=0.3)),
       ("EulerDiscreteScheduler", dict(steps=5)), ("DPMSolverMultistepScheduler", dict(steps=12, eta=0.0)),
       ("DPMSolverMultistepScheduler", dict(steps=6))]


@contextmanager
def few_steps(pipe, lcm, kind):
    if kind == "lcm":
        yield lcm
    else:
        with scheduled(pipe, class_name=kind, timestep_spacing="trailing") as made:
            yield made


@pytest.mark.parametrize("kind, options", FEW, ids=str)
def test_few_steps_return_the_image_without_perturbation(pipe, lcm, z0, kind, options):
    """No perturbation, equal prompts and guidance on both sides: cycle gives the latents back, whatever the sampler."""
    with few_steps(pipe, lcm, kind) as made:
        for more in ({}, {"share_source": True}, {"share_start": True}):
            out = made.augment_latents(z0[:1], [COAT],
                                       variants=2,
                                       noise_scale=0,
                                       source_prompt=COAT,
                                       guidance_scale=2,
                                       source_guidance_scale=2,
                                       **options,
                                       **more)
            np.testing.assert_allclose(out, np.broadcast_to(z0[:1, None], out.shape), atol=2e-4)


@pytest.mark.parametrize("method", ["cycle", "asymmetric", "sdedit"])
@pytest.mark.parametrize("kind, options", FEW[:1] + FEW[3:4] + FEW[4:5], ids=str)
def test_few_steps_do_not_depend_on_the_batch(pipe, lcm, z0, kind, options, method):
    with few_steps(pipe, lcm, kind) as made:
        options = options | dict(variants=3, guidance_scale=2, noise_scale=1, method=method)
        together = made.augment_latents(z0, [COAT, BOOT, COAT], keys=[7, 8, 9], **options)
        alone = made.augment_latents(z0[1:2], [BOOT], keys=[8], **options)
    assert np.array_equal(together[1], alone[0])
    assert len({together[i, k].tobytes() for i in range(3) for k in range(3)}) == 9, "variants differ"


def test_rows_of_few_steps(pipe, lcm, z0):
    """Guidance as an input, 0 or 1: one row a step; cycle needs another for the source, with share_source 1 / K."""
    def rows(made, **options):
        prompts = [[COAT] * options["variants"]]
        done = []
        recursions.latents_of_variants(made, z0[:1], prompts, [0], GenerationOptions(**options),
                                       lambda *share: done.append(share))
        assert done[-1][0] == done[-1][1]
        return done[-1][0]

    group = group_size(1, 16, 16)
    common = dict(steps=4, variants=group)
    assert rows(lcm, method="sdedit", guidance_scale=3, **common) == 4 * group
    # the source's group is filled up
    assert rows(lcm, method="cycle", guidance_scale=3, share_source=True, **common) == 2 * 4 * group
    with scheduled(pipe, class_name="EulerDiscreteScheduler", timestep_spacing="trailing"):
        for scale, expected in ((0, 1), (1, 1), (2, 2)):
            assert rows(pipe, method="sdedit", guidance_scale=scale, strength=1.0, **common) == 4 * group * expected


def test_guidance_as_an_input_changes_the_images(lcm, z0):
    made = [lcm.augment_latents(z0[:1], [COAT], variants=1, steps=2, method="sdedit", guidance_scale=g) for g in (1, 4)]
    assert not np.allclose(*made, atol=1e-3)
    for name in ("guidance_scale", "source_guidance_scale"):
        with pytest.raises(ParameterError,
                           match=f"^{name}: 0.5 is not possible: this model takes the guidance as an input"):
            lcm.augment_latents(z0[:1], [COAT], steps=2, **{name: 0.5})
    with pytest.raises(ParameterError, match="^steps: 100 exceeds the 50 of this model's schedule"):
        lcm.augment_latents(z0[:1], [COAT], steps=100)


NATURAL = Path(__file__).resolve().parents[2] / "shared/models/natural-mini-lcm"


@pytest.mark.skipif(not NATURAL.is_dir(), reason="the model natural-mini-lcm is not there; it may not be distributed")
@pytest.mark.parametrize("method", ["cycle", "asymmetric", "sdedit"])
def test_a_real_latent_consistency_model(method):
    pipe = Pipeline.load(NATURAL, dtype="f32", threads=2)
    images = np.stack([np.asarray(Image.fromarray(i).resize((64, 64))) for i in dreamda.load_bundled().seeds[:1]])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    made = pipe.augment(images, ["a photo of a goldfish"],
                        variants=2,
                        steps=2,
                        method=method,
                        guidance_scale=2,
                        noise_scale=0.5)
    assert made.shape == (1, 2, 64, 64, 3) and made.std() > 10 and not np.array_equal(made[0, 0], made[0, 1])
