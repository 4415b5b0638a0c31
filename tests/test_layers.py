"""The order of the Python package: a folder imports only from those before it."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python/dreamda"
# As in ARCHITECTURE.md. What the package offers at its top (info, normals, Error, the version) anybody may use.
LADDER = [
    "_onednn", "_core", "options", "presets", "progress", "text", "data", "copies", "networks", "generation",
    "training", "runs", "distributed", "cli"
]
# The reader of a scheduler's configuration makes the schedule, inside of a function, so that a bad file is refused by
# name.
EXCEPTIONS = {("networks/config.py", "generation")}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(text, package):
    """The top-level places that a module of `package` ("dreamda.runs", say) imports at run time."""
    tree = ast.parse(text)
    for_types = {
        id(inner)
        for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in node.body
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in for_types:
            continue
        base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
        whole = [*base, *(node.module or "").split(".")] if node.module else base
        if whole[:1] == ["dreamda"]:
            yield from [whole[1]] if len(whole) > 1 else [alias.name for alias in node.names]


def complaints(path, text):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    package = ".".join(["dreamda", *parts[:-1]])
    mine = LADDER.index(parts[0])
    return [other for other in imported(text, package) if other in LADDER and LADDER.index(other) > mine
            and (path.relative_to(PACKAGE).as_posix(), other) not in EXCEPTIONS]


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE or p.stem in LADDER],
                         ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_upwards(path):
    assert complaints(path, path.read_text()) == []


def test_every_folder_has_its_place():
    assert {p.relative_to(PACKAGE).parts[0] for p in FILES if p.parent != PACKAGE} <= set(LADDER) and len(FILES) > 40


@pytest.mark.parametrize("name, text", [("data/images.py", "from ..runs.files import OutputError"),
                                        ("networks/models.py", "from ..generation import schedulers"),
                                        ("training/heads.py", "def f():\n    from .. import cli"),
                                        ("generation/pipeline.py", "from dreamda.training import views")])
def test_the_rule_can_be_broken(name, text):
    assert len(complaints(PACKAGE / name, text)) == 1
