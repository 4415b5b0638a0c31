"""The C trainer against PyTorch, by parameter name (see train_reference.py, which writes the files read here).

    python tests/parity/train_parity.py WORK

Exits 1 unless, in f32, loss and every gradient agree to a relative error of 1e-4, the ten following losses to 1e-4,
running statistics to 1e-5 and evaluation to 1e-4; and in bf16 the C trainer's gradients are not farther from those of
f64 than 1.25 times the distance of PyTorch's autocast.
"""

import sys
from pathlib import Path

import numpy as np
from ours import dtypes

from dreamda import _core

STEP = dict(lr=0.002, momentum=0.9, weight_decay=1e-4, nesterov=True)


def error(got, expected):
    return float(
        np.linalg.norm((got - expected).astype(np.float64)) / max(np.linalg.norm(expected.astype(np.float64)), 1e-30))


def cross_entropy(features, head, labels):
    """Mean loss and its gradient for the features, in f64."""
    logits = features.astype(np.float64) @ head.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, (p @ head.astype(np.float64).T / len(labels)).astype(np.float32)


def compare(path: Path) -> bool:
    case = dict(np.load(path))
    name, stem, _, dtype = path.stem.split("-")
    if dtype not in dtypes():
        print(f"{path.stem}: skipped, this processor has no bfloat16 instructions")
        return True
    images, labels, head = case["images"], case["labels"], case["head"]
    config = dict(backbone=f"resnet{name[1:]}", stem=stem, in_channels=3, width=64)
    t = _core.Trainer(config, batch=len(images), height=images.shape[2], width=images.shape[3], dtype=dtype, threads=2)
    for views in (t.parameters, t.buffers):
        for key, view in views.items():
            view[...] = case[f"initial/{key}"]
    assert {f"initial/{k}" for k in (*t.parameters, *t.buffers)} == {k for k in case if k.startswith("initial/")}
    features = t.forward(images)
    loss, d_features = cross_entropy(features, head, labels)
    t.backward(d_features)
    gradients = {k: v.copy() for k, v in t.gradients.items()}
    running = max(error(v, case[f"running/{k}"]) for k, v in t.buffers.items())
    evaluated = error(t.evaluate(images), case["evaluated"])
    losses = []
    for _ in range(10):
        losses.append(loss)
        t.step(**STEP)
        t.zero_grad()
        loss, d_features = cross_entropy(t.forward(images), head, labels)
        t.backward(d_features)
    losses = np.array([*losses, loss])
    drift = np.abs(losses - case["losses"]) / np.abs(case["losses"])
    ours = np.array([error(v, case[f"exact/{k}"]) for k, v in gradients.items()])
    theirs = np.array([error(case[f"gradient/{k}"], case[f"exact/{k}"]) for k in gradients])
    print(
        f"{path.stem}: distance of the gradients from f64, mean / median / most: ours {ours.mean():.1e} "
        f"{np.median(ours):.1e} {ours.max():.1e}, PyTorch {theirs.mean():.1e} "
        f"{np.median(theirs):.1e} {theirs.max():.1e}")
    print(f"  losses of 10 steps differ by {drift.max():.1e}, running {running:.1e}, evaluated {evaluated:.1e}")
    if dtype == "f32":
        errors = {k: error(v, case[f"gradient/{k}"]) for k, v in gradients.items()}
        worst = max(errors, key=errors.get)
        good = errors[worst] <= 1e-4 and error(
            features, case["features"]) <= 1e-4 and drift.max() <= 1e-4 and running <= 1e-5 and evaluated <= 1e-4
        print(f"  gradients differ by {errors[worst]:.1e} ({worst}) at most")
    else:
        good = ours.mean() <= 1.25 * theirs.mean() and np.median(ours) <= 1.25 * np.median(theirs)
    print("  losses", np.array2string(losses, precision=5), "\n  theirs", np.array2string(case["losses"], precision=5))
    return good


if __name__ == "__main__":
    results = [compare(path) for path in sorted(Path(sys.argv[1]).glob("r*-*.npz"))]
    sys.exit(0 if results and all(results) else 1)
