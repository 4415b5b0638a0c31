"""Our side of LoRA: the networks that lora_reference.py saved, with its files.

    python tests/parity/lora_ours.py WORK

WORK/ours.npz holds what WORK/reference.npz does.
"""

import sys
from pathlib import Path

import numpy as np
from lora_cases import LORAS, inputs

import dreamda


def main(work: Path) -> None:
    x, results = inputs(), {}
    for name, files in {"none": [], **LORAS}.items():
        loras = [(work / f"{file}.safetensors", scale) for file, scale in files]
        unet = dreamda.UNet.load(work / "unet", "f32", loras=loras)
        text = dreamda.TextEncoder.load(work / "text_encoder", dtype="f32", loras=loras)
        results |= {
            f"{name}.sample": unet(x["sample"], x["timestep"], x["context"]),
            f"{name}.hidden": text.encode_tokens(x["tokens"])
        }
    np.savez(work / "ours.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
