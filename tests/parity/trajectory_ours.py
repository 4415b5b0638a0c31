"""Our side of the trajectories: runs `Pipeline.augment_latents`, and hands over the seeds and every noise that it has
drawn.

    python tests/parity/trajectory_ours.py WORK

WORK/ours.npz: `z0` (1, 4, 16, 16), and for each case `CASE` the latents (1, K, 4, 16, 16). WORK/noise.npz: `start` by
image and variant, `step` by image, variant and step, `bottleneck` by image, variant, step and row.
"""

import sys
from pathlib import Path

import numpy as np
from trajectory_cases import COMMON, PROMPTS, TRAJECTORIES, VARIANTS

import dreamda
from dreamda.networks.config import read_scheduler_config
from dreamda.generation.recursions import STREAM_BOTTLENECK, STREAM_START, STREAM_STEP
from dreamda.generation.schedulers import Schedule


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    pipe = dreamda.Pipeline.load("fashion-mini", dtype="f32")
    seeds = dreamda.load_bundled("fashion-mini").seeds
    z0 = pipe.encode(seeds[[90]], keys=[0])
    run, seed = int(COMMON["steps"] * COMMON["strength"]), COMMON["seed"]
    bottom = pipe.unet.plan(rows=1, height=16, width=16, tokens=16).inputs["noise"][1][1:]

    def draw(stream, image, variant, step=0, row=0, shape=z0.shape[1:]):
        return dreamda.normals(seed, image, variant, step, stream, row, shape)

    images, variants, steps = range(len(z0)), range(VARIANTS), range(run)
    np.savez(work / "noise.npz",
             start=[[draw(STREAM_START, i, k) for k in variants] for i in images],
             step=[[[draw(STREAM_STEP, i, k, s) for s in steps] for k in variants] for i in images],
             bottleneck=[[[[draw(STREAM_BOTTLENECK, i, k, s, r, bottom) for r in range(2)] for s in steps]
                          for k in variants] for i in images],
             )
    config = read_scheduler_config(pipe.folder / "scheduler")
    results = {"z0": z0}
    for name, changes in TRAJECTORIES.items():
        options = COMMON | {k: v for k, v in changes.items() if k not in ("scheduler", "kind")}
        kind = {"class_name": changes["kind"]} if "kind" in changes else {}
        pipe.schedule = Schedule(config | kind | changes.get("scheduler", {}))
        results[name] = pipe.augment_latents(z0, PROMPTS, keys=range(len(z0)), variants=VARIANTS, **options)
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
