"""Heads, losses, pseudo-labels and SGD of the core against plain NumPy in float64, and against finite differences."""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamda import _core


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(z, labels, weights=None, smoothing=0.0):
    """(loss, gradient) in float64, from the definition with a smoothed one-hot target."""
    n, c = np.shape(z)
    target = np.full((n, c), smoothing / c)
    target[np.arange(n), labels] += 1 - smoothing
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    logp = log_softmax(z)
    return float(-(weights[:, None] * target * logp).sum() / n), weights[:, None] * (np.exp(logp) - target) / n


def numeric_gradient(f, x, eps=1e-3):
    """Central differences of the scalar f at float32 x."""
    gradient = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += eps
        low[i] -= eps
        gradient[i] = (f(high) - f(low)) / (float(high[i]) - float(low[i]))
    return gradient


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 60), st.sampled_from([0.0, 0.1, 1.0]), st.booleans(), st.integers(0, 2**31),
       st.floats(0.1, 50))
def test_cross_entropy_equals_the_definition(n, c, smoothing, weighted, seed, scale):
    rng = np.random.default_rng(seed)
    z = (scale * rng.standard_normal((n, c))).astype(np.float32)
    labels = rng.integers(0, c, n)
    weights = rng.uniform(0, 2, n).astype(np.float32) if weighted else None
    loss, gradient = _core.softmax_cross_entropy(z, labels, weights, smoothing)
    expected, expected_gradient = cross_entropy(z, labels, weights, smoothing)
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6 / n)
    np.testing.assert_allclose(_core.softmax(z), np.exp(log_softmax(z)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 10, 196, 1000, 3001])
def test_cross_entropy_of_many_classes(classes):
    rng = np.random.default_rng(classes)
    z, labels = rng.standard_normal((64, classes), dtype=np.float32), rng.integers(0, classes, 64)
    loss, gradient = _core.softmax_cross_entropy(z, labels, smoothing=0.1)
    expected, expected_gradient = cross_entropy(z, labels, smoothing=0.1)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-7)


def test_cross_entropy_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    z, labels, weights = rng.standard_normal((3, 5), dtype=np.float32), [4, 0, 2], [1.0, 0.5, 2.0]
    _, gradient = _core.softmax_cross_entropy(z, labels, weights, 0.2)
    numeric = numeric_gradient(lambda x: _core.softmax_cross_entropy(x, labels, weights, 0.2)[0], z)
    np.testing.assert_allclose(gradient, numeric, atol=2e-5)


def test_extreme_logits_stay_finite_and_nan_comes_through():
    for z in ([[1e30, -1e30, 0]], [[-3e38, -3e38, -3e38]], [[88, 89, 90]], [[1e-40, 0, -1e-40]]):
        loss, gradient = _core.softmax_cross_entropy(np.float32(z), [0])
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert _core.softmax_cross_entropy(np.float32([[1e4, 0]]), [1])[0] == pytest.approx(1e4)
    for bad in (np.nan, np.inf):
        loss, gradient = _core.softmax_cross_entropy(np.float32([[0, bad], [0, 1]]), [0, 1])
        assert np.isnan(loss) and np.isnan(gradient[0]).any() and np.isfinite(gradient[1]).all()
    # a row without weight
    loss, gradient = _core.softmax_cross_entropy(np.float32([[0, np.nan], [0, 1]]), [0, 1], [0, 1])
    assert np.isfinite(loss) and (gradient[0] == 0).all()


def test_consistency_by_its_definition_and_by_finite_differences():
    rng = np.random.default_rng(1)
    strong, weak = rng.standard_normal((2, 50, 4)).astype(np.float32) * 2
    probability = np.exp(log_softmax(weak))
    confident = probability.max(axis=1) >= 0.7
    assert 0 < confident.sum() < 50
    loss, gradient, used = _core.consistency(strong, weak, 0.7)
    expected, expected_gradient = cross_entropy(strong, probability.argmax(axis=1), confident)
    assert used == confident.sum() and loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)
    numeric = numeric_gradient(lambda x: _core.consistency(x, weak[:3], 0.7)[0], strong[:3])
    np.testing.assert_allclose(_core.consistency(strong[:3], weak[:3], 0.7)[1], numeric, atol=3e-5)


def test_consistency_rejects_ties_and_nan():
    strong = np.zeros((4, 3), np.float32)
    weak = np.float32([[5, 5, 0], [np.nan, 9, 0], [np.inf, 0, 0], [0, 9, 0]])
    loss, gradient, used = _core.consistency(strong, weak, 0.3)
    assert used == 1 and loss == pytest.approx(np.log(3) / 4) and (gradient[:3] == 0).all() and gradient[3, 1] < 0


SURE = [0.0, 9.0, 0.0]


