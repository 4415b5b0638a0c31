"""Outlines and pixels: polygons to the share of each pixel that they cover, and regions of pixels to polygons.

A polygon made from a region runs along the edges of its pixels, so it covers exactly these pixels.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LINES = 4  # in a row of pixels, at which the coverage of polygons is computed


class Patch(NamedTuple):
    """A part of an image: its place, and the share of each pixel that belongs to an object, float32 (h, w)."""

    top: int
    left: int
    share: NDArray[np.float32]

    @property
    def region(self) -> NDArray[np.bool_]:
        """The object's pixels."""
        return self.share >= 0.5

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns in the image."""
        height, width = self.share.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def overlap(self, other: Patch) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The pixels that it has in common with another patch, as rows and columns of each of the two."""
        both = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(self.place, other.place)]
        (top, bottom), (left, right) = ((begin, max(begin, end)) for begin, end in both)
        return ((slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)),
                (slice(top - other.top, bottom - other.top), slice(left - other.left, right - other.left)))


def covered(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each pixel that lies in any of the polygons, float32 (H, W).

    It is exact along each of `LINES` lines in a row of pixels. Parts that several polygons cover count once at most.
    """
    height, width = shape
    result = np.zeros((height, width), np.float64)
    for points in polygons:
        x, y = points[:, 0], points[:, 1] * LINES - 0.5  # line j of the image is at y = j
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        first = np.clip(np.ceil(np.minimum(y, next_y)), 0, height * LINES).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y, next_y)), 0, height * LINES).astype(np.int64)
        edge = np.repeat(np.arange(len(points)), last - first)  # of every crossing of an edge and a line
        line = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
        slope = (next_x[edge] - x[edge]) / (next_y[edge] - y[edge])
        at = np.clip(x[edge] + (line - y[edge]) * slope, 0, width)
        column, sign = np.floor(at).astype(np.int64), np.sign(next_y - y)[edge]
        changes = np.zeros((height * LINES, width + 2))  # along a line, in the share that is inside
        np.add.at(changes, (line, column), sign * (column + 1 - at))
        np.add.at(changes, (line, column + 1), sign * (at - column))
        inside = np.minimum(np.abs(changes.cumsum(1)[:, :width]), 1)
        result += inside.reshape(height, LINES, width).mean(1)
    return np.minimum(result, 1).round(12).astype(np.float32)  # sums leave 1e-17 where nothing is covered


def outlines(region: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Polygons, arrays (n, 2) of x and y, that together cover exactly the pixels of a region, bool (H, W).

    A polygon cannot have a hole, so a region with holes is cut through them.
    """
    pending, found = [(0, 0, region)], []
    while pending:
        top, left, part = pending.pop()
        if not part.any():
            continue
        x, y, width, height = map(int, box_of(part))
        top, left, part = top + y, left + x, part[y : y + height, x : x + width]
        loops = _loops(part)
        holes = [loop for loop in loops if _area(loop) < 0]
        if holes:
            cuts = [int(hole[:, 0].min()) + 1 for hole in holes]
            cut = min(cuts, key=lambda column: abs(column - width / 2))
            pending += [(top, left, part[:, :cut]), (top, left + cut, part[:, cut:])]
        else:
            found += [loop + np.array([left, top], np.float64) for loop in loops]
    return sorted(found, key=lambda points: (-_area(points), points.tolist()))


def joined(polygons: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One polygon from several, with bridges of no width between their nearest corners."""
    one = polygons[0]
    for other in polygons[1:]:
        distances = np.square(one[:, None] - other[None]).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.concatenate([other[there:], other[: there + 1]])
        one = np.concatenate([one[: here + 1], around, one[here:]])
    return one


def box_of(region: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) around the pixels of a region that has some."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))


def _area(points: NDArray[np.float64]) -> float:
    """The area of a polygon; it is negative for a hole."""
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _loops(region: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The corners of the lines around a region, which lies to their right, and of those around its holes."""
    inside = np.pad(region, 1)
    here = inside[1:-1, 1:-1]
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}  # a corner of pixels -> the edges' directions
    for neighbour, (x0, y0), step in ((inside[:-2, 1:-1], (0, 0), (1, 0)), (inside[1:-1, 2:], (1, 0), (0, 1)),
                                      (inside[2:, 1:-1], (1, 1), (-1, 0)), (inside[1:-1, :-2], (0, 1), (0, -1))):
        for y, x in np.argwhere(here & ~neighbour).tolist():
            leaving.setdefault((x + x0, y + y0), []).append(step)
    left = {(corner, step): None for corner, steps in leaving.items() for step in steps}
    loops = []
    while left:
        edges = []
        corner, step = next(iter(left))
        while (corner, step) in left:
            del left[corner, step]
            edges.append((corner, step))
            corner = (corner[0] + step[0], corner[1] + step[1])
            # of two edges, the one to the right: pixels that share only a corner are not joined
            step = leaving[corner][0] if len(leaving[corner]) == 1 else (-step[1], step[0])
        turns = [corner for (corner, step), (_, before) in zip(edges, [edges[-1], *edges]) if step != before]
        loops.append(np.array(turns, np.float64))
    return loops
