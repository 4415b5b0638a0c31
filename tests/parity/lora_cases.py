"""The LoRA files that both sides load, and the inputs of the networks. NumPy and the standard library only."""

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


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(7)
    return dict(sample=rng.standard_normal((2, 4, 16, 16)).astype(np.float32),
                timestep=np.array([40, 900], np.float32),
                context=rng.standard_normal((2, 9, 48)).astype(np.float32),
                tokens=rng.randint(0, 1000, (2, 20)).astype(np.int32))
