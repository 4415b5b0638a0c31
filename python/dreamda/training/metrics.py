"""Metrics of a classifier: accuracy, macro-F1, AUC, a table per class and the confusion matrix.

Pictures need the extra "plot".

    metrics = evaluate_predictions(probabilities, labels, ["coat", "bag"])
    print(metrics.table())
    confusion_picture(metrics).savefig("confusion.png")
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 40  # with more classes, pictures have no names, and tables show the worst only


@dataclass(frozen=True, repr=False)
class Metrics:
    """The result of `evaluate_predictions`.

    Attributes
    ----------
    classes : list of str
    confusion : int64 (C, C)
        [i, j]: number of images of class i that were classified as j.
    accuracy, macro_f1 : float
        macro_f1 is the mean F1 over the classes that occur, among labels or predictions, as in scikit-learn.
    auc : float or None
        Area under the ROC curve; only for two classes, both with images. The second class is the positive one.
    precision, recall, f1 : float64 (C,)
        0 where undefined.
    support : int64 (C,)
        Number of images of each class.
    names : list of str
        Names of the classes in tables and pictures.
    """

    classes: list[str]
    confusion: NDArray[np.int64]
    accuracy: float
    macro_f1: float
    auc: float | None
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    names: list[str]

    def __repr__(self) -> str:
        auc = f", AUC {self.auc:.4f}" if self.auc is not None else ""
        return (f"Metrics(accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}{auc}, "
                f"{counted(int(self.support.sum()), 'image')}, {counted(len(self.classes), 'class')})")

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        per_class = [{
            "class": label,
            **({"name": name} if name != label else {}),
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "images": int(n),
        } for label, name, p, r, f, n in zip(
            self.classes, self.names, self.precision, self.recall, self.f1, self.support, strict=True)]
        return {
            "images": int(self.support.sum()), "accuracy": self.accuracy, "macro_f1": self.macro_f1, "auc": self.auc,
            "per_class": per_class, "confusion": self.confusion.tolist()
        }

    def table(self) -> str:
        """The metrics as a text table; with many classes, only the worst ones."""
        order = [i for i in range(len(self.classes)) if self.support[i] or self.confusion[:, i].any()]
        if len(order) > MANY:
            order = sorted(order, key=lambda i: (self.f1[i], i))[:MANY]
        names = [_line(name) for name in self.names]
        width = max([len(names[i]) for i in order] + [5])
        lines = [f"{'class':{width}}  precision  recall     F1  images"]
        lines += [
            f"{names[i]:{width}}  {self.precision[i]:9.3f}  {self.recall[i]:6.3f}  "
            f"{self.f1[i]:5.3f}  {self.support[i]:6d}"
            for i in order
        ]
        total = f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}" + (f", AUC {self.auc:.4f}"
                                                                                 if self.auc is not None else "")
        return "\n".join([*lines, f"{total}, {self.support.sum()} images"])


def evaluate_predictions(probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[Any],
                         words: Mapping[str, str] | None = None) -> Metrics:
    """Compare predictions with the true labels.

    Parameters
    ----------
    probabilities : (N, C)
        The largest probability of a row is the prediction; of equal ones, the first.
    labels : int (N,)
        0 to C - 1.
    classes : sequence of C names
    words : mapping, optional
        Other names for some of the classes, in tables and pictures.
    """
    scores, truth = np.asarray(probabilities), np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or scores.shape[1] != len(classes) or not len(truth):
        raise ValueError(
            f"probabilities {scores.shape}, labels {truth.shape} and {len(classes)} classes do not fit together")
    count = len(classes)
    confusion = np.bincount(truth * count + scores.argmax(axis=1), minlength=count * count).reshape(count, count)
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall, precision, f1 = (np.divide(a, b, out=np.zeros(count), where=b > 0)
                             for a, b in ((hits, support), (hits, predicted), (2 * hits, support + predicted)))
    return Metrics([str(c) for c in classes], confusion, float(hits.sum() / len(truth)),
                   float(f1[support + predicted > 0].mean()),
                   _auc(scores[:, 1], truth) if count == 2 and (support > 0).all() else None, precision, recall, f1,
                   support, [(words or {}).get(str(c), str(c)) for c in classes])


def _auc(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The probability that a positive scores higher than a negative; ties count half (Mann-Whitney)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int((labels == 1).sum())
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def _line(name: str, longest: int = 80) -> str:
    """A class name that fits into one line: names of folders may hold any characters, up to 255 bytes."""
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return name if len(name) <= longest else name[: longest - 3] + "..."


def confusion_picture(metrics: Metrics, title: str = "") -> Figure:
    """The confusion matrix as a matplotlib Figure, rows scaled to 1; ImportError says how to get matplotlib."""
    figure_type = _figure_type()
    count = len(metrics.classes)
    named = count <= MANY
    side = max(4.5, min(14.0, 0.45 * count + 2.5))
    figure = figure_type(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.add_subplot()
    share = metrics.confusion / np.maximum(metrics.support[:, None], 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    axes.set(xlabel="predicted",
             ylabel="true",
             title=title or f"accuracy {metrics.accuracy:.1%}, macro-F1 {metrics.macro_f1:.3f}")
    if named:
        names = [_line(name, 40) for name in metrics.names]
        axes.set_xticks(range(count), names, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    if count <= 20:
        for i, j in zip(*np.nonzero(metrics.confusion), strict=True):
            axes.text(j,
                      i,
                      str(metrics.confusion[i, j]),
                      ha="center",
                      va="center",
                      fontsize=8,
                      color="white" if share[i, j] > 0.5 else "black")
    return figure


def curves_picture(events: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Losses, accuracies and learning rate by epoch as a matplotlib Figure, from the records of a log."""
    figure = _figure_type()(figsize=(11, 4), layout="constrained")
    from matplotlib.ticker import MaxNLocator  # after the check that matplotlib is installed

    epochs = [e for e in events if e["event"] == "epoch"]
    # The total is drawn where it differs from the supervised loss, first and wide, so that it is seen below the others
    parts = any(e.get("consistency") for e in epochs) or any("supervised" not in e for e in epochs)
    losses = ([("loss", "total", 4.0)] if parts else []) + [("supervised", "supervised", 1.5)
                                                            ] + ([("consistency", "consistency", 1.5)] if parts else [])
    rows = (("loss", losses), ("accuracy", [("train_accuracy", "training views", 1.5),
                                            ("validation_accuracy", "validation", 1.5)]), ("learning rate", [("lr", "",
                                                                                                              1.5)]))
    for axes, (ylabel, curves) in zip(figure.subplots(1, 3), rows, strict=True):
        for key, label, width in curves:
            points = [(e["epoch"], e[key]) for e in epochs if key in e]
            if points:
                axes.plot(*zip(*points, strict=True),
                          label=label,
                          linewidth=width,
                          alpha=0.45 if width > 2 else 1,
                          marker="." if len(points) < 40 else None)
        for event in events:
            if event["event"] == "labelling":
                axes.axvline(event["epoch"] + 0.5, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if ylabel != "learning rate":
            # above the axes, never over points
            axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or "dotted: labelling" if any(e["event"] == "labelling" for e in events) else title)
    return figure


def _figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures of results need matplotlib: pip install "dreamda-c[plot]"') from None
    return Figure
