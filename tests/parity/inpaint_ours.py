"""Our side of inpainting: makes the models, runs the cases, and hands over pixels, masks and every noise drawn.

    python tests/parity/inpaint_ours.py WORK [MODEL STEPS]

The models are fashion-mini, and fashion-mini with random weights for 5 more input channels; with MODEL, an inpainting
model of any size (benchmarks/make_models.py OUT --inpaint), the first two cases are run on it in STEPS steps. Writes
WORK/ours.npz, and WORK/9 if it makes it.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from inpaint_cases import CASES, COMMON, DISC, PROMPT
from safetensors.numpy import load_file, save_file

import dreamda
from dreamda.generation.options import GenerationOptions
from dreamda.generation.recursions import STREAM_POSTERIOR, STREAM_START, STREAM_STEP, latents_of_variants
from dreamda.generation.schedulers import Schedule
from dreamda.networks.config import read_scheduler_config
from dreamda.networks.hub import BUNDLED


def make(folder: Path) -> Path:
    """fashion-mini as an inpainting model."""
    shutil.copytree(BUNDLED / "fashion-mini", folder, dirs_exist_ok=True)
    config, weights = folder / "unet/config.json", folder / "unet/diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    tensors = load_file(weights)
    first = tensors["conv_in.weight"].astype(np.float32)
    more = np.random.default_rng(0).standard_normal((len(first), 5, 3, 3), np.float32) * first.std()
    tensors["conv_in.weight"] = np.concatenate([first, more], axis=1)
    weights.unlink()
    save_file(tensors, weights)
    return folder


def scene(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth coloured image, and a disc in it."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([x * 255 // size[1], y * 255 // size[0], (x + y) % 256], 2).astype(np.uint8)
    return image, (y - size[0] // 2) ** 2 + (x - size[1] // 3) ** 2 < (min(size) // 4) ** 2


def run(pipe: dreamda.Pipeline, case: dict, steps: int) -> dict[str, np.ndarray]:
    image, disc = scene(pipe.size)
    chosen = COMMON | {"steps": steps, "variants": 1, "guidance_scale": case["guidance_scale"]}
    options, shape = GenerationOptions(**chosen), (4, *(side // pipe.vae.factor for side in pipe.size))
    latents: dict[int, np.ndarray] = {}
    mask = disc if case["mask"] == DISC else np.ones_like(disc)
    blocks = mask.reshape(shape[1], pipe.vae.factor, shape[2], pipe.vae.factor).any((1, 3))
    hidden = blocks.repeat(pipe.vae.factor, 0).repeat(pipe.vae.factor, 1)
    if case["blended"]:
        pipe.augment([image], PROMPT, masks=[hidden.astype(np.float32)], keep="background", keys=[0],
                     callback_on_step_end=lambda step, t, x, units: latents.update({step: x.copy()}), **chosen)
        last = latents[max(latents)][0]
    else:
        z0 = pipe.encode(image[None], keys=[0], seed=options.seed)
        tiles = pipe._tiles(pipe.size, 0)
        beside = pipe._beside(image[None], ~blocks[None], [0], options, tiles)
        last = latents_of_variants(pipe, z0, [[PROMPT]], [0], options, beside=beside)[0, 0]

    def draw(stream: int, step: int = 0, row: int = 0) -> np.ndarray:
        return dreamda.normals(options.seed, 0, 0, step, stream, row, shape)

    return {"latents": last, "image": image, "hidden": hidden, "posterior": draw(STREAM_POSTERIOR),
            "masked": draw(STREAM_POSTERIOR, row=1), "start": draw(STREAM_START),
            "steps": np.stack([draw(STREAM_STEP, step) for step in range(steps)])}


def main(work: Path, model: Path | None = None, steps: int = 0) -> None:
    work.mkdir(parents=True, exist_ok=True)
    folders = {9: model or make(work / "9"), 4: BUNDLED / "fashion-mini"}
    results = {}
    for channels, folder in folders.items():
        names = [name for name, case in CASES.items() if case["channels"] == channels]
        if model is not None:
            names = names[:2] if channels == 9 else []
        pipe = dreamda.Pipeline.load(folder, dtype="f32") if names else None
        for name in names:
            case = CASES[name]
            kind = {"class_name": case["kind"]} if "kind" in case else {}
            pipe.schedule = Schedule(read_scheduler_config(folder / "scheduler") | kind | case.get("scheduler", {}))
            made = run(pipe, case, steps or case.get("steps", COMMON["steps"]))
            results |= {f"{name}.{key}": value for key, value in made.items()}
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *([Path(sys.argv[2]), int(sys.argv[3])] if len(sys.argv) > 2 else []))
