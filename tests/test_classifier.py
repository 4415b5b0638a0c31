"""AMSTClassifier: scikit-learn's conventions, files, and errors. The backbone is a stand-in where the core's is not the
point."""
import pickle
import re

import numpy as np
import pytest
from batteries.labels import READ, REFUSED
from standin import FoldedStandIn, StandIn, pictures

import dreamda
from dreamda.options import ParameterError
from dreamda.training import saved, setup
from dreamda.training.backbone import choose_stem, create_backbone, load_pretrained
from dreamda.training.holdout import split
from dreamda.training.saved import TrainedModel
from dreamda.training.views import reduced

X, CODES = pictures(30)
Y = np.array(["bag", "coat", "shirt"])[CODES]
SYNTHETIC, HINTS = pictures(60, seed=1)
TEST, TEST_CODES = pictures(200, seed=2)
PAPER = dict(hint="ignore", consistency_on="rest", relabel=0)
FAST = dict(epochs=6,
            pretrain_epochs=2,
            batch_size=16,
            learning_rate=0.1,
            warmup_epochs=1,
            steps_per_epoch=12,
            threshold=0.7,
            crop_scale=(0.9, 1.0),
            validation_fraction=0.0,
            **PAPER)


@pytest.fixture
def standin(monkeypatch):
    def create(name, *, size, batch, slots, **_):
        return StandIn(batch=batch, height=size[0], width=size[1], slots=slots)

    monkeypatch.setattr(setup, "create_backbone", create)
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)


def make(**params):
    return dreamda.AMSTClassifier(**{**FAST, **params})


