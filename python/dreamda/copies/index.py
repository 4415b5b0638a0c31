"""Find the real image that a synthetic image is nearest to, whatever was done to it.

    index = CopyIndex(thumbnails, images)          # of real images; thumbnails as `views` returns them
    matches = index.nearest(queries)               # thumbnails of synthetic images
    matches.image, matches.score                   # which real image, and how alike: 1 is a copy

The search is exhaustive. Every synthetic image is compared with every real image, at several sizes and offsets,
mirrored, upside down and inverted, by whitened cosine coefficients (one matrix product for each size and offset). The
best few candidates are then laid over the synthetic image and scored (structure.py).
"""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .structure import CENTRE, structure
from .thumbnails import SIDE, Floats, Pixels, standardized

COEFFICIENTS = 8
SAMPLES = 16
# The central part of the synthetic image is compared with parts of the real one. Their sizes, and how far they lie
# off the centre; 1 is the side of the image. A part of the same size is a shifted copy, a smaller one an enlarged
# copy (a crop), a larger one a reduced copy (with a border).
PART = 0.72
OFFSETS = ((0.62, (0.0375, 0.075)), (0.67, (0.035, )), (0.72, (0.06, )), (0.72, (0.12, )), (0.8, (0.04, )), (0.9, ()))
CANDIDATES = 5          # real images that are laid over each synthetic one
# Two real images are the same picture if their thumbnails differ by less (root mean square, of 255 and of the
# contrast), or if the one is so much nearer to the other than any third: the ratio of the distances.
SAME, SAME_SHARE, SAME_RATIO = 3.0, 0.15, 0.25
QUERIES, ROWS = 128, 1024    # of a block of the matrix products
MOST = 2000                  # maximum number of images that measures of a whole data set look at, evenly chosen

Ints = NDArray[np.int64]


class Matches(NamedTuple):
    """The nearest real image of each query.

    Attributes
    ----------
    image : int64 (Q,)
        Its position; -1 if there is none.
    score : float32 (Q,)
        From -1 to 1, rounded to four decimals.
    next_score : float32 (Q,)
        That of the second nearest real image; -1 if there is none.
    mirrored, upside_down, inverted : bool (Q,)
        What makes the query look like it.
    placement : float32 (Q, 3)
        Row and column of the query's centre in the real thumbnail, and the scale; see `structure`.
    hash_image, hash_score : int64 (Q,), float32 (Q,)
        The nearest real image by perceptual hash, and the share of equal bits among 63.
    """

    image: Ints
    score: Floats
    next_score: Floats
    mirrored: NDArray[np.bool_]
    upside_down: NDArray[np.bool_]
    inverted: NDArray[np.bool_]
    placement: Floats
    hash_image: Ints
    hash_score: Floats


class Among(NamedTuple):
    """The nearest other real image of real images, of those that are not in the data set twice.

    Attributes
    ----------
    image : int64 (N,)
        The images that were compared.
    matches : Matches
    duplicates : int
        The number of images that were left out, as another file holds the same picture.
    """

    image: Ints
    matches: Matches
    duplicates: int


