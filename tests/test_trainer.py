"""The trainer against finite differences and NumPy; against PyTorch in tests/parity/train_parity.py."""

import gc
import threading

import numpy as np
import pytest

from dreamda import _core
from dreamda.networks.models import resolve_dtype

MOMENTUM = 0.1
BATCH = 8
EPS = 1e-5
NEEDS_BF16 = pytest.mark.skipif(resolve_dtype("auto") != "bf16", reason="this processor has no bfloat16 instructions")
BF16 = pytest.param("bf16", marks=NEEDS_BF16)
F32 = 1e-4  # batch norm over the eight values that the last level has here multiplies f32's rounding


# Weights as in tests/parity/train_reference.py: small residual branches, and norms that shift by about +-2, so that few
# values lie where f32's rounding decides what ReLU lets pass.
def make(backbone="resnet18",
         stem="small",
         width=8,
         batch=BATCH,
         size=8,
         dtype="f32",
         slots=1,
         threads=2,
         seed=0,
         in_channels=3):
    config = dict(backbone=backbone, stem=stem, in_channels=in_channels, width=width)
    t = _core.Trainer(config, batch=batch, height=size, width=size, dtype=dtype, threads=threads, slots=slots)
    rng = np.random.default_rng(seed)
    for name, view in sorted(t.parameters.items()):
        if view.ndim == 4:
            view[...] = rng.standard_normal(view.shape) * np.sqrt(2 / np.prod(view.shape[1:]))
        elif name.endswith("weight"):
            last = "bn3" in name or ("bn2" in name and backbone != "resnet50")
            view[...] = rng.uniform(0.1, 0.3, view.shape) if last else rng.uniform(0.5, 1.5, view.shape)
        else:
            view[...] = rng.choice([-2, 2], view.shape, p=[0.3, 0.7]) + rng.normal(0, 0.1, view.shape)
    return t


def images(t, seed=1, batch=BATCH, size=8, channels=3):
    return np.random.default_rng(seed).standard_normal((batch, channels, size, size), dtype=np.float32)


# ---- a reference in f64 NumPy


def conv(x, w, stride, pad):
    kernel = w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)


def max_pool(x):
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((4, 5))


