"""Our side of SDXL's img2img: the models that sdxl_reference.py saved, and every noise that it needs to do the same.

    python tests/parity/sdxl_ours.py WORK

WORK/ours.npz: `CASE.latents` (4, h, w) and `CASE.pixels` (H, W, 3). WORK/noise.npz: the `image`, and the noise of its
`posterior`, its `start` and every `step`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sdxl_cases import CASES, LORA, PROMPT, SCHEDULER, SEED, SIZE, STEPS, STRENGTH

import dreamda
from dreamda.generation.recursions import STREAM_POSTERIOR, STREAM_START, STREAM_STEP


def main(work: Path) -> None:
    image, results = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8), {}
    for name, case in CASES.items():
        folder = work / case["model"]
        (folder / "scheduler/scheduler_config.json").write_text(
            json.dumps({"_class_name": case["kind"], **SCHEDULER, "clip_sample": False, "set_alpha_to_one": False}
                       | case.get("scheduler", {})))
        loras = [(work / LORA, case["lora"])] if "lora" in case else []
        pipe = dreamda.Pipeline.load(folder, dtype="f32", threads=2, loras=loras)
        z0 = pipe.encode(image, keys=[0], seed=SEED)[None]
        options = dict(method="sdedit",
                       variants=1,
                       keys=[0],
                       seed=SEED,
                       steps=case.get("steps", STEPS),
                       strength=case.get("strength", STRENGTH),
                       noise_scale=0.0,
                       negative_prompt=case.get("negative_prompt", ""),
                       **{key: case[key] for key in ("guidance_scale", "eta")})
        results[f"{name}.latents"] = pipe.augment_latents(z0, PROMPT, **options)[0, 0]
        results[f"{name}.pixels"] = pipe.augment(image, PROMPT, **options)[0]
    shape = z0.shape[1:]
    np.savez(work / "noise.npz", image=image,
             posterior=dreamda.normals(SEED, 0, 0, 0, STREAM_POSTERIOR, 0, shape),
             start=dreamda.normals(SEED, 0, 0, 0, STREAM_START, 0, shape),
             step=[dreamda.normals(SEED, 0, 0, step, STREAM_STEP, 0, shape) for step in range(STEPS)])
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
