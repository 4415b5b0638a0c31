"""`dreamda report`: fidelity and diversity of a synthetic data set, as one self-contained HTML page.

    page, skipped = report_page("photos", "synthetic")
    page, skipped = report_page("photos", "synthetic", TrainedModel.load("run/model.safetensors"))   # with its features

Every class gets a verdict: whether a network trained on real images recognises the synthetic ones, and the other way
round (see measures.py). Fidelity and diversity are measured by neighbours in the network's features:
precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020).
"""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..copies.index import thinned
from ..data.annotations import Labels
from ..data.files import BrokenImageError
from ..data.folders import ImageFolder
from ..data.images import read_image
from ..generation.options import with_todays_names
from ..networks.config import read_json
from ..text import counted
from ..training.saved import TrainedModel
from .checks import colourful
from .labelled import dimensions
from .measures import NEIGHBOURS, Judged, Verdict, covered, distances, judge, verdicts
from .manifest import read_left_out, read_manifest
from .output import recorded_labels
from .page import render
from .pictures import contact_sheet_of_run, labelled_sheet, picture
from .records import names_of, with_real_names

MOST = 4000              # maximum number of images of each kind that are measured, evenly chosen
SMALL = 32               # maximum side in pixels of the images for networks that are trained here
STRIPS = 6
STRIP_VARIANTS = 8
COLOURLESS = 0.1         # minimum share of coloured images; below it, synthetic images count as colourless
ALONE = 6                # real images without a synthetic one near them that are shown
SHIFTED = 0.2            # change of a class's share that is told, relative to its share of the real images
COPY = 0.1               # mean distance to the real image; 1 is that of two real images of the class


