"""The README's table is what benchmarks/compare.py makes of the newest results; its commands are there to be run."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_measured_table_is_generated():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks/compare.py")
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    readme = (ROOT / "README.md").read_text()
    between = readme.split("<!-- measured: speed -->")[1].split("<!-- end of speed -->")[0]
    assert between.strip() == compare.readme_tables().strip(), "run: python benchmarks/compare.py readme"


@pytest.mark.parametrize("name", ["benchmarks/pictures/demo.png", "dreamda_c/ARCHITECTURE.md", "benchmarks/README.md", "benchmarks/LOG.md", "python/CHANGELOG.md"])
def test_what_the_readme_points_at_exists(name):
    assert (ROOT / name).is_file()


def test_the_two_commands_come_first():
    blocks = (ROOT / "README.md").read_text().split("```sh\n")
    assert blocks[1].split("```")[0].strip() == "pip install . && dreamda demo"
    assert blocks[2].split("```")[0].strip() == 'pip install ".[test]" && python -m pytest'
