"""PyTorch's side of an LCM-LoRA: `load_lora_weights`, `fuse_lora` and diffusers' LCMScheduler, with our noise.

    TORCH_ENVIRONMENT/bin/python tests/parity/lcm_lora_reference.py WORK

Reads what lcm_lora_ours.py wrote; writes WORK/reference.npz.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from lora_cases import LCM, LCM_OPTIONS, LCM_PROMPTS, LCM_SCALE
from trajectory_reference import Side, few_steps, few_steps_cycle
from transformers.integrations import peft as integration

integration.MIN_PEFT_VERSION = "0.21.0"  # as in lora_reference.py


def main(work: Path) -> None:
    side = Side(work / "model")
    pipe = StableDiffusionPipeline(vae=None, text_encoder=None, tokenizer=None, unet=side.unet,
                                   scheduler=DDIMScheduler.from_pretrained(work / "model/scheduler"),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.load_lora_weights(work, weight_name="lora.safetensors")
    pipe.fuse_lora(lora_scale=LCM_SCALE)
    pipe.unload_lora_weights()
    with np.load(work / "noise.npz") as stored:
        noise = {kind: torch.from_numpy(stored[kind][0]) for kind in stored.files}
    z0, results = torch.from_numpy(np.load(work / "ours.npz")["z0"])[0], {}
    for name, options in LCM.items():
        o, make = {"kind": "LCMScheduler"} | LCM_OPTIONS | options, few_steps
        if o["method"] == "cycle":
            make = few_steps_cycle
        results[name] = np.stack([[
            make(side, LCMScheduler.from_config(pipe.scheduler.config), o, z0, LCM_PROMPTS[0], noise, k).numpy()
            for k in range(o["variants"])
        ]])
    np.savez(work / "reference.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