@pytest.mark.parametrize("heads, threshold, label, confidence", [
    ([SURE] * 4, 0.9, 1, 0.9998), ([SURE] * 4, 1.0, -1, 0.9998),
    ([SURE] * 3 + [[9, 0, 0]], 0.9, -1, 0.9998),                                  # one head disagrees
    # the mean counts, not each head
    ([SURE] * 3 + [[0, 1, 0]], 0.8, 1, 0.8939), ([SURE] * 3 + [[0, 1, 0]], 0.9, -1, 0.8939),
    ([[9, 9, 0]] * 4, 0.3, -1, 0.49997),                                          # an exact tie is no prediction
    ([SURE] * 3 + [[3, 3, 0]], 0.3, -1, 0.8718),
    ([SURE] * 3 + [[0, 9, np.nan]], 0.0, -1, 0), ([[np.nan] * 3] * 4, 0.0, -1, 0), ([[0, np.inf, 0]] * 4, 0.0, -1, 0),
    ([[-np.inf, 0, -np.inf]] * 4, 1.0, 1, 1), ([[0, 0, 0]] * 4, 0.0, -1, 1 / 3), ([[0, 100, 0]] * 4, 1.0, 1, 1)])
def test_pseudo_labels_of_hand_made_logits(heads, threshold, label, confidence):
    labels, found = _core.pseudo_label(np.float32(heads)[:, None], threshold)
    assert (labels.dtype, found.dtype) == (np.int32, np.float32)
    assert labels.tolist() == [label] and found[0] == pytest.approx(confidence, abs=2e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(2, 12), st.integers(1, 5), st.floats(0, 1, width=32), st.integers(0, 2**31))
def test_pseudo_labels_equal_numpy(n, c, heads, threshold, seed):
    rng = np.random.default_rng(seed)
    z = (3 * rng.standard_normal((n, c)) + rng.standard_normal((heads, n, c))).astype(np.float32)
    labels, confidence = _core.pseudo_label(z, threshold)
    expected = np.exp(log_softmax(z)).max(axis=-1).mean(axis=0)
    np.testing.assert_allclose(confidence, expected, rtol=1e-5)
    consistent = (z.argmax(axis=-1) == z[0].argmax(axis=-1)).all(axis=0)
    np.testing.assert_array_equal(
        labels, np.where(consistent & (confidence >= np.float32(threshold)), z[0].argmax(axis=-1), -1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 33), st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**31))
