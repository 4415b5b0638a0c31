"""Do images with kept objects help to segment? A small task on 24 real photographs and micrographs with masks.

    python benchmarks/efficacy_labels.py run --work WORK      # 4 minutes of one core; the rows that are not there yet
    python benchmarks/efficacy_labels.py report               # the table into EFFICACY.md

The images (COCO, nuclei, blood cells) and natural-mini-lcm, the few-step model, are for research only and no part of
this project: `--data` and `--model` say where they are. Where they are missing, the script says so and ends with 0. It
needs scikit-learn.

The images are resized so that the shorter side is 64 pixels, as the model's. A seed puts them in an order, and six
folds of it: each time 20 labelled images are for training and the other 4 for testing, so that a seed tests on all 24.
The learner tells the pixels of labelled objects from the background: extremely randomised trees on colours, edges and
local deviations at several scales. Its threshold is chosen by two-fold cross-validation among the 20 images, on real
pixels alone; nothing else was chosen. A synthetic image is only ever used where its real image is.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from efficacy import HERE, RESULTS

SHARED = HERE.parents[1] / "shared"
SIDE, FOLDS, INNER, SEEDS = 64, 6, 2, 3
VARIANTS = 5
PIXELS = 200  # of a real image that train; its synthetic images have as many together
THRESHOLDS = np.linspace(0.2, 0.7, 11)
COMMON = dict(method="sdedit", steps=4, strength=0.8, guidance_scale=2.0, noise_scale=1.0, variants=VARIANTS)
# Row of the table -> what `keep` is for its images, and what differs in them; None: no synthetic images.
ROWS: dict[str, list[dict] | None] = {
    "real only": None,
    "real + flips and colours": [dict(colours=True)],
    "real + `--keep objects`": [dict(keep="objects")],
    "real + `--keep background`": [dict(keep="background")],
    "real + both": [dict(keep="objects"), dict(keep="background")],
    "real + `--keep none`, strength 0.5": [dict(keep="none", strength=0.5)],
    "real + `--keep objects`, prompt without them": [dict(keep="objects", prompts="a photo of a background")],
}
FILE = RESULTS / "efficacy-labels.json"


def read(data: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[str]]:
    """Images, masks of the objects, masks of what counts (all but crowds), and prompts."""
    from dreamda.data.annotations import coco
    from PIL import Image

    labels = coco(data / "coco/instances.json", data / "images")
    prompts = labels.prompts()
    images, masks, counted, texts = [], [], [], []
    for name in labels.names:
        with Image.open(data / "images" / name) as file:
            image = file.convert("RGB")
        scale = SIDE / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        objects, crowds = labels.mask(name, "background"), labels.mask(name) & ~labels.mask(name, "background")
        small = [np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
                 for mask in (objects, crowds)]
        images.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
        masks.append(small[0])
        counted.append(~small[1])
        texts.append(prompts[f"images/{name}"])
    return images, masks, counted, texts


def features(image: np.ndarray) -> np.ndarray:
    """What the learner sees of every pixel, float32 (H, W, n)."""
    from scipy import ndimage

    pixels = image.astype(np.float32) / 255
    grey = pixels.mean(axis=2)
    layers = [pixels]
    for sigma in (1, 2, 4, 8):
        blurred = ndimage.gaussian_filter(pixels, (sigma, sigma, 0))
        squares = ndimage.gaussian_filter(grey * grey, sigma)
        deviation = np.sqrt(np.maximum(squares - ndimage.gaussian_filter(grey, sigma) ** 2, 0))
        layers += [blurred, deviation[..., None], ndimage.gaussian_gradient_magnitude(grey, sigma)[..., None]]
    return np.concatenate(layers, axis=2).astype(np.float32)


def with_colours(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A view without a diffusion model: perhaps mirrored, with other brightness, contrast and colours."""
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    gain, shift = rng.uniform(0.7, 1.3, 3), rng.uniform(-30, 30)
    return np.clip(128 + (image - 128.0) * gain + shift, 0, 255).astype(np.uint8), mask


def make(row: list[dict], seed: int, images: list, masks: list, texts: list[str], pipe) -> list[list[tuple]]:
    """Of every real image, the synthetic ones and their masks."""
    made: list[list[tuple]] = [[] for _ in images]
    for kind in row:
        if kind.get("colours"):
            rng = np.random.default_rng([seed, 1])
            for number, (image, mask) in enumerate(zip(images, masks)):
                made[number] += [with_colours(image, mask, rng) for _ in range(VARIANTS)]
            continue
        options = {"prompts": texts, **COMMON, **kind}
        variants = pipe.augment(images, masks=masks, keys=list(range(len(images))), seed=seed, **options)
        for number, mask in enumerate(masks):
            made[number] += [(variant, mask) for variant in variants[number]]
    return made


