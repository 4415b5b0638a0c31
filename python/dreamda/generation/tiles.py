"""Overlapping tiles of a large image: where they lie, and how what is made of each is put together.

Networks see one tile at a time. At every step, their outputs for the tiles are averaged where these overlap, so that
there is one latent image with one noise from the start to the end (MultiDiffusion, Bar-Tal et al., 2023). The weight
of a tile falls linearly to its edges.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def blended(self, make: Callable[[slice, slice], NDArray[np.float32]], scale: int = 1) -> NDArray[np.float32]:
        """What `make` gives for the rows and columns of each tile, (..., h, w), for the whole image.

        `scale` is the number of positions in the results for one of the image. A single tile is returned as it is.
        """
        whole: NDArray[np.float32] | None = None
        for rows, columns, weight in self._weighted(scale):
            made = make(rows, columns)
            if len(self) == 1:
                return made
            if whole is None:
                whole = np.zeros((*made.shape[:-2], self.size[0] * scale, self.size[1] * scale), np.float32)
            whole[..., scaled(rows, scale), scaled(columns, scale)] += weight * made
        assert whole is not None  # there is at least one tile
        return whole

    def _weighted(self, scale: int) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
        """The rows and columns of each tile, and its weight in the average."""
        vertical, horizontal = (_weights(size * scale, tile * scale, [corner * scale for corner in corners])
                                for size, tile, corners in zip(self.size, self.tile, self.corners))
        for top, above in zip(self.corners[0], vertical):
            for left, beside in zip(self.corners[1], horizontal):
                yield slice(top, top + self.tile[0]), slice(left, left + self.tile[1]), above[:, None] * beside


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
