"""Our side of weighted prompts: `TextEncoder.embed` of the bundled model.

    python tests/parity/prompt_ours.py WORK
"""
import sys
from pathlib import Path

import numpy as np
from prompt_cases import PROMPTS

from dreamda import TextEncoder
from dreamda.networks.hub import BUNDLED

work = Path(sys.argv[1])
work.mkdir(parents=True, exist_ok=True)
encoder = TextEncoder.load(BUNDLED / "fashion-mini" / "text_encoder", dtype="f32", threads=2)
np.savez(work / "ours.npz", **{name: encoder.embed(prompt) for name, prompt in PROMPTS.items()})
