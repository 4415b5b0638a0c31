"""Does it help on photographs? The harness of efficacy.py on three data sets of photographs at 64 pixels.

    python benchmarks/efficacy_photos.py choose --work WORK      # settings, on validation images
    python benchmarks/efficacy_photos.py run    --work WORK      # the table, on test images
    python benchmarks/efficacy_photos.py report                  # into benchmarks/EFFICACY.md and README.md

The photographs and the two models are for research only and no part of this project: `--data` is a folder with
own-domain/, known-names/ and new-names/, `--models` one with natural-mini (many steps) and natural-mini-lcm (few
steps). Where they are missing, the script says so and ends with 0. recipes/train_photographs.py trains such a model.

The images of every class are put in a fixed random order and divided once. The first 40 % are for choosing: a draw of
the sweep takes its real images from them and is tested on their rest. The others are final: a draw takes its real
images from them and is tested on their rest. WORK keeps the images made; nothing of it belongs into the project.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from efficacy import HERE, RESULTS, DataSet, Record, command_line, perform, run_jobs, spread, workers

SHARED = HERE.parents[1] / "shared"
REGIMES = {
    "own-domain": "names and pictures like the model's training set", "known-names":
    "names that the model knows, other pictures (Caltech-101)", "new-names":
    "names that the model has never read (flowers)"
}
SIZES = {5: 5}
VARIANTS = 20
MOST = 10  # real images a class that a draw may take
CHOOSING = 0.4

# The network and its steps, the same for every method.
TRAINING = dict(backbone="resnet18", width=16, stem="imagenet", batch_size=16, epochs=60, steps_per_epoch=10)


@cache
def photographs(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 64, 64, 3), labels, and whether an image is among those for choosing."""
    from PIL import Image

    images, labels, choosing = [], [], []
    for label, path in enumerate(sorted(p for p in Path(folder).iterdir() if p.is_dir())):
        files = sorted(path.glob("*.jpg"))
        order = np.random.default_rng([2026, label]).permutation(len(files))
        for place, number in enumerate(order):
            images.append(np.asarray(Image.open(files[number]).convert("RGB")))
            labels.append(label)
            choosing.append(place < CHOOSING * len(files))
    return np.stack(images), np.array(labels), np.array(choosing)


