"""Large images, made in overlapping tiles."""

import numpy as np
import pytest
from networks import write_model
from test_regions import METHODS, scene

import dreamda
from dreamda.generation import tiles
from dreamda.generation.tiles import Tiles
from dreamda.options import ParameterError


@pytest.fixture(scope="module")
def pipe():
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2)


@pytest.fixture(scope="module")
def tall():
    """The same model for images of six times the area that it was made for."""
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2, size=(96, 64))


@pytest.mark.parametrize("size, tile, multiple, corners", [
    ((16, 16), (16, 16), 4, ((0,), (0,))),
    ((16, 40), (16, 16), 4, ((0,), (0, 12, 24))),
    ((8, 40), (16, 16), 4, ((0,), (0, 12, 24))),
    ((128, 96), (64, 64), 8, ((0, 32, 64), (0, 32))),
    ((200, 376), (64, 64), 4, ((0, 44, 92, 136), (0, 44, 88, 132, 180, 224, 268, 312))),
    ((12, 4), (4, 4), 4, ((0, 4, 8), (0,))),
])
def test_tiles_cover_the_image_and_overlap(size, tile, multiple, corners):
    made = Tiles.of(size, tile, multiple)
    assert made.corners == corners and len(made) == len(corners[0]) * len(corners[1])
    for side, part, starts in zip(size, made.tile, made.corners):
        assert starts[-1] + part == side and all(corner % multiple == 0 for corner in starts)
        assert all(a < b <= a + part for a, b in zip(starts, starts[1:]))


@pytest.mark.parametrize("scale, together", [(1, 1), (3, 1), (1, 4), (2, 100)])
def test_what_is_put_together_is_the_whole(scale, together):
    cover = Tiles.of((20, 36), (16, 16), 4)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 4, 20 * scale, 36 * scale)).astype(np.float32)

    def make(parts):
        every = tiles.stacked(image, parts, together, lambda part: tiles.scaled(part, scale))
        assert 1 <= len(parts) <= together and every.shape == (2 * together, 4, 16 * scale, 16 * scale)
        return np.split(every, together)

    made = cover.blended(make, together, scale)
    assert made.dtype == np.float32 and np.allclose(made, image, atol=1e-6)
    alone = np.zeros((1, 4, 4))
    assert Tiles.of((4, 4), (16, 16), 4).blended(lambda parts: [alone]) is alone


def test_images_of_four_times_the_area_are_made_whole_and_larger_ones_in_tiles(tall):
    """The limits of the default; a large `tile_size` always makes them whole."""
    for size, tiled in (((32, 32), False), ((64, 64), False), ((32, 128), False), ((64, 72), True), ((96, 64), True)):
        assert (len(tall._tiles(size, 0)) > 1) == tiled and len(tall._tiles(size, 128)) == 1
    image, _ = scene(96, 64)
    made = [tall.augment(image, "a coat", keys=[1], steps=2, variants=1, tile_size=size) for size in (0, 32, 96)]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_no_noise_returns_the_real_image(tall):
    """The same prompt on both sides, without guidance: nothing changes, in tiles too."""
    image, _ = scene(96, 64)
    z0 = tall.encode(image[None], keys=[1])
    made = tall.augment_latents(z0, "a coat", keys=[1], steps=5, variants=1, guidance_scale=1, noise_scale=0,
                                source_prompt="a coat", source_guidance_scale=1, tile_size=32)
    assert ((made[0, 0] - z0[0]) ** 2).mean() / (z0 ** 2).mean() < 1e-9


@pytest.mark.parametrize("options", [{}, {"method": "cycle", "share_source": True}, {"method": "asymmetric"},
                                     {"method": "sdedit", "noise_scale": 2.0}], ids=str)
def test_an_image_does_not_depend_on_the_others_or_on_threads(pipe, options):
    every = [scene(80, 48, 1), scene(48, 64, 2), scene(80, 48, 3)]
    images, masks = zip(*every)
    options = {"steps": 2, "tile_size": 24, "keep": "objects"} | options
    together = pipe.augment(images, "a coat", masks=masks, keys=[1, 2, 3], variants=2, **options)
    one = dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=1)
    for i, (image, mask) in enumerate(every):
        alone = one.augment(image, "a coat", masks=mask, keys=i + 1, variants=1, **options)
        assert np.array_equal(alone[0], together[i][0])
        assert np.array_equal(together[i][0][mask], image[mask])


def steepest(made):
    """How much more a row of pixels differs from the next than other rows near it, at most."""
    rows = np.abs(np.diff(made.astype(float), axis=2)).mean((0, 1, 3, 4))
    return max(rows[i] / np.median(rows[i - 4 : i + 5]) for i in range(20, 76))


def test_there_are_no_seams(tall, monkeypatch):
    """Rows of pixels differ no more from each other where one tile passes into the next than elsewhere."""
    images = np.stack([scene(96, 64, seed)[0] for seed in range(3)])
    options = {"method": "cycle", "keys": [1, 2, 3], "steps": 4, "variants": 2, "tile_size": 32,
               "guidance_scale": 7.5, "noise_scale": 3.0}  # less makes sharp edges of their own, a coat in every tile
    assert steepest(tall.augment(images, "a coat", **options)) < 1.6

    def side_by_side(size, tile, corners):
        ends = [(first + tile + second) // 2 for first, second in zip(corners, corners[1:])]
        return [((np.arange(corner, corner + tile) >= begin) & (np.arange(corner, corner + tile) < end)).astype("f4")
                for corner, begin, end in zip(corners, [0, *ends], [*ends, size])]

    monkeypatch.setattr(tiles, "_weights", side_by_side)
    assert steepest(tall.augment(images, "a coat", **options)) > 2.4  # so that the measure would see a seam


def test_progress_counts_every_tile(tall):
    image, _ = scene(96, 64)
    for method in METHODS:
        seen = []
        tall.augment(image, "a coat", steps=2, variants=2, method=method, tile_size=32,
                     progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


def test_an_inpainting_model_sees_its_tiles_of_the_mask(tmp_path, monkeypatch):
    pipe = dreamda.Pipeline.load(write_model(tmp_path / "model", in_channels=9), dtype="f32", threads=2)
    image, mask = scene(48, 16)
    whole = [pipe.augment([image], "a coat", masks=[mask], keep="objects", keys=[1], steps=2, variants=1,
                          tile_size=size)[0] for size in (16, 48)]
    assert not np.array_equal(*whole) and all(np.array_equal(made[0][mask], image[mask]) for made in whole)


@pytest.mark.parametrize("options, said", [
    ({"tile_size": 12}, "tile_size: 12 is not possible; use a multiple of 8, or 0"),
    ({"tile_size": -8}, "tile_size: -8 is not possible; use a whole number from 0 to 8192"),
    ({"tile_size": 8200}, "from 0 to 8192"),
])
def test_wrong_tiles_are_refused(pipe, options, said):
    with pytest.raises(ParameterError, match=said):
        pipe.augment(scene(32, 32)[0], "a coat", steps=2, variants=1, **options)


def test_a_large_size_that_cannot_be_divided_is_refused():
    pipe = dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2, size=(134, 134))
    with pytest.raises(ParameterError, match="size: 134 x 134 is too large to be made whole, and tiles need multiples"):
        pipe.augment(scene(32, 32)[0], "a coat", steps=2, variants=1)
