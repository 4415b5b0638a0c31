"""Does it help? A classifier from few real images, with and without synthetic ones, method against method on
Fashion-MNIST.

    python benchmarks/efficacy.py sweep  --work WORK     # settings, on validation images; results/efficacy-sweep.json
    python benchmarks/efficacy.py run    --work WORK     # the table, on the official test images; results/efficacy.json
    python benchmarks/efficacy.py noise  --work WORK     # 20 and 40 % of wrong labels; results/efficacy-noise.json
    python benchmarks/efficacy.py report                 # tables of EFFICACY.md and README.md, and the plot

Needs Debian's dataset-fashion-mnist (or `--data FOLDER` with its four .gz files). The bundled diffusion model was
trained on the first 50,000 training images; the last 10,000, which it never saw, are divided once:

    first 5,000    draws of the final table: draw d takes 50 images a class, and the smaller sizes are its first ones
    next 2,000     draws of the sweep
    last 3,000     validation: every setting is chosen by the accuracy here
    official test  10,000 images, for the final table alone

Every method has the same network, the same number of optimiser steps and the same real images; with synthetic images, K
for each real one. Jobs run in one process a core, each with one thread. A run that is stopped goes on where it was;
WORK keeps the images made.
"""

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = "/usr/share/datasets/fashion-mnist"
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
SIZES = {5: 5, 10: 5, 20: 5, 50: 3}  # real images a class: draws
VARIANTS = 10
PARTS = {"final": (-10_000, -5_000), "sweep": (-5_000, -3_000), "validation": (-3_000, None)}

# The network and its steps, the same for every method.
TRAINING = dict(backbone="resnet18",
                width=16,
                batch_size=32,
                epochs=25,
                steps_per_epoch=20,
                learning_rate=0.05,
                warmup_epochs=1.0,
                view="weak",
                threshold=0.9,
                hint="ignore",
                relabel=0,
                consistency_on="rest")

# Kinds of synthetic images: arguments of Pipeline.augment, each the best of the sweep. "text" starts from pure noise,
# so that it knows nothing of its seed. "dreamda" perturbs the bottleneck without the tie to the seed's own trajectory
# (see EFFICACY.md).
IMAGES = {
    "img2img": dict(method="sdedit", steps=10, strength=0.8, guidance_scale=2.0, share_start=False),
    "text": dict(method="sdedit", steps=10, strength=1.0, guidance_scale=1.0, share_start=False, from_noise=True),
    "dreamda": dict(method="sdedit", steps=10, strength=1.0, guidance_scale=1.5, noise_scale=1.0, share_start=False),
}
# Methods: kind of synthetic images, and what differs in training.
METHODS = {
    "real only": (None, dict(method="real-only")), "real + RandAugment":
    (None, dict(method="real-only", view="randaugment")), "real + MixUp": (None, dict(method="real-only", mix="mixup")),
    "real + CutMix": (None, dict(method="real-only",
                                 mix="cutmix")), "img2img": ("img2img", dict(method="plain")), "text alone":
    ("text", dict(method="plain")), "DreamDA, labels of the seeds": ("dreamda", dict(method="plain")), "DreamDA + AMST":
    ("dreamda", dict(method="amst", hint="keep", threshold=0.7, pretrain_epochs=2, relabel=3, consistency_on="all")),
}


# ---- data

