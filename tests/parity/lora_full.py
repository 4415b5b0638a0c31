"""LoRA at the size of Stable Diffusion 1.5: the U-Net against diffusers' `fuse_lora`, and the memory of merging.

    TORCH_ENVIRONMENT/bin/python tests/parity/lora_full.py make WORK
    python tests/parity/lora_full.py run WORK
    python tests/parity/lora_full.py run WORK plain
    python tests/parity/lora_full.py compare WORK

By hand, as it takes minutes and 8 GB. `make` writes WORK/unet (860 M random parameters in float16), a LoRA for all the
layers that LCM-LoRA has (rank 64, kohya's keys), and the output of the merged network. `run` writes ours and the peak
memory of its process; with `plain`, those without the LoRA.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from lora_cases import LCM_LAYERS

RANK, SCALE = 64, 0.8


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(9)
    return dict(sample=rng.standard_normal((1, 4, 32, 32)).astype(np.float32),
                timestep=np.array([499], np.float32),
                context=rng.standard_normal((1, 77, 768)).astype(np.float32))


def make(work: Path) -> None:
    import torch
    from cases import CASES
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers.integrations import peft as integration

    integration.MIN_PEFT_VERSION = "0.21.0"  # as in lora_reference.py
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    unet = UNet2DConditionModel(**CASES["sd15"]["config"]).half().eval()
    unet.save_pretrained(work / "unet")
    lora = {}
    for name, module in unet.named_modules():
        if not LCM_LAYERS.search(f"{name}.weight"):
            continue
        out, *rest = module.weight.shape
        window = rest[1:]
        key = "lora_unet_" + name.replace(".", "_")
        lora[f"{key}.lora_down.weight"] = (torch.randn(RANK, *rest) / np.prod(rest) ** 0.5).half()
        lora[f"{key}.lora_up.weight"] = (0.2 * torch.randn(out, RANK, *[1] * len(window)) / RANK**0.5).half()
        lora[f"{key}.alpha"] = torch.tensor(float(RANK))
    save_file(lora, work / "lora.safetensors")
    x = {name: torch.from_numpy(array) for name, array in inputs().items()}
    unet = unet.float()
    results = {"plain": unet(x["sample"], x["timestep"], x["context"]).sample.numpy()}
    pipe = StableDiffusionPipeline(vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.load_lora_weights(work, weight_name="lora.safetensors")
    pipe.fuse_lora(lora_scale=SCALE)
    pipe.unload_lora_weights()
    results["lora"] = unet(x["sample"], x["timestep"], x["context"]).sample.numpy()
    np.savez(work / "reference.npz", **results)
    print(f"{len(lora) // 3} layers")


def run(work: Path, plain: bool) -> None:
    import dreamda

    begun, name = time.monotonic(), "plain" if plain else "lora"
    unet = dreamda.UNet.load(work / "unet", "f32", 2, loras=[] if plain else [(work / "lora.safetensors", SCALE)])
    x = inputs()
    out = unet(x["sample"], x["timestep"], x["context"])
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
    np.savez(work / f"{name}.npz", out=out)
    (work / f"{name}.json").write_text(json.dumps({"gib": peak, "seconds": time.monotonic() - begun}))
    print(f"{name}: {peak:.2f} GiB at the peak, {time.monotonic() - begun:.0f} s")


def compare(work: Path) -> int:
    reference, failed = np.load(work / "reference.npz"), 0
    for name in ("plain", "lora"):
        ours, expected = np.load(work / f"{name}.npz")["out"], reference[name].astype(np.float64)
        error = float(np.sum((ours - expected) ** 2) / np.sum(expected**2))
        failed += error > 1e-9
        print(f"{name}: NMSE {error:.1e}, {json.loads((work / f'{name}.json').read_text())['gib']:.2f} GiB")
    changed = float(np.sum((reference["lora"] - reference["plain"]) ** 2) / np.sum(reference["plain"] ** 2))
    print(f"the LoRA changes the output by {changed:.1e}")
    return 1 if failed else 0


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if command == "make":
        make(folder)
    elif command == "run":
        run(folder, "plain" in sys.argv[3:])
    else:
        sys.exit(compare(folder))
