"""The memory planner alone, with made-up lifetimes: nothing that is alive at the same time may overlap, and gaps are
used."""

import pytest
from hypothesis import given, settings, strategies as st

from dreamda import _selftest


def test_disjoint_lifetimes_share_memory():
    offsets, arena = _selftest.plan_memory([(4096, 0, 3), (4096, 4, 5)])
    assert offsets == [0, 0] and arena == 4096


def test_a_touching_step_is_an_overlap():
    offsets, arena = _selftest.plan_memory([(4096, 0, 3), (4096, 3, 5)])
    assert sorted(offsets) == [0, 4096] and arena == 8192


def test_the_smallest_gap_that_fits_is_taken():
    # Two long-lived walls leave gaps of 256 and 128 bytes once their neighbours die; the late 128-byte buffer takes the
    # latter.
    buffers = [(1024, 0, 9), (512, 0, 9), (256, 0, 2), (128, 0, 2), (128, 3, 9)]
    offsets, arena = _selftest.plan_memory(buffers)
    assert arena == 1024 + 512 + 256 + 128
    assert offsets[4] in (offsets[2], offsets[3])


def test_nothing_takes_no_room():
    assert _selftest.plan_memory([]) == ([], 0)
    assert _selftest.plan_memory([(0, 0, 5)])[1] == 0


def test_absurd_sizes_are_refused():
    with pytest.raises(ValueError, match="too large"):
        _selftest.plan_memory([(1 << 60, 0, 1)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 10)), max_size=40))
def test_no_overlap_ever(raw):
    buffers = [(size, first, first + length) for size, first, length in raw]
    offsets, arena = _selftest.plan_memory(buffers)
    padded = [-(-size // 64) * 64 for size, _, _ in buffers]
    for i, (_, first, last) in enumerate(buffers):
        assert offsets[i] % 64 == 0
        assert offsets[i] + padded[i] <= arena or padded[i] == 0
        for j in range(i):
            together = buffers[j][1] <= last and first <= buffers[j][2]
            apart = offsets[i] + padded[i] <= offsets[j] or offsets[j] + padded[j] <= offsets[i]
            assert not together or apart or not padded[i] or not padded[j]
    busiest = max((sum(p for p, (_, f, l) in zip(padded, buffers) if f <= t <= l) for t in range(42)), default=0)
    assert arena >= busiest
