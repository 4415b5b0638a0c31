"""Pretrains a ResNet on images that a few-step model makes from names alone, for `AMSTClassifier(pretrained=...)`.

    python pretrain_backbone.py MODEL NAMES OUT [--images 40] [--epochs 20] [--width 16]

NAMES is a text file with the name of a class on each line, such as everyday_names.txt: classes that natural-mini knows,
without those of the photographs in EFFICACY.md. OUT becomes a folder: images.npy, uint8 (classes, images, height,
width, 3), and backbone.safetensors, with torchvision's names. Images that are there are used again. No real image is
needed.
"""
import argparse
import os
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from efficacy import from_noise  # noqa: E402

from dreamda import AMSTClassifier, Pipeline  # noqa: E402
from dreamda.training.views import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402  (as expected of pretrained networks)


def make(task: tuple[str, list[str], int, int]) -> np.ndarray:
    """Images of some classes, uint8 (classes, images, height, width, 3)."""
    model, names, count, steps = task
    pipe = Pipeline.load(model, threads=1)
    prompts = [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    made = from_noise(pipe, prompts, names, variants=count, method="sdedit", strength=1.0, steps=steps,
                      guidance_scale=2.0, noise_scale=0.0)
    return made.reshape(len(names), count, *made.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("names", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    names = arguments.names.read_text().splitlines()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "images.npy"
    if not file.exists():
        tasks = [(arguments.model, names[first:first + 10], arguments.images, arguments.steps)
                 for first in range(0, len(names), 10)]
        made = []
        with get_context("spawn").Pool(arguments.processes) as pool:
            for part in pool.imap(make, tasks):
                made.append(part)
                print(f"images of {sum(map(len, made))} of {len(names)} classes", flush=True)
        np.save(file, np.concatenate(made))
    images = np.load(file)
    classifier = AMSTClassifier(method="real-only", backbone="resnet18", stem="imagenet", width=arguments.width,
                                epochs=arguments.epochs, batch_size=64, learning_rate=0.1, view="randaugment",
                                validation_fraction=0.05, mean=IMAGENET_MEAN, std=IMAGENET_STD, verbose=True)
    classifier.fit(images.reshape(-1, *images.shape[2:]), np.repeat(names, images.shape[1]))
    classifier.save(arguments.out / "backbone.safetensors")


if __name__ == "__main__":
    main()
