"""Views: what a crop, an operation or a hole may do; that a view depends on its key alone; threads that run ahead."""
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamda.training import views as module
from dreamda.training.batches import ahead
from dreamda.training.views import KINDS, OPERATIONS, Views, channel_statistics, is_grey, reduce

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (48, 60, 3), dtype=np.uint8)
FLAT = dict(mean=(0, 0, 0), std=(1, 1, 1))


def make(size=(32, 32), **options):
    return Views(size, **{**FLAT, **options})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.sampled_from(KINDS),
       st.integers(0, 2**40))
def test_any_image_gives_a_view_of_the_right_kind(height, width, h, w, kind, index):
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = make((h, w), crop_scale=(0.08, 1)).view(kind, image, 1, index)
    assert view.shape == (3, h, w) and view.dtype == np.float32 and view.flags.c_contiguous
    assert view.min() >= 0 and view.max() <= 1
    assert make((h, w)).plain(image).shape == (3, h, w)


def test_a_view_depends_on_its_key_and_on_nothing_else():
    one, two = make(seed=3), make(seed=3)
    base = {kind: one.view(kind, PHOTO, 5, 7) for kind in KINDS}
    two.strong(PHOTO, 1, 1)
    for kind in reversed(KINDS):
        np.testing.assert_array_equal(two.view(kind, PHOTO, 5, 7), base[kind])
    others = [
        make(seed=4).weak(PHOTO, 5, 7),
        make(seed=3, stage=1).weak(PHOTO, 5, 7),
        one.weak(PHOTO, 6, 7),
        one.weak(PHOTO, 5, 8),
        one.view("weak", PHOTO, 5, 7, stream=1), base["randaugment"]
    ]
    assert not any(np.array_equal(other, base["weak"]) for other in others)


def test_all_of_the_largest_seeds_count():
    views = [make(seed=seed).weak(PHOTO, 5, 7) for seed in (0, 2**63, 2**63 + 1, 2**64 - 1)]
    assert not any(np.array_equal(views[i], views[j]) for i in range(4) for j in range(i))


def test_the_views_of_one_key_are_the_same_for_ever():
    """A change of NumPy or of this file that changes training would show here (Pillow has no part in these numbers)."""
    random = np.random.Generator(np.random.Philox(key=[1, 0], counter=[0, 2, 3, 0])).random(3)
    np.testing.assert_allclose(random, [0.41348958, 0.9910268, 0.59031981], atol=1e-8)


def test_crops_have_the_area_and_shape_that_were_asked_for():
    """On a picture of coordinates the crop's box can be read off."""
    y, x = np.mgrid[0:200, 0:200]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    views = make((50, 50), crop_scale=(0.3, 0.6), flip=False)
    boxes = np.array([[v[0].max() - v[0].min(), v[1].max() - v[1].min()]
                      for v in (views.weak(image, 0, i) for i in range(200))]) * 255 + 3
    area, ratio = boxes.prod(axis=1) / 200**2, boxes[:, 0] / boxes[:, 1]
    assert 0.27 < area.min() < 0.33 and 0.57 < area.max() < 0.63 and abs(area.mean() - 0.45) < 0.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4


def test_flip_can_be_switched_off():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    left = lambda views: [views.weak(image, 0, i)[0, :, :8].mean() > 0.5 for i in range(200)]
    assert 60 < sum(left(make(crop_scale=(0.9, 1)))) < 140 and sum(left(make(crop_scale=(0.9, 1), flip=False))) == 0


