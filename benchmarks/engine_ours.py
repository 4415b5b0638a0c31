"""compare.py's worker for dreamda-c. Runs in an environment where the package is installed."""

import statistics
import time
from collections import defaultdict

import numpy as np
from worker import serve, unet_inputs


def load(job):
    import dreamda

    label = f"dreamda-c {dreamda.__version__}, oneDNN {dreamda.info()['onednn_version']} {dreamda.info()['onednn_isa']}"
    rng = np.random.default_rng(0)
    if job["task"] == "unet":
        unet = dreamda.UNet.load(f"{job['model']}/unet", job["dtype"], job["threads"])
        inputs = unet_inputs(job)
        return lambda: unet(timestep=500, **inputs), label
    if job["task"] == "vae":
        vae = dreamda.VAE.load(f"{job['model']}/vae", job["dtype"], job["threads"])
        if job["direction"] == "decode":
            z = rng.standard_normal((1, 4, 64, 64), dtype=np.float32)
            return lambda: vae.decode(z), label
        x = rng.standard_normal((1, 3, 512, 512), dtype=np.float32)
        return lambda: vae.encode(x, None), label
    if job["task"] == "attention":
        from dreamda import _selftest

        q, k, v = (rng.standard_normal((job["rows"], job["tokens"], job["heads"] * job["width"]), dtype=np.float32)
                   for _ in range(3))
        if job["dtype"] == "bf16":
            q, k, v = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (q, k, v))
        scale = job["width"] ** -0.5
        return lambda: _selftest.attention(q, k, v, job["heads"], scale, False, _selftest.best_isa(), job["threads"]
                                           ), label
    if job["task"] == "generate":
        size = (job["size"], job["size"]) if job.get("size") else None
        pipe = dreamda.Pipeline.load(job["model"], job["dtype"], job["threads"], size, job.get("vae"))
        images = rng.integers(0, 256, (job["images"], *pipe.size, 3), dtype=np.uint8)
        names = ("variants", "steps", "strength", "share_source", "method", "keep")
        options = {name: job[name] for name in names if name in job}
        if "keep" in job:
            y, x = np.ogrid[-1 : 1 : pipe.size[0] * 1j, -1 : 1 : pipe.size[1] * 1j]
            options["masks"] = [y * y + x * x < 0.25] * len(images)

        calls = timed_calls(pipe.unet) if job.get("time_steps") else {}

        def generate():
            calls.clear()
            pipe.augment(images, ["a photo of a coat"] * len(images), **options)
            steps = int(job["steps"] * job["strength"])
            return sum(len(some) * statistics.median(some) for some in calls.values()) / steps if calls else None

        return generate, label
    raise ValueError(f"unknown task {job['task']!r}")


def timed_calls(unet):
    """Have the network's calls timed from now on: their seconds, by the number of rows. Making a plan is no part of a
    call."""
    calls, make = defaultdict(list), unet.plan

    class Timed:
        def __init__(self, plan, rows):
            self.plan, self.rows = plan, rows

        def run(self, inputs):
            begun = time.perf_counter()
            outputs = self.plan.run(inputs)
            calls[self.rows].append(time.perf_counter() - begun)
            return outputs

    unet.plan = lambda lane, **shape: Timed(make(lane, **shape), shape["rows"])
    return calls


if __name__ == "__main__":
    serve(load)
