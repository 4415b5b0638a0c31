"""`AMSTClassifier`: all of AMST as a scikit-learn estimator. It does not need scikit-learn."""
from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..options import ParameterError, accepts, documented, option, spelled
from .batches import Data
from .holdout import may_train, split
from .recipe import RUNNING, Recipe, natural_size
from .saved import TrainedModel
from .setup import Setup
from .stages import Event, describe
from .views import is_grey, reduced


class NotFittedError(ValueError, AttributeError):
    """The classifier is used before `fit`.

    If scikit-learn is loaded, its own exception of this name is raised instead.
    """


@documented
@dataclass(frozen=True, kw_only=True)
class ClassifierParameters(Recipe):
    """The parameters of `AMSTClassifier`: a recipe, threads and printed output."""

    threads: int | None = option(None, "Threads of the C core.", group=RUNNING, low=1, shown_default="all cores")
    workers: int = option(2, "Number of threads that make views. It does not change the result.", group=RUNNING, low=0)
    verbose: bool = option(False, "Print one line per epoch on stderr.", group=RUNNING)


if TYPE_CHECKING:
    _Parameters = ClassifierParameters  # type checkers see the parameters as typed attributes and keywords
else:
    _Parameters = object


@accepts(ClassifierParameters)
class AMSTClassifier(_Parameters):
    """A ResNet trained on real and synthetic images, with AMST or plainly, or on the real images alone.

    Follows scikit-learn's estimator conventions: parameters are stored as given and checked by `fit`; what `fit` finds
    ends in an underscore; instances can be cloned and pickled. Two fits with the same arguments are bitwise identical
    on the same machine. There is no `n_features_in_`, as `predict` takes images of any size.

    Parameters
    ----------
    ClassifierParameters
        The options of training.

    Attributes
    ----------
    classes_ : array
        The distinct labels, sorted.
    model_ : TrainedModel
    history_ : list of dict
        One record per epoch, stage and labelling, as in the log of ``dreamda train``.
    best_epoch_ : int
        The epoch (from 1) that `model_` comes from.
    pseudo_labels_ : array (M,) of int
        Final labels of the synthetic images, as positions in `classes_`; -1 where they have none or were left out.
    left_out_ : array of int
        Positions of the synthetic images that were left out, because they were made from images that are held back
        (see `fit`).

    Examples
    --------
    >>> clf = AMSTClassifier(backbone="resnet18", epochs=20)                         # doctest: +SKIP
    >>> clf.fit(X, y, X_synthetic, y_synthetic)                                      # doctest: +SKIP
    >>> clf.score(X_test, y_test); clf.save("coats.safetensors")                     # doctest: +SKIP
    """

    _estimator_type = "classifier"

    if not TYPE_CHECKING:
        def __init__(self, **parameters: Any) -> None:
            self._set(type(self).__options__ | parameters, TypeError)

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return list(getattr(cls, "__options__"))

    def _set(self, parameters: dict[str, Any], error: type[Exception]) -> None:
        """Set parameters; where the constructor has no such parameter, raise an `error` and set none."""
        names = self._parameter_names()
        if unknown := [name for name in parameters if name not in names]:
            raise error(f"AMSTClassifier has no parameter {unknown[0]!r}; there are: {', '.join(names)}")
        for name, value in parameters.items():
            setattr(self, name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The current parameters.

        Parameters
        ----------
        deep : bool
            Exists for scikit-learn; has no effect.

        Returns
        -------
        dict
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> AMSTClassifier:
        """Change parameters.

        Parameters
        ----------
        **params
            The parameters of the constructor.

        Returns
        -------
        AMSTClassifier
            This object.

        Raises
        ------
        ValueError
            The constructor has no such parameter.
        """
        self._set(params, ValueError)
        return self

    def __repr__(self) -> str:
        defaults = getattr(type(self), "__options__")
        changed = [
            f"{name}={value!r}" for name, value in self.get_params().items() if repr(value) != repr(defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # only scikit-learn itself asks

        return Tags(estimator_type="classifier",
                    target_tags=TargetTags(required=True),
                    classifier_tags=ClassifierTags(),
                    input_tags=InputTags(two_d_array=False, three_d_array=True))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def fit(self,
            X: ArrayLike,
            y: ArrayLike,
            X_synthetic: ArrayLike | None = None,
            y_synthetic: ArrayLike | None = None,
            *,
            sample_weight: ArrayLike | None = None,
            groups: ArrayLike | None = None,
            groups_synthetic: ArrayLike | None = None) -> AMSTClassifier:
        """Train the classifier.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
            Real images.
        y : (N,)
            Their labels of two classes or more: texts, whole numbers or booleans.
        X_synthetic : uint8 (M, h, w, 3) or (M, h, w), optional
            Not used by `method="real-only"`.
        y_synthetic : (M,), optional
            Labels of the real images that the synthetic ones were made from. Needed by `method="plain"` and
            `hint="agree"`.
        sample_weight : (N,), optional
            Weights of the real images' losses, 0 or more; a synthetic image has weight 1.
        groups : (N,), optional
            Which real images belong together, such as the photographs of one patient, or simply ``np.arange(N)``. With
            `validation_fraction` a group is held back as a whole.
        groups_synthetic : (M,), optional
            The groups of the real images that the synthetic ones were made from. A synthetic image is left out unless
            its group is among those of the real training images. So nothing made from a held-out image can leak into
            training, whether it is held out here or by a cross-validation that calls this.

        Returns
        -------
        AMSTClassifier
            This object.

        Raises
        ------
        ValueError
            A parameter or the data cannot be used; the message says which and what is possible.
        dreamda.training.stages.DivergenceError
        """
        parameters = ClassifierParameters(**{name: _plain(value)
                                             for name, value in self.get_params().items()}
                                          | {"random_state": self._seed()})
        real = _images(X, "X")
        labels = _labels(y, "y", len(real), "X")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ParameterError("y", f"has 1 class, {classes[0]!r}; a classifier needs 2 or more")
        synthetic, hints = np.zeros((0, *real.shape[1:]), np.uint8), None
        if X_synthetic is not None and parameters.method != "real-only":
            synthetic = _images(X_synthetic, "X_synthetic")
            hints = _codes(y_synthetic, classes, len(synthetic)) if y_synthetic is not None else None
        weights = _weights(sample_weight, len(real)) if sample_weight is not None else None
        groups = _groups(groups, "groups", len(real), "X")
        groups_synthetic = _groups(groups_synthetic, "groups_synthetic", len(synthetic),
                                   "X_synthetic") if len(synthetic) else None
        if groups_synthetic is not None and groups is None:
            raise ParameterError("groups_synthetic", "needs `groups`, those of the real images")
        train, held = split(codes, parameters.validation_fraction, parameters.random_state,
                            None if groups is None else np.unique(groups, return_inverse=True)[1])
        used = np.arange(len(synthetic))
        if groups is not None and groups_synthetic is not None:
            used = np.flatnonzero(may_train(groups_synthetic, groups[train]))
            if not len(used):
                raise ParameterError(
                    "groups_synthetic",
                    "has no group of the real images that are trained on, so no synthetic image is left")
        size, _ = natural_size(parameters.image_size, [(real.shape[1], real.shape[2])])
        real, synthetic = reduced(real, size), reduced(synthetic, size)
        setup = Setup.of(parameters, size, real[train], is_grey(real))
        data = Data(real[train], codes[train], synthetic[used], hints[used] if hints is not None else None, None,
                    real[held], codes[held], weights[train] if weights is not None else None)
        run = setup.training(data, len(classes), threads=parameters.threads, workers=parameters.workers)
        history: list[Event] = []
        best: list[TrainedModel] = []

        def on_epoch(is_best: bool) -> None:
            if is_best:
                best[:] = [setup.model(run.network, classes.tolist())]

        def tell(text: str) -> None:
            if parameters.verbose:
                print(spelled(text), file=sys.stderr)

        def on_event(event: Event) -> None:
            history.append(event)
            tell(describe(event))

        if len(used) < len(synthetic):
            tell(
                f"{len(synthetic) - len(used)} of {len(synthetic)} synthetic images are left out: "
                "they come from images that are held back")
        run.run(on_event, on_epoch)
        self.model_ = best[0] if best else setup.model(run.network, classes.tolist())
        self.best_epoch_ = run.best["epoch"] if run.best else parameters.epochs
        self.classes_, self.history_ = classes, history
        self.left_out_ = np.setdiff1d(np.arange(len(synthetic)), used)
        self.pseudo_labels_ = np.full(len(synthetic), -1, np.int32)
        self.pseudo_labels_[used] = run.assigned
        return self

    def _seed(self) -> int:
        """`random_state` as a number; scikit-learn's None and RandomState draw one."""
        given: Any = self.random_state
        if given is None:
            return int(np.random.randint(2**31 - 1))
        return int(given.randint(2**31 - 1)) if isinstance(given, np.random.RandomState) else given

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
            Images of another size than in `fit` are resized.

        Returns
        -------
        float32 (N, n_classes)
            In the order of `classes_`.

        Raises
        ------
        NotFittedError
        ValueError
            `X` does not hold such images.
        """
        self._check_fitted()
        return self.model_.predict_proba(_images(X, "X"), dtype=self.dtype, threads=self.threads, workers=self.workers)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable label of each image.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)

        Returns
        -------
        array (N,)
            Entries of `classes_`.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The accuracy on labelled images.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
        y : (N,)
            The true labels.
        sample_weight : (N,), optional
            Weights of the images, 0 or more.

        Returns
        -------
        float
            Accuracy, 0 to 1.

        Raises
        ------
        NotFittedError
        ValueError
            The number of labels is not that of the images, or the labels are of another kind than those of `fit`.
        """
        predicted = self.predict(X)
        labels = _labels(y, "y", len(predicted), "X")
        if (labels.dtype.kind in "UO") != (self.classes_.dtype.kind in "UO"):
            raise ParameterError(
                "y", f"has labels such as {labels[0]!r}, but the classifier knows such as {self.classes_[0]!r}")
        weights = None if sample_weight is None else _weights(sample_weight, len(predicted))
        return float(np.average(predicted == labels, weights=weights))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to a safetensors file, which `dreamda evaluate` and `predict` also read.

        Parameters
        ----------
        path : path

        Raises
        ------
        NotFittedError
        """
        self._check_fitted()
        params = {k: _plain(v) for k, v in self.get_params().items()}
        if isinstance(params["random_state"], np.random.RandomState):
            params["random_state"] = None
        self.model_.about = {"params": params, "history": self.history_, "best_epoch": self.best_epoch_,
                             "pseudo_labels": self.pseudo_labels_.tolist(), "left_out": self.left_out_.tolist()}
        self.model_.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AMSTClassifier:
        """Read a file of `save`, or a model of ``dreamda train``.

        Parameters
        ----------
        path : path

        Returns
        -------
        AMSTClassifier

        Raises
        ------
        ValueError
            The file is neither of them.
        """
        model = TrainedModel.load(path)
        try:
            params = {k: tuple(v) if isinstance(v, list) else v for k, v in model.about.get("params", {}).items()}
            pseudo_labels = np.asarray(model.about.get("pseudo_labels", []), np.int32)
            left_out = np.asarray(model.about.get("left_out", []), np.int64)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} was not saved by AMSTClassifier ({error})") from None
        arguments: dict[str, Any] = {k: v for k, v in params.items() if k in cls._parameter_names()}
        self = cls(**{"backbone": model.backbone, **arguments})
        self.model_, self.classes_, self.pseudo_labels_, self.left_out_ = model, np.asarray(
            model.classes), pseudo_labels, left_out
        self.history_, self.best_epoch_ = model.about.get("history", []), model.about.get("best_epoch")
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            error = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", NotFittedError)
            raise error("this AMSTClassifier is not fitted yet; call fit or load first")


def _plain(value: Any) -> Any:
    """A parameter as a JSON value."""
    return value.tolist() if isinstance(value,
                                        (np.generic,
                                         np.ndarray)) else os.fspath(value) if isinstance(value, os.PathLike) else value


def _images(X: ArrayLike, name: str) -> NDArray[np.uint8]:
    array = np.asarray(X)
    if array.dtype != np.uint8:
        raise ParameterError(name, f"holds {array.dtype}; images must be uint8, 0 to 255")
    if array.ndim == 2 or array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        raise ParameterError(name, f"is one image of shape {array.shape}; give a batch of images, such as {name}[None]")
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=3)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ParameterError(
            name, f"has shape {np.shape(X)}; images must be (N, height, width, 3) or (N, height, width), N at least 1")
    return array


def _labels(y: ArrayLike, name: str, count: int, images: str) -> NDArray[Any]:
    """Labels of one kind: texts, whole numbers or booleans."""
    if y is None:
        raise ParameterError(name, "is missing: this classifier requires y to be passed, but the target y is None")
    array = _column(np.asarray(y), name, count, images)
    if array.dtype.kind == "O":
        kinds = {type(label) for label in array.tolist()}
        if len(kinds) > 1 or not kinds <= {str, int, bool, float}:
            raise ParameterError(
                name,
                f"has labels of the types {', '.join(sorted(k.__name__ for k in kinds))}; give texts, whole numbers "
                "or booleans, and only one kind of them")
        array = array if kinds == {str} else np.array(array.tolist())
    if array.dtype.kind not in "biufUO":
        raise ParameterError(name, f"has labels of type {array.dtype}; give texts, whole numbers or booleans")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ParameterError(
                name,
                f"holds NaN or infinity for {int((~np.isfinite(array)).sum())} images; leave those out, or label them")
        if (array != np.rint(array)).any():
            raise ParameterError(
                name,
                f"holds numbers such as {array[array != np.rint(array)][0]}. Unknown label type: continuous. A "
                "classifier needs classes: texts, whole numbers or booleans")
    return array


def _column(array: NDArray[Any], name: str, count: int, images: str) -> NDArray[Any]:
    """One value for each image; a column vector is flattened with scikit-learn's warning."""
    if array.ndim == 2 and array.shape[1] == 1:
        kind = getattr(sys.modules.get("sklearn.exceptions"), "DataConversionWarning", UserWarning)
        warnings.warn(f"A column-vector {name} was passed when a 1d array was expected; it is taken as {name}.ravel()",
                      kind,
                      stacklevel=4)
        array = array.ravel()
    if array.ndim != 1:
        raise ParameterError(name, f"should be a 1d array, got an array of shape {array.shape} instead")
    if len(array) != count:
        raise ParameterError(name, f"has {len(array)} values, but {images} has {count} images")
    return array


def _codes(labels: ArrayLike, classes: NDArray[Any], count: int) -> NDArray[np.int64]:
    array = _labels(labels, "y_synthetic", count, "X_synthetic")
    unknown = sorted(set(array.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise ParameterError("y_synthetic", f"has classes that no real image has: {', '.join(map(repr, unknown[:8]))}")
    return np.searchsorted(classes, array)


def _weights(weights: ArrayLike, count: int) -> NDArray[np.float32]:
    array = _column(np.asarray(weights, np.float32), "sample_weight", count, "X")
    if not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
        raise ParameterError("sample_weight", "must be finite numbers, 0 or more, and not all zero")
    return array


def _groups(groups: ArrayLike | None, name: str, count: int, images: str) -> NDArray[Any] | None:
    return None if groups is None else _column(np.asarray(groups), name, count, images)
