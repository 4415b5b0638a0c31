"""The stages: what is learned and logged, that a resumed run ends with the same bits, and what cannot be trained says
so."""
import json

import numpy as np
import pytest
from standin import StandIn, pictures

from dreamda.options import ParameterError
from dreamda.training.backbone import initialise
from dreamda.training.batches import Batch, Data, Pool, mix
from dreamda.training.heads import AMSTHeads
from dreamda.training.recipe import Recipe, natural_size, rate_at
from dreamda.training.stages import DivergenceError, Network, Training, describe
from dreamda.training.views import Views

REAL, LABELS = pictures(30)
SYNTHETIC, HINTS = pictures(90, seed=1)
TEST, TEST_LABELS = pictures(300, seed=2)
VIEWS = Views((16, 16), (0.4,) * 3, (0.25,) * 3, crop_scale=(0.9, 1.0), operations=1, magnitude=0.3)
PAPER = dict(hint="ignore", consistency_on="rest", relabel=0)  # what the paper says, or leaves out
FAST = dict(epochs=6,
            pretrain_epochs=2,
            batch_size=16,
            learning_rate=0.1,
            warmup_epochs=1,
            steps_per_epoch=12,
            threshold=0.7,
            **PAPER)


def make(workers=0, data=None, classes=3, **recipe):
    recipe = Recipe(**{**FAST, **recipe})
    backbone = StandIn(batch=recipe.batch_size)
    initialise(backbone, recipe.random_state)
    data = data or Data(REAL, LABELS, SYNTHETIC, HINTS, HINTS)
    return Training(backbone,
                    AMSTHeads(backbone.features, classes, recipe.random_state),
                    recipe,
                    VIEWS,
                    data,
                    workers=workers)


def finish(run, **options):
    events = []
    assert run.run(events.append, **options)
    return events


def accuracy(run, images=TEST, labels=TEST_LABELS):
    return (run.network.predict_proba(images, VIEWS).argmax(axis=1) == labels).mean()


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "recipe", [{}, {"method": "plain"}, {"method": "real-only"}, {"mix": "mixup"}, {"mix": "cutmix", "method": "plain"},
               {"view": "randaugment"}, {"smoothing": 0.1, "clip_norm": 1.0}, {"relabel": 2},
               {"relabel": 2, "random_state": 2**64 - 1}, {"hint": "agree"}, {"hint": "keep"}, {"pretrain_epochs": 1}])
def test_every_method_learns(recipe):
    run = make(**recipe)
    events = finish(run)
    assert accuracy(run) > 0.85
    epochs = [e for e in events if e["event"] == "epoch"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3, 4, 5, 6] and run.network.backbone.steps == 72
    assert json.loads(json.dumps(events)) == events


def test_labelling_again_takes_batches_without_real_images():
    data = Data(REAL[:2], LABELS[:2], SYNTHETIC, HINTS, HINTS)
    events = finish(
        make(data=data,
             relabel=1,
             real_share=0.0,
             hint="keep",
             threshold=1.0,
             batch_size=4,
             epochs=3,
             pretrain_epochs=1))
    labellings = [e for e in events if e["event"] == "labelling"]
    assert [e["accepted"] for e in labellings] == [90, 90]


def test_the_log_of_amst():
    run = make(data=Data(REAL, LABELS, SYNTHETIC, HINTS, HINTS, TEST[:60], TEST_LABELS[:60]), relabel=2, threshold=0.9)
    events = finish(run)
    assert [e["event"] + e.get("stage", "")
            for e in events] == (["stagepretrain"] + ["epochpretrain"] * 2 + ["stagetrain", "labelling"]
                                 + ["epochtrain"] * 2 + ["labelling"] + ["epochtrain"] * 2)
    labelling = events[4]
    assert labelling["images"] == 90 and sum(labelling["per_class"]) == labelling["accepted"] > 30
    assert labelling["precision"] > 0.9 and labelling["precision"] == labelling["agree_with_seed"] and labelling[
        "epoch"] == 2
    assert (run.assigned >= 0).sum() == events[7]["accepted"]
    epochs = [e for e in events if e["event"] == "epoch"]
    for e in epochs:
        assert e["loss"] > 0 and 0 <= e["train_accuracy"] <= 1 and e[
            "gradient_norm"] > 0 and 0 <= e["validation_accuracy"] <= 1
    assert epochs[3]["loss"] == pytest.approx(epochs[3]["supervised"]
                                              + epochs[3]["consistency"]) and epochs[3]["used"] > 0
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert run.best["accuracy"] == max(e["validation_accuracy"] for e in epochs[2:])


