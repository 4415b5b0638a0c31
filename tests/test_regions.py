"""Parts of images that are kept: `Pipeline.augment` with `masks` and `keep`."""

import numpy as np
import pytest

import dreamda
from dreamda.generation import recursions
from dreamda.generation.options import GenerationOptions
from dreamda.generation.regions import Canvas, kept_weight, laid_over
from dreamda.options import ParameterError

METHODS = ("cycle", "asymmetric", "sdedit")


@pytest.fixture(scope="module")
def pipe():
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2)


def scene(height, width, seed=0):
    """A smooth coloured image, and a mask with a disc and a line of one pixel."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y + 40 * seed) % 256], 2).astype(np.uint8)
    mask = (y - height // 2) ** 2 + (x - width // 3) ** 2 < (min(height, width) // 4) ** 2
    mask[2, :] = True
    return image, mask


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", ["objects", "background"])
def test_what_is_kept_stays_to_the_pixel_and_the_rest_changes(pipe, method, keep):
    image, mask = scene(45, 61)
    made = pipe.augment([image], "a photo of a coat", masks=[mask], keep=keep, method=method, steps=4, variants=2)
    assert isinstance(made, list) and made[0].shape == (2, 45, 61, 3) and made[0].dtype == np.uint8
    kept = mask if keep == "objects" else ~mask
    far = kept_weight(mask, keep, Canvas.of((45, 61), pipe.size, 8).edge) == 0
    for variant in made[0]:
        assert np.array_equal(variant[kept], image[kept])
        assert np.abs(variant[far].astype(int) - image[far]).mean() > 5


def test_nothing_is_kept_but_the_size_with_none(pipe):
    image, _ = scene(40, 64)
    with_none, = pipe.augment([image], "a coat", keep="none", steps=4, variants=1)
    no_mask, = pipe.augment([image], "a coat", masks=[np.zeros((40, 64), bool)], keep="objects", steps=4, variants=1)
    assert with_none.shape == (1, 40, 64, 3) and np.array_equal(with_none, no_mask)


def test_with_nothing_kept_the_image_is_the_same_as_without_masks(pipe):
    """At the model's own size: the noise that is masked in Python is the core's."""
    image, _ = scene(32, 32)
    plain = pipe.augment(image[None], "a coat", keys=["k"], steps=5, variants=2)
    none = pipe.augment(image[None], "a coat", keys=["k"], steps=5, variants=2, keep="none")
    assert np.array_equal(plain[0], none[0])


def test_an_image_does_not_depend_on_the_others(pipe):
    every = [scene(32, 48, 1), scene(40, 32, 2), scene(32, 48, 3), scene(64, 96, 4)]
    images, masks = zip(*every)
    options = {"keep": "objects", "steps": 3, "variants": 3}
    together = pipe.augment(images, "a coat", masks=masks, keys=[1, 2, 3, 4], **options)
    for i, (image, mask) in enumerate(every):
        alone = pipe.augment(image, "a coat", masks=mask, keys=i + 1, **options)
        assert np.array_equal(alone, together[i])


def test_one_variant_does_not_depend_on_their_number(pipe):
    image, mask = scene(32, 48)
    few, many = (pipe.augment([image], "a coat", masks=[mask], keep="objects", steps=3, variants=n)[0] for n in (1, 4))
    assert np.array_equal(few[0], many[0])


def test_the_callback_sees_the_kept_latents_at_every_step(pipe):
    """In `cycle` those of the source trajectory, in `sdedit` those of one and the same noise."""
    image, _ = scene(32, 32)
    everything = np.ones((32, 32), bool)
    everything[0, 0] = False
    z0 = pipe.encode(image[None], keys=["k"])[0]
    for method in METHODS:
        seen = []
        pipe.augment([image], "a coat", masks=[everything], keep="objects", keys=["k"], method=method, steps=4,
                     variants=2,
                     callback_on_step_end=lambda step, t, latents, units: seen.append((step, latents.copy())))
        last = seen[-1][1]
        assert len(seen) == 3 and np.isfinite(last).all()
        if method != "asymmetric":  # which takes the posterior's mean
            assert all(np.array_equal(latent, z0) for latent in last)
        assert not np.array_equal(seen[0][1][0], last[0])


def test_the_bottleneck_is_perturbed_only_where_nothing_is_kept(pipe):
    z0 = np.zeros((1, 4, 16, 16), np.float32)
    kept = np.zeros((1, 16, 16), bool)
    kept[:, :8, :] = True
    process = recursions.ReverseProcess(pipe, z0, [["a coat"]], [7], GenerationOptions(variants=1, steps=4), [0],
                                        recursions.Made(), kept=kept)
    noise = process.bottleneck_noise(0, 0, 1, 1)
    assert noise.shape == (128, 4, 4) and not noise[:, :2].any() and noise[:, 2:].all()
    drawn = dreamda.normals(0, 7, 0, 1, recursions.STREAM_BOTTLENECK, 1, noise.shape)
    assert np.array_equal(noise[:, 2:], drawn[:, 2:])


@pytest.mark.parametrize("shape", [(1, 1), (7, 500), (333, 250), (32, 32), (20, 33)])
def test_a_canvas_keeps_the_aspect_ratio_and_gives_the_size_back(shape):
    canvas = Canvas.of(shape, (64, 64), 32)
    assert canvas.size[0] % 32 == canvas.size[1] % 32 == 0
    assert min(canvas.inner) <= 64 and max(canvas.inner) <= 256
    if max(shape) < 4 * min(shape):
        assert min(canvas.inner) == 64
    pixels = np.full((*shape, 3), 77, np.uint8)
    placed = canvas.place(pixels)
    assert placed.shape == (*canvas.size, 3) and (placed == 77).all()
    assert np.array_equal(canvas.take_back(placed), pixels)
    for keep in ("objects", "background"):
        thin, half = np.zeros(shape, bool), 0 if keep == "objects" else 3 * canvas.edge
        thin[:, max(0, shape[1] // 2 - half) : shape[1] // 2 + half + 1] = True
        weight = kept_weight(thin, keep, canvas.edge)
        kept = canvas.kept_latents(weight, keep, 8)
        assert kept.any() if keep == "objects" else not kept.all()


@pytest.mark.parametrize("keep", ["objects", "background"])
@pytest.mark.parametrize("shape, edge", [((1, 1), 1), ((5, 9), 2), ((30, 21), 3), ((4, 4), 7)])
def test_the_edge_is_a_mean_over_the_grown_region(shape, edge, keep):
    mask = np.random.default_rng(edge).random(shape) < 0.2
    region = np.pad(mask if keep == "objects" else ~mask, edge, "edge")
    windows = np.lib.stride_tricks.sliding_window_view
    grown = windows(region, (2 * edge + 1,) * 2).any((2, 3))
    weight = windows(np.pad(grown, edge, "edge"), (2 * edge + 1,) * 2).mean((2, 3), np.float32)
    assert np.allclose(kept_weight(mask, keep, edge), weight, atol=1e-6)
    image, made = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    laid = laid_over(image, made[None], weight)[0]
    assert np.abs(laid - (weight[..., None] * image + (1 - weight[..., None]) * made)).max() <= 0.5 + 1e-4


def test_a_float_mask_is_its_own_edge(pipe):
    image, mask = scene(32, 32)
    soft = np.where(mask, 1.0, 0.25)
    made, = pipe.augment([image], "a coat", masks=[soft], keep="objects", steps=3, variants=1)
    assert np.array_equal(made[0][mask], image[mask])


@pytest.mark.parametrize("masks, keep, said", [
    (None, "objects", "masks.*needs a mask"),
    ([np.ones((32, 31), bool)], "objects", "number 0 has the shape"),
    ([np.ones((32, 32), np.uint8)], "objects", "use bool"),
    ([np.full((32, 32), 1.5)], "background", "use bool"),
    ([np.full((32, 32), np.nan)], "background", "use bool"),
    ([np.ones((32, 32), bool)] * 2, "none", "expected 1"),
    ([np.ones((32, 32), bool)], "both", "objects, background or none"),
    ([np.ones((32, 32), bool)], None, "say what the masks are for"),
])
def test_wrong_masks_are_refused(pipe, masks, keep, said):
    with pytest.raises(ParameterError, match=said):
        pipe.augment([scene(32, 32)[0]], "a coat", masks=masks, keep=keep, steps=2, variants=1)
