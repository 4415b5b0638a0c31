"""Fidelity and diversity of synthetic images, measured in the features of a network.

    judged = judge(real, labels, synthetic, seeds)             # a network trained on the real images, in two halves
    judged = judge(real, labels, synthetic, seeds, features=model.features)

If no network is given, two small ones are trained, each on half of the real images. Each then classifies the other
half, and the synthetic images that were made from that half: it has seen neither. A third network is trained on the
synthetic images alone and classifies the real ones. In this file, a synthetic image's seed is the real image that it
was made from.
"""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..networks.weights import WeightFile
from ..text import counted, in_brackets

if TYPE_CHECKING:
    from ..training.saved import TrainedModel

NEIGHBOURS = 5
FEWEST = 4               # minimum number of real images per class, for the two halves
STEPS, EPOCHS = 25, 5    # of each network: steps per epoch, and epochs
WIDTH = 16
GUESSING = 0.25          # minimum accuracy above chance on synthetic images, as a share of that on real ones

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class Neighbours(NamedTuple):
    """The result of `neighbour_metrics`.

    Each value is between 0 and 1, except the density, which is about 1 if both kinds are alike.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_metrics(real: Floats, synthetic: Floats, k: int = NEIGHBOURS) -> Neighbours:
    """Compare two sets of features.

    Each image has a ball around it that reaches to its k-th nearest neighbour of its own kind. precision: the share of
    synthetic images inside some real ball. recall: the share of real images inside some synthetic ball. density: the
    mean number of real balls that a synthetic image is in, divided by k. coverage: the share of real balls with a
    synthetic image inside.

    Parameters
    ----------
    real, synthetic : (N, F), (M, F)
        More than `k` rows each.
    k : int

    Raises
    ------
    ValueError
        Too few rows.
    """
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} images of each kind; there are {len(real)} real and "
            f"{len(synthetic)} synthetic ones")
    real_radius, synthetic_radius = _radii(real, k), _radii(synthetic, k)
    between = distances(synthetic, real)
    inside = between <= real_radius
    return Neighbours(float(inside.any(axis=1).mean()), float((between <= synthetic_radius[:,
                                                                                           None]).any(axis=0).mean()),
                      float(inside.sum() / (k * len(synthetic))), float((between.min(axis=0) <= real_radius).mean()))


def _radii(features: Floats, k: int) -> Floats:
    return np.partition(distances(features, features), k, axis=1)[:, k]  # the nearest of all is the image itself


def covered(spaces: Sequence[Space], labels: Ints, seeds: Ints, k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Whether each real image has a synthetic image of its class in its neighbourhood: 1, 0, or NaN if unknown.

    The neighbourhood reaches to the k-th nearest real image of the class, or the farthest one if there are fewer.

    Parameters
    ----------
    spaces : sequence of Space
    labels, seeds : int (N,), (M,)
        As for `judge`.
    k : int
    """
    found = np.full(len(labels), np.nan)
    for space in spaces:
        for label in np.unique(labels[space.real]):
            members = labels[space.real] == label
            if members.sum() < 3:
                continue
            real = space.real_features[members]
            made = space.synthetic_features[labels[seeds[space.synthetic]] == label]
            reach = _radii(real, min(k, len(real) - 1))
            nearest = distances(real, made).min(axis=1) if len(made) else np.full(len(real), np.inf)
            found[space.real[members]] = nearest <= reach
    return found


