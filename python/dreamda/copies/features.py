"""Another view of similarity: the cosine between features that a network computes.

    rows = features_of(pictures, network.features, network.size, blocks)
    image, similarity = nearest_features(rows, real_rows)
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..data.files import BrokenImageError
from ..data.images import read_image
from .index import Floats, Ints
from .pictures import BLOCK, Blocks, Pictures

ROWS = 4096     # of a block of the matrix products


def features_of(pictures: Pictures,
                compute: Callable[[list[np.ndarray]], Floats],
                size: tuple[int, int],
                key: str,
                blocks: Blocks,
                progress: Callable[[int, int], None] | None = None) -> Floats:
    """The features of all images, as vectors of length 1; zeros for an image that can no longer be read.

    Parameters
    ----------
    pictures : Pictures
    compute : callable
        The network: features (N, F) of images, uint8 (H, W, 3).
    size : (height, width)
        The size of the images.
    key : str
        Identifies the network.
    blocks : Blocks
        Where finished parts are kept.
    progress : callable, optional
    """
    found = []
    for at in range(0, len(pictures.names), BLOCK):
        names = pictures.names[at: at + BLOCK]

        def block() -> dict[str, np.ndarray]:
            images, there = [], []
            for number, name in enumerate(names):
                try:
                    images.append(read_image(pictures.root / name, size).pixels)
                    there.append(number)
                except BrokenImageError:
                    continue
            rows = compute(images)
            whole = np.zeros((len(names), rows.shape[1]), np.float32)
            whole[there] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            return {"rows": whole}

        found.append(blocks.get(f"features {key} {pictures.key} {at}", block)["rows"])
        if progress is not None:
            progress(at + len(names), len(pictures.names))
    return np.concatenate(found)


def nearest_features(queries: Floats, rows: Floats, without: Ints | None = None) -> tuple[Ints, Floats]:
    """The nearest row of each query, and the cosine between them.

    Parameters
    ----------
    queries, rows : float32 (Q, F), (N, F)
        Of length 1.
    without : int (Q,), optional
        A row for each query that does not count.
    """
    image, best = np.full(len(queries), -1), np.full(len(queries), -2, np.float32)
    for start in range(0, len(queries), ROWS):
        part = slice(start, start + ROWS)
        for at in range(0, len(rows), ROWS):
            similar = queries[part] @ rows[at: at + ROWS].T
            if without is not None:
                inside = (without[part] >= at) & (without[part] < at + similar.shape[1])
                similar[np.flatnonzero(inside), without[part][inside] - at] = -2
            nearest = similar.argmax(axis=1)
            value = similar[np.arange(len(similar)), nearest]
            better = value > best[part]
            image[part][better], best[part][better] = nearest[better] + at, value[better]
    return image, best
