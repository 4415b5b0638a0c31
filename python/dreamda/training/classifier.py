"""`AMSTClassifier`: the whole of AMST behind scikit-learn's conventions, without needing scikit-learn."""
from __future__ import annotations

import inspect
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .backbone import choose_stem, create_backbone, initialise, load_pretrained
from .batches import Data
from .heads import AMSTHeads
from .recipe import RECIPE_FIELDS, Recipe
from .saved import TrainedModel
from .stages import Event, Training
from .views import IMAGENET_MEAN, IMAGENET_STD, Views, channel_statistics, is_grey, keyed


class AMSTClassifier:
    """A ResNet trained on real and synthetic images with AMST, plainly, or on the real images alone.

    Follows scikit-learn's estimator conventions: parameters are stored as given and checked by `fit`; what `fit` finds ends in an
    underscore; instances can be cloned and pickled. Two fits with the same arguments give the same bits on the same machine.

    Parameters
    ----------
    backbone : {"resnet18", "resnet34", "resnet50"}
    method : {"amst", "plain", "real-only"}
        plain trains on the synthetic images with `y_synthetic` as labels; real-only ignores them.
    epochs, pretrain_epochs, steps_per_epoch, batch, lr, momentum, weight_decay, warmup_epochs, smoothing, clip_norm, threshold, \
consistency_weight, consistency_on, relabel, hint, real_share, mix, view
        See `dreamda.training.recipe.Recipe`.
    image_size : int or (int, int), optional
        Height and width that images are resized to; default: those of `X`.
    stem : {"auto", "imagenet", "small"}
        auto: small (3 x 3, stride 1) up to 64 pixels.
    width : int
        Channels of the first stage; 64 is the published network.
    pretrained : path, optional
        A timm or torchvision safetensors file to start from.
    mean, std : three floats each, optional
        Of the channels, in units of 0 to 1. Default: computed from `X`, with `pretrained` ImageNet's.
    crop_scale : (float, float), optional
    flip : bool
        See `dreamda.training.views.Views`. Switch the flip off for digits, letters and chest X-rays.
    validation_fraction : float
        Part of every class of `X` that is held back to choose the best epoch; 0: the last epoch is taken.
    dtype : {"auto", "f32", "bf16"}
    threads : int, optional
    workers : int
        Threads that make views. Does not change the result.
    random_state : int
        Seed of weights, views, order and split.
    verbose : bool
        Print a line per epoch on stderr.

    Attributes
    ----------
    classes_ : array
        The distinct labels, sorted.
    model_ : TrainedModel
    history_ : list of dict
        One record per epoch and per labelling, as in the log of ``dreamda train``.
    best_epoch_ : int
        The epoch (from 1) that was taken.
    pseudo_labels_ : array (M,) of int
        Positions in `classes_` that the synthetic images ended with, -1 where none was accepted.

    Examples
    --------
    >>> clf = AMSTClassifier(backbone="resnet18", epochs=20, lr=0.05)                # doctest: +SKIP
    >>> clf.fit(X, y, X_synthetic)                                                   # doctest: +SKIP
    >>> clf.score(X_test, y_test); clf.save("coats.safetensors")                     # doctest: +SKIP
    """

    _estimator_type = "classifier"

    backbone: str
    method: str
    epochs: int
    pretrain_epochs: int | None
    steps_per_epoch: int | None
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    smoothing: float
    clip_norm: float
    threshold: float
    consistency_weight: float
    consistency_on: str
    relabel: int
    hint: str
    real_share: float
    mix: str
    view: str
    image_size: int | tuple[int, int] | None
    stem: str
    width: int
    pretrained: str | os.PathLike[str] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_scale: tuple[float, float] | None
    flip: bool
    validation_fraction: float
    dtype: str
    threads: int | None
    workers: int
    random_state: int
    verbose: bool

    def __init__(self, backbone: str = "resnet18", *, method: str = "amst", epochs: int = 30, pretrain_epochs: int | None = None,
                 steps_per_epoch: int | None = None, batch: int = 64, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 1e-4,
                 warmup_epochs: float = 5.0, smoothing: float = 0.0, clip_norm: float = 0.0, threshold: float = 0.9,
                 consistency_weight: float = 1.0, consistency_on: str = "rest", relabel: int = 0, hint: str = "ignore",
                 real_share: float = 0.5, mix: str = "none", view: str = "weak",
                 image_size: int | tuple[int, int] | None = None, stem: str = "auto", width: int = 64,
                 pretrained: str | os.PathLike[str] | None = None, mean: tuple[float, ...] | None = None,
                 std: tuple[float, ...] | None = None, crop_scale: tuple[float, float] | None = None, flip: bool = True,
                 validation_fraction: float = 0.0, dtype: str = "auto", threads: int | None = None, workers: int = 2, random_state: int = 0,
                 verbose: bool = False) -> None:
        arguments = locals()
        for name in self._parameter_names():
            setattr(self, name, arguments[name])

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters as they are now.

        Parameters
        ----------
        deep : bool
            There for scikit-learn; changes nothing.

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
            By the names of the constructor.

        Returns
        -------
        AMSTClassifier
            This one.

        Raises
        ------
        ValueError
            The constructor has no such parameter.
        """
        for name, value in params.items():
            if name not in self._parameter_names():
                raise ValueError(f"AMSTClassifier has no parameter {name!r}; there are: {', '.join(self._parameter_names())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k].default)]
        return f"AMSTClassifier({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # only scikit-learn itself asks

        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
                    input_tags=InputTags(two_d_array=False, three_d_array=True))

    def fit(self, X: ArrayLike, y: ArrayLike, X_synthetic: ArrayLike | None = None, y_synthetic: ArrayLike | None = None) -> AMSTClassifier:
        """Train.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
            Real images.
        y : (N,)
            Their labels, numbers or texts, of two classes or more.
        X_synthetic : uint8 (M, h, w, 3) or (M, h, w), optional
            Not needed by method real-only.
        y_synthetic : (M,), optional
            Labels of the seeds; needed by method plain and by hint agree, otherwise for the record.

        Returns
        -------
        AMSTClassifier
            This one.

        Raises
        ------
        ValueError
            A parameter or the data cannot be used; the sentence says which and how to mend it.
        dreamda.training.stages.DivergenceError
        """
        recipe = Recipe(**{name: _plain(getattr(self, "random_state" if name == "seed" else name)) for name in RECIPE_FIELDS})
        real, labels = _images(X, "X"), np.asarray(y)
        if labels.shape != (len(real),):
            raise ValueError(f"y has shape {labels.shape}; the {len(real)} images of X need ({len(real)},)")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has {len(classes)} class; a classifier needs 2 or more")
        synthetic: NDArray[np.uint8] | tuple[()] = ()
        hints = None
        if X_synthetic is not None and recipe.method != "real-only":
            synthetic = _images(X_synthetic, "X_synthetic")
            hints = _codes(y_synthetic, classes, len(synthetic)) if y_synthetic is not None else None
        train, held = split(codes, self.validation_fraction, recipe.seed)
        size = _pair(self.image_size, real.shape[1:3])
        views = Views(size, *self._statistics(real[train]), seed=recipe.seed, crop_scale=self.crop_scale, flip=self.flip, grey=is_grey(real))
        data = Data(real[train], codes[train], synthetic, hints, None, real[held], codes[held])
        backbone = create_backbone(self.backbone, size=size, batch=recipe.batch, stem=self.stem, width=self.width, dtype=self.dtype,
                                   threads=self.threads, slots=2 if recipe.method == "amst" else 1)
        initialise(backbone, recipe.seed)
        if self.pretrained is not None:
            load_pretrained(backbone, self.pretrained)
        run = Training(backbone, AMSTHeads(backbone.features, len(classes), recipe.seed), recipe, views, data, workers=self.workers)

        about = {"backbone": self.backbone, "stem": choose_stem(self.stem, size), "width": _plain(self.width), "size": tuple(map(int, size)),
                 "mean": tuple(map(float, views.mean)), "std": tuple(map(float, views.std)), "classes": classes.tolist()}
        history: list[Event] = []
        best: list[TrainedModel] = []

        def on_epoch(is_best: bool) -> None:
            if is_best:
                best[:] = [TrainedModel.of(run.network, **about)]

        def on_event(event: Event) -> None:
            history.append(event)
            if self.verbose:
                print(describe(event), file=sys.stderr)

        run.run(on_event, on_epoch)
        self.model_ = best[0] if best else TrainedModel.of(run.network, **about)
        self.best_epoch_ = run.best["epoch"] if run.best else recipe.epochs
        self.classes_, self.history_, self.pseudo_labels_ = classes, history, run.assigned
        return self

    def _statistics(self, images: NDArray[np.uint8]) -> tuple[Any, Any]:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.pretrained is not None else channel_statistics(images)
        return self.mean if self.mean is not None else mean, self.std if self.std is not None else std

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
            Resized where they are of another size than in `fit`.

        Returns
        -------
        float32 (N, n_classes)
            In the order of `classes_`.

        Raises
        ------
        ValueError
            It is not fitted, or `X` holds no such images.
        """
        if not hasattr(self, "model_"):
            raise ValueError("this AMSTClassifier is not fitted yet; call fit or load first")
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

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """The part of the images that are given their right label.

        Parameters
        ----------
        X : uint8 (N, H, W, 3) or (N, H, W)
        y : (N,)
            The right labels.

        Returns
        -------
        float
            Accuracy, 0 to 1.
        """
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier as one safetensors file; `dreamda evaluate` and `predict` take it too.

        Parameters
        ----------
        path : path

        Raises
        ------
        ValueError
            It is not fitted.
        """
        if not hasattr(self, "model_"):
            raise ValueError("this AMSTClassifier is not fitted yet; there is nothing to save")
        params = {k: _plain(v) for k, v in self.get_params().items()}
        self.model_.about = {"params": params, "history": self.history_, "best_epoch": self.best_epoch_,
                             "pseudo_labels": self.pseudo_labels_.tolist()}
        self.model_.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AMSTClassifier:
        """Read what `save` wrote, or a model of ``dreamda train``.

        Parameters
        ----------
        path : path

        Returns
        -------
        AMSTClassifier

        Raises
        ------
        ValueError
            The file is neither.
        """
        model = TrainedModel.load(path)
        try:
            params = {k: tuple(v) if isinstance(v, list) else v for k, v in model.about.get("params", {}).items()}
            pseudo_labels = np.asarray(model.about.get("pseudo_labels", []), np.int32)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} was not saved by AMSTClassifier ({error})") from None
        arguments: dict[str, Any] = {k: v for k, v in params.items() if k in cls._parameter_names()}
        self = cls(**{"backbone": model.backbone, **arguments})
        self.model_, self.classes_, self.pseudo_labels_ = model, np.asarray(model.classes), pseudo_labels
        self.history_, self.best_epoch_ = model.about.get("history", []), model.about.get("best_epoch")
        return self


def describe(event: Event) -> str:
    """One line of the log, for people."""
    if event["event"] == "labelling":
        text = f"labelling: {event['accepted']} of {event['images']} synthetic images accepted at threshold {event['threshold']:g}"
        for name, words in (("precision", "labels right"), ("agree_with_seed", "as their seeds")):
            if name in event:
                text += f", {event[name]:.1%} {words}"
        if not event["accepted"]:
            text += (f"; the highest confidence was {event['confidence_max']:.3f}: lower --threshold or raise --pretrain-epochs, or this trains on "
                     "the real images and the consistency loss alone")
        return text
    text = f"epoch {event['epoch']:3d} ({event['stage']}): loss {event['loss']:.4f}, training accuracy {event['train_accuracy']:.1%}"
    if "validation_accuracy" in event:
        text += f", validation accuracy {event['validation_accuracy']:.1%}"
    return text + f", {event['seconds']:.1f} s"


def split(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and to hold back: of every class `fraction` of the images, rounded, and never all of them.

    >>> [part.tolist() for part in split(np.array([0, 0, 1, 1, 1]), 0.0, 0)]
    [[0, 1, 2, 3, 4], []]
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"--validation must be a part from 0 to below 1; it is {fraction}")
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        random = keyed(seed, 1 << 48, (0, int(label), 0, 0)).random(len(members))
        held[members[np.argsort(random, kind="stable")[: min(round(fraction * len(members)), len(members) - 1)]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _plain(value: Any) -> Any:
    """A parameter as JSON knows it."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else os.fspath(value) if isinstance(value, os.PathLike) else value


def _images(X: ArrayLike, name: str) -> NDArray[np.uint8]:
    array = np.asarray(X)
    if array.dtype != np.uint8:
        raise ValueError(f"{name} must be uint8 images, 0 to 255; it is {array.dtype}")
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=3)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"{name} must be images (N, height, width, 3) or (N, height, width); it has shape {np.shape(X)}")
    return array


def _codes(labels: ArrayLike, classes: NDArray[Any], count: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"y_synthetic has shape {array.shape}; the {count} images of X_synthetic need ({count},)")
    unknown = sorted(set(array.tolist()) - set(classes.tolist()))
    if unknown:
        raise ValueError(f"y_synthetic has classes that no real image has: {', '.join(map(repr, unknown[:8]))}")
    return np.searchsorted(classes, array)


def _pair(size: int | tuple[int, int] | None, default: tuple[int, int]) -> tuple[int, int]:
    pair = default if size is None else (size, size) if isinstance(size, (int, np.integer)) else size
    return int(pair[0]), int(pair[1])