def test_workers_do_not_change_a_bit():
    states = []
    for workers in (0, 1, 3):
        run = make(workers)
        finish(run)
        states.append(run.network.state())
    assert same(states[0], states[1]) and same(states[0], states[2])
    other = make(random_state=1)
    finish(other)
    assert not same(states[0], other.network.state())


@pytest.mark.parametrize("recipe, at", [({}, 5), ({}, 24), ({}, 29), ({"relabel": 2, "clip_norm": 0.5}, 49),
                                        ({"method": "plain", "mix": "cutmix"}, 31)])
def test_a_resumed_run_ends_with_the_same_bits_and_the_same_log(recipe, at):
    whole = make(**recipe)
    expected = finish(whole)
    part = make(**recipe)
    events, steps = [], iter(range(1, 1000))
    assert not part.run(events.append, stop=lambda: next(steps) == at)
    arrays, position = part.state()
    position = json.loads(json.dumps(position))
    later = make(2, **recipe)
    later.load_state(arrays, position)
    assert later.run(events.append)
    assert same(whole.state()[0], later.state()[0]) and whole.state()[1] == later.state()[1]
    for a, b in zip(expected, events, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.parametrize("part", [0.2, 0.4])
def test_wrong_hints_hurt_amst_less_than_plain_training(part):
    rng = np.random.default_rng(0)
    lost = {"amst": [], "plain": []}
    for seed in range(5):
        flipped = HINTS.copy()
        chosen = rng.permutation(90)[: round(90 * part)]
        flipped[chosen] = (flipped[chosen] + rng.integers(1, 3, len(chosen))) % 3
        for method in lost:
            clean, wrong = (make(method=method, random_state=seed, data=Data(REAL, LABELS, SYNTHETIC, hints, HINTS))
                            for hints in (HINTS, flipped))
            for run in (clean, wrong):
                finish(run)
            lost[method].append(np.mean(clean.network.predict_proba(TEST, VIEWS)[np.arange(300), TEST_LABELS])
                                - np.mean(wrong.network.predict_proba(TEST, VIEWS)[np.arange(300), TEST_LABELS]))
    # AMST, as it is here, never looks at the hints
    assert np.mean(lost["amst"]) == 0 and np.mean(lost["plain"]) > part / 8


def test_hint_agree_takes_only_what_agrees():
    flipped = HINTS.copy()
    flipped[:30] = (flipped[:30] + 1) % 3
    run = make(hint="agree", data=Data(REAL, LABELS, SYNTHETIC, flipped, HINTS))
    labelling = next(e for e in finish(run) if e["event"] == "labelling")
    assert labelling["agree_with_seed"] == 1 and labelling["precision"] > 0.95
    assert (run.assigned[:30] == -1).mean() > 0.9 and (run.assigned[30:] >= 0).mean() > 0.5


def test_hint_keep_drops_only_what_the_heads_contradict():
    flipped = HINTS.copy()
    flipped[:30] = (flipped[:30] + 1) % 3
    flipped[85:] = -1
    run = make(hint="keep", data=Data(REAL, LABELS, SYNTHETIC, flipped, HINTS))
    labelling = next(e for e in finish(run) if e["event"] == "labelling")
    kept = run.assigned >= 0
    assert (run.assigned == flipped)[:85][kept[:85]].all(), "no image gets another label than its seed's"
    assert kept[30:85].all() and kept[:30].mean() < 0.2
    assert (run.assigned == HINTS)[85:][kept[85:]].all(), "an image without a hint is labelled by the heads"
    assert labelling["accepted"] == kept.sum() == sum(labelling["per_class"]) and labelling["precision"] > 0.9
    trusting = make(hint="keep", threshold=1.0, data=Data(REAL, LABELS, SYNTHETIC, flipped, HINTS))
    finish(trusting)
    assert np.array_equal(trusting.assigned, flipped), "heads that are never confident contradict nothing"


def test_only_labelled_weak_views_leave_running_statistics():
    run = make()
    for stage in ("pretrain", "train"):
        batches = run.batches(0)
        batch = (batches.pretrain if stage == "pretrain" else batches.train)(0)
        assert batch.strong is not None
        before = run.network.backbone.buffers["bn1.running_mean"].copy()
        run._begin_epoch("other", 1, lambda event: None)
        (run._pretrain_step if stage == "pretrain" else run._train_step)(batch, 0.01)
        expected = np.float32(0.9) * before + np.float32(0.1) * batch.images.mean(axis=(0, 2, 3))
        np.testing.assert_array_equal(run.network.backbone.buffers["bn1.running_mean"], expected)


def test_too_few_unlabelled_images_for_a_batch_have_no_consistency_loss():
    run = make(data=Data(REAL, LABELS, SYNTHETIC[:15], HINTS[:15]), threshold=1.0)
    assert run.batches(0).train(0).weak is None
    assert make(data=Data(REAL, LABELS, SYNTHETIC[:16], HINTS[:16])).batches(0).train(0).weak is not None


def test_the_consistency_loss_may_see_every_synthetic_image():
    run = make(consistency_on="all", method="amst")
    events = finish(run)
    assert (run.assigned >= 0).sum() > 75, "too few are left for a batch, and yet"
    assert events[-1]["used"] > 0
    with pytest.raises(ValueError, match="consistency_on: 'some' is not possible; use one of rest, all"):
        make(consistency_on="some")


def test_nothing_accepted_is_on_record_and_training_goes_on():
    events = finish(make(threshold=1.0))
    labelling = next(e for e in events if e["event"] == "labelling")
    assert labelling["accepted"] == 0 and labelling["per_class"] == [0, 0, 0] and 0.3 < labelling["confidence_max"] < 1


def test_everything_accepted_leaves_no_consistency_loss():
    events = finish(make(threshold=0.0, data=Data(REAL, LABELS, REAL[:9], LABELS[:9])))
    assert next(e for e in events if e["event"] == "labelling")["accepted"] == 9
    assert events[-1]["consistency"] == 0 and events[-1]["used"] == 0


def test_at_least_half_of_a_batch_is_real():
    run = make(method="plain", data=Data(REAL, LABELS, SYNTHETIC, HINTS))
    assert run.batches(0).train(0).real == 8
    run = make(method="plain", data=Data(REAL, LABELS, SYNTHETIC[:10], HINTS[:10]))
    batch = run.batches(0).train(0)
    assert batch.real == 12 and batch.images.shape == (16, 3, 16, 16)
    assert make(method="plain", real_share=0.0, data=Data(REAL, LABELS, SYNTHETIC, HINTS)).batches(0).train(0).real == 4
    assert make(method="real-only").batches(0).train(0).real == 16


def test_synthetic_images_do_not_shift_the_classes():
    """All accepted ones are of class 0: they take the place of real images of class 0, and of no others."""
    black = np.zeros_like(SYNTHETIC[:20])
    run = make(method="plain", view="weak", data=Data(REAL, LABELS, black, np.zeros(20, np.int64)))
    synthetic = []
    for step in range(12):
        batch = run.batches(0).train(step)
        dark = np.ptp(batch.images, axis=(1, 2, 3)) < 1e-6
        assert not dark[:batch.real].any() and (batch.labels[dark]
                                                == 0).all() and dark[batch.real:][batch.labels[batch.real:] == 0].all()
        synthetic.append(dark.sum())
    counts = np.bincount(np.concatenate([run.batches(0).train(step).labels for step in range(12)]))
    assert counts.max() - counts.min() <= 8 and sum(synthetic) > 15


@pytest.mark.parametrize("recipe", [{}, {"method": "plain"}])
def test_divergence_stops_with_the_step_and_harms_nothing(recipe):
    run = make(**recipe)
    finish(run)
    backbone = run.network.backbone
    forward, calls = backbone.forward, []
    run = make(**recipe)
    backbone = run.network.backbone
    forward = backbone.forward

    def poisoned(images, slot=0):
        calls.append(slot)
        return forward(images, slot) * np.float32(np.nan if len(calls) > 20 else 1)

    backbone.forward = poisoned
    with pytest.raises(
            DivergenceError,
            match="training diverged in stage .*, step .*learning rate.*take a lower learning_rate") as error:
        run.run()
    assert error.value.step == (11 if not recipe else 21)
    assert all(np.isfinite(v).all() for v in run.network.state().values())
    with pytest.raises(DivergenceError, match="the loss is|not finite"):
        make(learning_rate=9e5, warmup_epochs=0, **recipe).run()


def test_clipping_is_of_both_gradients_together():
    run = make(clip_norm=1e-3, momentum=0.0, weight_decay=0.0, warmup_epochs=0.0, learning_rate=1.0, method="real-only")
    before = run.network.state()
    run.run(stop=lambda: True)
    after = run.network.state()
    moved = sum(
        np.square(after[k].astype(np.float64) - before[k]).sum() for k in after
        if "moment" not in k and "running" not in k)
    assert np.sqrt(moved) == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_warms_up_and_falls_to_nothing():
    recipe = Recipe(learning_rate=0.5, warmup_epochs=2)
    rates = [rate_at(recipe, i, 100, 10) for i in range(100)]
    assert rates[0] == 0.5 / 20 and rates[19] == rates[20] == 0.5 and max(rates) == 0.5
    assert all(a > b for a, b in zip(rates[20:], rates[21:])) and rates[-1] < 0.001 and rates[60] == pytest.approx(0.25)
    assert rate_at(recipe, 0, 10, 10) == 0.25  # never more than a fifth of a stage
    assert rate_at(Recipe(learning_rate=1, warmup_epochs=0), 0, 4, 4) == 1


def test_a_pool_is_one_random_order_after_another():
    drawn = Pool(1, 2, 3, 7).take(0, 28)
    assert [d for d, _ in drawn] == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    orders = [tuple(i for _, i in drawn[k: k + 7]) for k in (0, 7, 14, 21)]
    assert all(sorted(o) == list(range(7)) for o in orders) and len(set(orders)) == 4
    assert Pool(1, 2, 3, 7).take(5, 9) == drawn[5:14] and Pool(1, 2, 4, 7).take(0, 28) != drawn


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pixels_and_labels_have_the_same_share(kind):
    labels = np.arange(6)
    images = np.broadcast_to(labels[:, None, None, None], (6, 3, 32, 32)).astype(np.float32)
    shares = []
    for seed in range(200):
        batch = Batch(images, labels)
        mix(batch, kind, np.random.default_rng(seed))
        expected = (1 - batch.mixed) * labels + batch.mixed * batch.mixed_labels
        np.testing.assert_allclose(batch.images.mean(axis=(1, 2, 3)), expected, atol=1e-5)
        shares.append(batch.mixed)
    assert min(shares) < 0.05 and 0.3 < np.mean(shares) < 0.6 and (kind == "cutmix" or max(shares) > 0.95)


def test_initial_weights():
    backbone = StandIn(features=500)
    initialise(backbone, 0)
    weight = backbone.parameters["conv1.weight"]
    assert weight.std() == pytest.approx(np.sqrt(2 / (500 * 16)), rel=0.02) and abs(weight.mean()) < 1e-3
    first = weight.copy()
    initialise(backbone, 0)
    assert np.array_equal(weight, first)
    initialise(backbone, 1)
    assert not np.array_equal(weight, first)


@pytest.mark.parametrize(
    "recipe, message",
    [({"method": "x"}, "method: 'x' is not possible; use one of amst, plain, real-only"), ({"mix": "x"}, "mix: "),
     ({"hint": "x"}, "hint: "), ({"view": "x"}, "view: "), ({"threshold": 1.1}, "threshold: "),
     ({"threshold": float("nan")}, "threshold: "), ({"learning_rate": 0}, "learning_rate: 0 is not"),
     ({"epochs": 1}, "epochs: 1 is too few: method=amst has two stages"),
     ({"epochs": 0, "method": "plain"}, "epochs: "),
     ({"pretrain_epochs": 6}, "pretrain_epochs: 6 leaves none of 6 epochs for the second stage; use 1 to 5"),
     ({"batch_size": 1}, "batch_size: "), ({"steps_per_epoch": 0}, "steps_per_epoch: "), ({"relabel": -1}, "relabel: "),
     ({"relabel": 1, "mix": "mixup"}, "relabel: does not go with mix"), ({"random_state": -1}, "random_state: "),
     ({"momentum": 1}, "momentum: 1.0 is not possible; use a number from 0 to below 1"),
     ({"weight_decay": -1}, "weight_decay: "), ({"clip_norm": float("inf")}, "clip_norm: "),
     ({"crop_scale": (0.9, 0.1)}, "crop_scale: .* smaller one first"), ({"crop_scale": (0, 1)}, "crop_scale: "),
     ({"image_size": (8, )}, "image_size: .* a whole number of 1 or more, or 2 of them"),
     ({"mean": (0.5, 0.5)}, "mean: .* 3 numbers, each a number from 0 to 1"),
     ({"validation_fraction": 1}, "validation_fraction: 1.0 leaves no image")])
def test_a_recipe_that_cannot_be_meant(recipe, message):
    with pytest.raises(ParameterError, match=message):
        Recipe(**{**FAST, **recipe})


@pytest.mark.parametrize("recipe, stages", [({}, [("pretrain", 3), ("train", 27)]),
                                            ({"epochs": 12}, [("pretrain", 2), ("train", 10)]),
                                            ({"epochs": 2}, [("pretrain", 1), ("train", 1)]),
                                            ({"method": "plain", "epochs": 1}, [("train", 1)]),
                                            ({"epochs": 5, "pretrain_epochs": 4}, [("pretrain", 4), ("train", 1)])])
def test_stages(recipe, stages):
    assert Recipe(**recipe).stages() == stages


def test_defaults_that_depend_on_others():
    assert (Recipe().relabel, Recipe(mix="mixup").relabel, Recipe(relabel=2).relabel) == (3, 0, 2)
    assert (Recipe().rate, Recipe(pretrained="x").rate, Recipe(pretrained="x", learning_rate=1).rate) == (0.05, 0.01, 1)
    widths = [
        recipe.width_for(stem) for recipe in (Recipe(), Recipe(pretrained="x"), Recipe(width=32))
        for stem in ("small", "imagenet")
    ]
    assert widths == [16, 64, 64, 64, 32, 32]


@pytest.mark.parametrize("given, sizes, size, why",
                         [(None, [(32, 32)] * 3, (32, 32), "the images are 32 x 32"),
                          (None, [(48, 40)] + [(300, 500)] * 4, (224, 224), "their median is 300 x 500"),
                          (None, [(32, 32)] * 3 + [(900, 900)],
                           (32, 32), "the median of images from 32 x 32 to 900 x 900"),
                          (None, [(100, 100)], (224, 224), "the images are 100 x 100"), (48, [], (48, 48), "as given"),
                          ((48, 40), [], (48, 40), "as given")])
def test_the_size_is_the_median_and_not_that_of_the_first_image(given, sizes, size, why):
    found, reason = natural_size(given, sizes)
    assert found == size and why in reason


def test_data_that_does_not_fit():
    with pytest.raises(ValueError, match="no real images"):
        make(data=Data((), np.zeros(0, np.int64), SYNTHETIC))
    for method in ("amst", "plain"):
        with pytest.raises(ValueError, match=f"method: {method} needs synthetic images"):
            make(method=method, data=Data(REAL, LABELS))
    for recipe in ({"method": "plain"}, {"hint": "agree"}):
        with pytest.raises(ValueError, match="but 90 synthetic images have none"):
            make(data=Data(REAL, LABELS, SYNTHETIC), **recipe)
    run = make()
    arrays, position = run.state()
    with pytest.raises(ValueError, match="run with 89 synthetic images; there are 90"):
        run.load_state({**arrays, "assigned": arrays["assigned"][1:]}, position)
    with pytest.raises(ValueError, match="backbone.conv1.weight is missing in the checkpoint"):
        run.load_state({k: v for k, v in arrays.items() if k != "backbone.conv1.weight"}, position)
    with pytest.raises(ValueError, match="yields 24 features, but the heads are for 7"):
        Network(StandIn(), AMSTHeads(7, 3), 16)


@pytest.mark.parametrize(
    "event, text",
    [(dict(images=400, accepted=400, confident=350,
           contradicted=0), "labelling 400 synthetic images: 350 confident at threshold 0.7, 50 kept with their source "
      "label; mean confidence 0.64"),
     (dict(images=400, accepted=380, confident=330,
           contradicted=15), "330 confident at threshold 0.7, 50 kept with their source label, 20 without a label "
      "(15 contradicted); mean"),
     (dict(images=9, accepted=0, confident=0, contradicted=0),
      "0 confident at threshold 0.7, 9 without a label; mean confidence 0.64. None is used as a labelled "
      "image, as the highest confidence is 0.690: training continues")])
def test_a_labelling_in_words(event, text):
    assert text in describe(
        {"event": "labelling", "threshold": 0.7, "confidence_mean": 0.64, "confidence_max": 0.69, **event})


def test_a_stage_in_words():
    events = finish(make())
    lines = [describe(e) for e in events]
    assert lines[0].startswith("Stage 1 (pretrain), 2 epochs:") and "the loss is another one" in next(
        line for line in lines if line.startswith("Stage 2"))
    assert not any(e["event"] == "stage" for e in finish(make(method="plain")))


def test_confident_and_kept_are_counted_apart():
    flipped = HINTS.copy()
    flipped[:30] = (flipped[:30] + 1) % 3
    run = make(hint="keep", data=Data(REAL, LABELS, SYNTHETIC, flipped, HINTS))
    labelling = next(e for e in finish(run) if e["event"] == "labelling")
    assert 20 < labelling["contradicted"] == 90 - labelling["accepted"] and 40 < labelling["confident"] <= labelling[
        "accepted"]


def test_weights_of_images():
    """An image of weight 0 has no part in the loss; equal weights change nothing."""
    def weighted(weights, labels=LABELS):
        data = Data(REAL,
                    labels,
                    SYNTHETIC,
                    HINTS,
                    weights=None if weights is None else np.asarray(weights, np.float32))
        run = make(data=data, method="plain", epochs=3)
        finish(run)
        return run

    plain = weighted(None)
    assert same(plain.network.state(), weighted(np.ones(30)).network.state())
    wrong = (LABELS + (np.arange(30) < 15)) % 3
    assert accuracy(weighted(np.arange(30) >= 15, wrong)) > accuracy(weighted(None, wrong)) + 0.02
    batches = make(data=Data(REAL, LABELS, SYNTHETIC, HINTS, weights=np.full(30, 0.5, np.float32)),
                   method="plain").batches(0)
    batch = batches.train(0)
    assert (batch.weights[: batch.real] == 0.5).all() and (batch.weights[batch.real:] == 1).all()
