"""Overlapping tiles of a large image: where they lie, and how what is made of each is put together.

Networks see one tile at a time. At every step, their outputs for the tiles are averaged where these overlap, so that
there is one latent image with one noise from the start to the end (MultiDiffusion, Bar-Tal et al., 2023). The weight
of a tile falls linearly to its edges.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lanes import group_size

Part = tuple[slice, slice]  # rows and columns of a tile

OVERLAP = 4  # neighbouring tiles share about 1 / OVERLAP of their sides
WHOLE = 4    # images with at most this many times the area of the model's own are not divided


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size that cover an image.

    Attributes
    ----------
    size : (int, int)
        Height and width of the image.
    tile : (int, int)
        Of each tile.
    corners : (tuple of int, tuple of int)
        The first rows and the first columns of the tiles.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    corners: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, size: tuple[int, int], tile: tuple[int, int], multiple: int) -> Tiles:
        """Cover an image with as few tiles as overlap enough.

        Parameters
        ----------
        size : (height, width)
        tile : (height, width)
            Of a tile; no larger than the image.
        multiple : int
            The corners are multiples of it, and so have to be the sides of image and tile wherever these differ.
        """
        tile = (min(tile[0], size[0]), min(tile[1], size[1]))
        return cls(size, tile, (_corners(size[0], tile[0], multiple), _corners(size[1], tile[1], multiple)))

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Tiles:
        """A single tile."""
        return cls(size, size, ((0,), (0,)))

    def __len__(self) -> int:
        return len(self.corners[0]) * len(self.corners[1])

    def batches(self, rows: int = 1) -> tuple[int, int]:
        """The number of images in a call of a network, each of so many rows, and of tiles of each image."""
        fit = group_size(rows, *self.tile)
        return (fit, 1) if len(self) == 1 else (1, min(fit, len(self)))

    def blended(self,
                make: Callable[[Sequence[Part]], Sequence[NDArray[np.float32]]],
                together: int = 1,
                scale: int = 1) -> NDArray[np.float32]:
        """The average of what is made of each tile, for the whole image.

        Parameters
        ----------
        make : callable
            It is given up to `together` tiles and returns an array (..., h, w) for each, and perhaps more arrays.
        together : int
        scale : int
            The number of positions in the arrays for one of the image.

        Returns
        -------
        float32 array (..., H, W)
            A single tile is returned as it was made.
        """
        parts = [(slice(top, top + self.tile[0]), slice(left, left + self.tile[1])) for top in self.corners[0]
                 for left in self.corners[1]]
        if len(parts) == 1:
            return make(parts)[0]
        whole: NDArray[np.float32] | None = None
        weights = self._weights(scale)
        for first in range(0, len(parts), together):
            group = parts[first : first + together]
            for (rows, columns), array, weight in zip(group, make(group), weights):
                if whole is None:
                    whole = np.zeros((*array.shape[:-2], self.size[0] * scale, self.size[1] * scale), np.float32)
                whole[..., scaled(rows, scale), scaled(columns, scale)] += weight * array
        assert whole is not None  # there is at least one tile
        return whole

    def _weights(self, scale: int) -> Iterator[NDArray[np.float32]]:
        """The weights of the tiles in the average, tile by tile."""
        vertical, horizontal = (_weights(size * scale, tile * scale, [corner * scale for corner in corners])
                                for size, tile, corners in zip(self.size, self.tile, self.corners))
        return (above[:, None] * beside for above in vertical for beside in horizontal)


def stacked(array: np.ndarray, parts: Sequence[Part], count: int,
            change: Callable[[slice], slice] = lambda part: part) -> np.ndarray:
    """The parts (N, ..., h, w) of an array, one after the other; `count` of them, by repeating the last.

    `change` turns the rows or columns of a tile into those of the array.
    """
    every = [array[..., change(rows), change(columns)] for rows, columns in parts]
    return np.concatenate(every + [every[-1]] * (count - len(every)))


def scaled(part: slice, scale: int) -> slice:
    """Rows or columns of an image, for one that is `scale` times as large."""
    return slice(part.start * scale, part.stop * scale)


def _corners(size: int, tile: int, multiple: int) -> tuple[int, ...]:
    """Where tiles begin on one side of an image, evenly spaced."""
    overlap = max(multiple, tile // OVERLAP // multiple * multiple)
    if size == tile:
        return (0,)
    count = 1 + -(-(size - tile) // max(multiple, tile - overlap))
    return tuple(round(i * (size - tile) / (count - 1) / multiple) * multiple for i in range(count))


def _weights(size: int, tile: int, corners: list[int]) -> list[NDArray[np.float32]]:
    """The weights of the tiles on one side; at every position, they add up to 1."""
    ramp = np.minimum(np.arange(tile) + 0.5, np.arange(tile)[::-1] + 0.5)
    total = np.zeros(size)
    for corner in corners:
        total[corner : corner + tile] += ramp
    return [(ramp / total[corner : corner + tile]).astype(np.float32) for corner in corners]
