"""`dreamda report`: how true and how varied a synthetic data set is, as one HTML page that needs nothing else.

    page = report_page("photos", "synthetic")
    page = report_page("photos", "synthetic", classifier=TrainedModel.load("run/model.safetensors"))     # in the features of a classifier

Fidelity and diversity are measured by neighbours in a space of features: precision and recall (Kynkäänniemi et al., 2019), density and coverage
(Naeem et al., 2020). Without a classifier the features are the pixels of 16 x 16 thumbnails: enough to find copies and outliers, not to judge meaning.
"""
from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..data.folders import ImageFolder
from ..data.images import read_image
from ..generation.options import with_todays_names
from .manifest import read_manifest
from .pictures import contact_sheet_of_run
from .train import FolderImages
from ..training.saved import TrainedModel

NEIGHBOURS = 5
MOST = 4000              # images of each kind that are measured; more are thinned evenly
THUMBNAIL = 16           # pixels a side, of the features without a classifier
STRIPS = 6
STRIP_VARIANTS = 8
SIDE = 96                # pixels of an image in a strip

Floats = NDArray[np.float32]


class Neighbours(NamedTuple):
    """What `neighbour_metrics` returns; each is 0 to 1, but the density, which is about 1 where both kinds are alike."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_metrics(real: Floats, synthetic: Floats, k: int = NEIGHBOURS) -> Neighbours:
    """Compare two sets of features.

    Around each image is a ball as far as its k-th nearest neighbour of its own kind. precision: synthetic images inside some real ball. recall:
    real images inside some synthetic ball. density: real balls that a synthetic image is in, over k. coverage: real balls with a synthetic
    image in them.

    Parameters
    ----------
    real, synthetic : (N, F), (M, F)
        More than `k` rows each.
    k : int

    Raises
    ------
    ValueError
        Too few rows.
    """
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(f"{k} neighbours need more than {k} images of each kind; there are {len(real)} real and {len(synthetic)} synthetic ones")
    real_radius, synthetic_radius = _radii(real, k), _radii(synthetic, k)
    between = _distances(synthetic, real)
    inside = between <= real_radius
    return Neighbours(float(inside.any(axis=1).mean()), float((between <= synthetic_radius[:, None]).any(axis=0).mean()),
                      float(inside.sum() / (k * len(synthetic))), float((between.min(axis=0) <= real_radius).mean()))


def _radii(features: Floats, k: int) -> Floats:
    return np.partition(_distances(features, features), k, axis=1)[:, k]  # the nearest of all is the image itself


def _distances(a: Floats, b: Floats) -> Floats:
    """Euclidean, float32 (len(a), len(b))."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    if a.shape == b.shape and np.array_equal(a, b):
        np.fill_diagonal(squares, 0)
    return np.sqrt(np.maximum(squares, 0)).astype(np.float32)


def report_page(real: str | os.PathLike[str], out: str | os.PathLike[str], classifier: TrainedModel | None = None) -> str:
    """Measure an output of `dreamda generate` against the data set it was made from.

    Parameters
    ----------
    real, out : path
        The data set, and the output.
    classifier : TrainedModel, optional
        Gives the features, and says how many images it takes for another class than their seed's.

    Returns
    -------
    str
        The page, HTML with its pictures inside.

    Raises
    ------
    ValueError
        `out` has no usable metadata.jsonl, a seed or an image is gone or broken, or there are too few images.
    """
    root, out = Path(real), Path(out)
    rows = read_manifest(out)
    if not rows:
        raise ValueError(f"{out / 'metadata.jsonl'} lists no images; give the OUT of a dreamda generate that has finished some")
    folder = ImageFolder.scan(root)
    all_seeds = [image.key for image in folder.images]
    known, used = set(all_seeds), dict.fromkeys(row["seed_file"] for row in rows)
    if gone := next((key for key in used if key not in known), None):
        raise ValueError(f"{out} was made from {gone}, which is not in {root}; give the data set it was made from")
    all_seeds = [key for key in all_seeds if key in used]  # not what generate has skipped
    seeds = _thinned(all_seeds)
    kept = _thinned(rows)
    features = [_features(paths, classifier) for paths in ([root / key for key in seeds], [out / row["file_name"] for row in kept])]
    metrics = neighbour_metrics(features[0], features[1])
    half = len(seeds) // 2
    order = np.random.default_rng(0).permutation(len(seeds))
    best = neighbour_metrics(features[0][order[:half]], features[0][order[half:]]) if half > NEIGHBOURS else None
    labels = [key.split("/")[0] for key in seeds]
    table, near = _per_class(labels, seeds, kept, features, classifier)
    return _html(root, out, rows, all_seeds, metrics, best, table, near, classifier, len(seeds), len(kept))