class Reference:
    """ResNet in f64; `training` decides where batch norm's statistics come from."""

    def __init__(self, t, stem="small"):
        self.p = {k: v.astype(np.float64) for k, v in t.parameters.items()}
        self.running = {k: v.astype(np.float64) for k, v in t.buffers.items()}
        self.stem = stem

    def norm(self, x, name, training):
        mean, variance = self.running[f"{name}.running_mean"], self.running[f"{name}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            count = x.size // x.shape[1]
            for key, new in (("mean", mean), ("var", variance * count / (count - 1))):
                self.running[f"{name}.running_{key}"] = (
                    1 - MOMENTUM) * self.running[f"{name}.running_{key}"] + MOMENTUM * new
        scale = self.p[f"{name}.weight"] / np.sqrt(variance + EPS)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.p[f"{name}.bias"][:, None, None]

    def __call__(self, x, training=True):
        relu = lambda v: np.maximum(v, 0)  # noqa: E731
        x = x.astype(np.float64)
        x = conv(x, self.p["conv1.weight"], 1, 1) if self.stem == "small" else conv(x, self.p["conv1.weight"], 2, 3)
        x = relu(self.norm(x, "bn1", training))
        x = x if self.stem == "small" else max_pool(x)
        prefixes = sorted({".".join(k.split(".")[:2])
                           for k in self.p if k.startswith("layer")},
                          key=lambda k: (k[:6], int(k[7:])))
        for prefix in prefixes:
            stride = 2 if prefix.endswith(".0") and not prefix.startswith("layer1") else 1
            convs = [i for i in (1, 2, 3) if f"{prefix}.conv{i}.weight" in self.p]
            y = x
            for i in convs:
                w = self.p[f"{prefix}.conv{i}.weight"]
                strided = i == (2 if len(convs) == 3 else 1)
                y = self.norm(conv(y, w, stride if strided else 1, w.shape[2] // 2), f"{prefix}.bn{i}", training)
                y = relu(y) if i != convs[-1] else y
            if f"{prefix}.downsample.0.weight" in self.p:
                x = self.norm(conv(x, self.p[f"{prefix}.downsample.0.weight"], stride, 0), f"{prefix}.downsample.1",
                              training)
            x = relu(x + y)
        return x.mean((2, 3))


def close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    distance = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
    assert distance <= tolerance, distance


NETWORKS = [("resnet18", "small", 8), ("resnet34", "small", 8), ("resnet50", "small", 8), ("resnet18", "imagenet", 32),
            ("resnet50", "imagenet", 32)]


@pytest.mark.parametrize("backbone,stem,size", NETWORKS)
def test_forward_and_running_statistics(backbone, stem, size):
    t = make(backbone, stem, size=size, width=6)  # 6: no whole vectors
    reference = Reference(t, stem)
    for seed in (1, 2):  # the second pass starts from what the first left
        x = images(t, seed, size=size)
        close(t.forward(x), reference(x), F32)
        for name, view in t.buffers.items():
            close(view, reference.running[name], 1e-5)


@pytest.mark.parametrize("backbone,stem,size", NETWORKS)
def test_evaluation_uses_the_running_statistics(backbone, stem, size):
    t = make(backbone, stem, size=size)
    for seed in range(5):
        t.forward(images(t, seed, size=size))
    x = images(t, 9, size=size)
    expected = Reference(t, stem)(x, training=False)
    close(t.evaluate(x), expected, F32)
    close(t.evaluate(x[:1]), expected[:1], F32)
    close(t.evaluate(x[1:3]), expected[1:3], F32)
    t.parameters["bn1.bias"][...] += 0.5  # a view, written between calls
    close(t.evaluate(x), Reference(t, stem)(x, training=False), F32)
    t.buffers["bn1.running_var"][...] *= 2
    close(t.evaluate(x), Reference(t, stem)(x, training=False), F32)


def kinds_of_parameters(t):
    """One parameter of every kind of operation: stem, 3 x 3 with and without stride, 1 x 1 projection, norms with and
    without residual."""
    wanted = [
        "conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn2.weight",
        "layer1.0.bn2.bias", "layer1.1.conv2.weight", "layer2.0.conv1.weight", "layer2.0.conv2.weight",
        "layer2.0.conv3.weight", "layer2.0.bn3.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight",
        "layer2.0.downsample.1.bias", "layer3.0.conv1.weight", "layer4.1.conv2.weight", "layer4.1.bn2.weight"
    ]
    return [name for name in wanted if name in t.parameters]


def check_gradient(t, stem, x, d_features, name, rng, bar):
    """A parameter's gradient along a random direction, against central differences of the f64 reference."""
    direction, values = rng.standard_normal(t.parameters[name].shape), []
    for sign in (1, -1):
        moved = Reference(t, stem)
        moved.p[name] = moved.p[name] + sign * 1e-6 * direction
        values.append((moved(x) * d_features).sum())
    expected, got = (values[0] - values[1]) / 2e-6, (t.gradients[name].astype(np.float64) * direction).sum()
    scale = np.linalg.norm(t.gradients[name]) * np.linalg.norm(direction) / np.sqrt(direction.size)
    assert abs(got - expected) <= bar * max(abs(expected), scale), (name, got, expected)


@pytest.mark.parametrize("backbone,stem,size", NETWORKS)
def test_gradients_are_finite_differences(backbone, stem, size):
    """Along a random direction of each parameter, against central differences of the f64 reference (1e-6 wide: f64
    leaves 1e-9)."""
    t = make(backbone, stem, size=size)
    x, rng = images(t, size=size), np.random.default_rng(3)
    d_features = rng.standard_normal(t.forward(x).shape).astype(np.float32)
    t.zero_grad()
    t.backward(d_features)
    for name in kinds_of_parameters(t):
        # 3e-4: f32's rounding in front of 50 layers, and of a ReLU here and there, comes to 2e-4 with either
        # instruction set.
        check_gradient(t, stem, x, d_features, name, rng, 3e-4)


def test_winograd_convolutions():
    """Batches of this size take Winograd's convolution in layers 1 to 3, forward, backward and in evaluation; the bars
    are the others'."""
    t = make(width=32, size=32)
    x, rng = images(t, size=32), np.random.default_rng(5)
    reference = Reference(t)
    features = t.forward(x)
    assert sum(row["implementation"] == "dreamda:winograd" and row["phase"] == "forward" for row in t.profile()) == 10
    close(features, reference(x), F32)
    d_features = rng.standard_normal(features.shape).astype(np.float32)
    t.backward(d_features)
    for name in ("bn1.bias", "layer1.0.conv2.weight", "layer3.1.conv1.weight"):
        check_gradient(t, "small", x, d_features, name, rng, 2e-4)
    t.parameters["layer1.0.conv1.weight"][...] *= 0.5  # packed anew
    close(t.evaluate(x[:3]), Reference(t)(x[:3], training=False), F32)
    close(t.forward(x), Reference(t)(x), F32)


@pytest.mark.parametrize("hold", [
    lambda views: views, lambda views: views["layer1.0.conv1.weight"],
    lambda views: views["layer1.0.conv1.weight"][1:].reshape(-1),
    lambda views: memoryview(views["layer1.0.conv1.weight"])
],
                         ids=["all", "one", "a part of one", "a memoryview"])
def test_writes_through_a_view_are_seen_at_any_time(hold):
    t, name = make(), "layer1.0.conv1.weight"
    x, held = images(t), hold(t.parameters)
    for scale in (1, 0.5, 3):
        written = np.asarray(held[name] if isinstance(held, dict) else held)
        assert written.base is not None
        written *= np.float32(scale)
        close(t.forward(x), Reference(t)(x), F32)
        close(t.evaluate(x[:3]), Reference(t)(x[:3], training=False), F32)
        t.parameters["conv1.weight"][...] *= np.float32(1.5)  # a view of its own that is gone when the pass begins
        t.buffers["bn1.running_mean"][...] += np.float32(0.1)
        close(t.evaluate(x[:3]), Reference(t)(x[:3], training=False), F32)
        close(t.forward(x), Reference(t)(x), F32)


def test_a_write_after_a_pass_through_a_view_that_is_gone_is_seen():
    t = make()
    x, parameters, buffers = images(t), t.parameters, t.buffers
    t.forward(x), t.evaluate(x[:3])
    parameters["conv1.weight"][...] *= np.float32(1.5)
    del parameters
    close(t.forward(x), Reference(t)(x), F32)
    buffers["bn1.running_mean"][...] += np.float32(0.1)
    del buffers
    close(t.evaluate(x[:3]), Reference(t)(x[:3], training=False), F32)


def test_weights_are_packed_once_unless_somebody_may_have_written():
    t = make()
    x, phases = images(t), lambda: {row["phase"] for row in t.profile()}
    t.forward(x), t.evaluate(x[:3])
    assert {"pack", "fold"} <= phases()
    t.evaluate(x[:3])
    assert not {"pack", "fold"} & phases()
    t.forward(x)
    assert "pack" not in phases()
    t.evaluate(x[:3])  # forward has moved the running statistics
    assert "fold" in phases()
    view = t.parameters["conv1.weight"]
    t.forward(x)
    assert "pack" in phases()
    del view
    t.forward(x)
    t.profile()
    t.forward(x)
    assert "pack" not in phases()
    t.zero_grad()
    t.backward(np.ones((BATCH, t.features), np.float32))
    t.step(0.1, 0.9, 0.0)
    t.forward(x), t.evaluate(x[:3])
    assert {"pack", "fold"} <= phases()
    view = t.buffers["bn1.running_var"]  # only evaluation reads the running statistics
    t.forward(x), t.evaluate(x[:3])
    assert {"pack", "fold"} & phases() == {"fold"}
    del view
    t.forward(x), t.evaluate(x[:3])
    assert {"pack", "fold"} & phases() == {"fold"}
    t.evaluate(x[:3])
    assert not {"pack", "fold"} & phases()
    close(t.evaluate(x[:3]), Reference(t)(x[:3], training=False), F32)


def test_views_keep_the_trainer_alive():
    t = make()
    views = t.parameters
    expected = views["conv1.weight"].copy()
    del t
    gc.collect()
    assert np.array_equal(views["conv1.weight"], expected)
    views["conv1.weight"][...] = 1


def test_windows_on_few_positions():
    """At 32 pixels the ImageNet stem leaves 1 x 1 positions to layer4: its windows are cropped, and weight gradients
    are our own."""
    t = make(stem="imagenet", width=32, size=32)
    x, rng = images(t, size=32), np.random.default_rng(6)
    reference = Reference(t, "imagenet")
    features = t.forward(x)
    close(features, reference(x), F32)
    d_features = rng.standard_normal(features.shape).astype(np.float32)
    t.backward(d_features)
    ours = {row["name"] for row in t.profile() if row["implementation"] == "dreamda:weight_gradient" and row["ms"] > 0}
    assert {"layer3.0.conv1", "layer3.1.conv2", "layer4.0.conv1", "layer4.0.downsample.0", "layer4.1.conv2"} <= ours
    for name in ("layer3.0.conv1.weight", "layer3.1.conv2.weight", "layer4.0.conv1.weight",
                 "layer4.0.downsample.0.weight", "layer4.1.conv2.weight"):
        check_gradient(t, "imagenet", x, d_features, name, rng, 2e-4)
    unseen = t.gradients["layer4.1.conv2.weight"].copy()
    unseen[:, :, 1, 1] = 0
    assert not unseen.any()  # the other places see the border only
    close(t.evaluate(x[:3]), Reference(t, "imagenet")(x[:3], training=False), F32)


def test_the_whole_gradient_by_differences_of_the_trainer_itself():
    """All parameters moved at once: what the engine computes forward agrees with what it computes backward."""
    t = make(width=16)
    x, rng = images(t), np.random.default_rng(4)
    d_features = rng.standard_normal(t.forward(x).shape).astype(np.float32)
    t.zero_grad()
    t.backward(d_features)
    start = {k: v.copy() for k, v in t.parameters.items()}
    direction = {k: v / np.float32(t.gradient_norm()) for k, v in t.gradients.items()}
    values = []
    for sign in (1, -1):
        for k, v in t.parameters.items():
            v[...] = start[k] + np.float32(sign * 1e-3) * direction[k]
        values.append((t.forward(x).astype(np.float64) * d_features).sum())
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(t.gradient_norm(), rel=2e-2)


def test_gradients_accumulate():
    t = make()
    x = images(t)
    d = np.ones((BATCH, t.features), np.float32)
    t.forward(x)
    t.backward(d)
    once = {k: v.copy() for k, v in t.gradients.items()}
    t.forward(x)
    t.backward(d)
    for k, v in t.gradients.items():
        close(v, 2 * once[k], 1e-6)
    t.zero_grad()
    assert all((v == 0).all() for v in t.gradients.values())
    assert t.gradient_norm() == 0


@NEEDS_BF16
def test_bf16_stays_near_f32():
    """Features within bf16's rounding through 20 layers; gradients point the same way."""
    a, b = make(width=16, size=16), make(width=16, size=16, dtype="bf16")
    x = images(a, size=16)
    close(b.forward(x), a.forward(x), 2e-2)
    d = np.random.default_rng(5).standard_normal((BATCH, a.features)).astype(np.float32)
    a.backward(d)
    b.backward(d)
    ours, theirs = (np.concatenate([v.ravel() for v in t.gradients.values()]).astype(np.float64) for t in (b, a))
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.97
    for name in a.buffers:
        close(b.buffers[name], a.buffers[name], 2e-2)
    close(b.evaluate(x), a.evaluate(x), 3e-2)


@pytest.mark.parametrize("dtype", ["f32", BF16])
def test_slots_do_not_disturb_each_other(dtype):
    """Two views alive at once give the gradients that each gives alone."""
    d = np.random.default_rng(6).standard_normal((2, BATCH, make().features)).astype(np.float32)
    alone = []
    for i in range(2):
        t = make(dtype=dtype)
        t.forward(images(t, i))
        t.backward(d[i])
        alone.append({k: v.copy() for k, v in t.gradients.items()})
    t = make(dtype=dtype, slots=2)
    for i in range(2):
        t.forward(images(t, i), slot=i)
    t.evaluate(images(t, 7))  # nor does evaluation
    t.backward(d[0], slot=0)
    assert all((v == alone[0][k]).all() for k, v in t.gradients.items())
    t.zero_grad()
    t.backward(d[1], slot=1)
    assert all((v == alone[1][k]).all() for k, v in t.gradients.items())


@pytest.mark.parametrize("nesterov,clip_norm,weight_decay", [(True, 0, 1e-2), (False, 0, 0), (True, 0.5, 1e-2)])
def test_step_is_sgd(nesterov, clip_norm, weight_decay):
    t = make()
    x, rng = images(t), np.random.default_rng(8)
    values = {k: v.astype(np.float64) for k, v in t.parameters.items()}
    moments = {k: np.zeros(v.shape) for k, v in t.parameters.items()}
    for lr in (0.1, 0.05, 0.02):
        t.zero_grad()
        t.forward(x)
        t.backward(rng.standard_normal((BATCH, t.features)).astype(np.float32))
        norm = np.sqrt(sum((v.astype(np.float64) ** 2).sum() for v in t.gradients.values()))
        assert t.gradient_norm() == pytest.approx(norm, rel=1e-6)
        scale = min(1, clip_norm / (norm + 1e-6)) if clip_norm else 1
        for k, g in t.gradients.items():
            g = g * scale + (weight_decay * values[k] if g.ndim > 1 else 0)
            moments[k] = 0.9 * moments[k] + g
            values[k] -= lr * (g + 0.9 * moments[k] if nesterov else moments[k])
        t.step(lr, 0.9, weight_decay, nesterov=nesterov, clip_norm=clip_norm)
        for k, v in t.parameters.items():
            close(v, values[k], 1e-6)
            close(t.moments[k], moments[k], 1e-5)


@pytest.mark.parametrize("dtype", ["f32", BF16])
def test_two_runs_give_the_same_bits(dtype):
    def run():
        t = make(dtype=dtype, width=16)
        rng = np.random.default_rng(9)
        for step in range(3):
            t.zero_grad()
            t.forward(images(t, step))
            t.backward(rng.standard_normal((BATCH, t.features)).astype(np.float32))
            t.step(0.05, 0.9, 1e-4, clip_norm=1.0)
        return np.concatenate([
            v.ravel() for v in (*t.parameters.values(), *t.moments.values(), *t.buffers.values(), t.evaluate(images(t)))
        ])

    assert (run().view(np.uint32) == run().view(np.uint32)).all()


@pytest.mark.skipif(_core.info()["kernels_isa"] != "amx", reason="needs AMX; elsewhere some gradients are oneDNN's")
@pytest.mark.parametrize(("stem", "batch", "size"), [("small", 8, 8), ("imagenet", 3, 64)])
def test_gradients_on_tiles_do_not_depend_on_the_threads(stem, batch, size):
    """All weight gradients are our own, and their sums are cut by the shape alone."""
    results = []
    for threads in (1, 2):
        t = make(stem=stem, dtype="bf16", width=16, batch=batch, size=size, threads=threads)
        features = t.forward(images(t, batch=batch, size=size))
        t.backward(np.random.default_rng(9).standard_normal((batch, t.features)).astype(np.float32))
        used = {row["implementation"] for row in t.profile() if row["phase"] == "weights"}
        assert used == {"dreamda:weight_gradient"}
        results.append([features, *t.gradients.values()])
    assert all(np.array_equal(one, two) for one, two in zip(*results, strict=True))


def test_learns():
    """Twenty steps on eight images bring the loss near zero."""
    t = make(width=16, batch=8, size=16)
    x = images(t, batch=8, size=16)
    target = np.random.default_rng(10).standard_normal((8, t.features)).astype(np.float32).clip(0)
    losses = []
    for _ in range(20):
        t.zero_grad()
        error = t.forward(x) - target
        losses.append(float((error**2).mean()))
        t.backward(2 * error / error.size)
        t.step(2.0, 0.9, 0.0)
    assert losses[-1] < 0.2 * losses[0]


def test_views_outlive_nothing_and_keep_the_trainer():
    t = make()
    view = t.parameters["conv1.weight"]
    value = view[0, 0, 0, 0]
    del t
    assert view[0, 0, 0, 0] == value
    before = _core.info()["live_bytes"]
    del view
    assert _core.info()["live_bytes"] < before


def test_names_are_torchvisions():
    t = make("resnet50", "imagenet", size=32)
    assert t.parameters["layer1.0.downsample.0.weight"].shape == (32, 8, 1, 1)
    assert t.parameters["layer4.2.conv3.weight"].shape == (256, 64, 1, 1)
    assert len(t.parameters) == 53 * 3 and len(t.buffers) == 53 * 2
    assert (t.buffers["layer2.0.downsample.1.running_var"] == 1).all()
    assert t.features == 256


def test_threads_of_python_wait_for_each_other():
    t, results = make(), []
    x = images(t)
    expected = t.evaluate(x)
    threads = [threading.Thread(target=lambda: results.append((t.evaluate(x) == expected).all())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_bad_input():
    config = dict(backbone="resnet18", stem="small", in_channels=3, width=8)
    shape = dict(batch=4, height=8, width=8, dtype="f32", threads=2)
    for change, text in [(dict(backbone="vgg"), "'vgg' is unknown: use resnet18"),
                         (dict(stem="large"), "use imagenet or small"), (dict(width=0), "'width' has to be"),
                         (dict(in_channels="3"), "'in_channels' has to be")]:
        with pytest.raises(ValueError, match=text):
            _core.Trainer(config | change, **shape)
    for change, text in [(dict(height=7), "too small: the small stem needs 8 x 8"),
                         (dict(dtype="f16"), "use f32 or bf16"), (dict(slots=5), "1 to 4 slots"),
                         (dict(threads=0), "threads"), (dict(batch=0), "batch of 0"),
                         (dict(batch=1), "more than one value a channel")]:
        with pytest.raises(ValueError, match=text):
            _core.Trainer(config, **(shape | change))
    with pytest.raises(ValueError, match="needs 32 x 32"):
        _core.Trainer(config | dict(stem="imagenet"), **shape)
    t = make()
    x, d = images(t), np.zeros((BATCH, t.features), np.float32)
    with pytest.raises(ValueError, match="no forward pass"):
        t.backward(d)
    t.forward(x)
    t.backward(d)
    with pytest.raises(ValueError, match="no forward pass"):
        t.backward(d)
    t.forward(x)
    t.step(0.1, 0.9, 0)
    with pytest.raises(ValueError, match="since the last step"):
        t.backward(d)
    with pytest.raises(ValueError, match="slots 0 to 0"):
        t.forward(x, slot=1)
    with pytest.raises(ValueError, match="expected an array of shape"):
        t.forward(x[:2])
    with pytest.raises(ValueError, match="9 given"):
        t.evaluate(np.concatenate([x, x[:1]]))
    with pytest.raises(ValueError, match="d_features"):
        t.backward(d[:, :2])
    with pytest.raises(ValueError, match="momentum from 0"):
        t.step(0.1, 1.5, 0)


def test_every_failed_allocation_is_a_memory_error():
    live = _core.info()["live_bytes"]
    try:
        for n in range(100000):
            _core._alloc_fail_after(n)
            try:
                t = make()
            except MemoryError:
                assert _core.info()["live_bytes"] == live
                n += 1
                continue
            break
        else:
            pytest.fail("never succeeds")
    finally:
        _core._alloc_fail_after(-1)
    assert n > 20
    t.forward(images(t))