@cache
def fashion(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels of "test" or of a part of the training set."""
    name = "t10k" if part == "test" else "train"
    with gzip.open(Path(folder) / f"{name}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(Path(folder) / f"{name}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    chosen = slice(None) if part == "test" else slice(0, 50_000) if part == "seen" else slice(*PARTS[part])
    return np.repeat(np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=3), labels[chosen]


def draw_members(labels: np.ndarray, draw: int) -> np.ndarray:
    """(10, 50): positions of a draw's images, class by class; a smaller size takes the first columns."""
    rng = np.random.default_rng([20260, draw])
    return np.stack([rng.permutation(np.flatnonzero(labels == c))[:50] for c in range(10)])


@dataclass(frozen=True)
class DataSet:
    """Images to measure on, and what is measured: the harness below works on any of them.

    A kind of synthetic images is a dict of arguments of `Pipeline.augment`; "model" in it names another model,
    "variants" is another K, "templates" and "fields" are those of `dreamda.data.choose_prompts`, "from_noise" makes it
    start from pure noise, and "learned" says that prompts have words learned from the draw's images in place of names.
    As controls, "copies" are the real images themselves, and "reconstructed" what the VAE makes of them. A kind with
    "parts" is made of others: of n of them each gives the first K / n variants. A method is a kind (or None) and what
    differs in training.
    """

    name: str
    folder: str
    model: str
    classes: tuple[str, ...]
    sizes: dict[int, int]               # real images a class: draws
    variants: int
    training: dict
    grey: bool = False
    judged: bool = False                # whether a judge can be trained, see `make_judge`

    def images(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the part that the draws of "final" or "sweep" come from."""
        raise NotImplementedError

    def members(self, part: str, draw: int) -> np.ndarray:
        """(classes, the largest size): positions of a draw's images; a smaller size takes the first columns."""
        return draw_members(self.images(part)[1], draw)

    def tested(self, part: str, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """What a classifier of this draw is tested on: test images for "final", validation images for "sweep"."""
        raise NotImplementedError

    def locate(self, model: str) -> str:
        """What `Pipeline.load` takes for the name of a model."""
        return model

    def embeddings(self, work: str, part: str, draw: int) -> tuple[str, ...]:
        """Files with the words learned from the images of a draw, one for each class."""
        return tuple(str(Path(work) / "embeddings" / f"{part}-{draw}" / f"{name}.safetensors") for name in self.classes)

    def prompt(self, label: int) -> str:
        """What the image of a class is said to show."""
        name = self.classes[label]
        return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"


class Fashion(DataSet):
    """Fashion-MNIST, divided as the head of this file says."""

    def images(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        return fashion(self.folder, part)

    def tested(self, part: str, draw: int) -> tuple[np.ndarray, np.ndarray]:
        return fashion(self.folder, "test" if part == "final" else "validation")


def fashion_mnist(folder: str) -> DataSet:
    return Fashion("efficacy", folder, "fashion-mini", tuple(NAMES), SIZES, VARIANTS, TRAINING, grey=True, judged=True)


# ---- jobs: functions of plain values, run in worker processes

@cache
def pipeline(model: str, embeddings: tuple[str, ...] = ()):
    from dreamda import Pipeline
    return Pipeline.load(model, threads=1, embeddings=embeddings)


def image_file(work: str, kind: dict, part: str, draw: int, first: int, last: int) -> Path:
    digest = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]
    return Path(work) / "images" / digest / f"{part}-{draw}-{first}-{last}.npy"


def make_images(data: DataSet, work: str, kind: dict, part: str, draw: int, first: int, last: int,
                variants: int) -> float:
    """Synthetic images of a draw's images `first` to `last` - 1 of every class: uint8 (classes, last - first, K,
    height, width), with 3 channels unless they are grey."""
    file = image_file(work, kind, part, draw, first, last)
    if file.exists():
        return 0.0
    start, cpu = time.perf_counter(), time.process_time()
    images, labels = data.images(part)
    members = data.members(part, draw)[:, first:last].ravel()
    parameters = dict(kind)
    variants = parameters.pop("variants", variants)
    keys = [f"{part}/{i}" for i in members]
    templates, fields = parameters.pop("templates", None), parameters.pop("fields", None)
    learned = data.embeddings(work, part, draw) if parameters.pop("learned", False) else ()
    pipe = pipeline(data.locate(parameters.pop("model", data.model)), learned)
    if learned:
        prompts = [f"a photo of a {pipe.embeddings[label].token}" for label in labels[members]]
    else:
        prompts = varied_prompts(data, labels[members], keys, templates, fields, draw, variants)
    if parameters.pop("copies", False):
        made = np.repeat(images[members], variants, axis=0)
    elif parameters.pop("reconstructed", False):
        made = np.concatenate([decoded(pipe, pipe.encode(images[members], keys, seed=k)) for k in range(variants)])
        made = made.reshape(variants, -1, *made.shape[1:]).swapaxes(0, 1)
    elif parameters.pop("from_noise", False):
        made = from_noise(pipe, prompts, keys, variants=variants, seed=draw, **parameters)
    else:
        made = pipe.augment(images[members], prompts, variants=variants, keys=keys, seed=draw, **parameters)
    made = made.reshape(len(data.classes), last - first, variants, *images.shape[1:])
    if data.grey:
        made = np.rint(made.mean(axis=-1)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        np.save(stream, made)
    os.replace(temporary, file)
    file.with_suffix(".cpu").write_text(f"{time.process_time() - cpu:.3f}\n")
    return time.perf_counter() - start


def varied_prompts(data: DataSet, labels: np.ndarray, keys: list[str], templates: list[str] | None,
                   fields: str | None, seed: int, variants: int) -> list:
    """What each image is said to show; with templates or fields, a prompt for each of its variants."""
    if templates is None and fields is None:
        return [data.prompt(label) for label in labels]
    from dreamda.data import ImageFolder, ImageRef, choose_prompts

    images = tuple(ImageRef(data.classes[label], key) for label, key in zip(labels, keys, strict=True))
    chosen = choose_prompts(ImageFolder(Path("none"), data.classes, images, ()), templates, fields=fields, seed=seed)
    return [chosen.variants(image.key, 0, variants) for image in images]


def from_noise(pipe, prompts: list, keys: list[str], **options: object) -> np.ndarray:
    """uint8 images (N x variants, height, width, 3) of prompts alone: the start knows nothing of a real image."""
    unseen = np.zeros((len(keys), *pipe.size, 3), np.uint8)
    if not options.get("noise_scale"):
        made = pipe.augment(unseen, prompts, keys=keys, text_share=1.0, **options)
        return made.reshape(-1, *made.shape[2:])
    # one row of the sweep perturbs these images, too, which `text_share` does not
    z0 = np.zeros_like(pipe.encode(unseen, keys))
    latents = pipe.augment_latents(z0, prompts, keys, **options)
    return decoded(pipe, latents.reshape(-1, *latents.shape[2:]))


def decoded(pipe, latents: np.ndarray) -> np.ndarray:
    """uint8 images (N, height, width, 3) of latents."""
    pixels = np.concatenate([pipe.vae.decode(latents[i : i + 10]) for i in range(0, len(latents), 10)])
    return np.rint(np.clip(pixels.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def parts_of(kind: dict) -> list[dict]:
    return kind.get("parts", [kind])


def image_seconds(data: DataSet, work: str, kind: dict, part: str, draw: int, size: int) -> float | None:
    """CPU seconds that the images of a draw took; None where that was not recorded."""
    kinds = parts_of(kind)
    files = [image_file(work, k, part, draw, *chunk).with_suffix(".cpu") for k in kinds for chunk in chunks(data, size)]
    if not all(file.exists() for file in files):
        return None
    return sum(float(file.read_text()) for file in files) / len(kinds)


def in_colour(made: np.ndarray) -> np.ndarray:
    """The images of a file of `make_images`, uint8 (N, height, width, 3)."""
    made = made if made.ndim == 6 else np.repeat(made[..., None], 3, axis=5)
    return made.reshape(-1, *made.shape[3:])


def load_images(data: DataSet, work: str, kind: dict, part: str, draw: int,
                size: int) -> tuple[np.ndarray, np.ndarray]:
    kinds = parts_of(kind)
    found = [np.concatenate([np.load(image_file(work, k, part, draw, *chunk)) for chunk in chunks(data, size)], axis=1)
             for k in kinds]
    made = np.concatenate([images[:, :, :images.shape[2] // len(kinds)] for images in found], axis=2)
    return in_colour(made), np.repeat(np.arange(len(made)), made.shape[1] * made.shape[2])


def chunks(data: DataSet, size: int) -> list[tuple[int, int]]:
    bounds = [b for b in (0, *data.sizes) if b <= size]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def train(data: DataSet, work: str, kind: dict | None, recipe: dict, part: str, draw: int, size: int) -> dict:
    """Train on a draw and test; what the labelling did is part of the record.

    "replace" in the recipe trains on the synthetic images alone, and "wrong_labels" makes a share of their labels
    wrong.
    """
    from dreamda import AMSTClassifier

    start, cpu = time.perf_counter(), time.process_time()
    images, labels = data.images(part)
    members = data.members(part, draw)[:, :size].ravel()
    synthetic, hints = load_images(data, work, kind, part, draw, size) if kind else (None, None)
    recipe = dict(recipe)
    given = flip(hints, recipe.pop("wrong_labels", 0.0), draw)
    replace = recipe.pop("replace", False)
    settings = {**data.training, **recipe}
    settings.setdefault("pretrain_epochs", max(1, settings["epochs"] // 3))
    classifier = AMSTClassifier(**settings, threads=1, workers=1, random_state=draw)
    if replace:
        classifier.fit(synthetic, given)
    else:
        classifier.fit(images[members], labels[members], synthetic, given)
    trained = time.process_time() - cpu
    record = dict(accuracy=classifier.score(*data.tested(part, draw)))
    if kind:
        record["image_cpu_seconds"] = image_seconds(data, work, kind, part, draw, size)
    for event in classifier.history_:
        if event["event"] == "labelling":
            record |= dict(accepted=event["accepted"] / event["images"], agree_with_seed=event.get("agree_with_seed"))
    if synthetic is not None and judge_file(work).exists():
        judged = judge_labels(data, work, kind, part, draw, size)
        record["labels_right"] = float((judged == given).mean())
        taken = classifier.pseudo_labels_ >= 0
        if taken.any():
            record["accepted_right"] = float((judged == classifier.pseudo_labels_)[taken].mean())
    return record | dict(seconds=round(time.perf_counter() - start, 1), cpu_seconds=round(trained, 1))


def flip(hints: np.ndarray | None, share: float, draw: int) -> np.ndarray | None:
    """The labels with `share` of them replaced by another class each."""
    if hints is None or not share:
        return hints
    rng = np.random.default_rng([20261, draw])
    chosen = rng.permutation(len(hints))[: round(share * len(hints))]
    flipped = hints.copy()
    flipped[chosen] = (hints[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return flipped


def judge_file(work: str) -> Path:
    return Path(work) / "judge.safetensors"


def make_judge(data: DataSet, work: str) -> float:
    """A classifier that has seen 50,000 real images: its opinion of a synthetic image stands for the truth in the
    record."""
    from dreamda import AMSTClassifier

    images, labels = data.images("seen")
    classifier = AMSTClassifier(**{**data.training, "batch_size": 64, "epochs": 20, "steps_per_epoch": 150},
                                method="real-only",
                                threads=1,
                                workers=1)
    classifier.fit(images, labels)
    Path(work).mkdir(parents=True, exist_ok=True)
    classifier.save(judge_file(work))
    return classifier.score(*data.tested("sweep", 0))


def judge_labels(data: DataSet, work: str, kind: dict, part: str, draw: int, size: int) -> np.ndarray:
    from dreamda import AMSTClassifier

    found = []
    for first, last in chunks(data, size):
        file = image_file(work, kind, part, draw, first, last).with_suffix(".judged.npy")
        if not file.exists():
            judge = AMSTClassifier.load(judge_file(work)).set_params(threads=1, workers=1)
            made = np.load(file.with_name(file.name.replace(".judged", "")))
            judged = judge.predict(in_colour(made)).reshape(made.shape[:3])
            with open(file.with_suffix(f".{os.getpid()}.tmp"), "wb") as stream:
                np.save(stream, judged)
            os.replace(stream.name, file)
        found.append(np.load(file))
    return np.concatenate(found, axis=1).ravel()


# ---- the runs

class Record:
    """A JSON file of results, a record for every key; written as a whole after each."""

    def __init__(self, path: Path, training: dict = TRAINING) -> None:
        self.path, self.training = path, training
        self.records: list[dict] = json.loads(path.read_text())["records"] if path.exists() else []

    def has(self, **key: object) -> bool:
        return any(all(r.get(k) == v for k, v in key.items()) for r in self.records)

    def add(self, record: dict) -> None:
        from compare import machine

        self.records.append(record)
        text = ",\n".join(json.dumps(r) for r in self.records)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(
            f'{{"machine": {json.dumps(machine())},\n"training": '
            f'{json.dumps(self.training)},\n"records": [\n{text}\n]}}\n')
        os.replace(temporary, self.path)


def execute(jobs: list[tuple], pool: ProcessPoolExecutor, done=lambda job, result: None) -> None:
    pending = {pool.submit(*job[0]): job for job in jobs}
    for future in as_completed(pending):
        done(pending[future], future.result())


def workers(arguments: argparse.Namespace) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn"))


def run_jobs(data: DataSet, work: str, pool: ProcessPoolExecutor, wanted: list[dict], record: Record, part: str,
             variants: int, keys: tuple[str, ...]) -> None:
    """Make the images that are missing, then train: `wanted` holds the key of each record with its "kind" and
    "recipe"."""
    wanted = [w for w in wanted if not record.has(**{k: w[k] for k in keys})]
    if data.judged and not judge_file(work).exists():
        print(f"judge: {pool.submit(make_judge, data, work).result():.1%} right on the validation images", flush=True)
    for draw in sorted({w["draw"] for w in wanted}):
        here = [w for w in wanted if w["draw"] == draw]
        images = {}
        for w in here:
            for kind in parts_of(w["kind"]) if w["kind"] else []:
                for first, last in chunks(data, w["size"]):
                    images[str(image_file(work, kind, part, draw, first, last))] = (kind, part, draw, first, last,
                                                                                    variants)
        jobs = [((make_images, data, work, *job), ) for file, job in images.items() if not Path(file).exists()]
        jobs.sort(key=lambda job: job[0][6] - job[0][7])  # the largest first: both processes end together
        execute(
            jobs, pool, lambda job, seconds: print(
                f"draw {draw}: images {job[0][6]} to {job[0][7]} of {job[0][3]}: {seconds:.0f} s", flush=True))

        def trained(job: tuple, result: dict) -> None:
            record.add({k: v for k, v in job[1].items() if k in keys or k == "name"} | result)
            shown = " ".join(f"{k}={v:.3f}" for k, v in result.items() if isinstance(v, float))
            print(f"draw {draw}: {job[1]['name']}, {job[1]['size']} a class: {shown}", flush=True)

        execute([((train, data, work, w["kind"], w["recipe"], part, draw, w["size"]), w) for w in here], pool, trained)


def run(arguments) -> None:
    wanted = [dict(name=name, method=name, size=size, draw=draw, kind=IMAGES.get(kind), recipe=recipe)
              for name, (kind, recipe) in METHODS.items() for size, draws in SIZES.items() for draw in range(draws)]
    record = Record(RESULTS / "efficacy.json")
    with workers(arguments) as pool:
        for sizes in ((5, 10, 20), (50,)):  # a run that is cut short should leave whole columns
            here = [w for w in wanted if w["size"] in sizes]
            run_jobs(fashion_mnist(arguments.data), arguments.work, pool, here, record, "final", VARIANTS,
                     ("method", "size", "draw"))


def noise(arguments) -> None:
    """How much accuracy wrong labels of the synthetic images cost: plain training, and AMST, which distrusts them."""
    methods = {"plain": METHODS["DreamDA, labels of the seeds"], "AMST, hint keep": METHODS["DreamDA + AMST"],
               "AMST, hint ignore": ("dreamda", METHODS["DreamDA + AMST"][1] | dict(hint="ignore"))}
    wanted = [
        dict(name=f"{name}, {share:.0%} wrong",
             method=name,
             wrong=share,
             size=10,
             draw=draw,
             kind=IMAGES[kind],
             recipe=recipe | dict(wrong_labels=share)) for name, (kind, recipe) in methods.items()
        for share in (0.0, 0.2, 0.4) for draw in range(5)
    ]
    with workers(arguments) as pool:
        run_jobs(fashion_mnist(arguments.data), arguments.work, pool, wanted, Record(RESULTS / "efficacy-noise.json"),
                 "final", VARIANTS, ("method", "wrong", "size", "draw"))


def sweep(arguments) -> None:
    from efficacy_sweep import SWEEP

    record = Record(RESULTS / "efficacy-sweep.json")
    for group, candidates in SWEEP.items():
        if arguments.groups and group not in arguments.groups:
            continue
        wanted = [
            dict(name=f"{group}: {json.dumps(kind or {})} {json.dumps(recipe)}",
                 kind=kind,
                 recipe=recipe,
                 size=size,
                 draw=draw,
                 group=group) for kind, recipe in candidates for size in arguments.sizes
            for draw in range(100, 100 + arguments.draws)
        ]
        with workers(arguments) as pool:
            run_jobs(fashion_mnist(arguments.data), arguments.work, pool, wanted, record, "sweep", 5,
                     ("kind", "recipe", "size", "draw", "group"))


# ---- the report

def by_method(records: list[dict]) -> dict[str, dict[int, dict[int, dict]]]:
    """method -> size -> draw -> record."""
    found: dict[str, dict[int, dict[int, dict]]] = {name: {} for name in METHODS}
    for r in records:
        found[r["method"]].setdefault(r["size"], {})[r["draw"]] = r
    return found


def spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f}" + (f" ± {100 * statistics.stdev(values):.1f}"
                                                     if len(values) > 1 else "")


def result_table(records: list[dict]) -> str:
    found = by_method(records)
    sizes = sorted({size for rows in found.values() for size in rows})
    draws = [max(len(found[name].get(size, ())) for name in found) for size in sizes]
    lines = [
        "| % right on 10,000 test images | " + " | ".join(f"{size} a class ({n} draws)"
                                                          for size, n in zip(sizes, draws, strict=True)) + " |",
        "|---" * (len(sizes) + 1) + "|"
    ]
    best = {
        size:
        max((statistics.mean(r["accuracy"] for r in found[name][size].values())
             for name in found if size in found[name]),
            default=0)
        for size in sizes
    }
    for name, rows in found.items():
        cells = []
        for size in sizes:
            values = [r["accuracy"] for r in rows.get(size, {}).values()]
            text = spread(values) if values else "-"
            cells.append(f"**{text}**" if values and statistics.mean(values) == best[size] else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_table(records: list[dict], ours: str = "DreamDA + AMST") -> str:
    """Ours minus each other method, draw by draw: the draws are the same for all."""
    found = by_method(records)
    sizes = sorted(found[ours])
    lines = [
        f"| points that {ours} is ahead, draw by draw | " + " | ".join(f"{size} a class" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|"
    ]
    for name, rows in found.items():
        if name == ours:
            continue
        cells = []
        for size in sizes:
            gains = [
                r["accuracy"] - rows[size][draw]["accuracy"] for draw, r in found[ours][size].items()
                if draw in rows.get(size, {})
            ]
            cells.append(f"{spread(gains)} (ahead in {sum(g > 0 for g in gains)} of {len(gains)})" if gains else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label_table(records: list[dict]) -> str:
    found = by_method(records)
    lines = ["| | size | labels right | accepted by AMST | of these right |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        for size in sorted(rows):
            cells = []
            for key in ("labels_right", "accepted", "accepted_right"):
                values = [r[key] for r in rows[size].values() if r.get(key) is not None]
                cells.append(f"{100 * statistics.mean(values):.1f} %" if values and not (
                    key != "labels_right" and "AMST" not in name) else "")
            if cells[0]:
                lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def noise_table(records: list[dict]) -> str:
    """Accuracy, and what wrong labels cost against the same draw without them."""
    found = {(r["method"], r["wrong"], r["draw"]): r["accuracy"] for r in records}
    shares = sorted({share for _, share, _ in found})
    lines = [
        "| labels made wrong | " + " | ".join(f"{share:.0%}" for share in shares) + " |", "|---" *
        (len(shares) + 1) + "|"
    ]
    for name in dict.fromkeys(r["method"] for r in records):
        cells = []
        for share in shares:
            draws = [d for n, s, d in found if (n, s) == (name, share)]
            text = spread([found[name, share, d] for d in draws])
            cells.append(text + (
                f" (lost {spread([found[name, 0.0, d] - found[name, share, d] for d in draws])})" if share else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep_table(records: list[dict]) -> str:
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        groups.setdefault((r["group"], r["size"], json.dumps(r["kind"]), json.dumps(r["recipe"])), []).append(r)
    lines = [
        "| group | images | training | a class | draws | % right on validation | labels right |",
        "|---|---|---|---|---|---|---|"
    ]
    for (group, size, kind, recipe), rows in groups.items():
        right = [r["labels_right"] for r in rows if r.get("labels_right") is not None]
        described = [", ".join(f"{k} {v}" for k, v in (json.loads(text) or {}).items()) for text in (kind, recipe)]
        lines.append(
            f"| {group} | {described[0] or 'none'} | {described[1]} | {size} | {len(rows)} | "
            f"{spread([r['accuracy'] for r in rows])} | {f'{100 * statistics.mean(right):.1f} %' if right else ''} |")
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
    for number, (name, rows) in enumerate(by_method(records).items()):
        sizes = sorted(rows)
        if not sizes:
            continue
        values = [[100 * r["accuracy"] for r in rows[size].values()] for size in sizes]
        ours = name.startswith("DreamDA")
        axes.errorbar([size * (1 + 0.012 * (number - 4)) for size in sizes], [statistics.mean(v) for v in values],
                      [statistics.stdev(v) if len(v) > 1 else 0 for v in values],
                      label=name,
                      capsize=2,
                      marker="o",
                      markersize=4,
                      linewidth=2.2 if ours else 1.1,
                      linestyle="-" if ours else "--" if "real" in name else ":")
    axes.set_xscale("log")
    axes.set_xticks(list(SIZES), [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set_xlabel("real images a class")
    axes.set_ylabel("% right on the test images")
    save_plot(figure, axes, path)


def save_plot(figure, axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def report(arguments) -> None:
    """Write what was measured between the markers of EFFICACY.md and of the README."""
    from compare import replace_between

    run = json.loads((RESULTS / "efficacy.json").read_text())
    plot(run["records"], HERE / "pictures" / "efficacy.png")
    replace_between(HERE.parent / "README.md", "efficacy", result_table(run["records"]) + "\n")
    replace_between(HERE / "EFFICACY.md", "table", "\n\n".join([
        result_table(run["records"]), difference_table(run["records"]), label_table(run["records"])]) + "\n")
    noise = RESULTS / "efficacy-noise.json"
    if noise.exists():
        replace_between(HERE / "EFFICACY.md", "noise", noise_table(json.loads(noise.read_text())["records"]) + "\n")
    replace_between(HERE / "EFFICACY.md", "sweep",
                    sweep_table(json.loads((RESULTS / "efficacy-sweep.json").read_text())["records"]) + "\n")


def command_line(description: str, tasks: dict) -> argparse.ArgumentParser:
    """The arguments that the efficacy scripts share; each adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(tasks))
    parser.add_argument("--work", type=Path, help="keeps the images made")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser


def perform(parser: argparse.ArgumentParser, tasks: dict) -> None:
    """Do the task that the command line names; all but `report` keep their images in --work."""
    arguments = parser.parse_args()
    if arguments.task != "report" and not arguments.work:
        parser.error("--work is missing; name a folder")
    RESULTS.mkdir(exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes
    tasks[arguments.task](arguments)


def main() -> None:
    tasks = {"sweep": sweep, "run": run, "noise": noise, "report": report}
    parser = command_line(__doc__, tasks)
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10], help="of the sweep")
    parser.add_argument("--groups", nargs="+", help="of the sweep; default: all")
    parser.add_argument("--draws", type=int, default=2, help="of the sweep")
    perform(parser, tasks)


if __name__ == "__main__":
    main()
