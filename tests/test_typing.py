"""The types that the package promises (py.typed): the stub of the C core is the module, the package is sound, and
users' code is understood."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dreamda

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("mypy"),
                                reason="mypy (extra test-others) is not installed")
ROOT = Path(__file__).parents[1]
PACKAGE = Path(dreamda.__file__).parent
USE = """
from pathlib import Path
import numpy as np
import dreamda

pipe = dreamda.Pipeline.load(Path("model"), dtype="f32", threads=2, size=(32, 32))
seeds = dreamda.load_bundled().seeds
images = pipe.augment(seeds, ["a coat"] * 3, variants=2, keys=["a", "b", 3], progress=lambda done, total: None)
reveal_type(images)
unet = dreamda.UNet.load("unet")
reveal_type(unet(np.zeros((1, 4, 8, 8)), 3.0, [[[0.0]]]))
prediction, bottleneck = unet(np.zeros((1, 4, 8, 8)), 3, np.zeros((1, 77, 768)), return_bottleneck=True)
mean, std = dreamda.VAE.load(Path("vae")).moments(np.zeros((1, 3, 8, 8)))
embedded = dreamda.TextEncoder.load(Path("text_encoder"))(["a coat"])
classifier = dreamda.AMSTClassifier(backbone="resnet18", epochs=3, image_size=(32, 32)).fit(seeds, [0, 1])
reveal_type(classifier.epochs)
reveal_type(classifier.score(seeds, [0, 1]))
heads = dreamda.AMSTHeads(8, 2)
result = heads.train_loss(np.zeros((4, 8)), [0, 1, 0, 1])
reveal_type(result.total)
reveal_type(dreamda.normals(0, 0, 0, 0, 0, 0, (2, 3)))
shards = dreamda.to_webdataset("out", "%d.tar", shard_size=10)
reveal_type(shards)
reveal_type(dreamda.info())
try:
    pass
except dreamda.Error as error:
    reveal_type(error)
"""
REVEALED = [
    "ndarray", "ndarray", "int", "float", "float", "ndarray", "list[pathlib.Path]", "dict[str, Any]",
    "dreamda._core.Error"
]
MISUSE = """
import dreamda

dreamda.Pipeline.load("m", dtype=32)
dreamda.AMSTClassifier(epoch=3)
dreamda.AMSTHeads("8", 2)
dreamda.to_webdataset("out")
dreamda.normals(0, 0)
dreamda.nothing
"""


def mypy(*arguments, cwd):
    # The package is found as its users find it; an editable one lies where mypy does not look by itself.
    environment = {**os.environ, "MYPYPATH": str(PACKAGE.parent) if "site-packages" not in PACKAGE.parts else ""}
    done = subprocess.run([sys.executable, "-m", *arguments],
                          capture_output=True,
                          text=True,
                          cwd=cwd,
                          env=environment,
                          timeout=900)
    return done.returncode, done.stdout + done.stderr


def test_the_stub_of_the_core_is_the_core(tmp_path):
    code, output = mypy("mypy.stubtest",
                        "dreamda._core",
                        "--allowlist",
                        write(tmp_path, "allowed", "dreamda\\._core\\._alloc_fail_after\n"),
                        "--ignore-unused-allowlist",
                        cwd=tmp_path)
    assert code == 0, output


def test_the_package_is_sound(tmp_path):
    code, output = mypy("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path), cwd=ROOT)
    assert code == 0, output


def test_use_is_understood(tmp_path):
    code, output = mypy("mypy", "--cache-dir", str(tmp_path), write(tmp_path, "use.py", USE), cwd=tmp_path)
    assert code == 0, output
    revealed = [line.split('Revealed type is "')[1] for line in output.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(REVEALED), output
    for type_, part in zip(revealed, REVEALED, strict=True):
        assert part in type_ and "|" not in type_, (type_, part)


def test_misuse_is_found(tmp_path):
    code, output = mypy("mypy", "--cache-dir", str(tmp_path), write(tmp_path, "misuse.py", MISUSE), cwd=tmp_path)
    found = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    assert code == 1 and found == {
        number
        for number, line in enumerate(MISUSE.splitlines(), 1) if line.startswith("dreamda.")
    }, output


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)