class Pixels:
    """The pixels of a seed's real and synthetic images that train."""

    def __init__(self, seed: int, images: list, masks: list, counted: list, made: list[list[tuple]] | None) -> None:
        rng = np.random.default_rng([seed, 2])
        self.real = [self.some(image, mask, counts, PIXELS, rng) for image, mask, counts in zip(images, masks, counted)]
        self.made = None
        if made is not None:
            self.made = [[self.some(image, mask, np.ones_like(mask), PIXELS // len(every), rng)
                          for image, mask in every] for every in made]

    @staticmethod
    def some(image, mask, counts, number: int, rng) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(np.flatnonzero(counts), number, replace=False)
        return features(image).reshape(mask.size, -1)[chosen], mask.ravel()[chosen]

    def fit(self, which: np.ndarray, seed: int, trees: int):
        """A learner trained on the pixels of these images."""
        from sklearn.ensemble import ExtraTreesClassifier

        parts = [self.real[i] for i in which] + [part for i in which for part in (self.made[i] if self.made else ())]
        x, y = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        return ExtraTreesClassifier(trees, min_samples_leaf=5, random_state=seed, n_jobs=1).fit(x, y)


def overlap(found: np.ndarray, mask: np.ndarray, counts: np.ndarray) -> float:
    """Intersection over union of the objects' pixels."""
    both, either = (found & mask & counts).sum(), ((found | mask) & counts).sum()
    return float(both / either) if either else 1.0


def measure(seed: int, row: str, images: list, masks: list, counted: list, made: list | None) -> dict:
    """The overlap on every image, each tested once, and what was chosen in each fold."""
    pixels, every = Pixels(seed, images, masks, counted, made), [features(image) for image in images]
    order = np.random.default_rng([seed, 3]).permutation(len(images))
    overlaps, chosen = np.zeros(len(images)), []

    def found(learner, number: int) -> np.ndarray:
        shape = masks[number].shape
        return learner.predict_proba(every[number].reshape(masks[number].size, -1))[:, 1].reshape(shape)

    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test, assume_unique=True)
        outside = {}
        for inner in range(INNER):
            held = train[inner::INNER]
            learner = pixels.fit(np.setdiff1d(train, held), seed, 20)
            outside |= {number: found(learner, number) for number in held}
        scores = {threshold: np.mean([overlap(p > threshold, masks[n], counted[n]) for n, p in outside.items()])
                  for threshold in THRESHOLDS}
        threshold = max(scores, key=scores.__getitem__)
        learner = pixels.fit(train, seed, 60)
        for number in test:
            overlaps[number] = overlap(found(learner, number) > threshold, masks[number], counted[number])
        chosen.append(round(float(threshold), 2))
    return dict(row=row, seed=seed, overlaps=overlaps.round(4).tolist(), chosen=chosen)


def run(arguments: argparse.Namespace) -> None:
    if not (arguments.data / "coco").is_dir() or not arguments.model.is_dir():
        print(f"{arguments.data} or {arguments.model} is missing: nothing is measured")
        return
    import dreamda
    from compare import machine

    about = machine()
    images, masks, counted, texts = read(arguments.data)
    pipe = dreamda.Pipeline.load(arguments.model, threads=1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    records = json.loads(FILE.read_text())["records"] if FILE.exists() else []
    for seed in range(SEEDS):
        for name, row in ROWS.items():
            if any((record["row"], record["seed"]) == (name, seed) for record in records):
                continue
            started = time.process_time()
            made = None if row is None else make(row, seed, images, masks, texts, pipe)
            if made is not None and seed == 0:
                show(arguments.work / f"{list(ROWS).index(name)}.png", images, made)
            generated = time.process_time() - started
            records.append(measure(seed, name, images, masks, counted, made) | dict(
                image_cpu_seconds=round(generated, 1)))
            print(f"seed {seed}  {name:36} {100 * np.mean(records[-1]['overlaps']):.1f} %", flush=True)
            FILE.write_text(json.dumps(dict(machine=about, records=records)) + "\n")


def show(file: Path, images: list, made: list[list[tuple]]) -> None:
    """A sheet of some real images, each followed by what was made of it."""
    from PIL import Image

    chosen = range(0, len(images), 3)
    lines = [[images[n], *(image for image, _ in made[n][:VARIANTS])] for n in chosen]
    sheet = Image.new("RGB", ((VARIANTS + 1) * 100, len(lines) * 100), "white")
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            small = Image.fromarray(np.ascontiguousarray(image))
            small.thumbnail((96, 96))
            sheet.paste(small, (x * 100, y * 100))
    sheet.save(file)


def table(records: list[dict]) -> str:
    """Means over the 24 images, and the difference to the first row, seed by seed."""
    overlaps = {name: np.array([r["overlaps"] for r in records if r["row"] == name]) for name in ROWS}
    first, *_ = overlaps.values()
    rng = np.random.default_rng(0)
    lines = ["| overlap of the objects' pixels (mean of 24 images), % | mean of 3 seeds | each seed "
             "| against real only | 90 % interval over images |", "|---|---|---|---|---|"]
    for name, values in overlaps.items():
        seeds = 100 * values.mean(axis=1)
        text = f"| {name} | {seeds.mean():.1f} | {', '.join(f'{s:.1f}' for s in seeds)} |"
        if values is first:
            lines.append(text + " | |")
            continue
        gains = 100 * (values - first).mean(axis=0)  # of every image
        drawn = rng.choice(gains, (10_000, len(gains))).mean(axis=1)
        low, high = np.percentile(drawn, (5, 95))
        each = ", ".join(f"{g:+.1f}" for g in 100 * (values - first).mean(axis=1))
        lines.append(f"{text} {gains.mean():+.1f} ({each}) | {low:+.1f} to {high:+.1f} |")
    return "\n".join(lines) + "\n"


def report(arguments: argparse.Namespace) -> None:
    from compare import replace_between

    replace_between(HERE / "EFFICACY.md", "labels", table(json.loads(FILE.read_text())["records"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["run", "report"])
    parser.add_argument("--work", type=Path, help="for sheets of the images")
    parser.add_argument("--data", type=Path, default=SHARED / "data/detection")
    parser.add_argument("--model", type=Path, default=SHARED / "models/natural-mini-lcm")
    arguments = parser.parse_args()
    if arguments.task == "run" and not arguments.work:
        parser.error("--work is missing; name a folder")
    {"run": run, "report": report}[arguments.task](arguments)


if __name__ == "__main__":
    main()
