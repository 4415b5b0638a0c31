"""A few seconds of tests/fuzz/fuzz.py on every target, from a fixed seed. Longer runs are made by hand: README.md
beside this file."""

import time

import pytest

import fuzz

SECONDS = 0.5


@pytest.mark.parametrize("name", fuzz.TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_mutations_of_real_files_are_refused_or_read(name, tmp_path):
    with fuzz.Driver(name, tmp_path) as driver:
        driver.random(1000, 0, time.monotonic() + SECONDS)
        assert driver.runs > 0


def test_the_driver_tells_findings_from_answers(tmp_path, monkeypatch):
    def broken(data):
        raise {b"a": ValueError, b"b": IndexError, b"c": MemoryError}[data]("x")

    monkeypatch.setitem(fuzz.TARGETS, "broken", fuzz.Target(lambda folder: ([b"a"], broken)))
    with fuzz.Driver("broken", tmp_path) as driver:
        driver.one(b"a")
        for data in (b"b", b"c"):
            with pytest.raises(fuzz.Finding, match="broken: (IndexError|MemoryError): x at test_fuzz.py"):
                driver.one(data)
    assert driver.runs == 3 and driver.refused == 1 and {p.read_bytes() for p in tmp_path.iterdir()} == {b"b", b"c"}
