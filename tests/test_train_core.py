"""AMST on the real core: a narrow ResNet-18 learns toy pictures, twice to the same bits, and through the command
line."""
import json
import os
import signal

import numpy as np
import pytest
from standin import pictures
from test_train_run import write

import dreamda
from dreamda import cli
from dreamda.training.backbone import create_backbone, initialise, load_pretrained
from dreamda.training.saved import load_arrays
from dreamda.training.stages import Training

X, Y = pictures(30)
SYNTHETIC, HINTS = pictures(60, seed=1)
TEST, TEST_LABELS = pictures(200, seed=2)
FAST = dict(width=8,
            epochs=4,
            pretrain_epochs=2,
            steps_per_epoch=12,
            batch_size=16,
            learning_rate=0.05,
            warmup_epochs=1,
            threshold=0.6,
            crop_scale=(0.9, 1.0),
            threads=1,
            dtype="f32")


@pytest.fixture(scope="module")
def fitted():
    return dreamda.AMSTClassifier(**FAST).fit(X, Y, SYNTHETIC, HINTS)


def test_it_learns_and_predicts_the_same_after_a_file(fitted, tmp_path):
    assert fitted.score(TEST, TEST_LABELS) > 0.75
    fitted.save(tmp_path / "m.safetensors")
    loaded = dreamda.AMSTClassifier.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(TEST), fitted.predict_proba(TEST))
    weights = fitted.model_.weights                                  # torchvision's names, f5 as fc
    assert weights["fc.weight"].shape == (3, 64) and {"conv1.weight", "bn1.running_mean", "layer4.1.bn2.bias"
                                                      } < weights.keys()


def test_two_fits_have_the_same_bits(fitted):
    again = dreamda.AMSTClassifier(**FAST, workers=0).fit(X, Y, SYNTHETIC, HINTS)
    for name, array in fitted.model_.weights.items():
        np.testing.assert_array_equal(array, again.model_.weights[name], err_msg=name)


def test_an_amst_step_packs_its_weights_once(monkeypatch):
    """Also where it makes three forward passes, two of which put the running statistics back."""
    step, counts = Training._train_step, []

    def counting(self, batch, lr):
        assert batch.weak is not None and batch.strong is not None
        self.network.backbone.profile()
        step(self, batch, lr)
        rows = self.network.backbone.profile()
        counts.append(({r["calls"]
                        for r in rows if r["phase"] == "pack"}, {r["calls"]
                                                                 for r in rows if r["phase"] == "forward"}))

    monkeypatch.setattr(Training, "_train_step", counting)
    dreamda.AMSTClassifier(**{**FAST, "epochs": 2, "pretrain_epochs": 1, "steps_per_epoch": 3}).fit(
        X, Y, SYNTHETIC, HINTS)
    assert counts == 3 * [({1}, {3})]


def test_a_trained_backbone_is_a_pretrained_one(fitted, tmp_path):
    fitted.model_.save(tmp_path / "m.safetensors")
    backbone = create_backbone("resnet18", size=(16, 16), batch=4, width=8, dtype="f32", threads=1)
    load_pretrained(backbone, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(backbone.parameters["layer3.0.conv2.weight"],
                                  fitted.model_.weights["layer3.0.conv2.weight"])
    for options in (dict(width=16), dict(stem="imagenet", size=(32, 32))):
        other = create_backbone("resnet18",
                                **{"size": (16, 16), "batch": 4, "width": 8, "dtype": "f32", "threads": 1, **options})
        initialise(other, 0)
        with pytest.raises(ValueError, match="another architecture.*conv1.weight"):
            load_pretrained(other, tmp_path / "m.safetensors")
    start = dreamda.AMSTClassifier(**{
        **FAST, "epochs": 1, "pretrain_epochs": None, "method": "real-only", "learning_rate": 1e-6, "mean":
        fitted.model_.mean, "std": fitted.model_.std
    },
                                   pretrained=tmp_path / "m.safetensors").fit(X, Y)
    assert np.abs(start.model_.weights["conv1.weight"] - fitted.model_.weights["conv1.weight"]).max() < 1e-4


def test_command_line_interrupted_equals_undisturbed(tmp_path, monkeypatch, capsys):
    write(tmp_path / "real", X, Y)
    write(tmp_path / "synthetic", SYNTHETIC, HINTS)
    write(tmp_path / "test", TEST[:60], TEST_LABELS[:60])

    def train(out):
        return cli.main([
            "train",
            str(tmp_path / "real"),
            str(tmp_path / "synthetic"), "--out",
            str(tmp_path / out), "--width", "8", "--epochs", "4", "--pretrain-epochs", "3", "--steps-per-epoch", "12",
            "--batch-size", "16", "--learning-rate", "0.05", "--threshold", "0.4", "--hint", "ignore", "--threads", "1",
            "--dtype", "f32", "--test",
            str(tmp_path / "test")
        ])

    assert train("one") == 0
    update, steps = Training._update, iter(range(1, 1000))

    def interrupting(self, loss, lr):
        update(self, loss, lr)
        if next(steps) == 15:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_update", interrupting)
        assert train("two") == 130
    assert cli.main(["evaluate", str(tmp_path / "two"), str(tmp_path / "test")]) == 0
    assert train("two") == 0
    for name in ("checkpoint.safetensors", "model.safetensors", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert len(load_arrays(tmp_path / "one/checkpoint.safetensors", "checkpoint")[0]) > 100
    assert json.loads((tmp_path / "one/metrics.json").read_text())["images"] == 60
