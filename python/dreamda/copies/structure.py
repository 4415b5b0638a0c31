"""How alike two thumbnails are in structure once one is laid over the other.

    score, placement = structure(a, b, start)

`b` is shifted and scaled until it fits `a` best (Gauss-Newton steps on the correlation). The score is then the
correlation within small windows, weighted by their contrast, without the worst quarter: text laid over an image, or
anything else that covers a part of it, does not count. 1 is the same picture; brightness and contrast do not matter.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .thumbnails import SIDE, Floats

STEPS = 5               # of Gauss-Newton
LEAST = 0.5             # share of the thumbnail that both images must cover
WINDOW, STRIDE = 8, 4   # in pixels, of the local correlations
DROPPED = 0.25          # share of the contrast that may differ altogether
NOISE = 0.01            # variance below which contrast is taken for noise; 1 is that of the thumbnail
CHUNK = 256             # pairs that are computed at a time
CENTRE = (SIDE - 1) / 2

_Y, _X = (axis.ravel() for axis in np.mgrid[:SIDE, :SIDE].astype(np.float32) - np.float32(CENTRE))


def structure(a: Floats, b: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Score pairs of thumbnails.

    Parameters
    ----------
    a, b : float32 (P, 32, 32)
        As `standardized` returns them.
    start : float32 (P, 3)
        Where the centre of `a` is in `b` (row and column, in pixels), and how many pixels of `b` a pixel of `a` is.

    Returns
    -------
    score : float32 (P,)
        From -1 to 1.
    placement : float32 (P, 3)
        Like `start`, for the best fit.
    """
    score, placement = np.empty(len(a), np.float32), np.empty((len(a), 3), np.float32)
    for at in range(0, len(a), CHUNK):
        part = slice(at, at + CHUNK)
        laid, mask, placement[part] = _align(a[part], b[part], start[part])
        score[part] = _local_correlation(a[part], laid, mask)
    return score, placement


def _align(a: Floats, b: Floats, start: Floats) -> tuple[Floats, Floats, Floats]:
    """`b` as it fits `a` best, where it covers `a`, and the placement."""
    flat = a.reshape(len(a), -1)
    place = start.astype(np.float32)
    best = np.full(len(a), -2, np.float32)
    laid, covered, placement = np.zeros_like(flat), np.zeros_like(flat), place.copy()
    for step in range(STEPS + 1):
        y = place[:, 0:1] + place[:, 2:] * _Y
        x = place[:, 1:2] + place[:, 2:] * _X
        mask = ((y >= -0.5) & (y <= SIDE - 0.5) & (x >= -0.5) & (x <= SIDE - 0.5)).astype(np.float32)
        warped = _sample(b, y, x)
        count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
        target, _ = _unit(flat, mask, count)
        found, norm = _unit(warped, mask, count)
        correlation = (target * found).sum(axis=1)
        correlation[count[:, 0] < LEAST * SIDE * SIDE] = -2
        better = correlation > best
        laid[better], covered[better], placement[better] = warped[better], mask[better], place[better]
        best[better] = correlation[better]
        if step == STEPS:
            break
        d_y, d_x = (d.reshape(len(a), -1) / place[:, 2:] for d in np.gradient(warped.reshape(a.shape), axis=(1, 2)))
        slopes = np.stack([_centred(d, mask, count) / norm for d in (d_y, d_x, d_y * _Y + d_x * _X)], axis=1)
        slopes -= (slopes * found[:, None]).sum(axis=2, keepdims=True) * found[:, None]
        normal = (slopes[:, :, None] * slopes[:, None]).sum(axis=3)
        scale = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal += np.eye(3, dtype=np.float32) * (1e-3 * scale + 1e-6)
        residual = (slopes * (target - found)[:, None]).sum(axis=2)
        move = np.linalg.solve(normal, residual[..., None])[..., 0]
        place[:, :2] += np.clip(move[:, :2], -1.5, 1.5)
        place[:, 2] += np.clip(move[:, 2], -0.05, 0.05)
    shape = a.shape
    return laid.reshape(shape), covered.reshape(shape), placement


def _sample(images: Floats, y: Floats, x: Floats) -> Floats:
    """Bilinear samples of (P, 32, 32) at positions (P, 32 * 32)."""
    row, column = (np.minimum(np.maximum(v, 0).astype(np.intp), SIDE - 2) for v in (y, x))
    down, right = (np.clip(v - whole, 0, 1, dtype=np.float32) for v, whole in ((y, row), (x, column)))
    at = row * SIDE + column + np.arange(0, images.size, SIDE * SIDE)[:, None]
    flat = images.ravel()
    corner = [flat.take(at + offset) for offset in (0, 1, SIDE, SIDE + 1)]
    above = corner[0] + (corner[1] - corner[0]) * right
    below = corner[2] + (corner[3] - corner[2]) * right
    return above + (below - above) * down


def _centred(values: Floats, mask: Floats, count: Floats) -> Floats:
    return (values - (values * mask).sum(axis=1, keepdims=True) / count) * mask


def _unit(values: Floats, mask: Floats, count: Floats) -> tuple[Floats, Floats]:
    centred = _centred(values, mask, count)
    norm = np.sqrt((centred * centred).sum(axis=1, keepdims=True)) + np.float32(1e-4)
    return centred / norm, norm


def _local_correlation(a: Floats, b: Floats, mask: Floats) -> Floats:
    count = np.maximum(mask.sum(axis=(1, 2), keepdims=True), 1)

    def normal(values: Floats) -> Floats:
        centred = (values - (values * mask).sum(axis=(1, 2), keepdims=True) / count) * mask
        return centred / np.sqrt(np.maximum((centred * centred).sum(axis=(1, 2), keepdims=True) / count, 1e-6))

    a, b = normal(a), normal(b)
    inside = _window_sums(mask)
    whole = inside >= 0.75 * WINDOW * WINDOW
    inside = np.maximum(inside, 1)
    mean_a, mean_b = _window_sums(a) / inside, _window_sums(b) / inside
    variance_a = np.maximum(_window_sums(a * a) / inside - mean_a * mean_a, 0)
    variance_b = np.maximum(_window_sums(b * b) / inside - mean_b * mean_b, 0)
    covariance = _window_sums(a * b) / inside - mean_a * mean_b
    correlation = ((covariance + NOISE) / np.sqrt((variance_a + NOISE) * (variance_b + NOISE))).reshape(len(a), -1)
    weight = (np.sqrt(np.maximum(variance_a, variance_b)) * whole).reshape(len(a), -1)
    order = np.argsort(-correlation, axis=1, kind="stable")
    correlation, weight = (np.take_along_axis(v, order, axis=1) for v in (correlation, weight))
    before = weight.cumsum(axis=1) - weight
    kept = np.clip((1 - DROPPED) * weight.sum(axis=1, keepdims=True) - before, 0, weight)
    return (correlation * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1e-6)


def _window_sums(values: Floats) -> NDArray[np.float32]:
    """Sums over windows of 8 x 8 pixels, every 4 pixels."""
    halves = values.reshape(len(values), SIDE // STRIDE, STRIDE, SIDE // STRIDE, STRIDE).sum(axis=(2, 4))
    return halves[:, :-1, :-1] + halves[:, 1:, :-1] + halves[:, :-1, 1:] + halves[:, 1:, 1:]