def test_fourteen_operations_each_change_a_photo_and_keep_its_size():
    assert len(OPERATIONS) == 14
    picture = Image.fromarray(np.asarray(Image.fromarray(PHOTO).resize((64, 64))) // 2 + 40)
    changed = [
        not np.array_equal(np.asarray(op(picture, 0.8, sign, (9, 9, 9))), np.asarray(picture)) for op in OPERATIONS
        for sign in (True, False)
    ]
    assert changed[:2] == [False, False] and all(changed[2:])  # the first is Identity
    for op in OPERATIONS:
        for strength in (0.0, 1.0):
            out = op(picture, strength, True, (9, 9, 9))
            assert out.size == (64, 64) and out.mode == "RGB"
    near = [
        op for op in OPERATIONS
        if np.abs(np.asarray(op(picture, 0.0, True, (0, 0, 0))).astype(int) - np.asarray(picture)).mean() < 1
    ]
    assert len(near) == 12  # strength 0 does nothing, but for the two without strength: AutoContrast, Equalize


def test_grey_images_stay_grey_and_waste_no_operation_on_colour():
    grey = np.repeat(RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=2)
    views = make(grey=True)
    for i in range(100):
        view = views.strong(grey, 0, i)
        assert np.array_equal(view[0], view[1]) and np.array_equal(view[1], view[2])
    assert len(views._operations) == 13 and is_grey([grey, grey]) and not is_grey([grey, PHOTO])


def test_cutout_fills_up_to_a_quarter_with_the_mean():
    image = np.full((32, 32, 3), 255, np.uint8)
    views = Views((32, 32), (0.2, 0.4, 0.6), (1, 1, 1), operations=0, crop_scale=(1, 1))
    holes = [(np.abs(views.strong(image, 0, i)) < 1e-6).all(axis=0).mean() for i in range(300)]
    assert max(holes) <= 0.26 and max(holes) > 0.2 and 0.03 < np.mean(holes) < 0.12


def test_plain_view_is_the_image_or_its_centre():
    image = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    views = Views((32, 32), (0.5, 0.25, 0), (0.5, 1, 2))
    expected = (image / 255 - [0.5, 0.25, 0]) / [0.5, 1, 2]
    np.testing.assert_allclose(views.plain(image), expected.transpose(2, 0, 1), atol=1e-6)
    y, x = np.mgrid[0:256, 0:512]
    wide = np.stack([x // 2, y, y], axis=-1).astype(np.uint8)
    centre = make((224, 224)).plain(wide) * 255
    assert centre[0].min() == pytest.approx(72, abs=1) and centre[0].max() == pytest.approx(184, abs=1)
    assert centre[1].min() == pytest.approx(16, abs=1) and centre[1].max() == pytest.approx(239, abs=1)


# How, and the image's shape: what a pixel to the right is, in pixels down, in the centre of the view; and whether all
# of the image is seen.
@pytest.mark.parametrize("size", [(32, 32), (96, 96)], ids=["small", "large"])
@pytest.mark.parametrize("how, shape, ratio, whole", [
    ("crop", (60, 120), 1, False), ("crop", (120, 60), 1, False), ("pad", (60, 120), 1, True),
    ("pad", (120, 60), 1, True), ("squash", (60, 120), 2, True), ("squash", (120, 60), 0.5, True),
    ("crop", (90, 90), 1, True), ("pad", (90, 90), 1, True), ("squash", (90, 90), 1, True)])
def test_images_of_another_aspect_ratio(size, how, shape, ratio, whole):
    y, x = np.mgrid[0: shape[0], 0: shape[1]]
    image = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    views = make(size, how=how, crop_scale=(0.3, 0.3), flip=False)
    view = views.plain(image) * 255
    middle = slice(size[0] // 2 - 4, size[0] // 2 + 4)
    across, down = (np.diff(view[c, middle, middle], axis=1 - c).mean() for c in (0, 1))
    assert across / down == pytest.approx(ratio, rel=0.05)
    seen = np.ptp(view[0]) / np.ptp(image[..., 0]), np.ptp(view[1]) / np.ptp(image[..., 1])
    assert (min(seen) > (0.9 if size == (32, 32) else 0.8)) == whole
    trained = [np.diff(views.weak(image, 0, i)[c] * 255, axis=1 - c) for i in range(40) for c in (0, 1)]
    ratios = [np.mean(np.abs(a)) / np.mean(np.abs(b)) for a, b in zip(trained[::2], trained[1::2])]
    assert np.median(ratios) == pytest.approx(ratio, rel=0.34)     # random crops change it by up to a third


def test_views_of_the_same_aspect_ratio_do_not_depend_on_it():
    photo = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for size in ((30, 40), (93, 124)):
        crop, pad, squash = (make(size, how=how) for how in ("crop", "pad", "squash"))
        for view in (lambda views: views.plain(photo), lambda views: views.strong(photo, 1, 2)):
            np.testing.assert_array_equal(view(crop), view(pad))
            np.testing.assert_array_equal(view(crop), view(squash))


@pytest.mark.parametrize("side", [224, 225, 300, 448])
def test_the_centre_is_cropped_whatever_the_size_of_the_image(side):
    """Also where the image has the very size of the views: it is shown as large as any other."""
    ramp = np.broadcast_to(np.linspace(0, 255, side)[None, :, None], (side, side, 3)).astype(np.uint8)
    shown = make((224, 224)).plain(ramp)[0] * 255
    assert shown.min() == pytest.approx(255 / 16, abs=2) and shown.max() == pytest.approx(255 * 15 / 16, abs=2)


@pytest.mark.parametrize("shape, reduced", [((100, 150), (32, 48)), ((32, 500), (32, 500)), ((40, 40), (32, 32)),
                                            ((32, 64), (32, 64)), ((20, 30), (20, 30))])
def test_large_photographs_are_reduced_once(shape, reduced):
    photo = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    small = reduce(photo, (16, 16))
    assert small.shape[:2] == reduced and (small is photo) == (shape == reduced)
    np.testing.assert_array_equal(make((16, 16)).plain(small), make((16, 16)).plain(photo))


def test_channel_statistics():
    images = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.reshape(-1, 3).mean(axis=0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, images.reshape(-1, 3).std(axis=0) / 255, atol=1e-6)
    assert channel_statistics(np.zeros((2, 4, 4, 3), np.uint8)) == ((0, 0, 0), (1e-3,) * 3)


@pytest.mark.parametrize("options, message", [({"crop_scale": (0, 1)}, "crop_scale"),
                                              ({"crop_scale": (0.9, 0.1)}, "crop_scale"), ({"std": (0, 1, 1)}, "std"),
                                              ({"mean": (0, )}, "mean")])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_ahead_keeps_the_order_and_its_distance(workers):
    made, lock = [], threading.Lock()

    def slow(number):
        time.sleep(0.001 * (number % 3))
        with lock:
            made.append(number)
        return number

    seen = []
    for number in ahead(slow, 3, 40, workers):
        seen.append(number)
        assert len(made) <= len(seen) + workers + 1
    assert seen == list(range(3, 40))


def test_ahead_passes_errors_on_and_stops_when_closed():
    def fails(number):
        if number == 2:
            raise OSError("two")
        return number

    iterator = ahead(fails, 0, 100, 2)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(OSError, match="two"):
        next(iterator)
    made = []
    iterator = ahead(made.append, 0, 1000, 2)
    next(iterator)
    iterator.close()
    assert len(made) < 10 and not any(t.name.startswith("dreamda-views") for t in threading.enumerate())


def test_module_docstring_numbers():
    assert module.channel_statistics([np.full((2, 2, 3), 51, np.uint8),
                                      np.full((4, 4, 3), 153, np.uint8)]) == ((0.4, ) * 3, (0.2, ) * 3)
