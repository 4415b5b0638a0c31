"""The noise: Philox against its published answers, the normals' distribution, and that only the key decides the
numbers."""

import math

import numpy as np
import pytest

import dreamda
from dreamda import _selftest


def key(seed=0, image=0, variant=0, step=0, stream=0, row=0):
    low = 0xFFFFFFFF
    return np.array([seed & low, seed >> 32, image & low, image >> 32, variant, step, stream, row], np.uint32)


# Random123 1.14, kat_vectors, "philox4x32 10".
@pytest.mark.parametrize(("counter", "philox_key", "expected"), [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_known_answers(counter, philox_key, expected):
    assert _selftest.philox(counter, philox_key) == expected


def test_normals_are_box_muller_of_philox():
    """The stream as documented in rng.c, written again with NumPy's double-precision functions."""
    k = key(seed=0x123456789ABCDEF0, image=2**63 + 5, variant=7, step=11, stream=3, row=2)
    philox_key = _selftest.philox(tuple(map(int, (k[2], k[3], k[6], k[7]))), (int(k[0]), int(k[1])))[:2]
    words = np.array([_selftest.philox((block, 0, 7, 11), philox_key) for block in range(1000)], np.float64)
    radius = np.sqrt(-2 * np.log((words[:, 0::2] + 0.5) / 2**32))
    bits = words[:, 1::2].astype(np.uint32)
    angle = ((bits & 0x3FFFFFFF) + 0.5 - 2**29) / 2**30 * (math.pi / 2) + (bits >> 30) * (math.pi / 2)
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)
    np.testing.assert_allclose(_selftest.normals(k, 0, 4000), expected, rtol=2e-7, atol=1e-9)


def test_a_key_that_does_not_fit_is_refused():
    whole = dreamda.normals(5, 2**64 - 1, 3, 0, 0, 2**32 - 1, (9,))
    assert np.array_equal(
        whole, dreamda.normals(np.int64(5), np.uint64(2**64 - 1), np.int8(3), 0, 0, np.uint32(2**32 - 1), (9, )))
    for name, value in (("seed", -1), ("seed", 2**64), ("image", 2**70 + 5), ("image", -1), ("row", 2**32),
                        ("step", -1), ("seed", 1.0), ("variant", "1"), ("seed", None)):
        with pytest.raises(ValueError, match=f"^{name}: expected a whole number from 0 to "):
            dreamda.normals(**dict(seed=1, image=2, variant=3, step=4, stream=5, row=6, shape=(2,)) | {name: value})


def test_normals_stay_the_same_numbers():
    """Frozen bits: a change of compiler, flags or processor that moves them would silently change every data set."""
    x = _selftest.normals(key(seed=1, image=2, variant=3, step=4, stream=5, row=6), 0, 100_000)
    assert x[:4].view(np.uint32).tolist() == [0xBE0D1F51, 0xBE6A6F97, 0xBF6ED109, 0xBFA216C0]
    assert int(np.bitwise_xor.reduce(x.view(np.uint32))) == 0x8BBDF937


def test_distribution():
    x = _selftest.normals(key(seed=5), 0, 1_000_000).astype(np.float64)
    n = x.size
    assert np.isfinite(x).all() and np.abs(x).max() < 6.7
    # Each moment within 4.5 standard errors of the normal's.
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        error = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / n)
        assert abs((x**power).mean() - moment) < 4.5 * error, power
    # Kolmogorov-Smirnov against the normal distribution function, at the 0.1 % level.
    x.sort()
    sample = np.arange(999, n, 1000)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x[sample]])
    assert np.abs(cdf - (sample + 1) / n).max() < 1.95 / math.sqrt(n)


def test_extreme_words_give_finite_normals():
    """The tails come from words near 0; four million draws hold a few below 2^12, and none may be infinite or NaN."""
    x = _selftest.normals(key(seed=9, stream=1), 0, 4_000_000, threads=2)
    assert np.isfinite(x).all()
    assert 4.5 < np.abs(x).max() < 6.7


@pytest.mark.parametrize("name", ["seed", "image", "variant", "step", "stream", "row"])
def test_neighbouring_keys_are_independent(name):
    base = dict(seed=3, image=3, variant=3, step=3, stream=3, row=3)
    n = 50_000
    x = _selftest.normals(key(**base), 0, n).astype(np.float64)
    values = [4, 2, 0x80000003] + ([2**33 + 3] if name in ("seed", "image") else [])
    for value in values:
        y = _selftest.normals(key(**{**base, name: value}), 0, n).astype(np.float64)
        for a, b in ((x, y), (x**2 - 1, y**2 - 1), (x[1:], y[:-1])):
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(n)


def test_numbers_of_one_key_are_independent():
    x = _selftest.normals(key(seed=8), 0, 200_000).astype(np.float64)
    for lag in (1, 2, 3, 4, 64, 4096):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 4.5 / math.sqrt(x.size)
        assert abs(np.corrcoef(x[:-lag] ** 2, x[lag:] ** 2)[0, 1]) < 4.5 / math.sqrt(x.size)


def test_same_bits_for_any_split_and_thread_count():
    k = key(seed=6, image=1)
    x = _selftest.normals(k, 0, 100_003, threads=1)
    assert np.array_equal(x, _selftest.normals(k, 0, 100_003, threads=2))
    for first, count in ((0, 0), (0, 1), (4, 7), (4096, 5000), (99_996, 7), (60, 64), (8, 33_333)):
        for threads in (1, 2):
            assert np.array_equal(x[first:first + count], _selftest.normals(k, first, count, threads=threads))
