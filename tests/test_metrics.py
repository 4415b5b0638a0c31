"""Metrics against their definitions, counted by hand or by loops."""
import builtins
import itertools

import numpy as np
import pytest

from dreamda.training import metrics as module
from dreamda.training.metrics import confusion_picture, curves_picture, evaluate_predictions

SCORES = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.3, 0.1], [0, 0.4, 0.6], [0.5, 0.5, 0], [0.1, 0.2, 0.7]])
LABELS = np.array([0, 1, 1, 2, 0, 0])


def test_by_hand():
    m = evaluate_predictions(SCORES, LABELS, ["a", "b", "c"])
    assert m.confusion.tolist() == [[2, 0, 1], [1, 1, 0], [0, 0, 1]] and m.support.tolist() == [3, 2, 1]
    assert m.accuracy == pytest.approx(4 / 6) and m.auc is None
    np.testing.assert_allclose(m.precision, [2 / 3, 1, 1 / 2])
    np.testing.assert_allclose(m.recall, [2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(m.f1, [2 / 3, 2 / 3, 2 / 3])
    assert m.macro_f1 == pytest.approx(2 / 3)
    table = m.table()
    assert table.splitlines()[1].split() == ["a", "0.667", "0.667", "0.667", "3"
                                             ] and "accuracy 0.6667, macro-F1 0.6667, 6 images" in table
    assert m.to_json()["per_class"][1]["class"] == "b" and m.to_json()["confusion"] == m.confusion.tolist()


def test_a_class_that_never_occurs_counts_for_nothing():
    m = evaluate_predictions([[0.9, 0.1, 0]], [0], ["a", "b", "c"])
    assert m.macro_f1 == 1 and len(m.table().splitlines()) == 3


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    for n in (5, 40):
        p = np.round(rng.random(n), 1)  # with ties
        y = rng.integers(0, 2, n)
        y[:2] = 0, 1
        pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(p[y == 1], p[y == 0])]
        assert evaluate_predictions(np.stack([1 - p, p], axis=1), y, ["n", "p"]).auc == pytest.approx(np.mean(pairs))
    assert evaluate_predictions([[0.9, 0.1]], [0], ["n", "p"]).auc is None


def test_many_classes_show_the_worst():
    scores = np.eye(60)
    labels = np.arange(60)
    labels[7] = 8
    m = evaluate_predictions(scores, labels, [f"c{i}" for i in range(60)])
    assert len(m.table().splitlines()) == 42 and m.table().splitlines()[1].startswith("c7")


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit together"):
        evaluate_predictions(SCORES, LABELS[:2], ["a", "b", "c"])


def test_pictures(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    m = evaluate_predictions(SCORES, LABELS, ["a", "b", "c"])
    confusion_picture(m).savefig(tmp_path / "a.png")
    big = evaluate_predictions(np.eye(60), np.arange(60), [str(i) for i in range(60)])
    confusion_picture(big).savefig(tmp_path / "b.png")
    events = [{"event": "epoch", "epoch": 1, "lr": 0.1, "loss": 1, "train_accuracy":
               0.5}, {"event": "labelling", "epoch": 1},
              {"event": "epoch", "epoch": 2, "lr": 0.1, "loss": 1, "supervised": 1, "train_accuracy": 0.5}]
    curves_picture(events).savefig(tmp_path / "c.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png", "c.png"))


def test_curves_have_whole_epochs_and_legends_beside_the_points():
    pytest.importorskip("matplotlib")
    events = [{
        "event": "epoch", "epoch": e, "lr": 0.1, "loss": 2.0, "supervised": 2.0, "consistency": c, "train_accuracy": 0.5
    } for e, c in ((1, 0.0), (2, 0.5))]
    for shown, labels in ((events, ["total", "supervised", "consistency"]), (events[:1], ["supervised"])):
        figure = curves_picture(shown)
        figure.canvas.draw()
        loss = figure.axes[0]
        assert [line.get_label() for line in loss.lines] == labels
        for axes in figure.axes:
            assert all(tick == round(tick) for tick in axes.get_xticks())
            if axes.get_legend() is not None:
                assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1
    assert repr(evaluate_predictions(
        SCORES, LABELS, ["a", "b", "c"])) == "Metrics(accuracy 0.6667, macro-F1 0.6667, 6 images, 3 classes)"


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r'pip install "dreamda-c\[plot\]"'):
        module.curves_picture([])
