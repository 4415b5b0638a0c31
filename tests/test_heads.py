"""AMSTHeads: losses and gradients against the definition and finite differences, the three stages on a feature
matrix."""
import doctest

import numpy as np
import pytest
from test_losses import cross_entropy, log_softmax, numeric_gradient

import dreamda
from dreamda.training import heads as module
from dreamda.training.heads import NAMES, AMSTHeads

RNG = np.random.default_rng(5)
WEAK, STRONG, OTHER = RNG.standard_normal((3, 6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def logits(heads, name, features):
    return features.astype(np.float64) @ heads.parameters[f"{name}.weight"].T.astype(
        np.float64) + heads.parameters[f"{name}.bias"]


def test_heads_start_different_and_equal_seeds_start_equal():
    one, same, other = AMSTHeads(300, 7), AMSTHeads(300, 7, random_state=0), AMSTHeads(300, 7, random_state=1)
    weights = [one.parameters[f"{name}.weight"] for name in NAMES]
    for i, weight in enumerate(weights):
        assert weight.std() == pytest.approx(1 / np.sqrt(900), rel=0.1)
        assert np.array_equal(weight, same.parameters[f"{NAMES[i]}.weight"]) and not np.array_equal(
            weight, other.parameters[f"{NAMES[i]}.weight"])
        assert all(abs(np.corrcoef(weight.ravel(), w.ravel())[0, 1]) < 0.1 for w in weights[:i])


def test_pretrain_loss_is_the_sum_of_four_cross_entropies():
    heads = AMSTHeads(4, 3)
    weights = [1, 0.5, 1, 1, 0, 2]
    loss, _, _ = heads.pretrain_loss(WEAK, STRONG, LABELS, weights)
    views = {"f1_w": WEAK, "f2_w": WEAK, "f1_s": STRONG, "f2_s": STRONG}
    assert loss == pytest.approx(sum(cross_entropy(logits(heads, n, x), LABELS, weights)[0] for n, x in views.items()),
                                 rel=1e-6)
    assert not heads.gradients["f5.weight"].any() and not heads.gradients["f5.bias"].any()


def test_gradients_of_stage_1_by_finite_differences():
    heads = AMSTHeads(4, 3)
    _, d_weak, d_strong = heads.pretrain_loss(WEAK, STRONG, LABELS)
    own = {k: v.copy() for k, v in heads.gradients.items()}
    np.testing.assert_allclose(d_weak,
                               numeric_gradient(lambda x: heads.pretrain_loss(x, STRONG, LABELS)[0], WEAK),
                               atol=2e-4)
    np.testing.assert_allclose(d_strong,
                               numeric_gradient(lambda x: heads.pretrain_loss(WEAK, x, LABELS)[0], STRONG),
                               atol=2e-4)
    for name in ("f1_w.weight", "f2_s.bias"):
        np.testing.assert_allclose(own[name],
                                   parameter_gradient(heads, name,
                                                      lambda: heads.pretrain_loss(WEAK, STRONG, LABELS)[0]),
                                   atol=2e-4)


def parameter_gradient(heads, name, loss):
    parameter = heads.parameters[name]
    start = parameter.copy()

    def at(value):
        parameter[...] = value
        return loss()

    try:
        return numeric_gradient(at, start)
    finally:
        parameter[...] = start


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}, {"weights": [1, 0, 2, 1, 1, 0.5]},
                                     {"mixed_labels": LABELS[::-1], "mixed": 0.3, "smoothing": 0.1}])
def test_gradients_of_stage_3_by_finite_differences(options):
    heads = AMSTHeads(4, 3, random_state=3)
    weak = 10 * OTHER  # some rows are confident, some not

    def run(features=WEAK, strong=STRONG, w=weak):
        return heads.train_loss(features, LABELS, w, strong, 0.7, 0.8, **options)

    result = run()
    own = heads.gradients["f5.weight"].copy()
    assert 0 < result.used < 6 and result.total == pytest.approx(result.supervised + 0.7 * result.consistency)
    np.testing.assert_allclose(result.logits, logits(heads, "f5", WEAK), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.d_features, numeric_gradient(lambda x: run(features=x).total, WEAK), atol=2e-4)
    np.testing.assert_allclose(result.d_strong, numeric_gradient(lambda x: run(strong=x).total, STRONG), atol=2e-4)
    heads.zero_grad()
    np.testing.assert_allclose(own, parameter_gradient(heads, "f5.weight", lambda: run().total), atol=3e-4)


def test_no_gradient_through_the_weak_view():
    """The gradient of f5 is that of the strong view alone, with the weak view's labels as constants."""
    heads = AMSTHeads(4, 3)
    result = heads.train_loss(WEAK, LABELS, 10 * OTHER, STRONG, 1.0, 0.6)
    z = logits(heads, "f5", 10 * OTHER)
    probability = np.exp(log_softmax(z))
    expected, d_logits = cross_entropy(logits(heads, "f5", STRONG), probability.argmax(1), probability.max(1) >= 0.6)
    assert result.consistency == pytest.approx(expected, rel=1e-5)
    supervised = cross_entropy(logits(heads, "f5", WEAK), LABELS)[1].T @ WEAK
    np.testing.assert_allclose(heads.gradients["f5.weight"], supervised + d_logits.T @ STRONG, rtol=1e-4, atol=1e-6)


