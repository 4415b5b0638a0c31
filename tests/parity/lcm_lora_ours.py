"""Our side of an LCM-LoRA: writes a small model and such a file, makes latents, and hands over the noise.

    python tests/parity/lcm_lora_ours.py WORK

WORK/model, WORK/lora.safetensors: what both sides load. WORK/ours.npz: `z0` (1, 4, 8, 8), and for each case of
lora_cases.LCM its latents (1, K, 4, 8, 8). WORK/noise.npz: as in trajectory_ours.py.
"""

import sys
from pathlib import Path

import numpy as np
from lora_cases import LCM, LCM_LAYERS, LCM_OPTIONS, LCM_PROMPTS, LCM_SCALE
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import write_model  # noqa: E402

import dreamda  # noqa: E402
from dreamda.generation.recursions import STREAM_BOTTLENECK, STREAM_START, STREAM_STEP  # noqa: E402
from dreamda.networks.config import read_unet_config  # noqa: E402


def write_lora(model: Path, file: Path, rank: int = 4) -> None:
    """Layers beside all those of the U-Net that LCM-LoRA changes, in kohya's names."""
    rng, layers = np.random.RandomState(5), {}
    for name, shape in dreamda._core.Model("unet", read_unet_config(model / "unet")).parameters():
        if not LCM_LAYERS.search(name):
            continue
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        out, rest = shape[0], shape[1:]
        layers[f"{key}.lora_down.weight"] = rng.standard_normal((rank, *rest)) / np.sqrt(np.prod(rest))
        layers[f"{key}.lora_up.weight"] = 0.5 * rng.standard_normal((out, rank, *[1] * (len(rest) - 1)))
        layers[f"{key}.alpha"] = np.array(float(rank))
    save_file({name: np.asarray(value, np.float16 if value.ndim else np.float32) for name, value in layers.items()},
              file)


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").is_dir():
        write_model(work / "model")
        write_lora(work / "model", work / "lora.safetensors")
    pipe = dreamda.Pipeline.load(work / "model", "f32", 2, loras=[(work / "lora.safetensors", LCM_SCALE)],
                                 scheduler="lcm")
    seed, variants, steps = LCM_OPTIONS["seed"], range(LCM_OPTIONS["variants"]), range(LCM_OPTIONS["steps"])
    z0 = np.random.RandomState(6).standard_normal((1, 4, 8, 8)).astype(np.float32)

    def draw(stream, variant, step=0, row=0, shape=(4, 8, 8)):
        return dreamda.normals(seed, 0, variant, step, stream, row, shape)

    np.savez(work / "noise.npz",
             start=[[draw(STREAM_START, k) for k in variants]],
             step=[[[draw(STREAM_STEP, k, s) for s in steps] for k in variants]],
             bottleneck=[[[[draw(STREAM_BOTTLENECK, k, s, r, (32, 4, 4)) for r in range(2)] for s in steps]
                          for k in variants]])
    results = {"z0": z0}
    for name, options in LCM.items():
        results[name] = pipe.augment_latents(z0, LCM_PROMPTS, keys=[0], **LCM_OPTIONS | options)
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