def report_page(real: str | os.PathLike[str], out: str | os.PathLike[str], network: TrainedModel | None = None, *,
                labels: str | os.PathLike[str] | None = None,
                threads: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    """Compare an output of `dreamda generate` with the data set that it was made from.

    Parameters
    ----------
    real, out : path
        The data set, and the output.
    network : TrainedModel, optional
        Computes the features. Default: small networks that are trained on the real images.
    labels : path, optional
        The current place of the annotations, if the run had any; default: the recorded one.
    threads : int, optional

    Returns
    -------
    page : str
        HTML with its pictures inside.
    skipped : list of (str, str)
        Images that cannot be read, each with the reason.

    Raises
    ------
    ValueError
        `out` has no usable metadata.jsonl, a real image is missing, or no image can be read.
    """
    root, out = Path(real), Path(out)
    rows = read_manifest(out)
    run = read_json(out / "run.json") if (out / "run.json").is_file() else {}
    if rows and (annotated := recorded_labels(run, out, root, labels)) is not None:
        rows = with_real_names(rows, names_of(run, annotated.folder()))
        return _labelled_page(annotated, out, rows, str(run["keep"])), list(annotated.problems)
    if not rows:
        raise ValueError(
            f"{out / 'metadata.jsonl'} lists no images; give the OUT of a dreamda generate that has finished some")
    folder = ImageFolder.scan(root)
    recorded = names_of(run, folder)
    rows, left_out = (with_real_names(each, recorded) for each in (rows, read_left_out(out)))
    all_seeds = [image.key for image in folder.images]
    known, used = set(all_seeds), dict.fromkeys(row["seed_file"] for row in rows)
    if gone := next((key for key in used if key not in known), None):
        raise ValueError(f"{out} was made from {gone}, which is not in {root}; give the data set it was made from")
    all_seeds = [key for key in all_seeds if key in used]  # without those that generate has skipped
    seeds = _thinned(all_seeds)
    size = network.size if network is not None else _small_size(root, seeds)
    skipped: list[tuple[str, str]] = []
    seeds, real_images = _read(root, seeds, size, skipped)
    position = {key: i for i, key in enumerate(seeds)}
    kept = {row["file_name"]: row for row in _thinned([row for row in rows if row["seed_file"] in position])}
    names, synthetic_images = _read(out, list(kept), size, skipped)
    unread = {name for name, _ in skipped}
    every_row = rows
    rows = [row for row in rows if not {str(root / row["seed_file"]), str(out / row["file_name"])} & unread]
    classes = list(dict.fromkeys(key.split("/")[0] for key in seeds))
    class_of = np.array([classes.index(key.split("/")[0]) for key in seeds])
    seed_of = np.array([position[kept[name]["seed_file"]] for name in names])
    found = judge(real_images,
                  class_of,
                  synthetic_images,
                  seed_of,
                  features=network.features if network is not None else None,
                  title=f"the features of {network.backbone}" if network is not None else "",
                  threads=threads)
    colourless = colourful(synthetic_images) < COLOURLESS and colourful(real_images) > 0.5
    verdict = verdicts(found, class_of, seed_of, classes, colourless)
    table, near = _per_class(found, class_of, seeds, seed_of, classes, verdict)
    within = covered(found.spaces, class_of, seed_of)
    real_keys = known & {row["seed_file"] for row in (*every_row, *left_out)}  # without those that generate has skipped
    balance = _balance(Counter(key.split("/")[0] for key in real_keys), Counter(row["label"] for row in every_row),
                       {name: within[class_of == label] for label, name in enumerate(classes)})
    balance["sentences"] += _redrawn(every_row, left_out)
    alone = [seeds[i] for i in np.flatnonzero(within == 0)]
    balance["alone"] = [{"image": picture(root / key), "alt": f"The real image {key}"}
                        for key in alone[:: max(1, len(alone) // ALONE)][:ALONE]]
    page = _page(root, out, rows, len({row["seed_file"] for row in rows}), found,
                 _summary(found, class_of, seed_of, verdict), table, near, len(seeds), len(names), balance)
    return page, skipped


def _thinned(items: list[Any]) -> list[Any]:
    return [items[i] for i in thinned(len(items), MOST)]


def _small_size(root: Path, keys: list[str]) -> tuple[int, int]:
    """The size of the first readable image, if a small network can take it; else `SMALL`."""
    height, width = next(filter(None, (dimensions(root / key) for key in keys)), (0, 0))
    return (height, width) if 8 <= min(height, width) and max(height, width) <= SMALL else (SMALL, SMALL)


def _read(root: Path, names: list[str], size: tuple[int, int],
          skipped: list[tuple[str, str]]) -> tuple[list[str], NDArray[np.uint8]]:
    """The images that can be read, uint8 (N, *size, 3), and their names; the others go to `skipped`."""
    def one(name: str) -> NDArray[np.uint8] | BrokenImageError:
        try:
            return read_image(root / name, size, "crop").pixels
        except BrokenImageError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    broken = {str(root / name): str(error) for name, error in found.items() if isinstance(error, BrokenImageError)}
    images = {name: pixels for name, pixels in found.items() if not isinstance(pixels, BrokenImageError)}
    if not images:
        first, reason = next(iter(broken.items()))
        raise ValueError(f"{root}: none of the images can be read; the first, {first}: {reason}")
    skipped += broken.items()
    return list(images), np.stack(list(images.values()))


def _summary(found: Judged, labels: NDArray[np.int64], seed_of: NDArray[np.int64], verdict: list[Verdict]) -> list[str]:
    """A summary in a few sentences."""
    counts = {word: sum(v.word == word for v in verdict) for word in ("good", "mixed", "unlike", "unknown")}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    sentences = [f"Of {len(verdict)} class{'es' * (len(verdict) > 1)}: {said}."]
    if counts["unlike"] * 2 > len(verdict):
        sentences[0] = f"The synthetic images are unlike the real ones. {sentences[0]} Do not train on them."
    if found.real_guess is not None and found.synthetic_guess is not None:
        real, synthetic = (found.real_guess == labels).mean(), (found.synthetic_guess == labels[seed_of]).mean()
        sentences.append(
            f"A network trained on other real images recognises {synthetic:.0%} of the synthetic images and {real:.0%} "
            f"of the real ones; guessing would be right in {1 / len(verdict):.0%}.")
    if found.taught_guess is not None:
        sentences.append(
            "A network trained on the synthetic images alone recognises "
            f"{(found.taught_guess == labels).mean():.0%} of the real ones.")
    return sentences + found.notes


def _per_class(found: Judged, labels: NDArray[np.int64], seeds: list[str], seed_of: NDArray[np.int64],
               classes: list[str], verdict: list[Verdict]) -> tuple[list[dict[str, Any]], list[tuple[float, str]]]:
    """One table row per class; and for each real image the mean distance to its variants.

    The unit of the distance is the spread of the class.
    """
    to_seed: dict[int, list[float]] = {}
    between: dict[int, list[float]] = {}
    near = []
    for space in found.spaces:
        row_of = {int(image): row for row, image in enumerate(space.real)}
        for label in np.unique(labels[space.real]):
            members = [row for row, image in enumerate(space.real) if labels[image] == label]
            among = distances(space.real_features[members], space.real_features[members])
            spread = float(among.sum() / max(1, len(members) * (len(members) - 1)))
            for image in space.real[members] if spread else ():
                variants = space.synthetic_features[seed_of[space.synthetic] == image]
                if not len(variants):
                    continue
                distance = float(distances(space.real_features[row_of[int(image)]][None], variants).mean()) / spread
                to_seed.setdefault(int(label), []).append(distance)
                near.append((distance, seeds[image]))
                if len(variants) > 1:
                    inside = distances(variants, variants)
                    between.setdefault(int(label),
                                       []).append(float(inside.sum() / (len(variants) * (len(variants) - 1))) / spread)
    table = []
    for label, (name, said) in enumerate(zip(classes, verdict, strict=True)):
        distance_to_seed = float(np.mean(to_seed[label])) if label in to_seed else None
        are_copies = distance_to_seed is not None and distance_to_seed < COPY
        copies = " They are nearly copies of their seeds." if are_copies else ""
        table.append({
            "class": name, "verdict": f"{said.word}: {said.sentence}{copies}", **said.numbers, "distance to the seed":
            distance_to_seed, "between variants": float(np.mean(between[label])) if label in between else None
        })
    return table, sorted(near)


def _balance(real: Mapping[str, int], made: Mapping[str, int],
             within: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """How the classes, and kinds of images within them, are represented: a table, and sentences about it.

    Parameters
    ----------
    real, made : mapping of class to int
        Numbers of real and of synthetic images.
    within : mapping of class to array
        What `covered` found for its real images.
    """
    share = {name: (real[name] / max(1, sum(real.values())), made.get(name, 0) / max(1, sum(made.values())))
             for name in sorted(real)}
    known = {name: float(np.nanmean(values)) for name, values in within.items() if not np.isnan(values).all()}
    table = [[name, f"{real[name]:,}", f"{was:.1%}", f"{made.get(name, 0):,}", f"{now:.1%}",
              f"{known[name]:.0%}" if name in known else ""] for name, (was, now) in share.items()]
    off = sorted((name for name, (was, now) in share.items() if was and abs(now / was - 1) > SHIFTED),
                 key=lambda name: -abs(share[name][1] - share[name][0]))
    sentences = ["The classes have about the same shares of the synthetic images as of the real ones."]
    if off:
        worst = ", ".join(f"{name} ({share[name][0]:.1%} of the real images, {share[name][1]:.1%} of the synthetic "
                          "ones)" for name in off[:3])
        have = "class has" if len(off) == 1 else "classes have"
        sentences = [f"{len(off):,} {have} another share of the synthetic images than of the real ones: {worst}"
                     f"{', ...' if len(off) > 3 else ''}. What is trained on both may prefer the classes that have "
                     "gained."]
    if known:
        every = np.concatenate([values[~np.isnan(values)] for values in within.values()])
        least = min(known, key=lambda name: known[name])
        sentences.append(f"{every.mean():.0%} of the real images have a synthetic image of their class in their "
                         f"neighbourhood; the least covered class is {least}, with {known[least]:.0%}.")
    return {"columns": BALANCE, "table": table, "sentences": sentences}


def _redrawn(rows: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence about variants that were too similar to real images."""
    redrawn = sum(type(row.get("redraws")) is int and row["redraws"] > 0 for row in rows)
    if not redrawn and not left_out:
        return []
    classes = Counter(row["label"] for row in left_out)
    where = f", most of class {classes.most_common(1)[0][0]}" if len(classes) > 1 else ""
    return [f"Because of their similarity to real images, {counted(redrawn, 'image')} "
            f"{'was' if redrawn == 1 else 'were'} made again with other noise, and {len(left_out):,} left out{where}."]


# ---- the page

BALANCE = ["class", "real images", "share", "synthetic images", "share", "covered"]
MEANING = {
    "precision": "of the synthetic images lie among the real ones (fidelity)",
    "recall": "of the real images lie among the synthetic ones (diversity)",
    "density": "how deep among the real ones; about 1 is alike",
    "coverage": "of the real images have a synthetic one in their neighbourhood",
}
CLOSEST = "Closest to the real image they were made from: are they copies?"
FARTHEST = "Farthest from it: are they still of the class?"


def _page(real: Path, out: Path, rows: list[dict[str, Any]], seeds: int, found: Judged, summary: list[str],
          table: list[dict[str, Any]], near: list[tuple[float, str]], n_real: int, n_synthetic: int,
          balance: dict[str, Any]) -> str:
    first = with_todays_names(rows[0])
    columns = list(dict.fromkeys(name for row in table for name in row))
    by_seed: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed_file"], []).append(row)
    return render(
        "report",
        name=out.name,
        count=len(rows),
        seeds=seeds,
        model=first.get("model", "unknown"),
        settings=", ".join(f"{k.replace('_', ' ')} {first[k]}"
                           for k in ("method", "steps", "strength", "noise_scale", "guidance_scale", "seed")
                           if k in first),
        summary=summary,
        columns=columns,
        table=[[_cell(row.get(name)) for name in columns] for row in table],
        neighbours=NEIGHBOURS,
        real_measured=n_real,
        synthetic_measured=n_synthetic,
        space=found.space,
        measures=[{"name": name, "value": value, "meaning": MEANING[name],
                   "best": getattr(found.best, name) if found.best else None}
                  for name, value in (found.neighbours._asdict() if found.neighbours else {}).items()],
        balance=balance,
        strips=[(title, [_strip(real, out, key, by_seed[key], distance) for distance, key in chosen])
                for title, chosen in ((CLOSEST, near[:STRIPS]), (FARTHEST, near[-STRIPS:][::-1]))],
        sheet=contact_sheet_of_run(out, real, rows, per_class=2, max_classes=20, max_variants=6))


def _verified(rows: list[dict[str, Any]]) -> str:
    """A sentence about the objects that a classifier has judged."""
    recognised, not_judged = (sum(row.get(name, 0) for row in rows) for name in ("recognised", "not_judged"))
    lost, dropped = sum(len(row.get("lost", ())) for row in rows), rows[0].get("verify_action") == "drop"
    done = "their annotations were left out" if dropped else "metadata.jsonl names them"
    return (f"A classifier of the real objects recognises {recognised:,} objects in the synthetic images; {lost:,} it "
            f"no longer recognises: {done}. {not_judged:,} it cannot judge, as it does not recognise them in the real "
            "images either.")


def _labelled_page(labels: Labels, out: Path, rows: list[dict[str, Any]], keep: str) -> str:
    """The page for labelled images: numbers of images and objects, and a sheet with all labels."""
    made = labels.read_back(out)
    counts = [Counter(thing.category for name in each.names for thing in each.things(name)) for each in (labels, made)]
    what = {
        "objects": "Objects are the real ones to the pixel, and backgrounds are new.", "background":
        "Backgrounds are the real ones to the pixel, and objects are new inside of their outlines or boxes.", "none":
        "Everything is new: look whether the labels are still true."
    }[keep]
    if rows[0].get("compose"):
        what += " Objects of other images were placed in them."
    lost = Counter(each["category"] for row in rows for each in row.get("lost", ()))
    verified = any("lost" in row for row in rows)
    return render("labelled",
                  name=out.name,
                  count=len(rows),
                  seeds=len({row["seed_file"] for row in rows}),
                  model=rows[0].get("model", "unknown"),
                  format=labels.format,
                  what=what,
                  columns=["category", "real", "synthetic", *(["no longer recognised"] if verified else [])],
                  objects=[(category, f"{number:,}", f"{counts[1][category]:,}",
                            *([f"{lost[category]:,}"] if verified else []))
                           for category, number in counts[0].most_common()],
                  verified=_verified(rows) if verified else "",
                  sheet=labelled_sheet(out, labels, rows))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _strip(real: Path, out: Path, key: str, rows: list[dict[str, Any]], distance: float) -> dict[str, Any]:
    pictures = [{"image": picture(real / key), "kind": "seed", "alt": f"The real image {key}"}]
    pictures += [{"image": picture(out / row["file_name"]), "kind": "variant",
                  "alt": f"Variant {row.get('variant', '')} of {key}"} for row in rows[:STRIP_VARIANTS]]
    return {"name": key, "distance": distance, "pictures": pictures}
