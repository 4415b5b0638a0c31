"""Images held back for validation, and the synthetic images that must then be left out.

    train, held = split(labels, 0.2, seed=0)
    used = may_train(groups_synthetic, groups[train])
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .views import keyed


def split(labels: NDArray[np.int64], fraction: float, seed: int, groups: NDArray[np.int64] | None = None
          ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the images to train on and to hold back.

    Of every class, `fraction` of the images are held back, rounded, and never all of them.

    Parameters
    ----------
    labels : int (N,)
    fraction : float
        0 to below 1.
    seed : int
    groups : int (N,), optional
        Images of a group are held back together or not at all. With large groups, the fraction is only approximate.

    Returns
    -------
    train, held : int64 arrays
        Sorted positions.

    Examples
    --------
    >>> [part.tolist() for part in split(np.array([0, 0, 1, 1, 1]), 0.0, 0)]
    [[0, 1, 2, 3, 4], []]
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        target = min(round(fraction * len(members)), len(members) - 1)
        random = keyed(seed, 1 << 48, (0, int(label), 0, 0)).random(len(members))
        order = members[np.argsort(random, kind="stable")]
        if groups is None:
            held[order[:target]] = True
            continue
        for image in order:
            if held[members].sum() >= target:
                break
            together = held | (groups == groups[image])
            if len(np.unique(labels[~together])) == len(np.unique(labels)):  # every class keeps an image
                held = together
    return np.flatnonzero(~held), np.flatnonzero(held)


def may_train(groups: NDArray[np.generic], trained: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether each synthetic image may be used: its group must be among those that are trained on.

    >>> may_train(np.array([3, 1, 2]), np.array([1, 3])).tolist()
    [True, True, False]
    """
    return np.isin(groups, trained)
