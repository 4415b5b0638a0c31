"""The page of `dreamda audit`: the result, the most similar pairs, curves, classes and tests."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..copies.index import Floats
from ..data.files import BrokenImageError
from .page import render
from .pictures import picture

if TYPE_CHECKING:
    from .audit import Audit, Copy

PAIRS = 24
VIEWS = {"structure": "one image laid over the other; this view decides what is a copy",
         "hash": "share of equal bits of the perceptual hashes of the whole images",
         "features": "cosine between the features of a network: what is to be seen, rather than the same picture"}
LEFT, RIGHT, TOP, BOTTOM = 50, 620, 10, 260     # of the plot, in pixels
COLOURS = ("#1a73e8", "#188038", "#9334e6")


def audit_page(result: Audit, real: Path, synthetic: Path, nearest: Sequence[Copy],
               scores: Mapping[str, Floats]) -> str:
    """The page as HTML, with its pictures inside.

    Parameters
    ----------
    result : Audit
    real, synthetic : path
    nearest : sequence of Copy
        The most similar pairs, copies or not.
    scores : mapping of str to float32 (N,)
        The curves, by their names.
    """
    from .audit import NOT_TESTED, TESTED

    pairs = []
    for copy in nearest[:PAIRS]:
        try:
            pairs.append({"match": copy, "real": picture(real / copy.real),
                          "synthetic": picture(synthetic / copy.synthetic)})
        except BrokenImageError:  # it could be read before
            continue
    least = min(0.0, *(float(values.min()) for values in scores.values() if len(values)))

    def across(score: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (score - least) / (1 - least), 1)

    shares = np.linspace(0, 1, 101)
    curves = [{
        "name": name, "colour": colour, "points": " ".join(
            f"{across(float(score))},{BOTTOM - (BOTTOM - TOP) * share:.1f}"
            for score, share in zip(np.quantile(values, shares), shares))
    } for (name, values), colour in zip(scores.items(), COLOURS) if len(values)]
    measures = result.measures
    views = [[name, VIEWS[name], "" if view["limit"] is None else f"{view['limit']:.4f}",
              "" if view["above"] is None else f"{view['above']:,}", f"{view['synthetic']['median']:.3f}",
              f"{view['real_among_themselves']['median']:.3f}" if view["real_among_themselves"] else ""]
             for name, view in measures["views"].items()]
    return render("audit",
                  m=measures,
                  synthetic=synthetic.absolute().name,
                  real=real.absolute().name,
                  sentences=result.sentences(),
                  notes=result.notes,
                  caution=result.caution,
                  tested=TESTED,
                  not_tested=NOT_TESTED,
                  copies=result.copies,
                  pairs=pairs,
                  ticks=[(across(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
                  limit_at=across(result.max_similarity),
                  curves=curves,
                  views=views,
                  classes=[[row["class"], "", row["images"], row["copies"], f"{row['similarity']['median']:.3f}",
                            f"{row['similarity']['largest']:.3f}"] for row in measures["classes"]],
                  tests=_tests(measures),
                  skipped=result.skipped)


def _tests(measures: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table of tests: name, meaning, value and interval."""
    rows = []

    def add(name: str, meaning: str, value: float, interval: Mapping[str, float]) -> None:
        rows.append([name, meaning, f"{value:.3f}", f"{interval['low']:.3f} to {interval['high']:.3f}"])

    if found := measures.get("nearer_than_new_images"):
        add("nearest real image", f"how often a synthetic image is more similar to its nearest real image than "
            f"{found['compared_with']} are; 0.5 is no difference (Mann-Whitney, one-sided p {found['p']:.2g}). Smooth "
            "or typical images are similar to any others, copies or not",
            found["auc"], found)
    if found := measures.get("ratio"):
        add("nearer to REAL", "share of the synthetic images that are nearer to REAL than to as many images of the "
            f"reference; 0.5 is no difference. Median ratio of the distances: {found['median']:.3f}",
            found["nearer_to_real"]["value"], found["nearer_to_real"])
    if found := measures.get("membership"):
        for key, how in (("density_ratio", "by a ratio of densities"), ("nearest", "by the nearest synthetic image")):
            add("membership attack", f"AUC of guessing, {how}, whether an image is in REAL or in the reference; 0.5 is "
                "guessing", found[key]["auc"], found[key])
    if found := measures.get("reference_above"):
        add("false alarms", "share of the reference images that are above the limit", found["value"], found)
    return rows
