"""What distances say about a whole set of synthetic images: are they nearer to REAL than to images never seen?

    nearer_than(scores_of_synthetic, scores_of_new_images)     # two-sample test of nearest distances
    ratios(real, reference, synthetic)                         # distance to REAL relative to that to the reference
    membership(real, reference, synthetic)                     # does it show which images the generator was made with?
"""
from __future__ import annotations

from typing import Any

import numpy as np

from .calibration import Area, area_under_curve, share
from .index import MOST, CopyIndex, Floats, thinned
from .thumbnails import Pixels

FEWEST = 4          # minimum number of reference images, for two halves
CLOSEST = 1e-3      # smaller distances are taken for this one


def _distance(index: CopyIndex, queries: Pixels, threads: int) -> Floats:
    return np.maximum(1 - index.nearest(queries, threads=threads).score, CLOSEST)


def ratios(real: Pixels, reference: Pixels, synthetic: Pixels, threads: int = 1) -> dict[str, Any]:
    """The distance of synthetic images to the nearest real image, divided by that to the nearest reference image.

    As many real as reference images are compared, so that the ratio is 1 on average, and half of the images are nearer
    to REAL, if the synthetic images are as much alike to both.

    Parameters
    ----------
    real, reference, synthetic : uint8 (N, 32, 32)
    threads : int

    Returns
    -------
    dict
        ``median``, and ``nearer_to_real``, a share with its 95 % confidence interval.
    """
    count = min(len(real), len(reference), MOST)
    queries = synthetic[thinned(len(synthetic))]
    to_real, to_reference = (_distance(CopyIndex(those[thinned(len(those), count)]), queries, threads)
                             for those in (real, reference))
    hits = int((to_real < to_reference).sum()) + int((to_real == to_reference).sum()) // 2
    return {"median": float(np.median(to_real / to_reference)), "images": count, "queries": len(queries),
            "nearer_to_real": share(hits, len(queries))._asdict()}


def membership(real: Pixels, reference: Pixels, synthetic: Pixels, threads: int = 1) -> dict[str, Any]:
    """An attack: tell real images from reference images by looking at the synthetic images alone.

    For every image the density of synthetic images around it is divided by that of reference images (DOMIAS, van
    Breugel et al., 2023), both estimated from the nearest neighbour; a half of the reference serves as neighbours of
    the other half, and each real image has a half of its own. If the synthetic images reveal nothing about which
    images they were made with, the area under the attack's ROC curve is 0.5.

    Parameters
    ----------
    real, reference, synthetic : uint8 (N, 32, 32)
    threads : int

    Returns
    -------
    dict
        ``density_ratio`` and ``nearest`` (of the distance to the nearest synthetic image alone): areas with their 95 %
        confidence intervals.
    """
    members, others = real[thinned(len(real))], reference[thinned(len(reference))]
    index = CopyIndex(synthetic)
    near = [np.log(_distance(index, those, threads)) for those in (members, others)]
    del index
    population = [np.empty_like(values) for values in near]
    for half in (0, 1):
        index = CopyIndex(others[1 - half:: 2])
        for those, values in zip((members, others), population, strict=True):
            values[half::2] = np.log(_distance(index, those[half::2], threads))
    attack = [far - close for far, close in zip(population, near, strict=True)]
    areas: dict[str, Area] = {"density_ratio": area_under_curve(*attack),
                              "nearest": area_under_curve(-near[0], -near[1])}
    return {"members": len(members), "others": len(others), **{name: area._asdict() for name, area in areas.items()}}
