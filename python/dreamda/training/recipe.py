"""What decides a training run beside its data, views and backbone: method, schedule, thresholds.

    recipe = Recipe(method="amst", epochs=30, lr=0.05)
    recipe.stages()                                    # [("pretrain", 10), ("train", 20)]
    learning_rate(recipe, step=0, steps=400, steps_per_epoch=20)
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .views import KINDS, WEAK

METHODS = ("amst", "plain", "real-only")
MIXES = ("none", "mixup", "cutmix")
CONSISTENCY = ("rest", "all")
HINTS = ("ignore", "agree", "keep")
MOST = 1_000_000  # of learning rates and the like, which the core takes in single precision


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run but the data, the views and the backbone.

    Parameters
    ----------
    method : {"amst", "plain", "real-only"}
        plain: the synthetic images are trained on with their hints as labels. real-only: they are not used.
    epochs : int
        Of all stages together.
    pretrain_epochs : int, optional
        Of the first stage of amst; default: a third of `epochs`.
    steps_per_epoch : int, optional
        Default: the images that the method uses, divided by `batch`. Set it to give methods the same number of optimiser steps.
    batch : int
        Labelled images in a step; the train stage of amst adds as many unlabelled ones, in two views.
    lr, momentum, weight_decay, warmup_epochs
        SGD with Nesterov momentum, linear warm-up (at most a fifth of a stage), then a cosine to 0. Norms and biases do not decay. The
        defaults are the authors'.
    smoothing : float
        Label smoothing of f5's supervised loss.
    clip_norm : float
        Largest norm of the gradients of backbone and heads together; 0: no clipping.
    threshold, consistency_weight : float
        Confidence needed by a pseudo-label and by the consistency loss, and lambda.
    consistency_on : {"rest", "all"}
        Synthetic images that the consistency loss sees: those that were not accepted, as in the paper, or all of them (ours).
    relabel : int
        Repeat the labelling every so many epochs of the train stage; 0: never.
    hint : {"ignore", "agree", "keep"}
        What the seeds' labels are worth (ours; the paper ignores them). agree: accept a synthetic image only if its pseudo-label is its
        seed's label. keep: a synthetic image keeps its seed's label unless the heads agree, with confidence, on another; those that they
        contradict stay unlabelled.
    real_share : float
        Least part of real images in a labelled batch; more where they are more (ours).
    mix : {"none", "mixup", "cutmix"}
        Of the labelled images that f5 learns from; the share is uniform, Beta(1, 1).
    view : {"weak", "randaugment", "strong"}
        Of the labelled images that f5 learns from.
    seed : int
    """

    method: str = "amst"
    epochs: int = 30
    pretrain_epochs: int | None = None
    steps_per_epoch: int | None = None
    batch: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 5.0
    smoothing: float = 0.0
    clip_norm: float = 0.0
    threshold: float = 0.9
    consistency_weight: float = 1.0
    consistency_on: str = "rest"
    relabel: int = 0
    hint: str = "ignore"
    real_share: float = 0.5
    mix: str = "none"
    view: str = WEAK
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("mix", MIXES), ("hint", HINTS), ("view", KINDS), ("consistency_on", CONSISTENCY)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{_option(name)} must be {', '.join(choices[:-1])} or {choices[-1]}; it is {getattr(self, name)!r}")
        for name in ("smoothing", "threshold", "real_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{_option(name)} must be 0 to 1; it is {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be 0 to below 1; it is {self.momentum}")
        if not 0 < self.lr < MOST:
            raise ValueError(f"--lr must be above 0 and below {MOST}; it is {self.lr}")
        for name in ("weight_decay", "warmup_epochs", "clip_norm", "consistency_weight"):
            if not 0 <= getattr(self, name) < MOST:
                raise ValueError(f"{_option(name)} must be 0 or more and below {MOST}; it is {getattr(self, name)}")
        least = 2 if self.method == "amst" else 1
        if self.epochs < least:
            raise ValueError(f"--epochs must be {least} or more with --method {self.method}; it is {self.epochs}")
        if self.pretrain_epochs is not None and not 1 <= self.pretrain_epochs < self.epochs and self.method == "amst":
            raise ValueError(f"--pretrain-epochs must be 1 to {self.epochs - 1}, so that each stage has one; it is {self.pretrain_epochs}")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ValueError(f"--steps-per-epoch must be 1 or more; it is {self.steps_per_epoch}")
        if self.batch < 2:
            raise ValueError(f"--batch must be 2 or more (batch norm needs company); it is {self.batch}")
        if self.relabel < 0:
            raise ValueError(f"--relabel must be 0 or more; it is {self.relabel}")
        if self.relabel and self.mix != "none":
            raise ValueError("--relabel and --mix exclude each other: the labelling heads learn from unmixed images")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed must be 0 to 2^64 - 1; it is {self.seed}")

    def stages(self) -> list[tuple[str, int]]:
        """The stages that train, each with its epochs."""
        if self.method != "amst":
            return [("train", self.epochs)]
        first = self.pretrain_epochs if self.pretrain_epochs is not None else max(1, self.epochs // 3)
        return [("pretrain", first), ("train", self.epochs - first)]


RECIPE_FIELDS = tuple(field.name for field in fields(Recipe))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def learning_rate(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of a step (from 0) of a stage of so many: linear warm-up, then half a cosine, which would reach 0 after the last step."""
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps // 5)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
