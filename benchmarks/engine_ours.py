"""compare.py's worker for dreamda-c. Runs in an environment where the package is installed."""

import numpy as np
from worker import serve


def load(job):
    import dreamda

    label = f"dreamda-c {dreamda.__version__}, oneDNN {dreamda.info()['onednn_version']} {dreamda.info()['onednn_isa']}"
    rng = np.random.default_rng(0)
    if job["task"] == "unet":
        unet = dreamda.UNet.load(f"{job['model']}/unet", job["dtype"], job["threads"])
        sample = rng.standard_normal((job["rows"], 4, 64, 64), dtype=np.float32)
        context = rng.standard_normal((job["rows"], 77, 768), dtype=np.float32)
        return lambda: unet(sample, 500, context), label
    if job["task"] == "generate":
        pipe = dreamda.Pipeline.load(job["model"], job["dtype"], job["threads"])
        images = rng.integers(0, 256, (job["images"], *pipe.size, 3), dtype=np.uint8)
        options = dict(variants=job["variants"], steps=job["steps"], strength=job["strength"], share_source=job["share_source"])
        return lambda: pipe.augment(images, ["a photo of a coat"] * len(images), **options), label
    raise ValueError(f"unknown task {job['task']!r}")


if __name__ == "__main__":
    serve(load)
