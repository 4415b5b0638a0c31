"""What comes from elsewhere: dependencies with their ranges and licences, no network that nobody asked for, no code out
of a model folder."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamda.generation.pipeline import BUNDLED

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
# Nothing of the package may import these, nor call these.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "yaml", "runpy",
    "code", "imp", "pty", "subprocess", "xmlrpc", "socket", "urllib", "http", "requests", "ftplib", "telnetlib",
    "smtplib", "webbrowser"
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "execfile", "system", "popen", "spawnl", "spawnv", "spawnvp", "execv",
    "execve", "execvp", "startfile", "spec_from_file_location", "module_from_spec", "SourceFileLoader", "load_module",
    "exec_module", "run_path"
}


def test_every_dependency_is_bounded():
    """From below, and from above where the next major version may break: exact for oneDNN, below the next major for the
    rest."""
    for requirement in REQUIREMENTS:
        assert re.fullmatch(r"[\w.-]+(?:\[\w+\])?(==[\d.]+|>=[\d.]+,<\d+)", requirement), requirement


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_installed_versions_are_within_their_ranges(requirement):
    requirements = pytest.importorskip("packaging.requirements")
    parsed = requirements.Requirement(requirement)
    try:
        installed = importlib.metadata.version(parsed.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{parsed.name} is an extra that is not installed")
    assert parsed.specifier.contains(installed), f"{installed} is installed"


def test_the_table_of_dependencies_is_complete():
    readme = (ROOT / "python/docs/installing.md").read_text()
    rows = {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `([\w.-]+)` \| `([^`]+)` \| ([^|]+?) \|", readme, re.M)}
    for requirement in REQUIREMENTS:
        name, bounds = re.fullmatch(r"([\w.-]+?)(?:\[\w+\])?((?:==|>=).*)", requirement).groups()
        assert name in rows and rows[name][0] == bounds, f"installing.md: {name} {bounds}"
        assert re.search(r"Apache|BSD|MIT|MPL|PSF", rows[name][1]), f"installing.md: the licence of {name}"


def calls_and_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (("import", alias.name.split(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield "import", node.module.split(".")[0], node
        elif isinstance(node, ast.Call):
            yield "call", node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node


@pytest.mark.parametrize("path", sorted((ROOT / "python/dreamda").rglob("*.py")), ids=lambda p: p.name)
def test_no_file_can_become_code(path):
    for kind, name, node in calls_and_imports(path):
        where = f"{path.name}:{node.lineno}: {name}"
        if kind == "import":
            # Whether anything listens at the --address that the user gave.
            assert name not in FORBIDDEN_MODULES or (path.name, name) == ("distributed.py", "socket"), where
            continue
        keywords = {k.arg: k.value for k in node.keywords}
        of_re = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "re"
        assert name not in FORBIDDEN_CALLS or of_re, where
        assert "trust_remote_code" not in keywords, where
        if name == "load" and isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id",
                                                                               "") in ("np", "numpy"):
            assert isinstance(keywords.get("allow_pickle"),
                              ast.Constant) and keywords["allow_pickle"].value is False, where
        if name == "import_module":
            assert path.name == "__init__.py", where  # of a fixed table of our own modules
        if name in ("CDLL", "LoadLibrary", "dlopen"):
            assert path.name == "_onednn.py", where


PROGRAMS = re.compile(r"\b(system|popen|fork|execv\w*|execl\w*|dlopen|dlsym|PyRun_\w+|PyImport_ExecCode\w*)\s*\(")


def test_the_core_runs_no_programs():
    sources = sorted((ROOT / "dreamda_c").rglob("*.[ch]"))
    assert len(sources) > 40
    for path in sources:
        assert not PROGRAMS.search(path.read_text()), path.name
    assert all(
        PROGRAMS.search(text) for text in ('system("ls")', "fork()", "dlopen (name, 0)", "PyRun_SimpleString(text)"))


WATCH = """
import json, sys
allowed, log = json.loads(sys.argv[1]), []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
                 "urllib.Request"):
        log.append(event)
        raise PermissionError("no network here")
    if watching and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class",
                              "ctypes.dlopen"):
        log.append(event)
    if event == "open" and watching and sys.argv[2] in str(arguments[0]):
        log.append(str(arguments[0]))
watching = False
sys.addaudithook(watch)
import numpy as np
import dreamda, dreamda.generation.pipeline
from PIL import Image, PngImagePlugin
import safetensors, tokenizers
watching = True
"""


def watched(code, folder="/nowhere"):
    """What the script printed last, as JSON, and the log: network, programs, and files opened under `folder`."""
    code = WATCH + code + "\nprint(json.dumps(log))"
    done = subprocess.run([sys.executable, "-c", code, "{}", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_goes_to_the_network_unless_a_hub_id_is_named(tmp_path):
    """Bundled and local models, generation and the command line; an id of the hub does ask, so the watch works."""
    assert watched(f"""
import os, threading
seeds = dreamda.load_bundled().seeds[:1]
pipe = dreamda.Pipeline.load("fashion-mini", threads=1)
pipe.augment(seeds, ["a photo of a coat"], variants=1, steps=2)
pipe.fingerprint
from dreamda import cli
os.makedirs("{tmp_path}/real/coat")
Image.fromarray(seeds[0]).save("{tmp_path}/real/coat/1.png")
assert cli.main(["generate", "{tmp_path}/real", "--out", "{tmp_path}/out", "--model", "fashion-mini",
                 "--variants", "1", "--steps", "2", "--threads", "1"]) == 0
for name in ("no-such-model", "/no/such/model", "./a/b/c"):
    try:
        dreamda.Pipeline.load(name)
    except FileNotFoundError:
        pass
""") == []
    if importlib.util.find_spec("huggingface_hub"):
        assert watched("""
try:
    dreamda.Pipeline.load("owner/name")
except FileNotFoundError:
    pass
""") != []


def test_a_model_folder_full_of_code_is_only_data(tmp_path):
    """Python, pickles and libraries beside the weights, and configurations that point at them: no such file is even
    opened."""
    folder = shutil.copytree(BUNDLED / "fashion-mini", tmp_path / "model")
    evil = "import os; os.system('touch /tmp/dreamda-was-here')"
    for part in (".", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for name in ("__init__.py", "modeling.py", "pipeline.py", "pytorch_model.bin", "diffusion_pytorch_model.bin",
                     "model.pkl", "setup.py", "conftest.py", "libdnnl.so.3", "sitecustomize.py"):
            (folder / part / name).write_text(evil)
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
                 "tokenizer/tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {
            "_auto_map": {"AutoModel": "modeling.Evil"}, "_custom_pipeline": "pipeline.py", "_library": "modeling"
        }
        (folder / name).write_text(json.dumps(content))
    opened = watched(f"""
pipe = dreamda.Pipeline.load("{folder}", threads=1)
pipe.augment(np.zeros((1, 32, 32, 3), np.uint8), ["a photo of a coat"], variants=1, steps=1, strength=1.0)
pipe.fingerprint
""", folder)
    assert opened and {Path(name).suffix for name in opened} <= {".json", ".txt", ".safetensors"}
