"""Does it help on photographs? The harness of efficacy.py on three data sets of photographs at 64 pixels.

    python benchmarks/efficacy_photos.py learn  --work WORK      # words for the classes, from the real images of draws
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
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from efficacy import HERE, RESULTS, DataSet, Record, command_line, parts_of, perform, run_jobs, spread, workers

SHARED = HERE.parents[1] / "shared"
REGIMES = {
    "own-domain": "names and pictures like the model's training set", "known-names":
    "names that the model knows, other pictures (Caltech-101)", "new-names":
    "names that the model has never read (flowers)"
}
SIZES = {5: 5, 10: 3}  # real images a class: draws
VARIANTS = 20
MOST = 10  # real images a class that a draw may take
CHOOSING = 0.4

# The network and its steps, the same for every method.
TRAINING = dict(backbone="resnet18", width=16, stem="imagenet", batch_size=16, epochs=60, steps_per_epoch=10,
                view="weak")
LENGTHS = (120, 60)  # epochs of the tables, of 10 steps each


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


def photos(regime: str, data: Path, models: Path, **training: object) -> Photos:
    folder = data / regime
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    return Photos(regime, str(folder), "natural-mini", classes, SIZES, VARIANTS, TRAINING | training,
                  models=str(models))


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
FRESH = dict(method="sdedit", strength=1.0, noise_scale=1.0)
IMG2IMG = dict(method="sdedit", noise_scale=0.0)


def mixed(**changed: object) -> dict:
    """Half of the variants keep to their seed, the others come from the text alone."""
    return dict(parts=[few(**changed), few(**TEXT, **changed)])


LEARNED = dict(learned=True)
# Rows of the table: kind of synthetic images, and what differs in training. Every row with synthetic images, and the
# second, has RandAugment: see "Levers" in EFFICACY.md.
METHODS = {
    "real only": (None, REAL),
    "real + RandAugment": (None, REAL | RANDAUGMENT),
    "real + MixUp": (None, REAL | dict(mix="mixup")),
    "real + CutMix": (None, REAL | dict(mix="cutmix")),
    "copies of the real images + AMST": (dict(copies=True), AMST | RANDAUGMENT),
    "text alone": (few(**TEXT), PLAIN | RANDAUGMENT),
    "text alone + AMST": (few(**TEXT), AMST | RANDAUGMENT),
    "img2img": (few(**IMG2IMG), PLAIN | RANDAUGMENT),
    "img2img + AMST": (few(**IMG2IMG), AMST | RANDAUGMENT),
    "DreamDA, labels of the seeds": (few(), PLAIN | RANDAUGMENT),
    "DreamDA without the perturbation, labels of the seeds": (few(noise_scale=0.0), PLAIN | RANDAUGMENT),
    "DreamDA + AMST": (few(), AMST | RANDAUGMENT),
    "DreamDA at strength 1, labels of the seeds": (few(**FRESH), PLAIN | RANDAUGMENT),
    "DreamDA at strength 1 + AMST": (few(**FRESH), AMST | RANDAUGMENT),
    "half DreamDA, half text, labels of the seeds": (mixed(), PLAIN | RANDAUGMENT),
    "half DreamDA, half text + AMST": (mixed(), AMST | RANDAUGMENT),
    "DreamDA, authors' settings, 12 steps, 5 for each, labels of the seeds": (many(variants=5), PLAIN | RANDAUGMENT),
    "DreamDA, authors' settings, 12 steps, 5 for each + AMST": (many(variants=5), AMST | RANDAUGMENT),
    "DreamDA, 12 steps, 5 for each + AMST": (OURS | dict(variants=5), AMST | RANDAUGMENT),
    # Fewer images.
    "DreamDA at strength 1, 10 for each, labels of the seeds": (few(**FRESH, variants=10), PLAIN | RANDAUGMENT),
    "DreamDA at strength 1, 10 for each + AMST": (few(**FRESH, variants=10), AMST | RANDAUGMENT),
    "DreamDA at strength 1, 5 for each, labels of the seeds": (few(**FRESH, variants=5), PLAIN | RANDAUGMENT),
    "DreamDA at strength 1, 5 for each + AMST": (few(**FRESH, variants=5), AMST | RANDAUGMENT),
    # Other uses of them than half of every batch.
    "half DreamDA, half text, concatenated": (mixed(), PLAIN | RANDAUGMENT | dict(real_share=0.0)),
    "half DreamDA, half text, instead of the real images": (mixed(), REAL | RANDAUGMENT | dict(replace=True)),
    # With words learned from the real images, where the model does not know the names.
    "learned words: text alone": (few(**TEXT, **LEARNED), PLAIN | RANDAUGMENT),
    "learned words: text alone + AMST": (few(**TEXT, **LEARNED), AMST | RANDAUGMENT),
    "learned words: DreamDA + AMST": (few(**LEARNED), AMST | RANDAUGMENT),
    "learned words: DreamDA at strength 1, labels of the seeds": (few(**FRESH, **LEARNED), PLAIN | RANDAUGMENT),
    "learned words: DreamDA at strength 1 + AMST": (few(**FRESH, **LEARNED), AMST | RANDAUGMENT),
    "learned words: half DreamDA, half text, labels of the seeds": (mixed(**LEARNED), PLAIN | RANDAUGMENT),
    "learned words: half DreamDA, half text + AMST": (mixed(**LEARNED), AMST | RANDAUGMENT),
}
LEARNING = ("new-names", )  # regimes with such words
# The best of the sweep for each regime, among those with our method.
CHOSEN = {
    "own-domain": "DreamDA at strength 1 + AMST",
    "known-names": "half DreamDA, half text + AMST",
    "new-names": "learned words: half DreamDA, half text + AMST",
}

# What the sweep compares, group by group: see "Levers" in EFFICACY.md.
STRENGTHS = dict(parts=[few(strength=strength) for strength in (0.5, 0.7, 0.85, 1.0)])
FOUR = dict(parts=[few(**changed, **LEARNED) for changed in ({}, FRESH, IMG2IMG, TEXT)])
BOTH = (PLAIN | RANDAUGMENT, AMST | RANDAUGMENT)
LONG = dict(epochs=120)
CHOICES = {
    "real": [(None, REAL | changed | steps) for steps in (dict(epochs=20), dict(epochs=60))
             for changed in ({}, RANDAUGMENT)] + [(None, REAL | RANDAUGMENT | dict(mix="cutmix"))],
    "K 20": [(kind, training) for kind in (few(), few(**FRESH), few(**TEXT)) for training in BOTH],
    "controls": [(dict(copies=True), AMST | RANDAUGMENT), (dict(reconstructed=True), AMST | RANDAUGMENT)],
    "AMST": [(few(), AMST | RANDAUGMENT | changed)
             for changed in (dict(real_share=0.75), dict(consistency_weight=3.0), dict(pretrain_epochs=2),
                             dict(mix="cutmix"))] + [(few(**TEXT), AMST | RANDAUGMENT | dict(pretrain_epochs=2))],
    "mixed": [(kind, training) for kind in (mixed(), STRENGTHS) for training in BOTH],
    "learned": [(few(**TEXT, **LEARNED), PLAIN | RANDAUGMENT), (few(**TEXT, **LEARNED), AMST | RANDAUGMENT),
                (few(**LEARNED), AMST | RANDAUGMENT), (few(**IMG2IMG, **LEARNED), PLAIN | RANDAUGMENT)] +
               [(kind, training) for kind in (few(**FRESH, **LEARNED), mixed(**LEARNED), FOUR)
                for training in BOTH],
    "long": [(None, REAL | RANDAUGMENT | LONG)] +
            [(kind, training | LONG) for kind in (few(**TEXT), few(**FRESH), mixed()) for training in BOTH],
    "long, AMST": [(mixed(), AMST | RANDAUGMENT | LONG | changed)
                   for changed in (dict(pretrain_epochs=12), dict(relabel=0))],
    "long, learned": [(few(**TEXT, **LEARNED), PLAIN | RANDAUGMENT | LONG),
                      (few(**FRESH, **LEARNED), AMST | RANDAUGMENT | LONG),
                      (few(**FRESH, **LEARNED), AMST | RANDAUGMENT | LONG | dict(pretrain_epochs=12)),
                      (mixed(**LEARNED), AMST | RANDAUGMENT | LONG)],
    "long, perturbation": [(few(**changed), PLAIN | RANDAUGMENT | LONG)
                           for changed in ({}, dict(noise_scale=0.0))],
}


# The rows of the README's table.
SHORT = ("real only", "real + RandAugment", "text alone", "img2img", "DreamDA at strength 1 + AMST",
         "half DreamDA, half text, labels of the seeds", "half DreamDA, half text + AMST",
         "DreamDA, authors' settings, 12 steps, 5 for each + AMST", "learned words: text alone",
         "learned words: DreamDA at strength 1 + AMST", "learned words: half DreamDA, half text + AMST")


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


def learn(arguments: argparse.Namespace) -> None:
    """Words for the classes, learned from the real images of every draw by recipes/textual_inversion.py."""
    from PIL import Image

    for draw in range(arguments.draws):
        for regime in [regime for regime in available(arguments) if regime in LEARNING]:
            data, work = photos(regime, arguments.data, arguments.models), str(arguments.work / regime)
            for part, number in (("final", draw), ("sweep", 100 + draw)):
                files = [Path(file) for file in data.embeddings(work, part, number)]
                if all(file.exists() for file in files):
                    continue
                images, _ = data.images(part)
                with tempfile.TemporaryDirectory() as folder:
                    for name, members in zip(data.classes, data.members(part, number), strict=True):
                        (Path(folder) / name).mkdir()
                        for i in members[:min(SIZES)]:
                            Image.fromarray(images[i]).save(Path(folder) / name / f"{i}.png")
                    subprocess.run([arguments.torch, HERE / "recipes" / "textual_inversion.py",
                                    arguments.models / "natural-mini", folder, files[0].parent], check=True)


def possible(kind: dict | None, words: tuple[str, ...]) -> bool:
    """Whether the words that a kind of images needs have been learned."""
    needed = kind is not None and any(part.get("learned") for part in parts_of(kind))
    return not needed or all(Path(file).exists() for file in words)


def choose(arguments: argparse.Namespace) -> None:
    record = Record(RESULTS / "efficacy-photos-sweep.json", TRAINING)
    with workers(arguments) as pool:
        for group, candidates in CHOICES.items():
            if arguments.groups and group not in arguments.groups:
                continue
            for regime in available(arguments):
                data, work = photos(regime, arguments.data, arguments.models), str(arguments.work / regime)
                wanted = [
                    dict(name=f"{regime}, {group}: {json.dumps(kind or {})} {json.dumps(recipe)}",
                         regime=regime,
                         kind=kind,
                         recipe=recipe,
                         size=min(SIZES),
                         draw=draw,
                         group=group) for kind, recipe in candidates for draw in range(100, 100 + arguments.draws)
                    if possible(kind, data.embeddings(work, "sweep", draw))
                ]
                run_jobs(data, work, pool, wanted, record, "sweep", VARIANTS,
                         ("regime", "group", "kind", "recipe", "size", "draw"))


def results(epochs: int, pretrained: bool = False) -> Path:
    """The file with the results of trainings of this length."""
    return RESULTS / f"efficacy-photos-{'pretrained-' * pretrained}{epochs * TRAINING['steps_per_epoch']}.json"


def run(arguments: argparse.Namespace) -> None:
    record = Record(results(arguments.epochs, arguments.pretrained is not None),
                    TRAINING | dict(epochs=arguments.epochs))
    training = dict(epochs=arguments.epochs)
    if arguments.pretrained:
        training |= dict(pretrained=str(arguments.pretrained))
    with workers(arguments) as pool:
        for draw in range(arguments.draws):  # a run that is cut short should leave whole draws
            for regime in available(arguments):
                data = photos(regime, arguments.data, arguments.models, **training)
                work = str(arguments.work / regime)
                words = data.embeddings(work, "final", draw)
                wanted = [
                    dict(name=f"{regime}: {method}",
                         regime=regime,
                         method=method,
                         kind=kind,
                         recipe=recipe,
                         size=size,
                         draw=draw)
                    for method, (kind, recipe) in METHODS.items()
                    if method in (arguments.methods or METHODS) and possible(kind, words) for size in arguments.sizes
                ]
                run_jobs(data, work, pool, wanted, record, "final", VARIANTS, ("regime", "method", "size", "draw"))


def by_method(records: list[dict], size: int) -> dict[str, dict[str, dict[int, float]]]:
    """method -> regime -> draw -> accuracy."""
    found: dict[str, dict[str, dict[int, float]]] = {method: {} for method in METHODS}
    for r in records:
        if r["size"] == size:
            found[r["method"]].setdefault(r["regime"], {})[r["draw"]] = r["accuracy"]
    return {method: rows for method, rows in found.items() if rows}


def result_table(records: list[dict], size: int, methods: tuple[str, ...] | None = None) -> str:
    """Every method in every regime, over the draws that have been run: a method that has fewer draws than the others of
    its regime says so, and is not marked as the best."""
    found = by_method(records, size)
    regimes = [regime for regime in REGIMES if any(regime in rows for rows in found.values())]
    most = {regime: max(len(rows.get(regime, ())) for rows in found.values()) for regime in regimes}
    best = {regime: max(statistics.mean(rows[regime].values()) for rows in found.values()
                        if len(rows.get(regime, ())) == most[regime]) for regime in regimes}
    lines = [f"| % right on test images, {size} real images a class | " + " | ".join(
        f"{regime} ({most[regime]} draw{'s' * (most[regime] > 1)})" for regime in regimes) + " |",
        "|---" * (len(regimes) + 1) + "|"]
    for method, rows in found.items():
        if methods and method not in methods:
            continue
        cells = []
        for regime in regimes:
            values = list(rows.get(regime, {}).values())
            if not values:
                cells.append("-")
                continue
            text = spread(values)
            if len(values) < most[regime]:
                text += f" ({len(values)})"
            elif statistics.mean(values) == best[regime]:
                text = f"**{text}**"
            cells.append(text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ahead_table(records: list[dict], size: int) -> str:
    """How far ahead of each other method the one chosen on validation images is, draw by draw."""
    found = by_method(records, size)
    regimes = [regime for regime in REGIMES if regime in found.get(CHOSEN[regime], {})]
    lines = [f"| points that the chosen row is ahead of | {' | '.join(regimes)} |", "|---" * (len(regimes) + 1) + "|"]
    for method, rows in found.items():
        cells = []
        for regime in regimes:
            ours, theirs = found[CHOSEN[regime]][regime], rows.get(regime, {})
            gains = [ours[draw] - theirs[draw] for draw in ours if draw in theirs]
            cells.append("-" if not gains or method == CHOSEN[regime] else
                         f"{spread(gains)} (ahead in {sum(gain > 0 for gain in gains)} of {len(gains)})")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def described(kind: dict) -> str:
    """What differs in a kind of synthetic images from the usual one."""
    if "parts" in kind:
        return "a share each of: " + "; ".join(map(described, kind["parts"]))
    return ", ".join(f"{k} {v}" for k, v in kind.items() if few().get(k) != v) or "as usual"


def choice_table(records: list[dict]) -> str:
    """What the sweep compared, over its draws: settings that differ from "DreamDA + AMST" are named."""
    usual = TRAINING | AMST | RANDAUGMENT
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        training = dict(view="weak") | r["recipe"]
        key = (described(r["kind"]) if r["kind"] else "none",
               ", ".join(f"{k} {v}" for k, v in training.items() if usual.get(k) != v) or "as usual")
        rows.setdefault(key, {}).setdefault(r["regime"], []).append(r["accuracy"])
    regimes = [regime for regime in REGIMES if any(regime in found for found in rows.values())]
    lines = [f"| synthetic images | training | {' | '.join(regimes)} |", "|---" * (len(regimes) + 2) + "|"]
    for (images, training), found in rows.items():
        cells = " | ".join(f"{spread(found[regime])} ({len(found[regime])})" if regime in found else "-"
                           for regime in regimes)
        lines.append(f"| {images} | {training} | {cells} |")
    return "\n".join(lines) + (
        f"\n\n% right on validation images (number of draws), {VARIANTS} synthetic images for each real one. As usual: "
        f"images by {', '.join(f'{k} {v}' for k, v in few().items())}; AMST with RandAugment.")


def report(arguments: argparse.Namespace) -> None:
    """Write what was measured between the markers of EFFICACY.md and of the README."""
    from compare import replace_between

    sweep = json.loads((RESULTS / "efficacy-photos-sweep.json").read_text())
    replace_between(HERE / "EFFICACY.md", "photos sweep", choice_table(sweep["records"]) + "\n")
    tables = []
    for epochs, pretrained in [(epochs, False) for epochs in LENGTHS] + [(min(LENGTHS), True)]:
        if not results(epochs, pretrained).exists():
            continue
        run = json.loads(results(epochs, pretrained).read_text())
        records, training = run["records"], run["training"]
        note = (f"{'Pretrained backbone; ' * pretrained}{VARIANTS} synthetic images for each real one, "
                f"{epochs * training['steps_per_epoch']:,} steps of {training['batch_size']} images.")
        for size in sorted({r["size"] for r in records}):
            tables += [result_table(records, size), note]
        if epochs == LENGTHS[0] and not pretrained:
            tables.append(ahead_table(records, min(SIZES)))
            shown = f"{result_table(records, min(SIZES), SHORT)}\n\n{note}\n"
            replace_between(HERE.parent / "README.md", "photos", shown)
    replace_between(HERE / "EFFICACY.md", "photos", "\n\n".join(tables) + "\n")


def main() -> None:
    tasks = {"learn": learn, "choose": choose, "run": run, "report": report}
    parser = command_line(__doc__, tasks)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "photos64")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--groups", nargs="+", help="of choose; default: all")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--epochs", type=int, choices=LENGTHS, default=LENGTHS[0], help="of run: of 10 steps each")
    parser.add_argument("--pretrained", type=Path, metavar="FILE",
                        help="of run: fine-tune this backbone, of recipes/pretrain_backbone.py")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD",
                        help="of run; default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5], help="of run: real images a class")
    parser.add_argument("--torch", default="python", help="of learn: a Python with PyTorch, diffusers and transformers")
    perform(parser, tasks)


if __name__ == "__main__":
    main()
