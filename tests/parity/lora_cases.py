"""The LoRA files that both sides load, and the inputs of the networks. NumPy and the standard library only."""

import re

import numpy as np

# name -> files of lora_reference.py and their scales
LORAS: dict[str, list[tuple[str, float]]] = {
    "peft": [("peft", 0.7)],
    "metadata": [("metadata", 1.0)],
    "diffusers": [("diffusers", 1.0)],
    "kohya": [("kohya", 0.5)],
    "kohya-alpha": [("kohya-alpha", -0.8)],
    "locon": [("locon", 1.3)],
    "ranks": [("ranks", 1.0)],
    "two": [("peft", 0.5), ("kohya-alpha", 0.9)],
}

# An LCM-LoRA on an ordinary model, with the LCM's sampler: lcm_lora_ours.py. The layers are those of
# latent-consistency/lcm-lora-sdv1-5.
LCM_LAYERS = re.compile(r"(?:to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut|"
                        r"time_emb_proj|samplers\.0\.conv)\.weight$")
LCM_SCALE = 0.9
LCM_PROMPTS = ["a photo of an ankle boot"]
LCM_OPTIONS = dict(steps=4, strength=0.8, seed=31, variants=2, eta=1.0, share_start=True, source_prompt="")
LCM: dict[str, dict] = {
    "sdedit": dict(method="sdedit", guidance_scale=1.0, noise_scale=0.0),
    "sdedit-guided": dict(method="sdedit", guidance_scale=1.5, noise_scale=3.0),
    "cycle": dict(method="cycle", guidance_scale=2.0, noise_scale=3.0),
}


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(7)
    return dict(sample=rng.standard_normal((2, 4, 16, 16)).astype(np.float32),
                timestep=np.array([40, 900], np.float32),
                context=rng.standard_normal((2, 9, 48)).astype(np.float32),
                tokens=rng.randint(0, 1000, (2, 20)).astype(np.int32))
