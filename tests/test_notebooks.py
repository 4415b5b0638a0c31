"""The notebooks run from top to bottom (where Jupyter is installed), and the committed files are small and complete."""
import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import typer

from dreamda import cli

NOTEBOOKS = sorted((Path(__file__).parents[1] / "python/notebooks").glob("*.ipynb"))
EXAMPLES = sorted((Path(__file__).parents[1] / "python/examples").glob("*.py"))
JARGON = re.compile(r"\b(mend\w*|(same|equal|different) bits|room for|goes on where|nobody)\b", re.IGNORECASE)


def sources(path, kind="code"):
    """The code of a script or notebook, without the shell commands of notebooks; or a notebook's Markdown."""
    if path.suffix == ".py":
        return path.read_text()
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("!"))


def absent(source):
    """The names that `source` imports from dreamda, and that are not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            if module.split(".")[0] != "dreamda":
                continue
            try:
                if name and not hasattr(importlib.import_module(module), name):
                    importlib.import_module(f"{module}.{name}")
                importlib.import_module(module)
            except ImportError:
                missing.append(f"{module}.{name}" if name else module)
    return missing


@pytest.mark.parametrize("path", NOTEBOOKS + EXAMPLES, ids=lambda p: p.stem)
def test_imports_of_dreamda_exist(path):
    assert absent(sources(path)) == []


def test_a_missing_import_is_found():
    assert absent(
        "import dreamda.nothing\nfrom dreamda import Pipeline, Nothing\nfrom dreamda.training.views import "
        "Views, Nothing\nimport nothing"
    ) == ["dreamda.nothing", "dreamda.Nothing", "dreamda.training.views.Nothing"]


@pytest.mark.parametrize("path", NOTEBOOKS + EXAMPLES, ids=lambda p: p.stem)
def test_plain_words(path):
    assert not JARGON.search(sources(path) + "\n" + sources(path, "markdown"))


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_commands_exist(path):
    """A shell command that fails does not stop a notebook."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for line in [line for cell in cells for line in "".join(cell["source"]).splitlines() if " -m dreamda " in line]:
        name, *words = line.split(" -m dreamda ")[1].split()
        parameters = COMMANDS[name].params
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert [word for word in words if word.startswith("-") and word not in known] == []


def test_they_are_numbered():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_committed(path):
    """Small, and either without outputs or with those of a run from the first cell to the last."""
    assert path.stat().st_size < 600_000
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts in ([None] * len(cells), [*range(1, len(cells) + 1)])
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    for name in ("nbclient", "nbformat", "ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(name, reason=f'{name} is not installed: pip install ".[test-others]"')
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook,
                            timeout=900,
                            kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
