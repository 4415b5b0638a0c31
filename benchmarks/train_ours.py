"""compare.py's worker for training with dreamda-c: one optimiser step of a ResNet with a class head, or a labelling
pass of AMST's four heads, `steps` times a run."""

import numpy as np
from worker import serve

CLASSES = 100


def load(job):
    import dreamda
    from dreamda import _core

    shape = dict(batch=job["batch"], height=job["size"], width=job["size"], dtype=job["dtype"], threads=job["threads"])
    t = _core.Trainer(dict(backbone=f"resnet{job['depth']}", stem=job["stem"], in_channels=3, width=64), **shape)
    rng = np.random.default_rng(0)
    for view in t.parameters.values():
        if view.ndim == 4:
            view[...] = rng.standard_normal(view.shape) * np.sqrt(2 / np.prod(view.shape[1:]))
    images = rng.standard_normal((job["batch"], 3, job["size"], job["size"]), dtype=np.float32)
    labels = rng.integers(0, CLASSES, job["batch"])
    weight = rng.standard_normal((CLASSES, t.features), dtype=np.float32) / np.float32(np.sqrt(t.features))
    bias, d_bias, moment_bias = (np.zeros(CLASSES, np.float32) for _ in range(3))
    d_weight, moment_weight = np.zeros_like(weight), np.zeros_like(weight)

    name = f"dreamda-c {dreamda.__version__}, oneDNN {dreamda.info()['onednn_version']} {dreamda.info()['onednn_isa']}"
    if job.get("label"):
        heads = dreamda.AMSTHeads(t.features, CLASSES)

        def label():
            for _ in range(job["steps"]):
                heads.label(t.evaluate(images), 0.9)

        return label, name

    def step():
        t.zero_grad()
        d_weight[...] = d_bias[...] = 0
        features = t.forward(images)
        _, d_logits = _core.softmax_cross_entropy(_core.linear(features, weight, bias), labels)
        t.backward(_core.linear_backward(features, weight, d_logits, d_weight, d_bias))
        t.step(0.01, 0.9, 1e-4)
        for p, g, m in ((weight, d_weight, moment_weight), (bias, d_bias, moment_bias)):
            _core.sgd_step(p, g, m, 0.01, 0.9)

    def run():
        for _ in range(job["steps"]):
            step()

    return run, name


if __name__ == "__main__":
    serve(load)
