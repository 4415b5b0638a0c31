"""The three stages of AMST, and the methods it is compared with.

They run on any backbone with the interface of ``dreamda._core.Trainer``.

    data = Data(real, labels, synthetic, hints)
    run = Training(backbone, AMSTHeads(backbone.features, 10), Recipe(epochs=30), Views((32, 32), mean, std), data)
    run.run(on_event=print)
    probabilities = run.network.predict_proba(images, run.views)

    stage     images                                          trained parts
    pretrain  real, weak + strong view                        backbone, f1_w, f2_w (weak), f1_s, f2_s (strong)
    label     synthetic, plain view                           none; an image gets a label, or stays without
    train     labelled; synthetic in a weak + strong view     backbone, f5

In the label stage, the four labelling heads agree on a class with enough confidence, or they predict none. With
``hint="ignore"`` this class is the label. With ``hint="agree"`` it counts only if it is the label of the real image.
With ``hint="keep"``, the default, the image keeps the label of its real image unless the heads agree on another class;
then it has none. (If the real image's label is unknown, the class of the heads is the label.) In the train stage, the
consistency loss sees all synthetic images, the default, or only those without a label (`consistency_on`).

Every batch is a function of (seed, round, step); each labelling begins a round. So the state of a run is its arrays and
its position. A resumed run and an uninterrupted one are bitwise identical.

The paper (arXiv 2403.12803) leaves details open. The choices here:

- Each stage has its own warm-up and cosine, and starts without momentum. By default a tenth of the epochs is
  pretraining.
- By default at least half of a batch are real images. Its synthetic images replace real ones of the same classes.
  Otherwise the classes that are easy to accept would crowd out the others.
- The consistency loss is FixMatch's. It is left out if it would see fewer images than a batch has, as batch norm would
  see the same few images over and over.
- Batch norm's running statistics come from the labelled images' weak views (in the train stage, from their own views),
  which resemble the images to be predicted. All other batches use their own statistics and leave the running ones as
  they are.
- The four labelling heads learn without label smoothing (smoothed heads would never be confident), and in the pretrain
  stage alone. With `relabel` they also learn from the real images in the train stage, without a gradient to the
  backbone.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..options import ParameterError, spelled
from ..text import counted
from .backbone import Backbone
from .batches import Batch, Batches, Data, Images, ahead
from .heads import LABELLING, AMSTHeads
from .recipe import Recipe, rate_at
from .views import Views

SUMS = ("loss", "supervised", "consistency", "used", "correct", "seen", "norm")  # over an epoch's steps

Floats = NDArray[np.float32]
Event = dict[str, Any]


class DivergenceError(ArithmeticError):
    """The loss or a gradient became NaN or infinite; `step` and `stage` say where.

    That step changed no parameter, only running statistics.

    Parameters are in backticks in its message (see `dreamda.options`).
    """

    def __init__(self, stage: str, step: int, what: str, lr: float) -> None:
        self.stage, self.step = stage, step
        super().__init__(
            f"training diverged in stage {stage}, step {step}: {what} with learning rate {lr:.3g}; take a lower "
            "`learning_rate`, a longer `warmup_epochs` or `clip_norm=1`")

    def __str__(self) -> str:
        return spelled(self.args[0])


class Network:
    """A backbone for batches of `batch` rows, and its heads: predicts, and gives the state to save."""

    def __init__(self, backbone: Backbone, heads: AMSTHeads, batch: int) -> None:
        if heads.n_features != backbone.features:
            raise ValueError(
                f"the backbone yields {backbone.features} features, but the heads are for {heads.n_features}")
        self.backbone, self.heads, self.batch = backbone, heads, batch

    def features(self, images: Images, views: Views, workers: int = 2) -> Floats:
        """Features of the plain views in evaluation mode, float32 (N, features)."""
        parts = [slice(start, min(start + self.batch, len(images))) for start in range(0, len(images), self.batch)]

        def load(number: int) -> Floats:
            return np.stack([views.plain(images[i]) for i in range(parts[number].start, parts[number].stop)])

        found = np.empty((len(images), self.backbone.features), np.float32)
        for part, batch in zip(parts, ahead(load, 0, len(parts), workers), strict=True):
            found[part] = self.backbone.evaluate(batch)
        return found

    def predict_proba(self, images: Images, views: Views, workers: int = 2) -> Floats:
        """Probabilities of f5, float32 (N, n_classes)."""
        return self.heads.predict_proba(self.features(images, views, workers))

    def reset_moments(self) -> None:
        """Set the momentum to 0."""
        for moment in (*self.backbone.moments.values(), *self.heads.moments.values()):
            moment[...] = 0

    def state(self) -> dict[str, Floats]:
        """Copies of everything that training changes: ``backbone.*``, ``backbone.*.moment``, ``heads.*``."""
        state = {
            f"backbone.{k}": v.copy()
            for k, v in (*self.backbone.parameters.items(), *self.backbone.buffers.items())
        }
        state.update({f"backbone.{k}.moment": v.copy() for k, v in self.backbone.moments.items()})
        state.update({f"heads.{k}": v for k, v in self.heads.state_dict().items()})
        return state

    def load_state(self, state: Mapping[str, Floats]) -> None:
        """Load the result of `state`; a ValueError names an array that is missing or has another shape."""
        for prefix, own, ending in (("backbone.", self.backbone.parameters, ""),
                                    ("backbone.", self.backbone.buffers, ""), ("backbone.", self.backbone.moments,
                                                                               ".moment")):
            for name, array in own.items():
                given = state.get(f"{prefix}{name}{ending}")
                if given is None or given.shape != array.shape:
                    there = "missing" if given is None else f"of shape {given.shape}"
                    raise ValueError(
                        f"{prefix}{name}{ending} is {there} in the checkpoint; this backbone has {array.shape}")
        self.heads.load_state_dict({k.removeprefix("heads."): v for k, v in state.items() if k.startswith("heads.")})
        for own, ending in ((self.backbone.parameters, ""), (self.backbone.buffers, ""), (self.backbone.moments,
                                                                                          ".moment")):
            for name, array in own.items():
                array[...] = state[f"backbone.{name}{ending}"]


class Training:
    """One run through the stages.

    Parameters
    ----------
    backbone : Backbone
        Initialised, created with the recipe's batch size, and with two slots for method amst.
    heads : AMSTHeads
    recipe : Recipe
    views : Views
        Stage 0; later rounds take views keyed with their number.
    data : Data
    workers : int
        Number of threads that make views; 0: none. It does not change the result.

    Attributes
    ----------
    network : Network
    assigned : int32 (M,)
        The current labels of the synthetic images; -1: unlabelled.
    epoch, step : int
        Epochs finished, and steps finished of the next one.
    best : dict or None
        Number and accuracy of the best epoch so far on the validation images; None without them.

    Raises
    ------
    ValueError
        The data does not fit the recipe.
    """

    def __init__(self,
                 backbone: Backbone,
                 heads: AMSTHeads,
                 recipe: Recipe,
                 views: Views,
                 data: Data,
                 *,
                 workers: int = 2) -> None:
        self.network, self.recipe, self.views, self.data, self.workers = Network(
            backbone, heads, recipe.batch_size), recipe, views, data, workers
        synthetic = len(data.synthetic)
        if not len(data.real):
            raise ValueError("there are no real images; training needs some of every class")
        if recipe.method != "real-only" and not synthetic:
            raise ParameterError("method",
                                 f"{recipe.method} needs synthetic images; give some, or use `method=real-only`")
        hints = data.hints if data.hints is not None else np.full(synthetic, -1)
        if (recipe.method == "plain" or recipe.hint == "agree") and recipe.method != "real-only" and (hints < 0).any():
            name, why = ("method", "plain trains on their labels") if recipe.method == "plain" else (
                "hint", "agree compares with their labels")
            raise ParameterError(
                name,
                f"{why}, but {int((hints < 0).sum())} synthetic images have none; use `method=amst` with `hint=keep`")
        self.hints = hints
        self.assigned = (hints if recipe.method == "plain" else np.full(synthetic, -1)).astype(np.int32)
        used = len(data.real) + (synthetic if recipe.method != "real-only" else 0)
        self.steps_per_epoch = recipe.steps_per_epoch or -(-used // recipe.batch_size)
        self.epoch = self.step = self.round = 0
        self.best: dict[str, Any] | None = None
        self._sums: dict[str, float] = {}

    # ---- the run

    def run(self,
            on_event: Callable[[Event], None] = lambda event: None,
            on_epoch: Callable[[bool], None] = lambda best: None,
            stop: Callable[[], bool] = lambda: False,
            progress: Callable[[int, int], None] = lambda done, total: None) -> bool:
        """Train from the current position to the end; False if `stop` ended it early, between two steps.

        Parameters
        ----------
        on_event : callable
            Called with each record of the log: ``{"event": "epoch" | "labelling", ...}``.
        on_epoch : callable
            Called after each epoch, to save the state, with True if the epoch is the best so far.
        stop : callable
            Asked after every step.
        progress : callable
            Called with the number of steps finished and their total.

        Raises
        ------
        DivergenceError
        """
        total = self.recipe.epochs * self.steps_per_epoch
        while self.epoch < self.recipe.epochs:
            stage, epoch, epochs = self._stage()
            if self.step == 0:
                self._begin_epoch(stage, epoch, on_event)
            started = time.monotonic()
            first = epoch * self.steps_per_epoch
            made = self.batches(epoch)
            batches = ahead(made.pretrain if stage == "pretrain" else made.train, self.step, self.steps_per_epoch,
                            self.workers)
            try:
                for batch in batches:
                    lr = rate_at(self.recipe, first + self.step, epochs * self.steps_per_epoch, self.steps_per_epoch)
                    (self._pretrain_step if stage == "pretrain" else self._train_step)(batch, lr)
                    self.step += 1
                    progress(self.epoch * self.steps_per_epoch + self.step, total)
                    if self.step < self.steps_per_epoch and stop():
                        return False
            finally:
                batches.close()
            on_epoch(self._end_epoch(stage, lr, time.monotonic() - started, on_event))
            if self.epoch < self.recipe.epochs and stop():
                return False
        return True

    def batches(self, epoch: int) -> Batches:
        """The batches of an epoch of the stage, with the current labels."""
        return Batches(self.recipe,
                       self.data,
                       self.views,
                       number=self.round,
                       assigned=self.assigned,
                       n_classes=self.network.heads.n_classes,
                       first=epoch * self.steps_per_epoch)

    @property
    def is_pretraining(self) -> bool:
        """Whether the training of f5 has not begun yet."""
        return len(self.recipe.stages()) > 1 and self.epoch < self.recipe.stages()[0][1] + (self.step == 0)

    def _stage(self) -> tuple[str, int, int]:
        """The stage of the next epoch, its number in the stage, and the stage's epochs."""
        before = 0
        for stage, epochs in self.recipe.stages():
            if self.epoch < before + epochs:
                return stage, self.epoch - before, epochs
            before += epochs
        raise AssertionError("the run is over")

    def _begin_epoch(self, stage: str, epoch: int, on_event: Callable[[Event], None]) -> None:
        self._sums = dict.fromkeys(SUMS, 0.0)
        if epoch == 0 and len(self.recipe.stages()) > 1:
            on_event(
                {"event": "stage", "stage": stage, "epoch": self.epoch, "epochs": dict(self.recipe.stages())[stage]})
        if epoch == 0 and self.epoch > 0:
            self.network.reset_moments()
        if stage == "train" and self.recipe.method == "amst" and (epoch == 0 or self.recipe.relabel
                                                                  and epoch % self.recipe.relabel == 0):
            self.round += 1
            on_event(self._label())

    def _end_epoch(self, stage: str, lr: float, seconds: float, on_event: Callable[[Event], None]) -> bool:
        sums, steps = self._sums, self.steps_per_epoch
        event: Event = {
            "event": "epoch", "stage": stage, "epoch": self.epoch + 1, "step": (self.epoch + 1) * steps, "lr": lr,
            "loss": sums["loss"] / steps
        }
        if stage == "train":
            event["supervised"] = sums["supervised"] / steps
            if self.recipe.method == "amst":
                event |= {"consistency": sums["consistency"] / steps, "used": int(sums["used"])}
        event |= {"train_accuracy": sums["correct"] / sums["seen"], "gradient_norm": sums["norm"] / steps}
        better = False
        if len(self.data.validation):
            features = self.network.features(self.data.validation, self.views, self.workers)
            probabilities = self._labelling_proba(
                features) if stage == "pretrain" else self.network.heads.predict_proba(features)
            accuracy = float((probabilities.argmax(axis=1) == self.data.validation_labels).mean())
            event["validation_accuracy"] = accuracy
            better = stage == "train" and (self.best is None or accuracy > self.best["accuracy"])
            if better:
                self.best = {"epoch": self.epoch + 1, "accuracy": accuracy}
        self.epoch, self.step = self.epoch + 1, 0
        on_event({**event, "seconds": round(seconds, 3)})
        return better

    def _labelling_proba(self, features: Floats) -> Floats:
        heads = self.network.heads
        return np.mean([_core.softmax(heads._forward(name, features)) for name in LABELLING], axis=0)

    # ---- labelling

    def _label(self) -> Event:
        recipe, data = self.recipe, self.data
        features = self.network.features(data.synthetic, self.views, self.workers)
        labels, confident, confidence = self.network.heads.label(features, recipe.threshold)
        accepted, agreeing = confident.copy(), labels == self.hints
        if recipe.hint == "agree":
            accepted &= agreeing
        elif recipe.hint == "keep":
            known, contradicted = self.hints >= 0, accepted & ~agreeing
            labels = np.where(known, self.hints, labels)
            accepted = np.where(known, ~contradicted, accepted)
            agreeing = labels == self.hints
        self.assigned = np.where(accepted, labels, -1).astype(np.int32)
        count = int(accepted.sum())
        event: Event = {
            "event": "labelling",
            "epoch": self.epoch,
            "threshold": recipe.threshold,
            "images": len(labels),
            "accepted": count,
            "confident": int((confident & accepted).sum()),
            "contradicted": int((confident & ~accepted).sum()),
            "per_class": np.bincount(labels[accepted], minlength=self.network.heads.n_classes).tolist(),
            "confidence_mean": float(confidence.mean()),
            "confidence_max": float(confidence.max()),
        }
        if count and (self.hints >= 0).all():
            event["agree_with_seed"] = float(agreeing[accepted].mean())
        if count and data.truth is not None:
            event["precision"] = float((labels == data.truth)[accepted].mean())
        return event

    # ---- steps

    def _pretrain_step(self, batch: Batch, lr: float) -> None:
        backbone, heads = self.network.backbone, self.network.heads
        assert batch.strong is not None  # in every batch of this stage
        weak, strong = self._forward(batch.images, 0, lr), self._forward_aside(batch.strong, lr)
        loss, d_weak, d_strong = heads.pretrain_loss(weak, strong, batch.labels, batch.weights)
        backbone.zero_grad()
        backbone.backward(d_weak, 0)
        backbone.backward(d_strong, 1)
        self._update(loss, lr)
        logits = [heads._forward(name, weak if name.endswith("w") else strong) for name in LABELLING]
        self._count(loss=loss,
                    correct=np.mean([(z.argmax(axis=1) == batch.labels).sum() for z in logits]),
                    seen=len(batch.labels))

    def _train_step(self, batch: Batch, lr: float) -> None:
        recipe, backbone, heads = self.recipe, self.network.backbone, self.network.heads
        weak = strong = None
        if batch.weak is not None and batch.strong is not None:
            weak = self._forward_aside(batch.weak, lr)  # no gradient: the next forward pass takes its slot
            strong = self._forward_aside(batch.strong, lr)
        features = self._forward(batch.images, 0, lr)
        result = heads.train_loss(features,
                                  batch.labels,
                                  weak,
                                  strong,
                                  recipe.consistency_weight,
                                  recipe.threshold,
                                  smoothing=recipe.smoothing,
                                  mixed_labels=batch.mixed_labels,
                                  mixed=batch.mixed,
                                  weights=batch.weights)
        backbone.zero_grad()
        backbone.backward(result.d_features, 0)
        if result.used and result.d_strong is not None:
            backbone.backward(result.d_strong, 1)
        if recipe.relabel and batch.real:
            real = slice(0, batch.real)
            heads.pretrain_loss(features[real], features[real], batch.labels[real],
                                None if batch.weights is None else batch.weights[real])
        self._update(result.total, lr)
        correct = (result.logits.argmax(axis=1) == batch.labels).sum()
        self._count(loss=result.total,
                    supervised=result.supervised,
                    consistency=result.consistency,
                    used=result.used,
                    correct=correct,
                    seen=len(batch.labels))

    def _forward(self, images: Floats, slot: int, lr: float) -> Floats:
        features = self.network.backbone.forward(images, slot)
        if not np.isfinite(features).all():
            raise self._diverged("the features are not finite", lr)
        return features

    def _forward_aside(self, images: Floats, lr: float) -> Floats:
        """A forward pass through slot 1 that does not change the running statistics."""
        kept = [(buffer, buffer.copy()) for buffer in self.network.backbone.buffers.values()]
        try:
            return self._forward(images, 1, lr)
        finally:
            for buffer, before in kept:
                buffer[...] = before

    def _update(self, loss: float, lr: float) -> None:
        """Step both optimisers; the gradients of backbone and heads are clipped together."""
        recipe, backbone, heads = self.recipe, self.network.backbone, self.network.heads
        of_backbone, of_heads = backbone.gradient_norm(), heads.gradient_norm()
        norm = math.hypot(of_backbone, of_heads)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss:.4g}, the norm of the gradients {norm:.4g}", lr)
        scale = min(1.0, recipe.clip_norm / norm) if recipe.clip_norm > 0 and norm > 0 else 1.0
        backbone.step(lr, recipe.momentum, recipe.weight_decay, True, scale * of_backbone if scale < 1 else 0.0)
        heads.step(lr, recipe.momentum, recipe.weight_decay, True, scale)
        self._count(norm=norm)

    def _diverged(self, what: str, lr: float) -> DivergenceError:
        self.network.heads.zero_grad()
        return DivergenceError(self._stage()[0], self.epoch * self.steps_per_epoch + self.step + 1, what, lr)

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._sums[name] += float(amount)

    # ---- state

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The arrays and the position (as JSON values) from which `load_state` resumes."""
        position = {"epoch": self.epoch, "step": self.step, "round": self.round, "best": self.best, "sums": self._sums}
        return {**self.network.state(), "assigned": self.assigned.copy()}, position

    def load_state(self, arrays: Mapping[str, NDArray[Any]], position: Mapping[str, Any]) -> None:
        """Resume from the result of `state`; ValueError if it does not belong to this run."""
        assigned = arrays.get("assigned")
        if assigned is None or assigned.shape != self.assigned.shape:
            raise ValueError(
                f"the checkpoint is of a run with {0 if assigned is None else len(assigned)} synthetic images; there "
                f"are {len(self.assigned)} now")
        counts: list[Any] = [position.get(k) for k in ("epoch", "step", "round")]
        best: Any = position.get("best")
        sums: Any = position.get("sums")
        if not (all(type(c) is int and c >= 0
                    for c in counts) and counts[0] <= self.recipe.epochs and counts[1] < self.steps_per_epoch
                and counts[2] <= self.recipe.epochs and _numbers(sums, SUMS if counts[1] else ()) and
                (best is None or _numbers(best, ("epoch", "accuracy")))):
            raise ValueError("the checkpoint's position is not one of this run")
        if assigned.dtype.kind not in "iu" or assigned.size and not -1 <= assigned.min() <= assigned.max(
        ) < self.network.heads.n_classes:
            raise ValueError("the checkpoint's labels of the synthetic images are not possible")
        broken = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
        if broken:
            raise ValueError(f"{broken[0]} in the checkpoint holds NaN or infinite values")
        self.network.load_state(arrays)
        self.assigned = assigned.astype(np.int32)
        self.epoch, self.step, self.round = counts
        self.best, self._sums = best, sums


def _numbers(values: Any, names: tuple[str, ...]) -> bool:
    """Whether an object from a file has a finite number under each of the names."""
    return isinstance(values, dict) and all(
        isinstance(values.get(n), (int, float)) and abs(values[n]) < math.inf for n in names)


def describe(event: Event) -> str:
    """A record of the log as a line for people; parameters are in backticks (see `dreamda.options`)."""
    if event["event"] == "stage":
        return _STAGES[event["stage"]].format(counted(event["epochs"], "epoch"))
    if event["event"] == "labelling":
        return _describe_labelling(event)
    text = (f"epoch {event['epoch']:3d} ({event['stage']}): loss {event['loss']:.4f}, "
            f"training accuracy {event['train_accuracy']:.1%}")
    if "validation_accuracy" in event:
        text += f", validation accuracy {event['validation_accuracy']:.1%}"
    return text + f", {event['seconds']:.1f} s"


_STAGES = {
    "pretrain":
    "Stage 1 (pretrain), {}: four labelling heads learn from the real images. "
    "The loss is the sum of four.",
    "train":
    "Stage 2 (train), {}: the classifier's own head begins to learn, from real and synthetic images, so "
    "the loss is another one and the accuracy starts low again."
}


def _describe_labelling(event: Event) -> str:
    kept = event["accepted"] - event["confident"]
    left = event["images"] - event["accepted"]
    parts = [f"{event['confident']} confident at threshold {event['threshold']:g}"]
    if kept:
        parts.append(f"{kept} kept with their source label")
    if left:
        parts.append(f"{left} without a label"
                     + (f" ({event['contradicted']} contradicted)" if event["contradicted"] else ""))
    text = (f"labelling {counted(event['images'], 'synthetic image')}: {', '.join(parts)}; "
            f"mean confidence {event['confidence_mean']:.2f}")
    if "precision" in event:
        text += f"; {event['precision']:.1%} of the labels are right"
    if not event["accepted"]:
        text += (
            f". None is used as a labelled image, as the highest confidence is {event['confidence_max']:.3f}: "
            "training continues with the real images and the consistency loss. Lower `threshold`, "
            "raise `pretrain_epochs`, or use `hint=keep`")
    return text