def test_linear_equals_numpy(n, f, c, seed):
    rng = np.random.default_rng(seed)
    x, w, b, dy = (rng.standard_normal(s).astype(np.float32) for s in ((n, f), (c, f), (c,), (n, c)))
    np.testing.assert_allclose(_core.linear(x, w, b), x.astype(np.float64) @ w.T + b, rtol=1e-4, atol=1e-4)
    dw, db = np.ones((c, f), np.float32), np.ones(c, np.float32)
    dx = _core.linear_backward(x, w, dy, dw, db)
    np.testing.assert_allclose(dx, dy.astype(np.float64) @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, 1 + dy.astype(np.float64).T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(db, 1 + dy.astype(np.float64).sum(axis=0), rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_their_neighbours_and_large_equals_small():
    """The parallel paths (many rows) give the bits of the serial ones (few rows)."""
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((300, 65), (11, 65), (11,)))
    y = _core.linear(x, w, b)
    for i in (0, 123, 299):
        np.testing.assert_array_equal(_core.linear(x[i: i + 1], w, b)[0], y[i])
    z = rng.standard_normal((2000, 50), dtype=np.float32)
    np.testing.assert_array_equal(_core.softmax(z)[7:9], _core.softmax(z[7:9]))
    p, g, m = rng.standard_normal((3, 200_001)).astype(np.float32)
    one = [a.copy() for a in (p, m)]
    _core.sgd_step(one[0], g, one[1], 0.1, 0.9, 1e-2)
    parts = [a.copy() for a in (p, m)]
    for start in range(0, 200_001, 5000):
        _core.sgd_step(parts[0][start:start + 5000], g[start:start + 5000], parts[1][start:start + 5000], 0.1, 0.9,
                       1e-2)
    np.testing.assert_array_equal(one[0], parts[0])
    np.testing.assert_array_equal(one[1], parts[1])


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_pytorchs(nesterov):
    rng = np.random.default_rng(3)
    p = rng.standard_normal((4, 5)).astype(np.float32)
    m, p64, m64 = np.zeros_like(p), p.astype(np.float64), np.zeros((4, 5))
    for step in range(5):
        g = rng.standard_normal((4, 5)).astype(np.float32)
        _core.sgd_step(p, g, m, lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=nesterov, scale=0.5)
        g64 = 0.5 * g + 0.05 * p64
        m64 = g64 if step == 0 else 0.9 * m64 + g64        # torch.optim.SGD, dampening 0
        p64 = p64 - 0.1 * (g64 + 0.9 * m64 if nesterov else m64)
    np.testing.assert_allclose(p, p64, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(m, m64, rtol=1e-5, atol=1e-6)


F = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [(lambda: _core.softmax_cross_entropy(F, [0, 1, 4]),
      "labels: number 2 is 4, but with 4 classes labels go from 0 to 3"),
     (lambda: _core.softmax_cross_entropy(F, [0, -1, 1]), "labels: number 1 is -1"),
     (lambda: _core.softmax_cross_entropy(F, [0, 2**40, 1]), "labels: number 1 is 1099511627776"),
     (lambda: _core.softmax_cross_entropy(F, [0, 1]), r"labels: expected an array of shape \(3,\), got \(2,\)"),
     (lambda: _core.softmax_cross_entropy(F, [0.0, 1.0, 2.0]), "labels: expected an array of integers"),
     (lambda: _core.softmax_cross_entropy(F[0], [0]), "logits: expected a matrix"),
     (lambda: _core.softmax_cross_entropy(F[:0], []), "logits: expected a matrix with at least one row"),
     (lambda: _core.softmax_cross_entropy(F, [0, 1, 2], smoothing=1.5), "smoothing: has to be from 0 to 1, got 1.5"),
     (lambda: _core.softmax_cross_entropy(F, [0, 1, 2], smoothing=float("nan")),
      "smoothing: has to be from 0 to 1, got nan"),
     (lambda: _core.softmax_cross_entropy(F, [0, 1, 2], [1.0]), r"weights: expected an array of shape \(3,\)"),
     (lambda: _core.consistency(F, F[:2], 0.5), "weak: expected an array of shape"),
     (lambda: _core.consistency(F, F, 2), "threshold: has to be"),
     (lambda: _core.pseudo_label(F, 0.5), "logits: expected"),
     (lambda: _core.pseudo_label(F[None], -1), "threshold: has to be"),
     (lambda: _core.linear(F, F[:, :3], F[0]), "x: has 4 features a row, but the weights are for 3"),
     (lambda: _core.linear(F, F, F[0]), r"bias: expected an array of shape \(3,\)"),
     (lambda: _core.linear(F.astype("U"), F, F[0]), "x: expected an array of float32"),
     (lambda: _core.linear_backward(F, F, F, F, F[0]), "d_y: expected an array of shape"),
     (lambda: _core.linear_backward(F, F, F[:, :3].copy(), F.astype(float), F[0]), "d_weight: is written in place"),
     (lambda: _core.sgd_step(F.T, F.T, F.T, 0.1), "parameters: is written in place"),
     (lambda: _core.sgd_step(F, F[0], F, 0.1), "gradients: expected an array of shape"),
     (lambda: _core.sgd_step(F, F, np.broadcast_to(np.float32(0), (3, 4)), 0.1), "moments: is written in place")])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_memory_is_given_back_and_its_lack_reported():
    before = _core.info()["live_bytes"]
    _core._alloc_fail_after(0)
    with pytest.raises(MemoryError):
        _core.softmax_cross_entropy(F, [0, 1, 2])
    _core._alloc_fail_after(-1)
    _core.consistency(F, F, 0.5)
    assert _core.info()["live_bytes"] == before


def test_pytorch_agrees():
    """The losses' values and gradients, and five steps of SGD on a linear head, against autograd
    (tests/golden/make_losses.py)."""
    g = np.load(Path(__file__).parent / "golden/losses.npz")
    loss, gradient = _core.softmax_cross_entropy(g["strong"], g["labels"], smoothing=0.1)
    assert loss == pytest.approx(float(g["smoothed_loss"]), rel=1e-6)
    np.testing.assert_allclose(gradient, g["smoothed_gradient"], rtol=1e-5, atol=1e-8)
    loss, gradient, used = _core.consistency(g["strong"], g["weak"], 0.8)
    assert loss == pytest.approx(float(g["consistency_loss"]),
                                 rel=1e-6) and used == g["consistency_used"] and 0 < used < 12
    np.testing.assert_allclose(gradient, g["consistency_gradient"], rtol=1e-5, atol=1e-8)
    weight, bias, losses = g["weight"].copy(), g["bias"].copy(), []
    moments = np.zeros_like(weight), np.zeros_like(bias)
    for step in range(5):
        loss, d_logits = _core.softmax_cross_entropy(_core.linear(g["x"], weight, bias), g["labels"])
        d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
        d_x = _core.linear_backward(g["x"], weight, d_logits, d_weight, d_bias)
        if step == 0:
            np.testing.assert_allclose(d_x, g["linear_d_x"], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(d_weight, g["linear_d_weight"], rtol=1e-5, atol=1e-6)
        losses.append(loss)
        _core.sgd_step(weight, d_weight, moments[0], 0.1, 0.9, 0.01)
        _core.sgd_step(bias, d_bias, moments[1], 0.1, 0.9, 0.01)
    np.testing.assert_allclose(losses, g["sgd_losses"], rtol=1e-5)
    np.testing.assert_allclose(weight, g["sgd_weight"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, g["sgd_bias"], rtol=1e-5, atol=1e-6)
