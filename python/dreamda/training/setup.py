"""`Setup` applies a `Recipe` to given images: size, network, statistics and views. It makes the `Training` from them.

    setup = Setup.of(recipe, (32, 32), images)
    run = setup.training(data, n_classes=10, threads=2, workers=2)
    run.run()
    setup.model(run.network, classes).save("model.safetensors")
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backbone import choose_stem, create_backbone, initialise, load_pretrained
from .batches import Data
from .heads import AMSTHeads
from .recipe import Recipe
from .saved import TrainedModel
from .stages import Network, Training
from .views import IMAGENET_MEAN, IMAGENET_STD, Views, channel_statistics


@dataclass(frozen=True)
class Setup:
    """A recipe, and all settings of it that depend on the images.

    Attributes
    ----------
    recipe : Recipe
    size : (height, width)
    stem : {"imagenet", "small"}
    width : int
    mean, std : tuples of three floats
    views : Views
    """

    recipe: Recipe
    size: tuple[int, int]
    stem: str
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: Views

    @classmethod
    def of(cls,
           recipe: Recipe,
           size: tuple[int, int],
           images: Iterable[NDArray[np.uint8]],
           grey: bool = False) -> Setup:
        """Resolve a recipe for given images.

        Parameters
        ----------
        recipe : Recipe
        size : (height, width)
            Of the views.
        images : iterable of uint8 (H, W, 3)
            The real training images. They are read once, and only if the recipe does not give their mean and std.
        grey : bool
            Whether no image has colour.
        """
        stem = choose_stem(recipe.stem, size)
        mean, std = recipe.mean, recipe.std
        if mean is None or std is None:
            default = (IMAGENET_MEAN, IMAGENET_STD) if recipe.pretrained is not None else channel_statistics(images)
            mean, std = mean or default[0], std or default[1]
        low_high = (recipe.crop_scale[0], recipe.crop_scale[1]) if recipe.crop_scale else None
        views = Views(size, mean, std, seed=recipe.random_state, crop_scale=low_high, flip=recipe.flip,
                      how=recipe.image_fit, grey=grey)
        return cls(recipe, views.size, stem, recipe.width_for(stem), mean, std, views)

    def resolved(self) -> dict[str, Any]:
        """The fields of the recipe that were derived from the images, as JSON values."""
        return {
            "image_size": list(self.size),
            "stem": self.stem,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_scale": list(self.views.crop_scale),
        }

    def training(self, data: Data, n_classes: int, *, threads: int | None = None, workers: int = 2) -> Training:
        """Create a new training run.

        Raises
        ------
        dreamda.options.ParameterError
            The pretrained weights or the data do not fit the recipe.
        """
        recipe = self.recipe
        backbone = create_backbone(recipe.backbone,
                                   size=self.size,
                                   batch=recipe.batch_size,
                                   stem=self.stem,
                                   width=self.width,
                                   dtype=recipe.dtype,
                                   threads=threads,
                                   slots=2 if recipe.method == "amst" else 1)
        initialise(backbone, recipe.random_state)
        if recipe.pretrained is not None:
            load_pretrained(backbone, recipe.pretrained)
        return Training(backbone,
                        AMSTHeads(backbone.features, n_classes, recipe.random_state),
                        recipe,
                        self.views,
                        data,
                        workers=workers)

    def model(self, network: Network, classes: list[Any], *, pretraining: bool = False, **about: Any) -> TrainedModel:
        """The classifier of a network in its current state; with `pretraining`, the mean of its labelling heads."""
        return TrainedModel.of(network,
                               pretraining,
                               backbone=self.recipe.backbone,
                               stem=self.stem,
                               width=self.width,
                               size=self.size,
                               fit=self.recipe.image_fit,
                               mean=self.mean,
                               std=self.std,
                               classes=classes,
                               **about)
