"""README.md's and RESULTS.md's tables are what benchmarks/compare.py makes of the newest results; its commands are
there to be run."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_measured_tables_are_generated():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks/compare.py")
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    for file, name, table in (("README.md", "speed", compare.highlights_table()), ("benchmarks/RESULTS.md", "summary",
                                                                                   compare.summary_table()),
                              ("benchmarks/RESULTS.md", "results", compare.all_tables())):
        between = (ROOT / file).read_text().split(f"<!-- measured: {name} -->")[1].split(f"<!-- end of {name} -->")[0]
        assert between.strip() == table.strip(), "run: python benchmarks/compare.py readme"


@pytest.mark.parametrize("name", [
    "benchmarks/pictures/demo.png", "dreamda_c/ARCHITECTURE.md", "benchmarks/README.md", "benchmarks/LOG.md",
    "benchmarks/RESULTS.md", "python/CHANGELOG.md"
])
def test_what_the_readme_points_at_exists(name):
    assert (ROOT / name).is_file()


def test_the_two_commands_come_first():
    blocks = (ROOT / "README.md").read_text().split("```sh\n")
    assert blocks[1].split("```")[0].strip() == "pip install . && dreamda demo"
    assert blocks[2].split("```")[0].strip() == 'pip install ".[test]" && python -m pytest'