def test_fit_predict_score_save_load_pickle(standin, tmp_path):
    clf = make()
    assert clf.fit(X, Y, SYNTHETIC, Y[:3][HINTS]) is clf
    assert clf.classes_.tolist() == ["bag", "coat", "shirt"]
    assert clf.score(TEST, Y[:3][TEST_CODES]) > 0.85
    probabilities = clf.predict_proba(TEST)
    assert probabilities.shape == (200, 3) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (clf.predict(TEST) == clf.classes_[probabilities.argmax(axis=1)]).all()
    assert {e["event"]
            for e in clf.history_} == {"epoch", "labelling", "stage"} and clf.best_epoch_ == 6 and len(
                clf.pseudo_labels_) == 60
    clf.save(tmp_path / "m.safetensors")
    clf.save(tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    for other in (dreamda.AMSTClassifier.load(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(clf))):
        np.testing.assert_array_equal(other.predict_proba(TEST), probabilities)
        assert other.get_params() == clf.get_params() and other.history_ == clf.history_ and other.classes_.tolist(
        ) == clf.classes_.tolist()
        assert other.predict(
            TEST[:2]).dtype.kind == "U" and other.pseudo_labels_.tolist() == clf.pseudo_labels_.tolist()


def test_parameters_out_of_numpy_are_saved(standin, tmp_path):
    clf = make(method="real-only",
               epochs=np.int64(2),
               learning_rate=np.float32(0.125),
               width=np.int64(8),
               image_size=np.int64(16),
               flip=np.bool_(False),
               mean=np.full(3, 0.5),
               std=np.array([0.25] * 3),
               random_state=np.int64(3))
    clf.fit(X, Y)
    assert "epochs=" in repr(clf) and "mean=array([0.5" in repr(clf)
    clf.save(tmp_path / "m.safetensors")
    other = dreamda.AMSTClassifier.load(tmp_path / "m.safetensors")
    assert (other.epochs, other.learning_rate, other.flip, other.mean, other.random_state) == (2, 0.125, False,
                                                                                               (0.5, 0.5, 0.5), 3)
    np.testing.assert_array_equal(other.predict_proba(TEST[:5]), clf.predict_proba(TEST[:5]))


def test_conventions_of_scikit_learn(standin):
    clf = make(method="real-only", random_state=4)
    params = clf.get_params()
    assert params["method"] == "real-only" and params["random_state"] == 4 and len(params) > 25
    copy = type(clf)(**params)                                     # what sklearn.base.clone does
    assert all(copy.get_params()[k] is params[k] for k in params)
    assert clf.set_params(learning_rate=0.2) is clf and clf.learning_rate == 0.2 and copy.learning_rate == 0.1
    with pytest.raises(ValueError, match="no parameter 'rate'"):
        clf.set_params(rate=1)
    assert repr(dreamda.AMSTClassifier(epochs=6,
                                       crop_scale=(0.9, 1.0))) == "AMSTClassifier(epochs=6, crop_scale=(0.9, 1.0))"
    with pytest.raises(TypeError, match="AMSTClassifier has no parameter 'lr'; there are: method, epochs"):
        dreamda.AMSTClassifier(lr=0.1)
    first, second = copy.fit(X, CODES), make(method="real-only", random_state=4, workers=0).fit(X, CODES)
    np.testing.assert_array_equal(first.predict_proba(TEST), second.predict_proba(TEST))
    assert first.predict(TEST).dtype.kind == "i"
    assert not np.array_equal(first.predict_proba(TEST), make(method="real-only").fit(X, CODES).predict_proba(TEST))


def test_best_epoch_on_held_back_images(standin):
    clf = make(validation_fraction=0.3).fit(X, Y, SYNTHETIC)
    accuracies = {
        e["epoch"]: e["validation_accuracy"]
        for e in clf.history_ if e["event"] == "epoch" and e["stage"] == "train"
    }
    assert clf.best_epoch_ == max(accuracies, key=accuracies.get)
    train, held = split(CODES, 0.3, 0)
    assert len(held) == 9 and np.bincount(CODES[held]).tolist() == [3, 3, 3] and sorted([*train, *held]) == list(
        range(30))
    assert split(np.array([0, 1, 1]), 0.9, 0)[0].tolist()[0] == 0


def test_grey_and_other_sizes(standin):
    grey = X[..., 0]
    clf = make(method="real-only", image_size=16).fit(np.repeat(np.repeat(grey, 2, axis=1), 2, axis=2), Y)
    assert clf.model_.size == (16, 16) and len(set(clf.model_.mean)) == 1
    assert clf.predict(grey[..., None]).shape == (30,)


@pytest.mark.parametrize(
    "call, message",
    [(lambda: make().fit(X / 255, Y), "X: holds float64; images must be uint8"),
     (lambda: make().fit(X[0, 0], Y), "X: is one image"),
     (lambda: make().fit(X[0], [1]), r"X: is one image of shape \(16, 16, 3\); give a batch"),
     (lambda: make().fit(X[..., :2], Y), "X: has shape"),
     (lambda: make().fit(X, Y[:5]), "y: has 5 values, but X has 30 images"),
     (lambda: make().fit(X, ["a"] * 30), "y: has 1 class, .*; a classifier needs 2"),
     (lambda: make().fit(X, Y), "method: amst needs synthetic images"),
     (lambda: make().fit(X, Y, X, Y[:5]), "y_synthetic: has 5 values"),
     (lambda: make().fit(X, Y, X, ["hat"] * 30), "classes that no real image has: 'hat'"),
     (lambda: make(method="z").fit(X, Y), "method: 'z'"),
     (lambda: make(method="plain").fit(X, Y, X), "30 synthetic images have none"),
     (lambda: make().predict(X), "not fitted"), (lambda: make().save("x"), "not fitted"),
     (lambda: make(validation_fraction=1).fit(X, Y, X), "validation_fraction: 1.0"),
     (lambda: make().fit(X, Y, X, groups_synthetic=range(30)), "groups_synthetic: needs groups"),
     (lambda: make().fit(X, Y, X, sample_weight=[-1] * 30), "sample_weight: must be finite numbers, 0 or more"),
     (lambda: make().fit(X, Y, X, groups=range(30), groups_synthetic=[99] * 30),
      "groups_synthetic: has no group of the real images"),
     (lambda: make(crop_scale=(0, 1)).fit(X, Y, X), "crop_scale"), (lambda: make(std=(0, 0, 0)).fit(X, Y, X), "std")])
def test_bad_arguments(standin, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("labels, message", [(case["labels"], re.escape(case["refused"])) for case in REFUSED],
                         ids=[case["what"] for case in REFUSED])
def test_labels_that_cannot_be_used_are_refused_before_training(standin, monkeypatch, labels, message):
    monkeypatch.setattr(setup.Setup, "training", None)
    with pytest.raises(ParameterError, match=message):
        make(method="real-only").fit(X, labels)


@pytest.mark.parametrize("labels", [case["labels"] for case in READ], ids=[case["what"] for case in READ])
def test_labels_survive_a_file(standin, tmp_path, labels):
    y = np.asarray(labels)[CODES]
    clf = make(method="real-only", epochs=1).fit(X, y)
    clf.save(tmp_path / "m.safetensors")
    again = dreamda.AMSTClassifier.load(tmp_path / "m.safetensors")
    assert again.classes_.tolist() == clf.classes_.tolist() == np.unique(np.asarray(labels).tolist()).tolist()
    assert again.score(X, y) == clf.score(X, y) and set(clf.predict(X)) <= set(y.tolist())


def test_score_compares_each_image_with_its_label(standin):
    clf = make(method="real-only").fit(X, CODES)
    accuracy = clf.score(TEST, TEST_CODES)
    with pytest.warns(UserWarning, match="A column-vector y was passed"):
        assert clf.score(TEST, TEST_CODES[:, None]) == accuracy
    right = clf.predict(TEST) == TEST_CODES
    assert clf.score(TEST, TEST_CODES, sample_weight=right + 0.0) == 1
    for labels, message in (([0], "y: has 1 values, but X has 200 images"),
                            (Y[:3][TEST_CODES], "y: has labels such as .*the classifier knows such as")):
        with pytest.raises(ValueError, match=message):
            clf.score(TEST, labels)


def test_images_made_from_held_back_ones_are_left_out(standin):
    """Synthetic images of held-back seeds carry their labels: nothing of them may be trained on, whatever the order."""
    seeds = np.arange(60) % 30
    clf = make(validation_fraction=0.3, random_state=5).fit(X,
                                                            Y,
                                                            SYNTHETIC,
                                                            groups=np.arange(30),
                                                            groups_synthetic=seeds)
    _, held = split(CODES, 0.3, 5)
    assert clf.left_out_.tolist() == np.flatnonzero(np.isin(seeds, held)).tolist() and len(clf.left_out_) == 18
    assert len(clf.pseudo_labels_) == 60 and (clf.pseudo_labels_[clf.left_out_] == -1).all() and (clf.pseudo_labels_
                                                                                                  >= 0).sum() > 20
    changed = SYNTHETIC.copy()
    changed[clf.left_out_] = 0                                     # so their pixels decide nothing
    again = make(validation_fraction=0.3, random_state=5).fit(X,
                                                              Y,
                                                              changed,
                                                              groups=np.arange(30),
                                                              groups_synthetic=seeds)
    np.testing.assert_array_equal(again.predict_proba(TEST), clf.predict_proba(TEST))
    # as in a cross-validation that calls it
    fold = make().fit(X[:20], Y[:20], SYNTHETIC, groups=np.arange(20), groups_synthetic=seeds)
    assert fold.left_out_.tolist() == np.flatnonzero(seeds >= 20).tolist()


def test_groups_are_held_back_whole():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    labels = np.array([0] * 6 + [1] * 4)
    train, held = split(labels, 0.4, 3, groups)
    assert not set(groups[train]) & set(groups[held]) and set(labels[train]) == {0, 1} and 3 <= len(held) <= 5
    assert [p.tolist() for p in split(labels, 0.4, 3, np.arange(10))] == [p.tolist() for p in split(labels, 0.4, 3)]
    assert len(split(np.array([0, 0, 1, 1]), 0.5, 0,
                     np.array([0, 0, 0, 0]))[1]) == 0, "one group of everything cannot be held back"


def test_weights_of_samples(standin):
    wrong = (CODES + (np.arange(30) < 15)) % 3
    trusting, told = (make(method="real-only").fit(X, wrong, sample_weight=w).score(TEST, TEST_CODES)
                      for w in (None, np.arange(30) >= 15))
    assert told > trusting + 0.02


def test_a_random_state_of_none_or_of_numpy(standin):
    np.random.seed(3)
    one, two = (make(method="real-only", epochs=1, random_state=None).fit(X, Y).predict_proba(TEST) for _ in range(2))
    assert not np.array_equal(one, two)
    one, two = (make(method="real-only", epochs=1, random_state=np.random.RandomState(3)).fit(X, Y).predict_proba(TEST)
                for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_large_arrays_are_reduced_as_files_are(standin):
    large = np.repeat(np.repeat(X, 6, axis=1), 6, axis=2)
    noisy = np.clip(large.astype(int) + np.random.default_rng(0).integers(-60, 60, large.shape), 0,
                    255).astype(np.uint8)
    clf = make(method="real-only", image_size=16, epochs=1).fit(noisy, Y)
    np.testing.assert_array_equal(clf.predict_proba(noisy), clf.predict_proba(reduced(noisy, (16, 16))))


def test_stems():
    assert [choose_stem("auto", s)
            for s in ((32, 32), (64, 64), (65, 64), (224, 224))] == ["small", "small", "imagenet", "imagenet"]
    for stem, size in (("imagenet", (31, 64)), ("auto", (7, 7))):
        with pytest.raises(ValueError, match="too small for the .* stem"):
            choose_stem(stem, size)
    with pytest.raises(ValueError, match="backbone: 'vgg' is not possible; use resnet18, resnet34 or resnet50"):
        create_backbone("vgg", size=(32, 32), batch=4)


def test_files_that_are_no_models(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError):
        TrainedModel.load(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        TrainedModel.load(tmp_path / "junk")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="not written by dreamda train as a model"):
        TrainedModel.load(tmp_path / "plain")
    saved.save_arrays(tmp_path / "odd", {"a": np.zeros(1, np.float32)}, {"kind": "model", "format": 1})
    with pytest.raises(ValueError, match="no model of dreamda train"):
        TrainedModel.load(tmp_path / "odd")
    saved.save_arrays(tmp_path / "new", {"a": np.zeros(1, np.float32)}, {"kind": "model", "format": 9})
    with pytest.raises(ValueError, match="format 9"):
        TrainedModel.load(tmp_path / "new")


def test_pretrained_files_by_name(tmp_path):
    from safetensors.numpy import save_file

    backbone = StandIn()
    rng = np.random.default_rng(0)
    tensors = {
        k: rng.standard_normal(v.shape).astype(np.float16)
        for k, v in (*backbone.parameters.items(), *backbone.buffers.items())
    }
    head = {"fc.weight": np.zeros((1000, 24), np.float32), "bn1.num_batches_tracked": np.array(5)}
    save_file({**tensors, **head}, tmp_path / "good.safetensors")
    load_pretrained(backbone, tmp_path / "good.safetensors")
    for name, array in (*backbone.parameters.items(), *backbone.buffers.items()):
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32))
    other = {**tensors, "conv1.weight": tensors["conv1.weight"][:, :2], "layer9.weight": tensors["bn1.bias"]}
    del other["bn1.bias"]
    save_file(other, tmp_path / "bad.safetensors")
    with pytest.raises(
            ValueError,
            match=r"another architecture .*missing: bn1.bias; unexpected: layer9.weight; other shapes: conv1.weight"):
        load_pretrained(backbone, tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "file, own, advice",
    [({"backbone": "resnet50"}, {"backbone": "resnet18"}, "it is a resnet50; use backbone=resnet50"),
     ({"backbone": "resnet18"}, {"backbone": "resnet34"}, "use backbone=resnet18"),
     ({"stem": "imagenet"}, {"stem": "small"}, "it has the imagenet stem; use stem=imagenet"),
     ({"stem": "small"}, {"stem": "imagenet"}, "use stem=small"),
     ({"width": 16}, {"width": 8}, "it has width 16; use width=16")])
def test_the_option_that_fits_a_pretrained_file_is_named(tmp_path, file, own, advice):
    from safetensors.numpy import save_file

    made = [
        create_backbone(
            **{
                "name": o.pop("backbone", "resnet18"), "size": (
                    32, 32), "batch": 2, "width": 8, "dtype": "f32", "threads": 1, **o
            }) for o in (file, own)
    ]
    save_file({f"module._orig_mod.{k}": v
               for k, v in (*made[0].parameters.items(), *made[0].buffers.items())}, tmp_path / "w.safetensors")
    with pytest.raises(ParameterError) as caught:
        load_pretrained(made[1], tmp_path / "w.safetensors")
    assert advice in str(caught.value) and len(str(caught.value)) < 1500 and "pretrained: " in str(caught.value)
    load_pretrained(made[0], tmp_path / "w.safetensors")           # the wrappers' prefixes are no obstacle


def test_reprs_say_what_matters(standin):
    clf = make(method="real-only").fit(X, Y)
    assert repr(
        clf.model_) == "TrainedModel(resnet18, width 16, small stem, images of 16 x 16, 3 classes: bag, coat, shirt)"