def distances(a: Floats, b: Floats) -> Floats:
    """Euclidean distances, float32 (len(a), len(b))."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    if a.shape == b.shape and np.array_equal(a, b):
        np.fill_diagonal(squares, 0)
    return np.sqrt(np.maximum(squares, 0)).astype(np.float32)


class Space(NamedTuple):
    """Features of real and synthetic images from the same network: positions of the images, and one row per image."""

    real: Ints
    real_features: Floats
    synthetic: Ints
    synthetic_features: Floats


@dataclass(repr=False)
class Judged:
    """The result of `judge`.

    Attributes
    ----------
    space : str
        A description of the features.
    neighbours, best : Neighbours, optional
        Of the synthetic against the real images, and of one half of the real images against the other. None if there
        are too few images.
    spaces : list of Space
    real_guess, synthetic_guess : int (N,), (M,), optional
        The prediction for each image, by a network that was trained without it, its real image and its variants.
    taught_guess : int (N,), optional
        The prediction for each real image, by a network trained on the synthetic images alone.
    notes : list of str
    """

    space: str
    neighbours: Neighbours | None = None
    best: Neighbours | None = None
    spaces: list[Space] = field(default_factory=list)
    real_guess: Ints | None = None
    synthetic_guess: Ints | None = None
    taught_guess: Ints | None = None
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        found = (f"precision {self.neighbours.precision:.2f}, recall {self.neighbours.recall:.2f}"
                 if self.neighbours else "too few images to measure")
        return in_brackets("Judged", f"in {self.space}", found, self.notes and counted(len(self.notes), "note"))


def judge(real: Pixels,
          labels: Ints,
          synthetic: Pixels,
          seeds: Ints,
          *,
          features: Callable[[Pixels], Floats] | None = None,
          title: str = "",
          threads: int | None = None) -> Judged:
    """Compare synthetic images with the real ones that they were made from.

    Parameters
    ----------
    real : uint8 (N, H, W, 3)
    labels : int (N,)
        Classes of the real images, 0 and up.
    synthetic : uint8 (M, H, W, 3)
    seeds : int (M,)
        The position of the real image that each was made from.
    features : callable, optional
        Computes features of images, (N, F); the five nearest neighbours then predict classes. Default: networks that
        are trained here, or thumbnails if there is one class or a class has fewer than 4 images.
    title : str
        A description of the features.
    threads : int, optional

    Returns
    -------
    Judged
    """
    if features is not None:
        return _by_neighbours(real, labels, synthetic, seeds, features, title)
    counts = np.bincount(labels)
    if len(counts) < 2 or counts.min() < FEWEST:
        judged = _by_neighbours(real, labels, synthetic, seeds, _thumbnails, "the pixels of 16 x 16 thumbnails", False)
        judged.notes.append(
            "There is one class, or a class has fewer than 4 real images. So no network was trained, and thumbnails "
            "cannot tell what is to be seen in an image: give features of a network with --features or --classifier.")
        return judged
    return _by_training(real, labels, synthetic, seeds, threads)


def _by_training(real: Pixels, labels: Ints, synthetic: Pixels, seeds: Ints, threads: int | None) -> Judged:
    half = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        half[members[1::2]] = 1
    real_guess, synthetic_guess = np.empty(len(real), np.int64), np.empty(len(synthetic), np.int64)
    spaces = []
    for own in (0, 1):
        network = _trained(real[half == own], labels[half == own], threads)
        other, made = np.flatnonzero(half != own), np.flatnonzero(half[seeds] != own)
        spaces.append(Space(other, network.features(real[other]), made, network.features(synthetic[made])))
        real_guess[other] = network.predict_proba(real[other]).argmax(axis=1)
        synthetic_guess[made] = network.predict_proba(synthetic[made]).argmax(axis=1)
    found = Judged(
        "the features of small networks, each trained on half of the real images and asked about the other half",
        spaces=spaces,
        real_guess=real_guess,
        synthetic_guess=synthetic_guess)
    made_of = labels[seeds]
    if len(np.unique(made_of)) == len(np.unique(labels)):
        found.taught_guess = _trained(synthetic, made_of, threads).predict_proba(real).argmax(axis=1)
    _measure(found)
    return found


def _trained(images: Pixels, labels: Ints, threads: int | None) -> Any:
    from ..training.classifier import AMSTClassifier

    return AMSTClassifier(method="real-only", view="weak", epochs=EPOCHS, steps_per_epoch=STEPS, width=WIDTH,
                          threads=threads).fit(images, labels).model_


def _by_neighbours(real: Pixels,
                   labels: Ints,
                   synthetic: Pixels,
                   seeds: Ints,
                   features: Callable[[Pixels], Floats],
                   title: str,
                   tells_classes: bool = True) -> Judged:
    space = Space(np.arange(len(real)), features(real), np.arange(len(synthetic)), features(synthetic))
    found = Judged(title, spaces=[space])
    if tells_classes and len(np.unique(labels)) > 1:
        among, between = distances(space.real_features,
                                   space.real_features), distances(space.synthetic_features, space.real_features)
        np.fill_diagonal(among, np.inf)
        own = between.copy()
        own[np.arange(len(seeds)), seeds] = np.inf
        from_made = between.T.copy()
        from_made[seeds, np.arange(len(seeds))] = np.inf
        found.real_guess, found.synthetic_guess = _vote(among, labels), _vote(own, labels)
        found.taught_guess = _vote(from_made, labels[seeds])
    _measure(found)
    return found


def _vote(apart: Floats, labels: Ints) -> Ints:
    """The most frequent class among the nearest neighbours; of equally frequent ones, that of the nearer neighbour."""
    nearest = np.argsort(apart, axis=1, kind="stable")[:, : min(NEIGHBOURS, apart.shape[1] - 1)]
    count = int(labels.max()) + 1
    votes = np.zeros((len(apart), count))
    for rank in range(nearest.shape[1]):
        np.add.at(votes, (np.arange(len(apart)), labels[nearest[:, rank]]), 1 - 1e-3 * rank)
    return votes.argmax(axis=1)


def _thumbnails(images: Pixels) -> Floats:
    from PIL import Image

    return np.stack([
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), np.float32).ravel() / 255
        for image in images
    ])


def _measure(found: Judged) -> None:
    metrics, best = [], []
    for space in found.spaces:
        count = min(len(space.real), len(space.synthetic))
        if count < 3:
            return
        metrics.append(neighbour_metrics(space.real_features, space.synthetic_features, min(NEIGHBOURS, count - 1)))
        half = len(space.real) // 2
        if half > NEIGHBOURS:
            order = np.random.default_rng(0).permutation(len(space.real))
            best.append(neighbour_metrics(space.real_features[order[:half]], space.real_features[order[half:]]))
    found.neighbours = Neighbours(*map(float, np.mean(metrics, axis=0)))
    found.best = Neighbours(*map(float, np.mean(best, axis=0))) if best else None


class Verdict(NamedTuple):
    """The verdict on a class: a word, a sentence, and the numbers behind them."""

    word: str
    sentence: str
    numbers: dict[str, Any]


def f1(guess: Ints, truth: Ints, label: int) -> float:
    """F1 of a class: 1 if exactly its images are classified as it."""
    hits = int(((guess == label) & (truth == label)).sum())
    return 2 * hits / max(1, int((guess == label).sum()) + int((truth == label).sum()))


def verdicts(found: Judged, labels: Ints, seeds: Ints, classes: Sequence[str], colourless: bool) -> list[Verdict]:
    """A verdict in plain words on the synthetic images of every class.

    Parameters
    ----------
    found : Judged
    labels, seeds : int (N,), (M,)
        As for `judge`.
    classes : sequence of str
    colourless : bool
        The synthetic images have no colour, and the real ones do.
    """
    said = [_verdict(found, labels, labels[seeds], label, classes, colourless) for label in range(len(classes))]
    if not is_guessing(found, labels, seeds):
        return said
    sentence = "Synthetic images, those of all classes together, are recognised no better than by guessing."
    return [Verdict("unlike", sentence, verdict.numbers) if verdict.word in ("good", "mixed") else verdict
            for verdict in said]


def is_guessing(found: Judged, labels: Ints, seeds: Ints) -> bool:
    """Whether all synthetic images together are recognised hardly better than by chance, but the real ones clearly are.

    Good results of single classes are then chance.
    """
    if found.real_guess is None or found.synthetic_guess is None:
        return False
    made_of = labels[seeds]
    real, synthetic = float((found.real_guess == labels).mean()), float((found.synthetic_guess == made_of).mean())
    count = int(max(labels.max(), found.synthetic_guess.max())) + 1
    guessed, true = (np.bincount(values, minlength=count) / len(seeds) for values in (found.synthetic_guess, made_of))
    chance = float(guessed @ true)
    error = math.sqrt(0.25 / len(labels) + 0.25 / len(seeds))  # standard error of the difference, at most
    return real - synthetic > 2 * error and synthetic - chance < GUESSING * (real - chance)


def _verdict(found: Judged, labels: Ints, made_of: Ints, label: int, classes: Sequence[str],
             colourless: bool) -> Verdict:
    mine = made_of == label
    numbers: dict[str, Any] = {"real": int((labels == label).sum()), "synthetic": int(mine.sum())}
    if colourless and mine.any():
        return Verdict("unlike", "They have no colour, and the real images do.", numbers)
    if found.real_guess is None or found.synthetic_guess is None or not mine.any():
        return Verdict("unknown",
                       "Nothing was measured that tells classes apart." if mine.any() else "No image was made of it.",
                       numbers)
    real, synthetic = f1(found.real_guess, labels, label), f1(found.synthetic_guess, made_of, label)
    taught = None if found.taught_guess is None else f1(found.taught_guess, labels, label)
    guesses = found.synthetic_guess[mine]
    wrong = guesses[guesses != label]
    numbers |= {"real images recognised": float((found.real_guess[labels == label] == label).mean()),
                "synthetic images recognised": float((guesses == label).mean())}
    if found.taught_guess is not None:
        numbers["real images recognised from synthetic ones alone"] = float(
            (found.taught_guess[labels == label] == label).mean())
    lost = f"Most mistakes: taken for {classes[int(np.bincount(wrong).argmax())]}." if len(
        wrong) else "All are recognised."
    if real < max(0.3, 1.5 / len(classes)):
        return Verdict("unknown",
                       "Real images of it are rarely recognised either: there are too few, or they differ too much.",
                       numbers)
    if synthetic >= 0.75 * real and (taught is None or taught >= 0.5 * real):
        return Verdict("good", f"They are recognised as well as real images. {lost}", numbers)
    if synthetic >= 0.4 * real or (taught is not None and taught >= 0.75 * real):
        return Verdict("mixed", f"They are recognised less often than real images. {lost}", numbers)
    return Verdict("unlike", f"They do not look like the class. {lost}", numbers)


def read_network(path: str | os.PathLike[str]) -> TrainedModel:
    """Read a ResNet of timm or torchvision (safetensors), for its features.

    Raises
    ------
    ValueError
        The file is not a ResNet-18, -34 or -50.
    FileNotFoundError
    """
    from ..training.saved import TrainedModel
    from ..training.views import IMAGENET_MEAN, IMAGENET_STD

    file = WeightFile(path)
    shapes = {name: file.shape(name) for name in file.names()}
    blocks = tuple(
        len({name.split(".")[1]
             for name in shapes if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4))
    name = _RESNETS.get((blocks, "layer1.0.conv3.weight" in shapes))
    first = shapes.get("conv1.weight", ())
    if name is None or len(first) != 4 or first[1] != 3 or first[2] not in (3, 7):
        raise ValueError(
            f"{path} holds no ResNet-18, -34 or -50 by the names of timm and torchvision; give another file")
    weights = {}
    for tensor in shapes:
        if not tensor.startswith(("fc.", "head.", "classifier.")) and not tensor.endswith("num_batches_tracked"):
            weights[tensor] = file.read_float32(tensor)
    count = first[0] * (32 if name == "resnet50" else 8)
    weights |= {"fc.weight": np.zeros((1, count), np.float32), "fc.bias": np.zeros(1, np.float32)}
    size = 224 if first[2] == 7 else 64
    return TrainedModel(name, "imagenet" if first[2] == 7 else "small", first[0], (size, size), IMAGENET_MEAN,
                        IMAGENET_STD, ["features"], weights)


_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {((2, 2, 2, 2), False): "resnet18", ((3, 4, 6, 3), False):
                                                     "resnet34", ((3, 4, 6, 3), True): "resnet50"}
