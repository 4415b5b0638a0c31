"""The options of training, all defined in `Recipe`. `AMSTClassifier`, the command line and run.json use it.

    recipe = Recipe(method="amst", epochs=30)
    recipe.stages()                                    # [("pretrain", 3), ("train", 27)]
    rate_at(recipe, step=0, steps=400, steps_per_epoch=20)
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..options import Options, ParameterError, documented, option
from .views import SMALL

MOST = 1_000_000  # upper limit of learning rates and similar options, which the core takes in single precision
COMMON, AMST, OPTIMISER = "Options", "Synthetic images", "Optimiser"
VIEWS, NETWORK, RUNNING = "Images", "Network", "Running"
SMALL_WIDTH, PUBLISHED_WIDTH = 16, 64
LARGE_SIZE = 224


@documented
@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """Everything that a trained classifier depends on, besides the images.

    The defaults for synthetic images, learning rate, batch size and width did best on validation images in
    benchmarks/EFFICACY.md. Raises `dreamda.options.ParameterError` (a ValueError) that names the parameter.
    """

    method: Literal["amst", "plain", "real-only"] = option(
        "amst",
        "amst (learn which synthetic images to trust), plain (trust the label of every one) or "
        "real-only (leave them out).",
        group=COMMON)
    epochs: int = option(30, "Passes over the images, in all stages together.", group=COMMON, low=1, high=MOST)
    validation_fraction: float = option(
        0.0,
        "Share of each class's real images that is held back to choose the best epoch. Synthetic images made "
        "from them are left out. 0: use the last epoch.",
        group=COMMON,
        low=0,
        high=1,
        spelling="--validation")
    backbone: Literal["resnet18", "resnet34", "resnet50"] = option("resnet18", "The network.", group=COMMON)
    pretrained: str | None = option(None,
                                    "Weights to start from: a timm or torchvision file (safetensors).",
                                    group=COMMON,
                                    shown_default="random weights")
    image_size: int | tuple[int, int] | None = option(
        None, "Height and width that images are resized to.", group=COMMON, low=1, count=2, spelling="--size",
        shown_default="the median of the real images up to 64 pixels, else 224")
    flip: bool = option(
        True,
        "Flip half of the training views from left to right. Wrong for digits, letters and chest X-rays.",
        group=COMMON)
    random_state: int = option(0,
                               "Random seed of the initial weights, views, order and split.",
                               group=COMMON,
                               low=0,
                               high=(1 << 64) - 1,
                               spelling="--seed")

    hint: Literal["ignore", "agree", "keep"] = option(
        "keep",
        "How far to trust the label that a synthetic image inherits from its real image. keep: use it unless the "
        "network is confident of another label. agree: use it only if the network is confident of it too. ignore: "
        "the network alone decides, as in the paper.",
        group=AMST)
    threshold: float = option(0.7,
                              "Minimum confidence, 0 to 1, for the network's label of a synthetic image to count.",
                              group=AMST,
                              low=0,
                              high=1)
    relabel: int | None = option(None,
                                 "Label the synthetic images again every N epochs; 0: only once.",
                                 group=AMST,
                                 low=0,
                                 shown_default="3, and 0 with `mix`")
    pretrain_epochs: int | None = option(None,
                                         "Epochs of the first stage, which uses only real images (`method=amst`).",
                                         group=AMST,
                                         low=1,
                                         shown_default="a tenth of `epochs`, at least 2")
    consistency_weight: float = option(
        1.0,
        "Weight of the consistency loss: two views of a synthetic image should be classified alike.",
        group=AMST,
        low=0,
        high=MOST)
    consistency_on: Literal["rest", "all"] = option(
        "all",
        "Synthetic images used in the consistency loss: all, or only the rest without a label (as in the paper).",
        group=AMST)
    real_share: float = option(0.5,
                               "Minimum share of real images in each labelled batch.",
                               group=AMST,
                               low=0,
                               high=1)

    batch_size: int = option(32, "Batch size: labelled images per step.", group=OPTIMISER, low=2, high=MOST)
    learning_rate: float | None = option(None, "Highest learning rate.", group=OPTIMISER, above=0, high=MOST,
                                         shown_default="0.05, and 0.01 with `pretrained`")
    steps_per_epoch: int | None = option(None,
                                         "Steps per epoch. Set it to compare methods at the same number of steps.",
                                         group=OPTIMISER,
                                         low=1,
                                         high=MOST,
                                         shown_default="images / batch size")
    warmup_epochs: float = option(
        1.0,
        "Warm-up epochs (at most a fifth of a stage), followed by cosine decay.",
        group=OPTIMISER,
        low=0,
        high=MOST)
    momentum: float = option(0.9, "Nesterov momentum, below 1.", group=OPTIMISER, low=0, high=1)
    weight_decay: float = option(1e-4, "Weight decay; not on norms and biases.", group=OPTIMISER, low=0, high=MOST)
    clip_norm: float = option(0.0, "Maximum norm of the gradient; 0: no clipping.", group=OPTIMISER, low=0, high=MOST)
    smoothing: float = option(0.0, "Label smoothing of the classifier's loss.", group=OPTIMISER, low=0, high=1)

    view: Literal["weak", "randaugment", "strong"] = option(
        "randaugment",
        "Augmentation of labelled images: weak (crop and flip, as in the paper), randaugment, or strong (RandAugment "
        "and Cutout).",
        group=VIEWS)
    image_fit: Literal["crop", "pad", "squash"] = option(
        "crop",
        "Images of another aspect ratio than the training size: crop (random crops for training, the centre for "
        "testing), pad (keep all, and mirror it at the edges), or squash (change the aspect ratio).",
        group=VIEWS,
        spelling="--fit")
    mix: Literal["none", "mixup", "cutmix"] = option("none", "Mix pairs of labelled images.", group=VIEWS)
    crop_scale: tuple[float, ...] | None = option(None,
                                                  "Smallest and largest area of random crops, as a share of the image.",
                                                  group=VIEWS,
                                                  above=0,
                                                  high=1,
                                                  count=2,
                                                  shown_default="0.08,1; up to 64 pixels 0.5,1")
    mean: tuple[float, ...] | None = option(None,
                                            "Mean of the red, green and blue channels, 0 to 1.",
                                            group=VIEWS,
                                            low=0,
                                            high=1,
                                            count=3,
                                            shown_default="of the real images; ImageNet's with `pretrained`")
    std: tuple[float, ...] | None = option(None,
                                           "Standard deviation of the channels.",
                                           group=VIEWS,
                                           above=0,
                                           high=1,
                                           count=3,
                                           shown_default="of the real images; ImageNet's with `pretrained`")

    stem: Literal["auto", "imagenet", "small"] = option(
        "auto",
        "First layers: imagenet (stride 4), or small (3 x 3, stride 1); auto is small up to 64 pixels.",
        group=NETWORK)
    width: int | None = option(None,
                               "Channels of the first stage; 64 is the published network.",
                               group=NETWORK,
                               low=8,
                               high=1024,
                               shown_default="16 with the small stem, else 64; 64 with `pretrained`")
    dtype: Literal["auto", "f32", "bf16"] = option("auto",
                                                   "Number format used for computing; auto: bf16 if the CPU has it.",
                                                   group=RUNNING)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relabel is None:
            object.__setattr__(self, "relabel", 0 if self.mix != "none" else 3)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 0.01 if self.pretrained is not None else 0.05)
        if self.relabel and self.mix != "none":
            raise ParameterError(
                "relabel",
                "does not go with `mix`, as the labelling heads learn from unmixed images; leave one of them off")
        if self.momentum >= 1:
            raise ParameterError("momentum", f"{self.momentum} is not possible; use a number from 0 to below 1")
        if self.validation_fraction >= 1:
            raise ParameterError(
                "validation_fraction",
                f"{self.validation_fraction} leaves no image to train on; use a number from 0 to below 1")
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            raise ParameterError("crop_scale",
                                 f"{self.crop_scale} has the larger number first; give the smaller one first")
        if self.method == "amst" and self.epochs < 2:
            raise ParameterError("epochs",
                                 f"{self.epochs} is too few: `method=amst` has two stages of at least one epoch each")
        if self.method == "amst" and self.pretrain_epochs is not None and self.pretrain_epochs >= self.epochs:
            raise ParameterError(
                "pretrain_epochs",
                f"{self.pretrain_epochs} leaves none of {self.epochs} `epochs` for the second stage; use 1 to "
                f"{self.epochs - 1}")

    @property
    def rate(self) -> float:
        """`learning_rate` as a number."""
        assert self.learning_rate is not None  # resolved on creation
        return self.learning_rate

    def stages(self) -> list[tuple[str, int]]:
        """The stages that train, each with its epochs."""
        if self.method != "amst":
            return [("train", self.epochs)]
        first = self.pretrain_epochs or min(max(2, round(self.epochs / 10)), self.epochs - 1)
        return [("pretrain", first), ("train", self.epochs - first)]

    def width_for(self, stem: str) -> int:
        """Channels of the first stage.

        Small images get a small network, unless `width` is given or the network is pretrained.
        """
        return self.width or (SMALL_WIDTH if stem == "small" and self.pretrained is None else PUBLISHED_WIDTH)


def natural_size(given: int | tuple[int, int] | None, sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], str]:
    """The size of the views, and the reason for it.

    It is the given size; else the median of the images' sizes up to 64 pixels, and 224 beyond.

    >>> natural_size(None, [(30, 40), (32, 32), (32, 32)])
    ((32, 32), 'the median of images from 30 x 40 to 32 x 32')
    """
    if given is not None:
        return (given if isinstance(given, tuple) else (given, given)), "as given"
    height, width = (int(np.median([size[side] for size in sizes])) for side in (0, 1))
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    if ordered[0] == ordered[-1]:
        why = f"the images are {height} x {width}"
    else:
        why = "the median of images from {} x {} to {} x {}".format(*ordered[0], *ordered[-1])
    if max(height, width) <= SMALL:
        return (height, width), why
    return (
        LARGE_SIZE, LARGE_SIZE
    ), f"the usual size; {why}" if ordered[0] == ordered[-1] else f"the usual size; their median is {height} x {width}"


def rate_at(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of one step (from 0) of a stage that has `steps` steps.

    It rises linearly in the warm-up, then follows half a cosine, which would reach 0 after the last step.
    """
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps // 5)
    if step < warmup:
        return recipe.rate * (step + 1) / warmup
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
