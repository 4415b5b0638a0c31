"""python/examples: the scikit-learn script runs in every mode. Those for PyTorch run in its environment:
tests/parity/heads_torch.py --train."""
import subprocess
import sys
from pathlib import Path

import pytest

import dreamda
from dreamda.data import load_bundled, prompts_from_template
from dreamda.runs.generate import GenerationOptions, generate_dataset

EXAMPLES = Path(__file__).parents[1] / "python/examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_compiles_and_says_how_to_run_it(path):
    compile(path.read_text(), path, "exec")
    assert f"python {path.name} amst" in path.read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    bundled = load_bundled()
    for part in ("seeds", "test"):
        bundled.write(bundled.folder(root / part, part), part)
    folder = bundled.folder(root / "seeds")
    generate_dataset(folder,
                     root / "synthetic",
                     dreamda.Pipeline.load("fashion-mini"),
                     GenerationOptions(variants=1, steps=3),
                     prompts=prompts_from_template(folder))
    return root


@pytest.mark.parametrize("mode", ["real", "folder", "augment", "amst"])
def test_scikit_learn(mode, request):
    pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[test-others]"')
    data = request.getfixturevalue("data")
    done = subprocess.run([
        sys.executable, EXAMPLES / "sklearn_features.py", mode, "--real", data / "seeds", "--test", data / "test",
        "--synthetic", data / "synthetic", "--steps", "60"
    ],
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1].split()[1].rstrip("%")) > 40  # of ten classes
