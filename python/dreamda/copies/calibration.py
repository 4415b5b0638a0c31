"""What a score means: thresholds with a known rate of false alarms, and tests with their uncertainty.

    threshold = calibrated(scores_of_new_images, rate=0.01)
    share_above(scores_of_new_images, score)          # how rare a score is among images that are not copies
    area = area_under_curve(members, others)          # AUC with DeLong's confidence interval
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964      # of a 95 % confidence interval


class Threshold(NamedTuple):
    """A similarity that images which are no copies exceed at a known rate.

    Attributes
    ----------
    value : float
        An image is a copy if its score is larger.
    rate : float
        The rate of false alarms that was asked for.
    images : int
        The number of images that it was calibrated on.
    enough : bool
        Whether they are enough for this rate. If not, `value` is the largest score among them.
    """

    value: float
    rate: float
    images: int
    enough: bool


def calibrated(scores: ArrayLike, rate: float = 0.01) -> Threshold:
    """The threshold that a new image exceeds with a probability of at most `rate`.

    If the new image and the N images whose scores are given come from the same distribution, this holds exactly for
    any distribution (split conformal prediction): the threshold is the score of rank ceil((N + 1) (1 - rate)).

    Parameters
    ----------
    scores : (N,)
        Of images that are no copies.
    rate : float

    Raises
    ------
    ValueError
        There is no score.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    if not len(ordered):
        raise ValueError("a threshold needs images to calibrate it on")
    rank = math.ceil((len(ordered) + 1) * (1 - rate) - 1e-9)
    return Threshold(float(ordered[min(rank, len(ordered)) - 1]), rate, len(ordered), rank <= len(ordered))


def share_above(scores: ArrayLike, score: ArrayLike) -> NDArray[np.float64]:
    """The p-value of each `score`: how often an image that is no copy would have one at least as large.

    Parameters
    ----------
    scores : (N,)
        Of images that are no copies.
    score : (M,)
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    return (len(ordered) - np.searchsorted(ordered, np.asarray(score), "left") + 1) / (len(ordered) + 1)


class Share(NamedTuple):
    """A share of images, with a 95 % confidence interval (Wilson)."""

    value: float
    low: float
    high: float


def share(hits: int, total: int) -> Share:
    """`hits` of `total`, with its confidence interval; all three are NaN if there are none."""
    if not total:
        return Share(math.nan, math.nan, math.nan)
    p, z = hits / total, Z95 * Z95 / total
    middle, reach = p + z / 2, Z95 * math.sqrt(p * (1 - p) / total + z / (4 * total))
    return Share(p, max(0.0, (middle - reach) / (1 + z)), min(1.0, (middle + reach) / (1 + z)))


class Area(NamedTuple):
    """The area under a ROC curve, with a 95 % confidence interval, and the p-value of an area of 0.5 or less."""

    auc: float
    low: float
    high: float
    p: float


def area_under_curve(positive: ArrayLike, negative: ArrayLike) -> Area:
    """How well a score tells two kinds of images apart: the probability that the positive one has the larger score.

    Ties count half. The interval is that of DeLong et al. (1988). The p-value is that of the Mann-Whitney test, in its
    normal approximation.

    Parameters
    ----------
    positive, negative : (N,), (M,)
        Two scores each, at least.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the area under the curve needs two images of each kind; there are {len(a)} and {len(b)}")
    below = (_rank(b, a, "left") + _rank(b, a, "right")) / (2 * len(b))
    above = 1 - (_rank(a, b, "left") + _rank(a, b, "right")) / (2 * len(a))
    auc = float(below.mean())
    error = math.sqrt(below.var(ddof=1) / len(a) + above.var(ddof=1) / len(b))
    _, ties = np.unique(np.concatenate([a, b]), return_counts=True)
    total = len(a) + len(b)
    spread = (total + 1 - (ties**3.0 - ties).sum() / (total * (total - 1))) / (12 * len(a) * len(b))
    z = (auc - 0.5) / math.sqrt(spread) if spread > 0 else 0.0
    return Area(auc, max(0.0, auc - Z95 * error), min(1.0, auc + Z95 * error), 0.5 * math.erfc(z / math.sqrt(2)))


def _rank(among: NDArray[np.float64], values: NDArray[np.float64], side: str) -> NDArray[np.int64]:
    return np.searchsorted(np.sort(among), values, side)  # type: ignore[call-overload, no-any-return]
