"""The batches of a training run, and threads that prepare them in advance. Each is a function of (seed, round, step).

    batches = Batches(recipe, data, views, number=1, assigned=labels, n_classes=10, first=0)
    for batch in ahead(batches.train, 0, 100, workers=2): ...       # steps 0 to 99, in order
"""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .recipe import Recipe
from .views import STRONG, WEAK, Views, keyed

# Streams of the sampler and of the views: which pool of images a draw belongs to
LABELLED_REAL, LABELLED_SYNTHETIC, UNLABELLED, MIX = range(4)

Floats = NDArray[np.float32]
T = TypeVar("T")


class Images(Protocol):
    """Anything with ``len`` and ``[i]`` that gives uint8 (H, W, 3): an array, a list, or files.

    Several threads use it at the same time.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass
class Data:
    """The images of a run; for the image types see `Images`.

    Attributes
    ----------
    real, labels : images, int64 (N,)
        Labels are 0 to n_classes - 1.
    synthetic, hints : images, int64 (M,), optional
        Hints are the labels of the real images that the synthetic ones were made from, -1 where unknown. Method plain
        and ``hint="agree"`` require all of them; ``hint="keep"`` uses those that are known.
    truth : int64 (M,), optional
        The true labels of the synthetic images, for the log only.
    validation, validation_labels : images, int64, optional
        Used to choose the best epoch.
    weights : float32 (N,), optional
        Weights of the real images' losses; those of synthetic images are 1.
    """

    real: Images
    labels: NDArray[np.int64]
    synthetic: Images = ()
    hints: NDArray[np.int64] | None = None
    truth: NDArray[np.int64] | None = None
    validation: Images = ()
    validation_labels: NDArray[np.int64] | None = None
    weights: Floats | None = None


@dataclass
class Batch:
    """The arrays of one step; those that a method or stage does not need are None."""

    images: Floats
    labels: NDArray[np.int64]
    real: int = 0                     # the number of real images, the first rows
    strong: Floats | None = None      # pretrain: strong views of `images`; train: of the consistency loss's images
    weak: Floats | None = None        # of the consistency loss's images
    mixed_labels: NDArray[np.int64] | None = None
    mixed: float = 0.0
    weights: Floats | None = None     # weights of the rows' losses


class Batches:
    """The batches of one epoch. `pretrain` and `train` may be called from several threads.

    Parameters
    ----------
    recipe : Recipe
    data : Data
    views : Views
        The round becomes a part of their key.
    number : int
        The round, that is, the number of labellings so far. It is a part of the key of every draw.
    assigned : int (M,)
        Labels of the synthetic images; -1: unlabelled.
    n_classes : int
    first : int
        Number of the stage's steps before this epoch.
    """

    def __init__(self, recipe: Recipe, data: Data, views: Views, *, number: int, assigned: NDArray[np.int32],
                 n_classes: int, first: int) -> None:
        self.recipe, self.data, self.views, self.number, self.first = recipe, data, views.with_stage(
            number), number, first
        accepted, real, size = int((assigned >= 0).sum()), len(data.real), recipe.batch_size
        self._rest = np.arange(len(assigned)) if recipe.consistency_on == "all" else np.flatnonzero(assigned < 0)
        self._labelled = Pool(recipe.random_state, number, LABELLED_REAL, real)
        self._unlabelled = Pool(recipe.random_state, number, UNLABELLED, len(self._rest))
        self._of_class = [np.flatnonzero(assigned == label) for label in range(n_classes)]
        self._n_real = size if not accepted else min(
            size, max(math.ceil(size * recipe.real_share), round(size * real / (real + accepted))))

    def pretrain(self, step: int) -> Batch:
        """A batch of real images, each in a weak and a strong view."""
        size, data = self.recipe.batch_size, self.data
        drawn = self._labelled.take((self.first + step) * size, size)
        which = [i for _, i in drawn]
        return Batch(np.stack(self._views(WEAK, data.real, drawn, 0)),
                     data.labels[which],
                     strong=np.stack(self._views(STRONG, data.real, drawn, 0)),
                     weights=None if data.weights is None else data.weights[which])

    def train(self, step: int) -> Batch:
        """A batch of real and labelled synthetic images.

        For amst also the synthetic images of the consistency loss, each in a weak and a strong view.
        """
        recipe, data, step = self.recipe, self.data, self.first + step
        size, real = recipe.batch_size, len(data.real)
        drawn = self._labelled.take(step * size, size)
        which = [i for _, i in drawn]
        labels, weights = data.labels[which], None if data.weights is None else data.weights[which]
        images = self._views(recipe.view, data.real, drawn[: self._n_real], 0)
        # The other rows keep the drawn class: some classes are accepted more often than others, and that must not shift
        # the balance of the classes
        random = _random(recipe.random_state, self.number, LABELLED_SYNTHETIC, step).random(size)
        for row in range(self._n_real, size):
            there = self._of_class[labels[row]]
            if len(there):
                image = int(there[int(random[row] * len(there))])
                images += self._views(recipe.view, data.synthetic, [(step * size + row, image)], real)
                if weights is not None:
                    weights[row] = 1
            else:
                images += self._views(recipe.view, data.real, drawn[row: row + 1], 0)
        batch = Batch(np.stack(images), labels, self._n_real, weights=weights)
        if recipe.mix != "none":
            mix(batch, recipe.mix, _random(recipe.random_state, self.number, MIX, step))
        if recipe.method == "amst" and len(self._rest) >= size and recipe.consistency_weight > 0:
            drawn = [(draw, int(self._rest[i])) for draw, i in self._unlabelled.take(step * size, size)]
            batch.weak = np.stack(self._views(WEAK, data.synthetic, drawn, real))
            batch.strong = np.stack(self._views(STRONG, data.synthetic, drawn, real))
        return batch

    def _views(self, kind: str, images: Images, drawn: list[tuple[int, int]], offset: int) -> list[Floats]:
        return [self.views.view(kind, images[i], draw, offset + i) for draw, i in drawn]


class Pool:
    """An endless sequence of random orders of the numbers below n. `take` may be called from several threads."""

    def __init__(self, seed: int, number: int, stream: int, n: int) -> None:
        self.key, self.n = (seed, number, stream), n
        self._orders: dict[int, NDArray[np.int64]] = {}

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """Entries `start` to `start + count - 1`, each with the number of its order.

        So two draws of the same image differ.
        """
        drawn = []
        for position in range(start, start + count):
            order, place = divmod(position, self.n)
            if order not in self._orders:
                self._orders[order] = np.argsort(_random(*self.key, order).random(self.n), kind="stable")
            drawn.append((order, int(self._orders[order][place])))
        return drawn


def _random(seed: int, number: int, stream: int, draw: int) -> np.random.Generator:
    return keyed(seed, number << 32 | stream, (0, draw, 0, 1 << 32))


def mix(batch: Batch, kind: str, random: np.random.Generator) -> None:
    """Mix the batch with a random order of itself: MixUp (Zhang et al., 2018) or CutMix (Yun et al., 2019).

    All rows are mixed with the same share.
    """
    share, y, x = random.random(3)
    partner = np.argsort(random.random(len(batch.images)), kind="stable")
    other = batch.images[partner]
    if kind == "mixup":
        batch.images = np.float32(1 - share) * batch.images + np.float32(share) * other
    else:
        height, width = batch.images.shape[2:]
        half_h, half_w = height * math.sqrt(share) / 2, width * math.sqrt(share) / 2
        top, bottom = (min(max(round(y * height + d), 0), height) for d in (-half_h, half_h))
        left, right = (min(max(round(x * width + d), 0), width) for d in (-half_w, half_w))
        batch.images = batch.images.copy()
        batch.images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        share = (bottom - top) * (right - left) / (height * width)
    batch.mixed_labels, batch.mixed = batch.labels[partner], float(share)


def ahead(make: Callable[[int], T], start: int, stop: int, workers: int) -> Generator[T, None, None]:
    """Yield ``make(start), ..., make(stop - 1)`` in order; threads make them up to ``workers + 1`` calls ahead.

    With 0 `workers` each is made on demand. An exception in `make` is raised in place of its result. Closing the
    iterator waits for calls that have begun and drops the others.
    """
    if workers < 1:
        yield from map(make, range(start, stop))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dreamda-views")
    try:
        pending = deque(pool.submit(make, number) for number in range(start, min(start + workers + 1, stop)))
        for number in range(start + len(pending), stop + len(pending)):
            result = pending.popleft().result()
            if number < stop:
                pending.append(pool.submit(make, number))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