def thinned(count: int, most: int = MOST) -> Ints:
    """The positions of at most `most` of `count` images, evenly chosen."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def _cosines(samples: int) -> Floats:
    frequency, position = np.mgrid[:COEFFICIENTS, :samples]
    basis = np.cos(np.pi * frequency * (2 * position + 1) / (2 * samples)) * np.sqrt(2 / samples)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, np.float32)


def _of_part(size: float, offset: float) -> Floats:
    """(8, 32): the cosine coefficients of a part of a row of pixels."""
    centres = (offset + (np.arange(SAMPLES) + 0.5) / SAMPLES * size) * SIDE - 0.5
    reach = max(1.0, size * SIDE / SAMPLES)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(SIDE)) / reach)
    return np.asarray(_cosines(SAMPLES) @ (weights / weights.sum(axis=1, keepdims=True)), np.float32)


# Coefficients that mirroring leaves alone come first, and within both halves those that turning upside down does.
_EVEN = np.arange(COEFFICIENTS) % 2 == 0
_ORDER = np.concatenate([np.flatnonzero(np.outer(down, across)) for across in (_EVEN, ~_EVEN)
                         for down in (_EVEN, ~_EVEN)])
_HALF, _QUARTER = len(_ORDER) // 2, len(_ORDER) // 4
_UPSIDE_DOWN = np.repeat(np.array([1, -1, 1, -1], np.float32), _QUARTER)
_MIRRORED = np.repeat(np.array([1, -1], np.float32), _HALF)
_FLIPS = np.stack([np.ones(len(_ORDER), np.float32), _MIRRORED, _UPSIDE_DOWN, _MIRRORED * _UPSIDE_DOWN])


def _parts() -> list[tuple[float, float, float]]:
    """Size, row and column of every part of a real image, the central one first."""
    found = [(PART, (1 - PART) / 2, (1 - PART) / 2)]
    for size, offsets in OFFSETS:
        places = [(1 - size) / 2 + offset for offset in (0, *offsets, *(-offset for offset in offsets))]
        found += [(size, row, column) for row in places for column in places]
    return list(dict.fromkeys(found))


PARTS = _parts()


def _spectra(thumbnails: Pixels, rows: Floats, columns: Floats) -> Floats:
    spectra = (rows @ thumbnails.astype(np.float32) @ columns.T).reshape(len(thumbnails), -1)[:, _ORDER]
    spectra[:, 0] = 0  # the mean
    return spectra


def _normalized(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)), 1e-6), np.float32)


def _hash_vectors(thumbnails: Pixels) -> Floats:
    """The perceptual hash of each thumbnail, 63 signs, as a vector of length 1."""
    whole = _cosines(SIDE)
    signs = np.where(_spectra(thumbnails, whole, whole) > 0, np.float32(1), np.float32(-1))
    signs[:, 0] = 0
    return np.asarray(signs / np.sqrt(len(_ORDER) - 1), np.float32)


class CopyIndex:
    """Real images that can be searched.

    Parameters
    ----------
    thumbnails : uint8 (N, 32, 32)
        See `dreamda.copies.thumbnails.views`.
    images : int (N,), optional
        The image that each thumbnail is of, 0 and up. Default: one thumbnail for each.
    """

    def __init__(self, thumbnails: Pixels, images: Ints | None = None) -> None:
        self.thumbnails = thumbnails
        self.images = np.arange(len(thumbnails)) if images is None else np.asarray(images, np.int64)
        central = _of_part(*PARTS[0][:2])
        spread = np.sqrt(np.square(_spectra(thumbnails, central, central)).mean(axis=0))
        self._weights = (np.maximum(spread, 1e-3 * spread.max() + 1e-6)**-0.5).astype(np.float32)
        self._vectors = np.empty((len(PARTS) + 1, len(thumbnails), len(_ORDER)), np.float32)
        for at in range(0, len(thumbnails), ROWS):
            part = slice(at, at + ROWS)
            for number, (size, row, column) in enumerate(PARTS):
                self._vectors[number, part] = self._vectors_of(thumbnails[part], size, row, column)
            self._vectors[-1, part] = _hash_vectors(thumbnails[part])

    def __repr__(self) -> str:
        return f"CopyIndex({len(np.unique(self.images)):,} images)"

    def _vectors_of(self, thumbnails: Pixels, size: float, row: float, column: float) -> Floats:
        return _normalized(_spectra(thumbnails, _of_part(size, row), _of_part(size, column)) * self._weights)

    def nearest(self,
                queries: Pixels,
                *,
                without: Ints | None = None,
                threads: int = 1,
                progress: Callable[[int, int], None] | None = None) -> Matches:
        """The nearest real image of each query.

        Parameters
        ----------
        queries : uint8 (Q, 32, 32)
        without : int (Q,), optional
            An image for each query that does not count, such as itself; -1 for none.
        threads : int
        progress : callable, optional
            Called with the number of queries done and that of all.
        """
        from threadpoolctl import threadpool_limits

        starts = range(0, len(queries), QUERIES)
        blocks = []
        # Each thread searches a block: threads of the matrix products' own would only get in their way.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            def search(at: int) -> Matches:
                part = slice(at, at + QUERIES)
                return self._search(queries[part], None if without is None else without[part])

            for number, found in enumerate(pool.map(search, starts)):
                blocks.append(found)
                if progress is not None:
                    progress(min((number + 1) * QUERIES, len(queries)), len(queries))
        return Matches(*(np.concatenate(values) for values in zip(*blocks))) if blocks else self._search(queries, None)

    def among_themselves(self, most: int = MOST, *, threads: int = 1) -> Among:
        """The nearest other real image of each real image: the similarity of images that are no copies.

        Parameters
        ----------
        most : int
            Maximum number of images that are compared with all others, evenly chosen.
        threads : int

        Returns
        -------
        Among
        """
        numbers, first = np.unique(self.images, return_index=True)
        chosen = thinned(len(numbers), most)
        queries = self.thumbnails[first[chosen]]
        found = self.nearest(queries, without=numbers[chosen], threads=threads)
        same = self.same_picture(queries, found)
        kept = (found.image >= 0) & ~same
        return Among(numbers[chosen][kept], Matches._make(values[kept] for values in found), int(same.sum()))

    def same_picture(self, queries: Pixels, found: Matches) -> NDArray[np.bool_]:
        """Whether each query is the same picture as the real image that was found, saved again or slightly changed.

        Parameters
        ----------
        queries : uint8 (Q, 32, 32)
        found : Matches
            What `nearest` has found for them.
        """
        numbers, first = np.unique(self.images, return_index=True)
        others = self.thumbnails[first[np.searchsorted(numbers, found.image)]].astype(np.float32)
        apart = np.sqrt(np.square(others - queries).mean(axis=(1, 2)))
        identical = apart <= np.minimum(SAME, SAME_SHARE * others.std(axis=(1, 2)))
        nearer = (1 - found.score < SAME_RATIO * (1 - found.next_score)) & (found.next_score > -1)
        return np.asarray((found.image >= 0) & (identical | nearer), np.bool_)

    def compare(self, queries: Pixels, images: Ints) -> Matches:
        """Each query against one real image of its own, such as the one that it was made from.

        Parameters
        ----------
        queries : uint8 (Q, 32, 32)
        images : int (Q,)
        """
        order = np.argsort(self.images, kind="stable")
        first, last = (np.searchsorted(self.images[order], images, side) for side in ("left", "right"))
        most = int((last - first).max(initial=1))
        entries = order[np.minimum(first[:, None] + np.arange(most), last[:, None] - 1)]
        parts = [self._scored(queries[at: at + QUERIES], entries[at: at + QUERIES])
                 for at in range(0, max(1, len(queries)), QUERIES)]
        return Matches(*(np.concatenate(values) for values in zip(*parts)))

    def _search(self, queries: Pixels, without: Ints | None) -> Matches:
        count, few = len(queries), min(CANDIDATES, len(self.thumbnails))
        vectors = self._vectors_of(queries, *PARTS[0])
        both = _both_ways(vectors), _both_ways(_hash_vectors(queries))
        best = np.empty((count, 0), np.float32)
        entries = np.empty((count, 0), np.int64)
        hashed = np.full(count, -1, np.float32)
        by_hash = np.zeros(count, np.int64)
        for at in range(0, len(self.thumbnails), ROWS):
            rows = self._vectors[:, at: at + ROWS]
            found = _similarities(both[0], rows[:-1])
            of_hash = _similarities(both[1], rows[-1:])
            if without is not None:
                same = self.images[None, at: at + ROWS] == without[:, None]
                found[same], of_hash[same] = -1, -1
            nearest = of_hash.argmax(axis=1)
            value = of_hash[np.arange(count), nearest]
            better = value > hashed
            hashed[better], by_hash[better] = value[better], nearest[better] + at
            keep = np.argpartition(-found, min(few, found.shape[1]) - 1, axis=1)[:, :few]
            best = np.concatenate([best, np.take_along_axis(found, keep, axis=1)], axis=1)
            entries = np.concatenate([entries, keep + at], axis=1)
            if best.shape[1] > few:
                keep = np.argpartition(-best, few - 1, axis=1)[:, :few]
                best = np.take_along_axis(best, keep, axis=1)
                entries = np.take_along_axis(entries, keep, axis=1)
        entries = np.sort(np.concatenate([entries, by_hash[:, None]], axis=1), axis=1)
        return self._scored(queries, entries, without)._replace(
            hash_image=np.where(hashed < 0, -1, self.images[by_hash]), hash_score=_share(hashed))

    def _scored(self, queries: Pixels, entries: Ints, without: Ints | None = None) -> Matches:
        """The best of a few thumbnails (Q, K) for each query."""
        count, few = entries.shape
        flipped = (self._vectors_of(queries, *PARTS[0])[:, None] * _FLIPS)
        candidates = self._vectors[:-1, entries]                                # part, query, candidate, coefficient
        similar = np.einsum("pqkc,qfc->qkpf", candidates, flipped, optimize=True).reshape(count, few, -1)
        chosen = np.abs(similar).argmax(axis=2)
        sign = np.sign(np.take_along_axis(similar, chosen[..., None], axis=2))[..., 0]
        part, flip = np.divmod(chosen, len(_FLIPS))
        places = np.array([((row + size / 2) * SIDE - 0.5, (column + size / 2) * SIDE - 0.5, size / PART)
                           for size, row, column in PARTS], np.float32)
        mine = _flipped(np.repeat(standardized(queries), few, axis=0), flip.ravel())
        mine *= np.where(sign < 0, -1, 1).astype(np.float32).reshape(-1, 1, 1)
        score, placement = structure(mine, standardized(self.thumbnails[entries.ravel()]), places[part.ravel()])
        score = score.reshape(count, few)
        if without is not None:
            score[self.images[entries] == without[:, None]] = -1
        best = score.argmax(axis=1)
        each = np.arange(count)
        hashes = _hash_vectors(queries)[:, None] * _FLIPS
        of_hash = np.abs(np.einsum("qkc,qfc->qkf", self._vectors[-1][entries], hashes))
        there = score[each, best] > -1
        images = self.images[entries]
        other = np.where(images == images[each, best][:, None], -1, score).max(axis=1)
        return Matches(np.where(there, self.images[entries[each, best]], -1), np.round(score[each, best], 4),
                       np.round(other, 4), flip[each, best] % 2 == 1, flip[each, best] >= 2, sign[each, best] < 0,
                       placement.reshape(count, few, 3)[each, best], self.images[entries[:, 0]],
                       _share(of_hash.max(axis=2).max(axis=1)))


def _both_ways(vectors: Floats) -> Floats:
    """The vectors, then those of the queries upside down."""
    return np.concatenate([vectors, vectors * _UPSIDE_DOWN])


def _similarities(queries: Floats, rows: Floats) -> Floats:
    """(Q, N): the largest similarity over all parts, mirrored or not, upside down or not, inverted or not.

    Mirroring changes the sign of the second half of the coefficients: the larger of |a + b| and |a - b| is |a| + |b|.
    """
    shape = len(queries), rows.shape[1]
    best, even, odd = np.zeros((shape[0] // 2, shape[1]), np.float32), np.empty(shape, np.float32), np.empty(
        shape, np.float32)
    for part in rows:
        np.matmul(queries[:, :_HALF], part[:, :_HALF].T, out=even)
        np.matmul(queries[:, _HALF:], part[:, _HALF:].T, out=odd)
        np.abs(even, out=even)
        np.abs(odd, out=odd)
        even += odd
        np.maximum(best, even[: len(best)], out=best)
        np.maximum(best, even[len(best):], out=best)
    return best


def _flipped(images: Floats, flip: Ints) -> Floats:
    images = images.copy()
    mirrored, upside_down = flip % 2 == 1, flip >= 2
    images[mirrored] = images[mirrored][:, :, ::-1]
    images[upside_down] = images[upside_down][:, ::-1]
    return images


def _share(similarity: Floats) -> Floats:
    """The share of equal bits of two hashes whose sign vectors have this product."""
    return np.round((1 + similarity) / 2, 4).astype(np.float32)
