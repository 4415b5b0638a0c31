"""Our side of the models in pixel space: writes them, makes images, and hands over every noise that it has drawn.

    python tests/parity/pixel_ours.py WORK

WORK/CASE: the models. WORK/ours.npz: `z0` (2, 3, 16, 16), and for each case `CASE` the images in [-1, 1].
WORK/noise.npz: `start` by image, `step` and `bottleneck` by image and step.
"""

import sys
from pathlib import Path

import numpy as np
from pixel_cases import CASES, CLASSES, OPTIONS, UNET

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import write_pixel_model  # noqa: E402

import dreamda  # noqa: E402
from dreamda.generation.recursions import STREAM_BOTTLENECK, STREAM_START, STREAM_STEP  # noqa: E402


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    images, seed, steps = range(len(CLASSES)), OPTIONS["seed"], range(int(OPTIONS["steps"] * OPTIONS["strength"]))
    z0 = np.random.RandomState(3).uniform(-1, 1, (len(CLASSES), 3, 16, 16)).astype(np.float32)
    np.savez(work / "noise.npz",
             start=[dreamda.normals(seed, i, 0, 0, STREAM_START, 0, (3, 16, 16)) for i in images],
             step=[[dreamda.normals(seed, i, 0, s, STREAM_STEP, 0, (3, 16, 16)) for s in steps] for i in images],
             bottleneck=[[dreamda.normals(seed, i, 0, s, STREAM_BOTTLENECK, 1, (64, 8, 8)) for s in steps]
                         for i in images])
    results = {"z0": z0}
    for name, (kind, config, options) in CASES.items():
        if not (work / name).is_dir():
            write_pixel_model(work / name, {"_class_name": kind} | config, **UNET)
        pipe = dreamda.Pipeline.load(work / name, "f32", 2)
        results[name] = pipe.augment_latents(z0, class_labels=CLASSES, keys=images, **OPTIONS | options)[:, 0]
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