def _thinned(items: list[Any]) -> list[Any]:
    return items if len(items) <= MOST else [items[i * len(items) // MOST] for i in range(MOST)]


def _features(paths: list[Path], classifier: TrainedModel | None) -> Floats:
    from PIL import Image

    size = (THUMBNAIL, THUMBNAIL)
    images = FolderImages(paths, classifier.size if classifier is not None else size)
    images.read_all()
    if classifier is not None:
        return classifier.features(images)
    return np.stack([np.asarray(Image.fromarray(images[i]).resize(size, Image.Resampling.BOX), np.float32).ravel() / 255 for i in range(len(images))])


def _per_class(labels: list[str], seeds: list[str], rows: list[dict[str, Any]], features: list[Floats], classifier: TrainedModel | None
               ) -> tuple[list[dict[str, Any]], list[tuple[float, str]]]:
    """A row of the table for each class, and for each seed its mean distance to its variants, in units of the class's own spread."""
    real, synthetic = features
    of_seed: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of_seed.setdefault(row["seed_file"], []).append(i)
    predicted = None
    if classifier is not None:
        logits = _core.linear(synthetic, classifier.weights["fc.weight"], classifier.weights["fc.bias"])
        predicted = [str(classifier.classes[i]) for i in logits.argmax(axis=1)]
    table, near = [], []
    for label in dict.fromkeys(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        among = _distances(real[members], real[members])
        spread = float(among.sum() / max(1, len(members) * (len(members) - 1)))
        to_seed, between = [], []
        for i in members:
            variants = of_seed.get(seeds[i], [])
            if not variants or not spread:
                continue
            distance = float(_distances(real[i: i + 1], synthetic[variants]).mean()) / spread
            to_seed.append(distance)
            near.append((distance, seeds[i]))
            if len(variants) > 1:
                inside = _distances(synthetic[variants], synthetic[variants])
                between.append(float(inside.sum() / (len(variants) * (len(variants) - 1))) / spread)
        mine = [i for i, row in enumerate(rows) if row["label"] == label]
        row = {"class": label, "real": len(members), "synthetic": len(mine), "from the seed": np.mean(to_seed) if to_seed else None,
               "between variants": np.mean(between) if between else None}
        if predicted is not None and mine:
            row["taken for another class"] = float(np.mean([predicted[i] != label for i in mine]))
        table.append(row)
    return table, sorted(near)


# ---- the page

STYLE = """
:root { color-scheme: light; } * { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #202124; background: #fff; margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 70rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; } p { max-width: 46rem; margin: .4rem 0; } .faint { color: #5f6368; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; } .tile { border: 1px solid #dadce0; border-radius: 8px; padding: .7rem 1rem; flex: 1 1 12rem; }
.tile b { display: block; font-size: 1.7rem; font-weight: 600; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .25rem .9rem .25rem 0; text-align: right; } th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; border-bottom: 1px solid #dadce0; } td { border-bottom: 1px solid #f1f3f4; font-variant-numeric: tabular-nums; }
.strip { display: flex; align-items: center; gap: 6px; margin: 6px 0; } .strip img { width: 72px; height: 72px; object-fit: contain; image-rendering: auto; }
.strip img.seed { outline: 2px solid #1a73e8; margin-right: 10px; } .strip span { width: 15rem; flex: none; font-size: .85rem; overflow-wrap: anywhere; }
.sheet { max-width: 100%; height: auto; }
"""
MEANING = {"precision": "of the synthetic images lie among the real ones (fidelity)", "recall": "of the real images lie among the synthetic ones (diversity)",
           "density": "how deep among the real ones; about 1 is alike", "coverage": "of the real images have a synthetic one in their neighbourhood"}


def _html(real: Path, out: Path, rows: list[dict[str, Any]], seeds: list[str], metrics: Neighbours, best: Neighbours | None, table: list[dict[str, Any]],
          near: list[tuple[float, str]], classifier: TrainedModel | None, n_real: int, n_synthetic: int) -> str:
    first = with_todays_names(rows[0])
    settings = ", ".join(f"{k.replace('_', ' ')} {first[k]}" for k in ("method", "steps", "strength", "noise_scale", "guidance_scale", "seed") if k in first)
    space = (f"features of the classifier, {classifier.backbone}" if classifier is not None else
             f"pixels of {THUMBNAIL} x {THUMBNAIL} thumbnails (name a run of dreamda train with --classifier for features that know classes)")
    tiles = "".join(f'<div class="tile">{name}<b>{value:.2f}</b><span class="faint">{MEANING[name]}'
                    + (f"; two halves of the real images: {getattr(best, name):.2f}" if best else "") + "</span></div>"
                    for name, value in metrics._asdict().items())
    columns = list(dict.fromkeys(name for row in table for name in row))
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in table)
    by_seed: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed_file"], []).append(row)
    strips = [(title, "".join(_strip(real, out, key, by_seed[key], distance) for distance, key in chosen))
              for title, chosen in (("Closest to their seeds: are they copies?", near[:STRIPS]),
                                    ("Farthest from their seeds: are they still of the class?", near[-STRIPS:][::-1]))]
    sheet = contact_sheet_of_run(out, real, per_class=2, max_classes=20, max_variants=6)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Synthetic images: {html.escape(out.name)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(out.name)}: {len(rows):,} synthetic images from {len(seeds):,} real ones</h1>
<p class="faint">Model {html.escape(str(first.get("model", "unknown")))}; {html.escape(settings)}.</p>
<h2>How true, how varied</h2>
<p>Measured with {NEIGHBOURS} neighbours among {n_real:,} real and {n_synthetic:,} synthetic images, in {html.escape(space)}.</p>
<div class="tiles">{tiles}</div>
<h2>Classes</h2>
<p>Distances are means, in units of the distance between two real images of the class: 0 is a copy, 1 is as different as two real images are.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
{"".join(f"<h2>{title}</h2>{content}" for title, content in strips)}
<h2>Contact sheet</h2>
<div class="wide"><img class="sheet" alt="The first real images of each class beside the synthetic images made from them" src="{_embedded(sheet)}"></div>
</body></html>
"""


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))


def _strip(real: Path, out: Path, key: str, rows: list[dict[str, Any]], distance: float) -> str:
    pictures = [(real / key, "seed", f"The real image {key}")]
    pictures += [(out / row["file_name"], "variant", f"Variant {row.get('variant', '')} of {key}") for row in rows[:STRIP_VARIANTS]]
    images = "".join(f'<img class="{kind}" alt="{html.escape(alt)}" src="{_thumbnail(path)}">' for path, kind, alt in pictures)
    return f'<div class="strip"><span>{html.escape(key)}<br><span class="faint">distance {distance:.2f}</span></span>{images}</div>'


def _thumbnail(path: Path) -> str:
    from PIL import Image

    image = Image.fromarray(read_image(path).pixels)
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return _embedded(image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS))


def _embedded(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
