"""What the efficacy benchmark promises about its own data: nested draws, separate parts, honest tables."""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def efficacy():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("efficacy", FOLDER / "efficacy.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_a_smaller_size_is_the_beginning_of_a_larger_one(efficacy):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    members = efficacy.draw_members(labels, 3)
    assert members.shape == (10, 50) and (labels[members] == np.arange(10)[:, None]).all()
    assert len(np.unique(members)) == 500
    assert np.array_equal(members, efficacy.draw_members(
        labels, 3)) and not np.array_equal(members, efficacy.draw_members(labels, 4))
    for size in efficacy.SIZES:
        bounds = efficacy.chunks(efficacy.fashion_mnist(""), size)
        assert [i for first, last in bounds for i in range(first, last)] == list(range(size))


def test_the_parts_share_no_image(efficacy):
    numbers = [set(range(60_000)[slice(*part)]) for part in efficacy.PARTS.values()]
    seen = set(range(50_000))  # what the diffusion model was trained on
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 10_000 and not seen & set.union(*numbers)


def test_wrong_labels_are_as_many_as_asked_for_and_wrong(efficacy):
    hints = np.repeat(np.arange(10), 30)
    for share in (0.0, 0.2, 0.4):
        assert (efficacy.flip(hints, share, 1) != hints).sum() == round(300 * share)
    assert efficacy.flip(None, 0.2, 1) is None


def test_tables_show_what_the_records_say(efficacy):
    records = [dict(method=name, size=5, draw=draw, accuracy=0.5 + 0.01 * number + 0.1 * draw)
               for number, name in enumerate(efficacy.METHODS) for draw in range(2)]
    table = efficacy.result_table(records).splitlines()
    assert "5 a class (2 draws)" in table[0] and len(table) == 2 + len(efficacy.METHODS)
    assert table[2] == "| real only | 55.0 ± 7.1 |" and table[-1].startswith("| DreamDA + AMST | **")
    difference = efficacy.difference_table(records).splitlines()
    assert difference[2] == f"| real only | {len(efficacy.METHODS) - 1:.1f} ± 0.0 (ahead in 2 of 2) |"
    noise = [dict(method="plain", wrong=share, draw=0, accuracy=0.7 - share / 2) for share in (0.0, 0.2)]
    assert efficacy.noise_table(noise).splitlines()[-1] == "| plain | 70.0 | 60.0 (lost 10.0) |"
