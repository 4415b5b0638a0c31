"""Rules of the C sources that no compiler checks: the ladder of includes, one door to oneDNN, nothing that kills a process."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "dreamda_c"
SOURCES = sorted([*CORE.glob("*.c"), *CORE.glob("*.h")])
# Foundations first. A file may include headers of its own rung and of the rungs before it.
LADDER = [
    ["dtype", "status", "arena", "process"],
    ["rng"],
    ["kernels", "kernels_table", "kernels_impl", "losses"],
    ["planner"],
    ["onednn"],
    ["weights"],
    ["graph"],
    ["plan"],
    ["layers"],
    ["models", "unet", "vae", "clip", "resnet"],
    ["trainer", "trainer_plan"],
    ["py_core"],
]
RUNG = {name: rung for rung, names in enumerate(LADDER) for name in names}


def rung(path: Path) -> int:
    if path.stem.startswith("py_"):
        return len(LADDER)
    return RUNG.get(path.stem, RUNG["kernels"] if path.stem.startswith("kernels") else -1)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_includes_point_downwards(path):
    assert rung(path) >= 0, f"{path.name} has no place in the ladder"
    for header in re.findall(r'#include "(\w+)\.(?:h|inc)"', path.read_text()):
        other = CORE / f"{header}.h"
        assert rung(other) <= rung(path), f"{path.name} includes {header}.h, which stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_borders(path):
    text = path.read_text()
    if path.name != "onednn.c":
        assert "dnnl.h" not in text and "dnnl_" not in text.replace("dnnl_version", ""), "oneDNN is used through onednn.h only"
    if not path.name.startswith("py_"):
        assert "Python.h" not in text
    if path.name != "arena.c":
        for call in ("malloc", "calloc", "realloc", "free", "aligned_alloc"):
            assert not re.search(rf"(?<![\w.]){call}\s*\(", text), f"{call}: use arena.h"
    for call in ("exit", "abort", "printf", "puts", "assert"):
        assert not re.search(rf"(?<!\w){call}\s*\(", text), f"{call} has no place in a library"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".h"], ids=lambda p: p.name)
def test_headers_open_with_a_comment(path):
    assert path.read_text().startswith("/*"), "a header says first what it is for"


def test_no_file_is_too_long():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 900, f"{path.name}: split it"


def test_models_are_never_unpickled():
    """Neither pickle nor evaluation of anything that a model folder holds, anywhere in the package."""
    for path in sorted((ROOT / "python/dreamda").rglob("*.py")):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from)\s+(pickle|marshal|shelve|dill|torch)\b", text, re.M), path
        assert not re.search(r"(?<![\w.])(eval|exec)\s*\(", text), path
        assert "allow_pickle=True" not in text, path
