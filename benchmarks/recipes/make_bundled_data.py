"""Makes python/dreamda/bundled/fashion-mini.npz: real images for `dreamda demo` and the tests.

    python make_bundled_data.py [/usr/share/datasets/fashion-mnist] [OUT.npz]

Reads Fashion-MNIST's training set (MIT; Debian package dataset-fashion-mnist). Only its last 10,000 images are used,
which the `fashion-mini` model has not been trained on (train_fashion_mini.py). Of every class the first 10 in file
order become seeds and the next 100 test images. Needs NumPy alone; the output is the same to the byte on every run with
one version of NumPy and zlib.
"""
import gzip
import sys
from pathlib import Path

import numpy as np

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
SEEDS, TESTS, UNSEEN = 10, 100, 10_000  # images a class, images a class, images at the end of the training set


def main(source: Path, out: Path) -> None:
    images = np.frombuffer(gzip.open(source / "train-images-idx3-ubyte.gz").read(), np.uint8,
                           offset=16).reshape(-1, 28, 28)[-UNSEEN:]
    labels = np.frombuffer(gzip.open(source / "train-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)[-UNSEEN:]
    members = [np.flatnonzero(labels == c)[: SEEDS + TESTS] for c in range(len(NAMES))]
    seeds = np.concatenate([m[:SEEDS] for m in members])
    tests = np.concatenate([m[SEEDS:] for m in members])
    np.savez_compressed(out,
                        seeds=images[seeds],
                        seed_labels=labels[seeds],
                        test=images[tests],
                        test_labels=labels[tests],
                        class_names=np.array(NAMES))
    print(f"{out}: {len(seeds)} seeds, {len(tests)} test images, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"),
        Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parents[2]
        / "python/dreamda/bundled/fashion-mini.npz")