@dataclass(frozen=True)
class Photos(DataSet):
    """A folder of class folders, divided as the head of this file says; `models` is where the models are."""

    models: str = ""

    def images(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels, choosing = photographs(self.folder)
        chosen = choosing if part == "sweep" else ~choosing
        return images[chosen], labels[chosen]

    def members(self, part: str, draw: int) -> np.ndarray:
        labels = self.images(part)[1]
        rng = np.random.default_rng([20262, draw])
        return np.stack([rng.permutation(np.flatnonzero(labels == c))[:MOST] for c in range(len(self.classes))])

    def tested(self, part: str, draw: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.images(part)
        rest = np.setdiff1d(np.arange(len(labels)), self.members(part, draw))
        return images[rest], labels[rest]

    def locate(self, model: str) -> str:
        return str(Path(self.models) / model)


def photos(regime: str, data: Path, models: Path) -> Photos:
    folder = data / regime
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    return Photos(regime, str(folder), "natural-mini", classes, SIZES, VARIANTS, TRAINING, models=str(models))


# Kinds of synthetic images. "many" is the teacher, "few" its few-step student, which takes the guidance as an input.
def many(**changed: object) -> dict:
    return dict(method="cycle", steps=12, strength=0.8, guidance_scale=7.5, noise_scale=3.0, share_start=True) | changed


def few(**changed: object) -> dict:
    return dict(model="natural-mini-lcm",
                method="cycle",
                steps=4,
                strength=0.8,
                guidance_scale=2.0,
                noise_scale=1.0,
                share_start=False) | changed


OURS = many(guidance_scale=2.0, noise_scale=1.0, share_start=False)
REAL, PLAIN, AMST = dict(method="real-only"), dict(method="plain"), dict(method="amst")
RANDAUGMENT = dict(view="randaugment")
TEXT = dict(method="sdedit", strength=1.0, noise_scale=0.0, from_noise=True)

# Rows of the table: kind of synthetic images, and what differs in training. Every row with synthetic images, and the
# second, has RandAugment: see "Levers" in EFFICACY.md.
METHODS = {
    "real only": (None, REAL),
    "real + RandAugment": (None, REAL | RANDAUGMENT),
    "real + CutMix": (None, REAL | dict(mix="cutmix")),
    "copies of the real images + AMST": (dict(copies=True), AMST | RANDAUGMENT),
    "text alone": (few(**TEXT), PLAIN | RANDAUGMENT),
    "img2img": (few(method="sdedit", noise_scale=0.0), PLAIN | RANDAUGMENT),
    "DreamDA, labels of the seeds": (few(), PLAIN | RANDAUGMENT),
    "DreamDA + AMST": (few(), AMST | RANDAUGMENT),
    "DreamDA, authors' settings, 12 steps, 5 for each + AMST": (many(variants=5), AMST | RANDAUGMENT),
}

# What the sweep compares, group by group: see "Levers" in EFFICACY.md.
FRESH = dict(method="sdedit", strength=1.0, noise_scale=1.0)
CHOICES = {
    "real": [(None, REAL | changed | steps) for steps in (dict(epochs=20), dict(epochs=60))
             for changed in ({}, RANDAUGMENT)],
    "K 20": [(few(), PLAIN | RANDAUGMENT),
             (few(), AMST | RANDAUGMENT),
             (few(**FRESH), PLAIN | RANDAUGMENT),
             (few(**FRESH), AMST | RANDAUGMENT),
             (few(**TEXT), PLAIN | RANDAUGMENT)],
    "controls": [(dict(copies=True), AMST | RANDAUGMENT),
                 (dict(reconstructed=True), AMST | RANDAUGMENT)],
    "AMST": [(few(), AMST | RANDAUGMENT | changed)
             for changed in (dict(real_share=0.75), dict(consistency_weight=3.0), dict(epochs=120),
                             dict(hint="agree"))],
    "images": [(few(**changed), AMST | RANDAUGMENT)
               for changed in (dict(noise_scale=3.0), dict(strength=0.6), dict(guidance_scale=1.0), dict(steps=2))],
    "K 5": [(few(variants=5), AMST | RANDAUGMENT)],
}


def available(arguments: argparse.Namespace) -> list[str]:
    """The regimes that can be measured here; says what is missing."""
    missing = [
        path for path in (arguments.models / "natural-mini", arguments.models / "natural-mini-lcm")
        if not (path / "model_index.json").is_file()
    ]
    found = [regime for regime in arguments.regimes if (arguments.data / regime).is_dir()]
    missing += [arguments.data / regime for regime in arguments.regimes if regime not in found]
    for path in missing:
        print(f"skipped: {path} is not here", file=sys.stderr)
    return [] if any(path.parent == arguments.models for path in missing) else found


def choose(arguments: argparse.Namespace) -> None:
    record = Record(RESULTS / "efficacy-photos-sweep.json", TRAINING)
    with workers(arguments) as pool:
        for group, candidates in CHOICES.items():
            if arguments.groups and group not in arguments.groups:
                continue
            for regime in available(arguments):
                wanted = [
                    dict(name=f"{regime}, {group}: {json.dumps(kind or {})} {json.dumps(recipe)}",
                         regime=regime,
                         kind=kind,
                         recipe=recipe,
                         size=size,
                         draw=draw,
                         group=group) for kind, recipe in candidates for size in SIZES
                    for draw in range(100, 100 + arguments.draws)
                ]
                run_jobs(photos(regime, arguments.data, arguments.models), str(arguments.work / regime), pool, wanted,
                         record, "sweep", VARIANTS, ("regime", "group", "kind", "recipe", "size", "draw"))


def run(arguments: argparse.Namespace) -> None:
    record = Record(RESULTS / "efficacy-photos.json", TRAINING)
    with workers(arguments) as pool:
        for draw in range(arguments.draws):  # a run that is cut short should leave whole draws
            for regime in available(arguments):
                wanted = [
                    dict(name=f"{regime}: {method}",
                         regime=regime,
                         method=method,
                         kind=kind,
                         recipe=recipe,
                         size=size,
                         draw=draw) for method, (kind, recipe) in METHODS.items() for size in SIZES
                ]
                run_jobs(photos(regime, arguments.data, arguments.models), str(arguments.work / regime), pool, wanted,
                         record, "final", VARIANTS, ("regime", "method", "size", "draw"))


def result_table(records: list[dict], training: dict) -> str:
    """Every method in every regime, over the draws that have been run: a method that has fewer draws than the others of
    its regime says so."""
    found: dict[str, dict[str, dict[int, float]]] = {method: {} for method in METHODS}
    for r in records:
        found[r["method"]].setdefault(r["regime"], {})[r["draw"]] = r["accuracy"]
    regimes = [regime for regime in REGIMES if any(regime in rows for rows in found.values())]
    most = {regime: max(len(rows.get(regime, ())) for rows in found.values()) for regime in regimes}
    best = {regime: max(statistics.mean(rows[regime].values()) for rows in found.values() if regime in rows)
            for regime in regimes}
    steps = training["epochs"] * training["steps_per_epoch"]
    lines = ["| % right on test images, 5 real images a class | " + " | ".join(
        f"{regime} ({most[regime]} draw{'s' * (most[regime] > 1)})" for regime in regimes) + " |",
        "|---" * (len(regimes) + 1) + "|"]
    for method, rows in found.items():
        cells = []
        for regime in regimes:
            values = list(rows.get(regime, {}).values())
            if not values:
                cells.append("-")
                continue
            text = spread(values)
            text = f"**{text}**" if statistics.mean(values) == best[regime] else text
            cells.append(text + (f" ({len(values)})" if len(values) < most[regime] else ""))
        if any(cell != "-" for cell in cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n{VARIANTS} synthetic images for each real one, {steps} steps of "
                               f"{training['batch_size']} images.")


def choice_table(records: list[dict]) -> str:
    """What the sweep compared, over its draws: settings that differ from "DreamDA + AMST" are named."""
    usual_images, usual_training = few(), TRAINING | AMST | RANDAUGMENT
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        kind, recipe = r["kind"] or {}, dict(view="weak") | r["recipe"]
        images, training = (", ".join(f"{k} {v}" for k, v in these.items() if usual.get(k) != v) or "as usual"
                            for these, usual in ((kind, usual_images), (recipe, usual_training)))
        images = images if kind else "none"
        rows.setdefault((images, training), {}).setdefault(r["regime"], []).append(r["accuracy"])
    regimes = [regime for regime in REGIMES if any(regime in found for found in rows.values())]
    draws = max(len(values) for found in rows.values() for values in found.values())
    lines = [f"| synthetic images | training | {' | '.join(regimes)} |", "|---" * (len(regimes) + 2) + "|"]
    for (images, training), found in rows.items():
        cells = " | ".join(spread(found[regime]) if regime in found else "-" for regime in regimes)
        lines.append(f"| {images} | {training} | {cells} |")
    return "\n".join(lines) + (
        f"\n\n% right on validation images, {draws} draw{'s' * (draws > 1)}, {VARIANTS} synthetic images for each real "
        f"one. As usual: images by {', '.join(f'{k} {v}' for k, v in few().items())}; AMST with RandAugment.")


def report(arguments: argparse.Namespace) -> None:
    """Write what was measured between the markers of EFFICACY.md and of the README."""
    from compare import replace_between

    sweep = json.loads((RESULTS / "efficacy-photos-sweep.json").read_text())
    replace_between(HERE / "EFFICACY.md", "photos sweep", choice_table(sweep["records"]) + "\n")
    run = json.loads((RESULTS / "efficacy-photos.json").read_text())
    for path in (HERE / "EFFICACY.md", HERE.parent / "README.md"):
        replace_between(path, "photos", result_table(run["records"], run["training"]) + "\n")


def main() -> None:
    tasks = {"choose": choose, "run": run, "report": report}
    parser = command_line(__doc__, tasks)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "photos64")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--groups", nargs="+", help="of choose; default: all")
    parser.add_argument("--draws", type=int, default=1)
    perform(parser, tasks)


if __name__ == "__main__":
    main()
