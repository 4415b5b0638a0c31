"""scikit-learn's own checks of estimators on AMSTClassifier (an extra of the tests; the package does not need
scikit-learn).

The checks give rows of numbers, the classifier takes images: `OnRows` draws each row as an image, and leaves everything
else to the classifier. What cannot hold is listed in `EXPECTED`, each with its reason.
"""
import numpy as np
import pytest
from standin import FoldedStandIn, StandIn

import dreamda
from dreamda.training import saved, setup

sklearn = pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GroupKFold, cross_val_score  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data":
    "batches are drawn at random: an image that is there twice is not one of weight 2"
}


class OnRows(dreamda.AMSTClassifier):
    """AMSTClassifier for rows of numbers: the first sixteen become 4 x 4 blocks of an image of 16 x 16 pixels."""

    def _draw(self, X, **options):
        X = validate_data(self, X, dtype=np.float64, **options)
        blocks = np.zeros((len(X), 16))
        blocks[:, : min(16, X.shape[1])] = np.arctan(X[:, :16] / 2) / np.pi
        pixels = np.rint(127.5 + 255 * blocks).clip(0, 255).astype(np.uint8).reshape(-1, 4, 4)
        return np.repeat(np.repeat(pixels, 4, axis=1), 4, axis=2)

    def fit(self, X, y, sample_weight=None):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        return super().fit(self._draw(X), y, sample_weight=sample_weight)

    def predict_proba(self, X):
        self._check_fitted()
        return super().predict_proba(self._draw(X, reset=False))

    def score(self, X, y, sample_weight=None):
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = True, False
        return tags


def make():
    return OnRows(method="real-only",
                  epochs=8,
                  steps_per_epoch=10,
                  batch_size=16,
                  learning_rate=0.1,
                  crop_scale=(1.0, 1.0),
                  flip=False,
                  workers=0,
                  threads=1)


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    def create(name, *, size, batch, slots, **_):
        return StandIn(batch=batch, height=size[0], width=size[1], slots=slots)

    monkeypatch.setattr(setup, "create_backbone", create)
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)


CHECKS = list(estimator_checks_generator(make(), expected_failed_checks=EXPECTED, mark=None))


def name_of(check):
    return getattr(check, "func", check).__name__


@pytest.mark.parametrize("number",
                         range(len(CHECKS)),
                         ids=[f"{i}-{name_of(check)}" for i, (_, check) in enumerate(CHECKS)])
def test_check(number):
    estimator, check = CHECKS[number]
    if name_of(check) in EXPECTED:
        pytest.skip(EXPECTED[name_of(check)])
    check(clone(estimator))


def test_there_are_many_checks():
    assert len(CHECKS) > 40 and EXPECTED.keys() <= {name_of(check) for _, check in CHECKS}


def test_not_fitted_is_scikit_learns():
    with pytest.raises(NotFittedError):
        make().predict(np.zeros((3, 4)))
    with pytest.raises(NotFittedError):
        check_is_fitted(dreamda.AMSTClassifier())


def test_cross_validation_with_groups_leaves_out_what_would_leak():
    """The folds of scikit-learn slice `groups`; the synthetic images go whole to every fold, which takes those of its
    own groups."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    images = np.clip(rng.normal(100, 20, (30, 16, 16, 3)) + 60 * labels[:, None, None, None], 0, 255).astype(np.uint8)
    synthetic, groups = np.repeat(images[:, None], 2, 1).reshape(-1, 16, 16, 3), np.arange(30)
    left_out = []

    class Counting(dreamda.AMSTClassifier):
        def fit(self, *arguments, **options):
            super().fit(*arguments, **options)
            left_out.append(len(self.left_out_))
            return self

    estimator = Counting(method="plain", epochs=2, batch_size=8, workers=0, threads=1)
    scores = cross_val_score(estimator,
                             images,
                             labels,
                             groups=groups,
                             cv=GroupKFold(3),
                             params={
                                 "X_synthetic": synthetic, "y_synthetic": np.repeat(labels, 2), "groups": groups,
                                 "groups_synthetic": np.repeat(groups, 2)
                             })
    assert left_out == [20, 20, 20] and len(scores) == 3 and np.isfinite(scores).all()
