"""Rules of the C sources that no compiler checks: the ladder of includes, one door to oneDNN, nothing that kills a process."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "dreamda_c"
SOURCES = sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")])
# One rung a folder, foundations first. A file may include headers of its own folder and of the folders before it.
LADDER = ["base", "kernels", "onednn", "graph", "models", "training", "bindings"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def name(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


def complaints(name: str, text: str) -> list[str]:
    """What a file of the core does that it must not; `name` is ``folder/file``."""
    folder, found = name.split("/")[0], []
    for header in INCLUDE.findall(text):
        other = header.split("/")[0]
        if header.count("/") != 1 or other not in LADDER:
            found.append(f'{name} includes "{header}"; write "folder/file.h"')
        elif LADDER.index(other) > LADDER.index(folder):
            found.append(f"{name} includes {header}, which stands above it")
    if folder != "onednn" and ("dnnl.h" in text or "dnnl_" in text.replace("dnnl_version", "")):
        found.append(f"{name}: oneDNN is used through onednn/onednn.h only")
    if folder != "bindings" and "Python.h" in text:
        found.append(f"{name}: Python.h belongs to bindings/")
    if name != "base/arena.c":
        found += [f"{name}: {call}: use base/arena.h" for call in ("malloc", "calloc", "realloc", "free", "aligned_alloc")
                  if re.search(rf"(?<![\w.]){call}\s*\(", text)]
    found += [f"{name}: {call} has no place in a library" for call in ("exit", "abort", "printf", "puts", "assert")
              if re.search(rf"(?<!\w){call}\s*\(", text)]
    return found


def test_the_folders_are_the_ladder():
    assert sorted({path.parent.name for path in SOURCES}) == sorted(LADDER) and len(SOURCES) > 40
    assert all(path.parent.parent == CORE for path in SOURCES), "one folder a rung, none inside of another"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_rules_of_a_file(path):
    assert complaints(name(path), path.read_text()) == []
    for header in INCLUDE.findall(path.read_text()):
        assert (CORE / header).is_file(), header


@pytest.mark.parametrize("file, text", [
    ("kernels/norm.h", '#include "graph/plan.h"'),
    ("base/arena.c", '#include "kernels/kernels.h"'),
    ("graph/plan.c", '#include "plan.h"'),
    ("graph/plan.c", "#include <oneapi/dnnl/dnnl.h>"),
    ("models/unet.c", "dnnl_stream_wait(stream);"),
    ("training/trainer.c", "#include <Python.h>"),
    ("kernels/losses.c", "float *copy = malloc(n);"),
    ("bindings/module.c", "free(copy);"),
    ("onednn/library.c", "exit(1);"),
    ("base/status.c", 'printf("lost");'),
])
def test_each_rule_can_be_broken(file, text):
    assert len(complaints(file, text)) == 1


def test_no_headers_include_each_other():
    """Within a folder too there is an order: headers that include each other have none."""
    after = {name(path): set(INCLUDE.findall(path.read_text())) for path in SOURCES if path.suffix == ".h"}
    while ready := [header for header, needs in after.items() if not needs & after.keys()]:
        after = {header: needs for header, needs in after.items() if header not in ready}
    assert after == {}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".h"], ids=name)
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
