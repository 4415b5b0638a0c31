"""A whole training on real photographs, ours and PyTorch's with one recipe: ResNet-18 from scratch on a folder of
classes.

    python benchmarks/caltech.py --peer-python PEER/bin/python --photos 101_ObjectCategories --work WORK

Of every class two thirds of the images are trained on and the rest tested. Both sides take the same pictures through
the same views (`dreamda.training.views`, which needs NumPy and Pillow alone), the same initial weights' distribution,
schedule and number of steps; the seeds differ by 0, 1, 2. Writes results/caltech.json: accuracies of each seed, and
seconds a step. An engine that computes gradients wrongly ends outside of the seed noise.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZE, BATCH, EPOCHS, LR, MOMENTUM, DECAY, WARMUP = 112, 32, 20, 0.05, 0.9, 1e-4, 2
SEEDS = (0, 1, 2)


def divide(photos: Path, work: Path) -> tuple[Path, Path]:
    """WORK/train and WORK/test: of every class each third image is tested on."""
    parts = work / "train", work / "test"
    for folder in sorted(p for p in photos.iterdir() if p.is_dir()):
        for number, image in enumerate(sorted(folder.glob("*.jpg"))):
            target = parts[number % 3 == 2] / folder.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(image, target)
    return parts


def ours(work: Path, dtype: str, seed: int) -> dict:
    from dreamda.training.recipe import Recipe
    from dreamda.runs.train import train_dataset

    out = work / f"ours-{dtype}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    recipe = Recipe(method="real-only",
                    view="weak",
                    epochs=EPOCHS,
                    batch_size=BATCH,
                    learning_rate=LR,
                    momentum=MOMENTUM,
                    weight_decay=DECAY,
                    warmup_epochs=WARMUP,
                    random_state=seed,
                    image_size=SIZE,
                    stem="imagenet",
                    width=64,
                    dtype=dtype)
    report = train_dataset(work / "train", None, out, recipe, test=work / "test")
    epochs = [e for e in report.events if e["event"] == "epoch"]
    return dict(accuracy=report.metrics.accuracy, loss=epochs[-1]["loss"], seconds=sum(e["seconds"] for e in epochs))


def pytorch(work: Path, dtype: str, seed: int) -> dict:
    import torch
    from PIL import Image
    from torch.nn import functional as F

    sys.path.insert(0, str(HERE.parent / "tests/parity"))
    from train_reference import ResNet
    # without the package: it has a core of its own
    spec = importlib.util.spec_from_file_location("views", HERE.parent / "python/dreamda/views.py")
    views_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(views_module)

    classes = sorted(p.name for p in (work / "train").iterdir())

    def load(part: str) -> tuple[list[np.ndarray], np.ndarray]:
        images, labels = [], []
        for number, name in enumerate(classes):
            for path in sorted((work / part / name).iterdir()):
                picture = Image.open(path).convert("RGB")
                scale = max(2 * SIZE / picture.height, 2 * SIZE / picture.width)
                if scale < 1:
                    picture = picture.resize(
                        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
                        Image.Resampling.LANCZOS)
                images.append(np.asarray(picture))
                labels.append(number)
        return images, np.array(labels)

    images, labels = load("train")
    views = views_module.Views((SIZE, SIZE), *views_module.channel_statistics(images), seed=seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(ResNet(18, "imagenet"), torch.nn.Linear(512, len(classes)))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    torch.nn.init.normal_(model[1].weight, std=1 / math.sqrt(3 * 512))
    torch.nn.init.zeros_(model[1].bias)
    model = model.to(memory_format=torch.channels_last).train()
    decayed, rest = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    optimizer = torch.optim.SGD([dict(params=decayed, weight_decay=DECAY),
                                 dict(params=rest, weight_decay=0.0)],
                                lr=LR,
                                momentum=MOMENTUM,
                                nesterov=True)
    per_epoch = -(-len(images) // BATCH)
    steps, warmup = EPOCHS * per_epoch, min(WARMUP * per_epoch, EPOCHS * per_epoch // 5)
    rng, order, epoch_loss = np.random.default_rng(seed), [], []

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = order[step * BATCH: (step + 1) * BATCH]
        return np.stack([views.view("weak", images[i], draw, i) for draw, i in chosen]), labels[[i for _, i in chosen]]

    while len(order) < steps * BATCH:
        order += [(len(order) // len(images), int(i)) for i in rng.permutation(len(images))]
    started = time.perf_counter()
    for step, (x, y) in enumerate(views_module.ahead(batch, 0, steps, 2)):
        lr = LR * (step + 1) / warmup if step < warmup else LR * 0.5 * (1 + math.cos(math.pi * (step - warmup) /
                                                                                     (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = F.cross_entropy(model(torch.from_numpy(x).to(memory_format=torch.channels_last)),
                                   torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        epoch_loss.append(float(loss))
    seconds = time.perf_counter() - started
    model.eval()
    tested, truth = load("test")
    right = 0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        for start in range(0, len(tested), 64):
            x = np.stack([views.plain(image) for image in tested[start: start + 64]])
            right += int((model(torch.from_numpy(x)).argmax(1).numpy() == truth[start: start + 64]).sum())
    return dict(accuracy=right / len(tested), loss=statistics.mean(epoch_loss[-per_epoch:]), seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--engine", choices=["ours", "pytorch"], help=argparse.SUPPRESS)  # one run, in this process
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        print(
            json.dumps({"ours": ours, "pytorch": pytorch}[arguments.engine](arguments.work, arguments.dtype,
                                                                            arguments.seed)))
        return
    from compare import machine

    divide(arguments.photos, arguments.work)
    about, runs = machine(), []
    for seed in SEEDS:
        for engine, python in (("ours", sys.executable), ("pytorch", arguments.peer_python)):
            command = [
                python, __file__, "--work",
                str(arguments.work), "--dtype", arguments.dtype, "--engine", engine, "--seed",
                str(seed)
            ]
            found = subprocess.run(command,
                                   check=True,
                                   stdout=subprocess.PIPE,
                                   text=True,
                                   env=os.environ | {"PYTHONPATH": ""})
            runs.append(dict(engine=engine, seed=seed, **json.loads(found.stdout.splitlines()[-1])))
            print(runs[-1], flush=True)
    for engine in ("ours", "pytorch"):
        found = [r["accuracy"] for r in runs if r["engine"] == engine]
        print(f"{engine}: {statistics.mean(found):.1%} +- {statistics.stdev(found):.1%}")
    recipe = dict(size=SIZE,
                  batch=BATCH,
                  epochs=EPOCHS,
                  lr=LR,
                  momentum=MOMENTUM,
                  weight_decay=DECAY,
                  warmup_epochs=WARMUP,
                  dtype=arguments.dtype)
    (HERE / "results"
     / "caltech.json").write_text(json.dumps(dict(machine=about, recipe=recipe, runs=runs), indent=1) + "\n")


if __name__ == "__main__":
    main()
