"""Our side: runs the networks that reference.py saved, through dreamda's public interface.

    python tests/parity/ours.py WORK [CASE ...]

WORK/CASE/ours.npz holds the outputs under reference.py's names. Every network runs turn 0, turn 1 and turn 0 again: the
last has to repeat the first to the bit. `bf16` is left out where this processor does not compute in it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases import CASES, inputs

import dreamda
from dreamda.networks.models import guidance_input, resolve_dtype

THREADS = 2


def dtypes() -> list[str]:
    return ["f32", "bf16"] if resolve_dtype("auto") == "bf16" else ["f32"]


def unet(folder: Path, dtype: str) -> Callable[[dict], dict]:
    network = dreamda.UNet.load(folder, dtype, THREADS)

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows, _, height, width = given["sample"].shape
        noise = given["noise_scale"][:, None, None, None] * given["noise"]
        pair = given["sample"], given["timestep"]
        more = {name: given.get(name) for name in ("context", "guidance_scale", "text_embeds", "time_ids",
                                                   "class_labels")}
        sample, bottleneck = network(*pair, return_bottleneck=True, **more)
        outputs = dict(sample=sample,
                       bottleneck=bottleneck,
                       perturbed=network(*pair, bottleneck_noise=noise, **more))
        named = {
            "guidance" if k == "guidance_scale" else k: guidance_input(v, rows) if k == "guidance_scale" else v
            for k, v in given.items()
        }
        # The same from one pass with two decoders; here the noise is scaled inside.
        tokens = {"tokens": given["context"].shape[1]} if "context" in given else {}
        both = network.plan(rows=rows, height=height, width=width, decoders=2, **tokens).run(named | {
            "sample": network.centred(given["sample"])})
        return outputs | {f"{key} (two decoders)": both[key] for key in ("sample", "perturbed", "bottleneck")}

    return run


def vae(folder: Path, dtype: str) -> Callable[[dict], dict]:
    network = dreamda.VAE.load(folder, dtype, THREADS)
    scale, shift = np.float32(network.config["scaling_factor"]), np.float32(network.config["shift_factor"])

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mean, std = network.moments(given["image"])
        image = network.decode((given["latent"] - shift) * scale)
        return dict(moments=np.concatenate([mean, 2 * np.log(std)], axis=1), image=image)

    return run


def tiny_vae(folder: Path, dtype: str) -> Callable[[dict], dict]:
    network = dreamda.VAE.load(folder, dtype, THREADS)
    scale = np.float32(network.config["scaling_factor"])
    return lambda given: dict(encoded=network.encode(given["image"]) / scale,
                              image=network.decode(given["latent"] * scale))


def clip(folder: Path, dtype: str) -> Callable[[dict], dict]:
    network = dreamda.TextEncoder.load(folder, dtype=dtype, threads=THREADS)
    return lambda given: dict(hidden=network.encode_tokens(given["tokens"]))


def clip_projection(folder: Path, dtype: str) -> Callable[[dict], dict]:
    network = dreamda.TextEncoder.load(folder, dtype=dtype, threads=THREADS)
    return lambda given: dict(
        zip(("hidden", "penultimate", "text_embeds"),
            (network.encode_tokens(given["tokens"]), *network.encode_for_xl(given["tokens"]))))


def main(work: Path, names: list[str]) -> None:
    for name in names:
        case, folder = CASES[name], work / name
        print(f"dreamda {dreamda.__version__}: {name}", flush=True)
        results = {}
        for dtype in dtypes():
            kinds = {"unet": unet, "pixel_unet": unet, "vae": vae, "tiny_vae": tiny_vae, "clip": clip,
                     "clip_projection": clip_projection}
            run = kinds[case["family"]](folder / "model", dtype)
            first, second, again = (run(inputs(case, turn)) for turn in (0, 1, 0))
            for turn, outputs in enumerate((first, second)):
                results |= {f"{dtype}.{turn}.{key}": value for key, value in outputs.items()}
            results |= {f"{dtype}.again.{key}": value for key, value in again.items()}
        np.savez(folder / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
