"""What every worker of compare.py shares: one process that loads, then answers each line "run" with the seconds it
took.

    serve(load)     # load(job) -> (callable, description); `job` is the JSON of the first argument

The callable may return how many seconds of its time one step of a generation took.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def unet_inputs(job: dict) -> dict[str, np.ndarray]:
    """Inputs of the job's U-Net at the size that it was made for, 77 tokens; for SDXL also `text_embeds` and
    `time_ids`."""
    config = json.loads((Path(job["model"]) / "unet/config.json").read_text())
    rng, rows, size = np.random.default_rng(0), job["rows"], config["sample_size"]
    inputs = dict(sample=rng.standard_normal((rows, config["in_channels"], size, size), dtype=np.float32),
                  context=rng.standard_normal((rows, 77, config["cross_attention_dim"]), dtype=np.float32))
    if config.get("addition_embed_type"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["text_embeds"] = rng.standard_normal((rows, pooled), dtype=np.float32)
        inputs["time_ids"] = np.array([[8 * size, 8 * size, 0, 0, 8 * size, 8 * size]] * rows, np.float32)
    return inputs


def serve(load: Callable[[dict], tuple[Callable[[], object], str]]) -> None:
    job = json.loads(sys.argv[1])
    start = time.perf_counter()
    run, engine = load(job)
    answer(loaded_seconds=time.perf_counter() - start, engine=engine)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        start = time.perf_counter()
        step = run()
        answer(seconds=time.perf_counter() - start, step=step if isinstance(step, float) else None)
    answer(peak_rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def answer(**values: object) -> None:
    print(json.dumps(values), flush=True)