def test_labels_need_agreement_and_confidence():
    heads = AMSTHeads(2, 2)
    for name in NAMES[:4]:
        heads.parameters[f"{name}.weight"][...] = [[1, 0], [0, 1]]
    features = np.float32([[9, 0], [0, 9], [1, 0], [3, 3], [np.nan, 0]])
    labels, accepted, confidence = heads.label(features)
    assert labels.tolist() == [0, 1, -1, -1, -1] and accepted.tolist() == [True, True, False, False, False]
    assert confidence[4] == 0 and confidence[3] == 0.5
    assert heads.label(features, threshold=0.5)[0].tolist() == [0, 1, 0, -1, -1]
    heads.parameters["f2_s.weight"][...] = [[0, 1], [1, 0]]
    assert not heads.label(features, threshold=0)[1].any()


def test_three_stages_on_a_feature_matrix():
    """Two blobs, ten labelled rows of three hundred: the docstring's recipe, from the outside."""
    assert doctest.testmod(module).failed == 0
    rng = np.random.default_rng(1)
    y = np.arange(300) % 2
    X = (rng.normal(size=(300, 8)) + (y[:, None] - 0.5) * 2).astype(np.float32)
    heads = dreamda.AMSTHeads(8, 2)
    for _ in range(60):
        heads.pretrain_loss(X[:10], X[:10] + rng.normal(size=(10, 8)), y[:10])
        heads.step(0.1)
    labels, accepted, _ = heads.label(X[10:], 0.9)
    assert 50 < accepted.sum() < 289 and (labels == y[10:])[accepted].mean() > 0.95
    rest = X[10:][~accepted]
    X_grown, y_grown = np.concatenate([X[:10], X[10:][accepted]]), np.concatenate([y[:10], labels[accepted]])
    losses = []
    for _ in range(60):
        losses.append(heads.train_loss(X_grown, y_grown, rest, rest + 0.5 * rng.normal(size=rest.shape)).supervised)
        heads.step(0.1)
    assert losses[-1] < losses[0] / 2
    assert (heads.predict_proba(X).argmax(1) == y).mean() > 0.95
    np.testing.assert_allclose(heads.predict_proba(X).sum(1), 1, rtol=1e-5)


def test_state_survives_and_training_goes_on_to_the_same_bits():
    a, b = AMSTHeads(4, 3), AMSTHeads(4, 3, random_state=9)
    a.pretrain_loss(WEAK, STRONG, LABELS)
    a.step(0.1)
    b.load_state_dict(a.state_dict())
    for heads in (a, b):
        heads.pretrain_loss(STRONG, WEAK, LABELS)
        heads.train_loss(WEAK, LABELS)
        heads.step(0.1)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[name])
    before = b.state_dict()
    with pytest.raises(ValueError, match="4 features and 3 classes need"):
        b.load_state_dict(AMSTHeads(5, 3).state_dict())
    with pytest.raises(ValueError, match="no 'f1_w.weight'"):
        b.load_state_dict({})
    assert all(np.array_equal(before[k], v) for k, v in b.state_dict().items())


def test_biases_do_not_decay():
    heads = AMSTHeads(4, 3)
    heads.parameters["f5.bias"][...] = 1
    before = heads.parameters["f5.weight"].copy()
    heads.step(lr=1.0, weight_decay=0.5, nesterov=False)
    np.testing.assert_array_equal(heads.parameters["f5.weight"], before - np.float32(0.5) * before)
    assert (heads.parameters["f5.bias"] == 1).all()


NAN = WEAK.copy()
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    "call, message",
    [(lambda h: h.pretrain_loss(WEAK[:, :3], STRONG, LABELS),
      r"features_weak has shape \(6, 3\); these heads are for \(rows, 4\)"),
     (lambda h: h.pretrain_loss(WEAK, NAN, LABELS), "features_strong has NaN or infinity in row 2"),
     (lambda h: h.pretrain_loss(WEAK, STRONG, LABELS + 1), "labels: number 2 is 3, but with 3 classes"),
     (lambda h: h.pretrain_loss(WEAK, STRONG[:5], LABELS), "labels: expected an array of shape"),
     (lambda h: h.train_loss(NAN, LABELS), "features has NaN or infinity in row 2"),
     (lambda h: h.train_loss(WEAK, LABELS, WEAK), "belong together"),
     (lambda h: h.train_loss(WEAK, LABELS, WEAK, STRONG[:5]), "weak: expected"),
     (lambda h: h.label(WEAK[0]), "has shape"), (lambda h: h.label(WEAK, threshold=1.1), "threshold"),
     (lambda h: h.predict_proba([]), "shape"), (lambda h: AMSTHeads(4, 1), "n_classes"),
     (lambda h: AMSTHeads(0, 2), "n_features")])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(AMSTHeads(4, 3))
