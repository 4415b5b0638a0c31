"""The five heads of AMST (asymmetric multi-head self-training), for any backbone that yields features.

    heads = AMSTHeads(n_features=512, n_classes=10)
    loss, d_weak, d_strong = heads.pretrain_loss(features_weak, features_strong, labels)     # stage 1: propagate both
    heads.step(lr=0.01)
    labels, accepted, confidence = heads.label(features)                                     # stage 2
    result = heads.train_loss(features, labels, unlabelled_weak, unlabelled_strong)          # stage 3
    heads.step(lr=0.01)
    heads.predict_proba(features)

DreamDA (arXiv 2403.12803) describes the stages; its authors have not published code for them. Choices that the paper
leaves open are marked "ours".
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core

NAMES = ("f1_w", "f2_w", "f1_s", "f2_s", "f5")
LABELLING = NAMES[:4]
STREAM = 16  # stream of the keyed normals for the initial weights of heads (1 to 4: the pipeline, 17: backbones)

Floats = NDArray[np.float32]


class TrainLoss(NamedTuple):
    """The result of `AMSTHeads.train_loss`.

    Attributes
    ----------
    total : float
        ``supervised + weight * consistency``.
    supervised, consistency : float
        The two losses. ``consistency`` is 0 without unlabelled features.
    used : int
        Number of unlabelled rows whose weak view was confident.
    logits : float32 (N, n_classes)
        Logits of f5 for the labelled rows.
    d_features : float32 (N, n_features)
        d total / d features of the labelled rows.
    d_strong : float32 (M, n_features) or None
        d total / d features of the strong views; the weak views get no gradient.
    """

    total: float
    supervised: float
    consistency: float
    used: int
    logits: Floats
    d_features: Floats
    d_strong: Floats | None


class AMSTHeads:
    """Linear heads f1_w, f2_w, f1_s, f2_s (labelling) and f5 (the classifier), their losses and their optimiser.

    The loss methods add the heads' own gradients to `gradients`; `step` applies and clears them. They return the
    gradients of the features, which the caller propagates back through the backbone.

    Parameters
    ----------
    n_features, n_classes : int
        Number of features, and number of classes, 2 or more.
    random_state : int
        Seed of the initial weights, 0 to 2^64 - 1. Weights are normal with variance 1 / (3 n_features), that of
        PyTorch's `Linear`, and differ between the heads (otherwise their agreement would mean nothing); biases are 0.
        Equal seeds give bitwise identical weights on every machine.

    Attributes
    ----------
    parameters, gradients, moments : dict of str to float32 array
        Views of three flat blocks: ``"f5.weight"`` (n_classes, n_features), ``"f5.bias"`` (n_classes,), and so on.

    Examples
    --------
    A matrix of features, with labels for some of its rows only:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 400)
    >>> X = (rng.normal(size=(400, 5)) + 3 * y[:, None]).astype(np.float32)
    >>> heads = AMSTHeads(n_features=5, n_classes=2)
    >>> noise = lambda: rng.normal(scale=0.1, size=(40, 5))
    >>> for _ in range(100):
    ...     _ = heads.pretrain_loss(X[:40] + noise(), X[:40] + 3 * noise(), y[:40])
    ...     heads.step(lr=0.1)
    >>> labels, accepted, confidence = heads.label(X[40:], threshold=0.9)
    >>> grown_X, grown_y = np.concatenate([X[:40], X[40:][accepted]]), np.concatenate([y[:40], labels[accepted]])
    >>> for _ in range(100):
    ...     _ = heads.train_loss(grown_X, grown_y)
    ...     heads.step(lr=0.1)
    >>> bool((heads.predict_proba(X).argmax(axis=1) == y).mean() > 0.97)
    True
    """

    def __init__(self, n_features: int, n_classes: int, random_state: int = 0) -> None:
        if n_features < 1:
            raise ValueError(f"n_features has to be 1 or more, got {n_features}")
        if n_classes < 2:
            raise ValueError(f"n_classes has to be 2 or more, got {n_classes}")
        self.n_features, self.n_classes = int(n_features), int(n_classes)
        # first all weights, then all biases: only the weights decay
        weights = len(NAMES) * self.n_classes * self.n_features
        self._decayed = weights
        self._parameters, self._gradients, self._moments = np.zeros((3, weights + len(NAMES) * self.n_classes),
                                                                    np.float32)
        self.parameters, self.gradients, self.moments = (self._views(block)
                                                         for block in (self._parameters, self._gradients,
                                                                       self._moments))
        scale = np.float32(1 / np.sqrt(3 * self.n_features))
        for number, name in enumerate(NAMES):
            weight = self.parameters[f"{name}.weight"]
            weight[...] = scale * _core.normals(random_state, 0, number, 0, STREAM, 0, weight.shape)

    def _views(self, block: Floats) -> dict[str, Floats]:
        weights = block[: self._decayed].reshape(len(NAMES), self.n_classes, self.n_features)
        biases = block[self._decayed:].reshape(len(NAMES), self.n_classes)
        return {
            f"{name}.{kind}": part[i]
            for kind, part in (("weight", weights), ("bias", biases))
            for i, name in enumerate(NAMES)
        }

    # ---- the three stages

    def pretrain_loss(self,
                      features_weak: ArrayLike,
                      features_strong: ArrayLike,
                      labels: ArrayLike,
                      weights: ArrayLike | None = None) -> tuple[float, Floats, Floats]:
        """Stage 1: the sum of the four labelling heads' cross-entropies.

        f1_w and f2_w see the weak view, f1_s and f2_s the strong one. There is no label smoothing (ours): smoothed
        heads would never reach the threshold of `label`.

        Parameters
        ----------
        features_weak, features_strong : (N, n_features)
            Features of the two views of the same images.
        labels : int (N,)
            From 0 to n_classes - 1.
        weights : (N,), optional
            Weights of the samples; the loss is the sum of the weighted losses, divided by N.

        Returns
        -------
        loss : float
        d_weak, d_strong : float32 (N, n_features)
            d loss / d features.

        Raises
        ------
        ValueError
            A shape or a label does not fit, or the features hold NaN or infinity.
        """
        weak = self._features(features_weak, "features_weak")
        strong = self._features(features_strong, "features_strong")
        total, gradients = 0.0, []
        for features, names in ((weak, ("f1_w", "f2_w")), (strong, ("f1_s", "f2_s"))):
            d_features = np.zeros_like(features)
            for name in names:
                loss, d_logits = _core.softmax_cross_entropy(self._forward(name, features), labels, weights)
                total += loss
                d_features += self._backward(name, features, d_logits)
            gradients.append(d_features)
        return total, gradients[0], gradients[1]

    def label(self, features: ArrayLike, threshold: float = 0.9) -> tuple[NDArray[np.int32], NDArray[np.bool_], Floats]:
        """Stage 2: pseudo-labels of unlabelled features.

        A row is accepted if all four labelling heads have the same largest logit (consistent) and the mean of their
        largest probabilities is at least `threshold` (confident; this measure is ours). Where a head has two largest
        logits, or NaN, it predicts nothing, and the row is not accepted.

        Parameters
        ----------
        features : (N, n_features)
            NaN is allowed here: such rows are not accepted.
        threshold : float
            From 0 to 1.

        Returns
        -------
        labels : int32 (N,)
            -1 where not accepted.
        accepted : bool (N,)
        confidence : float32 (N,)
            The mean of the four largest probabilities; 0 where a head has NaN.
        """
        checked = self._features(features, "features", finite=False)
        labels, confidence = _core.pseudo_label(np.stack([self._forward(name, checked) for name in LABELLING]),
                                                threshold)
        return labels, labels >= 0, confidence

    def train_loss(self,
                   features: ArrayLike,
                   labels: ArrayLike,
                   unlabelled_weak: ArrayLike | None = None,
                   unlabelled_strong: ArrayLike | None = None,
                   weight: float = 1.0,
                   threshold: float = 0.9,
                   *,
                   weights: ArrayLike | None = None,
                   smoothing: float = 0.0,
                   mixed_labels: ArrayLike | None = None,
                   mixed: float = 0.0) -> TrainLoss:
        """Stage 3: the loss of f5, ``supervised + weight * consistency``.

        The consistency loss is FixMatch's (ours; the paper names no formula): the cross-entropy of the strong view
        against the class that the weak view predicts with at least `threshold` probability, averaged over all
        unlabelled rows.

        Parameters
        ----------
        features, labels : (N, n_features), int (N,)
            The labelled images, pseudo-labelled ones among them.
        unlabelled_weak, unlabelled_strong : (M, n_features), optional
            Two views of the same unlabelled images; both or neither.
        weight, threshold : float
            lambda, and the minimum confidence of the weak view.
        weights : (N,), optional
            Weights of the labelled samples.
        smoothing : float
            Label smoothing of the supervised loss.
        mixed_labels : int (N,), optional
        mixed : float
            For MixUp and CutMix: the label of the other image in each row, and its share, 0 to 1.

        Returns
        -------
        TrainLoss

        Raises
        ------
        ValueError
            A shape or a label does not fit, or the features hold NaN or infinity.
        """
        if (unlabelled_weak is None) != (unlabelled_strong is None):
            raise ValueError("unlabelled_weak and unlabelled_strong belong together; give both or neither")
        labelled = self._features(features, "features")
        logits = self._forward("f5", labelled)
        share = np.ones(len(labelled), np.float32) if weights is None else np.asarray(weights, np.float32)
        if mixed_labels is None:
            supervised, d_logits = _core.softmax_cross_entropy(logits, labels, share, smoothing)
        else:
            supervised, d_logits = _core.softmax_cross_entropy(logits, labels, share * np.float32(1 - mixed), smoothing)
            other, d_other = _core.softmax_cross_entropy(logits, mixed_labels, share * np.float32(mixed), smoothing)
            supervised += other
            d_logits += d_other
        consistency, used, d_strong = 0.0, 0, None
        if unlabelled_weak is not None:
            weak = self._features(unlabelled_weak, "unlabelled_weak")
            strong = self._features(unlabelled_strong, "unlabelled_strong")
            consistency, d_consistency, used = _core.consistency(self._forward("f5", strong), self._forward("f5", weak),
                                                                 threshold)
            d_strong = self._backward("f5", strong, np.float32(weight) * d_consistency)
        d_features = self._backward("f5", labelled, d_logits)
        return TrainLoss(supervised + weight * consistency, supervised, consistency, used, logits, d_features, d_strong)

    def predict_proba(self, features: ArrayLike) -> Floats:
        """Class probabilities of the main head f5.

        Parameters
        ----------
        features : (N, n_features)

        Returns
        -------
        float32 (N, n_classes)
        """
        return _core.softmax(self._forward("f5", self._features(features, "features")))

    # ---- optimiser and state

    def zero_grad(self) -> None:
        """Set the heads' gradients to 0; `step` does so too."""
        self._gradients[...] = 0

    def gradient_norm(self) -> float:
        """Euclidean norm of all the heads' gradients.

        Returns
        -------
        float
        """
        return float(np.sqrt(np.sum(np.square(self._gradients, dtype=np.float64))))

    def step(self,
             lr: float,
             momentum: float = 0.9,
             weight_decay: float = 1e-4,
             nesterov: bool = True,
             scale: float = 1.0) -> None:
        """One step of SGD, as in PyTorch; then set the gradients to 0.

        Parameters
        ----------
        lr, momentum, weight_decay : float
            Biases do not decay.
        nesterov : bool
        scale : float
            Multiplies the gradients first (for clipping by the joint norm of heads and backbone).
        """
        for part, decay in ((slice(0, self._decayed), weight_decay), (slice(self._decayed, None), 0.0)):
            _core.sgd_step(self._parameters[part], self._gradients[part], self._moments[part], lr, momentum, decay,
                           nesterov, scale)
        self.zero_grad()

    def state_dict(self) -> dict[str, Floats]:
        """Copies of parameters and momentum.

        Returns
        -------
        dict of str to float32 array
            ``"f5.weight"``, ``"f5.weight.moment"``, and so on.
        """
        return {
            **{k: v.copy()
               for k, v in self.parameters.items()}, **{f"{k}.moment": v.copy()
                                                        for k, v in self.moments.items()}
        }

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Load the result of `state_dict`.

        Parameters
        ----------
        state : mapping of str to array
            Moments that are not in it become 0.

        Raises
        ------
        ValueError
            A parameter is missing or has another shape. Then nothing has changed.
        """
        arrays = {}
        for name, own in self.parameters.items():
            if name not in state:
                raise ValueError(f"the state has no {name!r}")
            for key in (name, f"{name}.moment"):
                arrays[key] = np.asarray(state.get(key, np.zeros_like(own)), np.float32)
                if arrays[key].shape != own.shape:
                    raise ValueError(
                        f"{key} in the state has shape {arrays[key].shape}; {self.n_features} features and "
                        f"{self.n_classes} classes need {own.shape}")
        for name in self.parameters:
            self.parameters[name][...] = arrays[name]
            self.moments[name][...] = arrays[f"{name}.moment"]

    # ---- checks

    def _features(self, features: ArrayLike | None, name: str, *, finite: bool = True) -> Floats:
        array = np.asarray(features, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != self.n_features or len(array) == 0:
            raise ValueError(f"{name} has shape {array.shape}; these heads are for (rows, {self.n_features})")
        if finite and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise ValueError(f"{name} has NaN or infinity in row {row}")
        return array

    def _forward(self, name: str, features: Floats) -> Floats:
        return _core.linear(features, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    def _backward(self, name: str, features: Floats, d_logits: Floats) -> Floats:
        return _core.linear_backward(features, self.parameters[f"{name}.weight"], d_logits,
                                     self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"])
