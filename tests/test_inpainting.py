"""Inpainting models: U-Nets that see the mask and the masked image beside the latents."""

import json
import shutil

import numpy as np
import pytest
from networks import write_lcm, write_model, write_sdxl
from PIL import Image
from test_regions import METHODS, scene

import dreamda
from dreamda import cli

SIZE, FACTOR = 16, 2  # of the model's images, and pixels per latent position
OPTIONS = {"steps": 3, "variants": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "inpainting", in_channels=9)


@pytest.fixture(scope="module")
def pipe(folder):
    return dreamda.Pipeline.load(folder, dtype="f32", threads=2)


def watch(pipe, monkeypatch):
    """The samples that the U-Net is given from now on."""
    seen, make = [], pipe.unet.plan

    class Watched:
        def __init__(self, plan):
            self.plan = plan

        def run(self, inputs):
            seen.append(inputs["sample"].copy())
            return self.plan.run(inputs)

    monkeypatch.setattr(pipe.unet, "plan", lambda lane, **shape: Watched(make(lane, **shape)))
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", ["objects", "background"])
def test_every_call_sees_the_mask_and_the_latents_of_the_masked_image(pipe, monkeypatch, method, keep):
    image, mask = scene(SIZE, SIZE)
    seen = watch(pipe, monkeypatch)
    made, = pipe.augment([image], "a coat", masks=[mask], keep=keep, keys=[5], seed=2, method=method, **OPTIONS)
    kept = mask if keep == "objects" else ~mask
    assert np.array_equal(made[:, kept], np.broadcast_to(image[kept], made[:, kept].shape))
    new = seen[0][0, 4].astype(bool)
    assert 0 < new.sum() < new.size
    grey = image.astype(np.float32) / np.float32(127.5) - 1
    grey[new.repeat(FACTOR, 0).repeat(FACTOR, 1)] = 0
    shape = (1, 4, SIZE // FACTOR, SIZE // FACTOR)
    noise = None if method == "asymmetric" else dreamda.normals(2, 5, 0, 0, 0, 1, shape)
    masked = pipe.vae.encode(grey.transpose(2, 0, 1)[None], noise)[0]
    for sample in seen:  # also those of source trajectories and of inversions
        assert sample.shape[1] == 9
        for row in sample:
            assert np.array_equal(row[4], new) and np.allclose(row[5:], masked, atol=1e-5)
    assert any(not np.array_equal(a[0, :4], b[0, :4]) for a, b in zip(seen, seen[1:]))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_mask_the_whole_image_is_made_anew(pipe, monkeypatch, method):
    image, _ = scene(SIZE, SIZE)
    plain = pipe.augment(image, "a coat", keys=[5], method=method, **OPTIONS)
    assert np.array_equal(plain, pipe.augment(image, "a coat", keys=[5], method=method, keep="none", **OPTIONS))
    seen = watch(pipe, monkeypatch)
    z0 = pipe.encode(image[None], keys=[5], sample=method != "asymmetric")
    latents = pipe.augment_latents(z0, "a coat", keys=[5], method=method, **OPTIONS)[0]
    assert all((sample[:, 4] == 1).all() for sample in seen)
    decoded = np.rint(np.clip(pipe.vae.decode(latents) / 2 + 0.5, 0, 1) * 255).astype(int).transpose(0, 2, 3, 1)
    assert np.abs(decoded - plain).max() <= 1


def test_what_is_hidden_is_not_seen(pipe, monkeypatch):
    image, mask = scene(SIZE, SIZE)
    other = np.where(mask[..., None], image, 255 - image)
    seen = watch(pipe, monkeypatch)
    for pixels in (image, other):
        pipe.augment([pixels], "a coat", masks=[mask], keep="background", keys=[5], steps=2, variants=1)
    half = len(seen) // 2
    hidden = seen[0][0, 4].astype(bool)
    assert not np.array_equal(seen[0][:, 5:], seen[half][:, 5:])  # the background is seen
    seen.clear()
    other = np.where(hidden.repeat(FACTOR, 0).repeat(FACTOR, 1)[..., None], 255 - image, image)
    for pixels in (image, other):
        pipe.augment([pixels], "a coat", masks=[mask], keep="background", keys=[5], steps=2, variants=1)
    assert all(np.array_equal(a[:, 4:], b[:, 4:]) for a, b in zip(seen[:half], seen[half:]))


@pytest.mark.parametrize("options", [{}, {"method": "cycle", "share_source": True}, {"method": "asymmetric"},
                                     {"noise_scale": 0.0}], ids=str)
def test_an_image_does_not_depend_on_the_others(pipe, options):
    every = [scene(16, 24, 1), scene(20, 16, 2), scene(16, 24, 3)]
    images, masks = zip(*every)
    options = OPTIONS | options
    together = pipe.augment(images, "a coat", masks=masks, keys=[1, 2, 3], keep="objects", **options)
    for i, (image, mask) in enumerate(every):
        alone = pipe.augment(image, "a coat", masks=mask, keys=i + 1, keep="objects", **options | {"variants": 1})
        assert np.array_equal(alone[0], together[i][0])


def test_a_model_of_few_steps_whose_guidance_is_an_input(tmp_path):
    folder = write_lcm(tmp_path / "lcm", in_channels=9)
    image, mask = scene(SIZE, SIZE)
    pipe = dreamda.Pipeline.load(folder, dtype="f32", threads=2)
    made = [pipe.augment([image], "a coat", masks=[mask], keep="objects", method="sdedit", steps=4, variants=1,
                         guidance_scale=scale)[0] for scale in (1.0, 4.0)]
    assert np.array_equal(made[0][0][mask], image[mask]) and not np.array_equal(*made)


@pytest.mark.parametrize("options", [{}, {"tile_size": 16}], ids=str)
def test_a_model_of_sdxls_kind(tmp_path, options):
    pipe = dreamda.Pipeline.load(write_sdxl(tmp_path / "sdxl", in_channels=9), dtype="f32", threads=2)
    image, mask = scene(48, 16)
    made, = pipe.augment([image], "a coat", masks=[mask], keep="objects", steps=2, variants=1, **options)
    assert np.array_equal(made[0][mask], image[mask]) and (made[0] != image).any()


@pytest.mark.parametrize("more", [[], ["--size", "32x32", "--tile-size", "16"]], ids=["whole", "tiles"])
def test_shards_and_replay_give_the_same_bytes(tmp_path, folder, more):
    real, masks = tmp_path / "photos", tmp_path / "masks"
    real.mkdir(), masks.mkdir()
    for seed, size in enumerate([(16, 24), (16, 24), (20, 16)]):
        image, mask = scene(*size, seed)
        Image.fromarray(image).save(real / f"{seed}.png")
        Image.fromarray(mask.astype(np.uint8)).save(masks / f"{seed}.png")
    command = ["generate", str(real), "--masks", str(masks), "--model", str(folder), "--variants", "2", "--steps", "2",
               "--threads", "2", "--dtype", "f32", *more]
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    for part in ("1/2", "0/2"):
        assert cli.main([*command, "--out", str(tmp_path / "parts"), "--shard", part]) == 0
    for name in ("images", "masks"):
        files = sorted(path.name for path in (tmp_path / "whole" / name).iterdir())
        assert len(files) == 6
        for file in files:
            assert (tmp_path / "whole" / name / file).read_bytes() == (tmp_path / "parts" / name / file).read_bytes()
    assert cli.main(["replay", str(tmp_path / "parts"), str(real), "--model", str(folder), "--threads", "2"]) == 0


@pytest.mark.parametrize("channels, out", [(5, 4), (8, 4), (10, 4), (3, 4), (9, 8), (9, 5), (4, 9), (9, 3)])
def test_other_channels_are_refused_in_one_sentence(tmp_path, folder, channels, out):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "unet")
    write_model(tmp_path / "other", in_channels=channels, out_channels=out)
    shutil.move(tmp_path / "other/unet", copy / "unet")
    with pytest.raises(ValueError, match=f"in_channels {channels} and out_channels {out} do not fit .* 4; both have to "
                       "be 4, or in_channels 9 for inpainting") as caught:
        dreamda.Pipeline.load(copy, dtype="f32")
    assert "\n" not in str(caught.value)


def test_a_configuration_of_9_channels_with_weights_for_4_is_refused(tmp_path):
    folder = write_model(tmp_path / "model")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))
    with pytest.raises(ValueError, match=r"conv_in.weight \(16, 4, 3, 3\) instead of \(16, 9, 3, 3\)"):
        dreamda.Pipeline.load(folder, dtype="f32")
