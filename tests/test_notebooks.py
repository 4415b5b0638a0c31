"""The notebooks run from top to bottom (where Jupyter is installed), and what is committed of them is small and whole."""
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "python/notebooks").glob("*.ipynb"))


def test_there_are_four():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]


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
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
