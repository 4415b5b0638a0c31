"""Rules of the C sources that no compiler checks: the ladder of includes, one door to oneDNN, nothing that kills a
process."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy
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
        found += [
            f"{name}: {call}: use base/arena.h" for call in ("malloc", "calloc", "realloc", "free", "aligned_alloc")
            if re.search(rf"(?<![\w.]){call}\s*\(", text)
        ]
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


# What the example at the top of a header takes for granted: includes, and declarations of its variables.
EXAMPLES = {
    "base/arena.h": ("base/status.h", "int64_t n, int64_t h, int64_t w"), "base/dtype.h":
    ("base/status.h", "int n, const uint16_t *h"), "base/planner.h": ("", "void"), "base/process.h":
    ("", "void (*compute)(void)"), "base/rng.h": ("base/status.h", "float *x"), "base/status.h": ("base/arena.h", None),
    "base/team.h": ("onednn/onednn.h", "dd_primitive *primitive"), "bindings/core.h":
    ("", "dd_module_state *state, PyObject *object, int ndim, const npy_intp *dims, dd_status status"),
    "graph/convolution.h": ("",
                            "dd_graph *graph, const dd_op *op, dd_isa isa, dd_primitive *primitive, dd_engine *engine"),
    "graph/graph.h": ("", "dd_weights *weights, int rows"), "graph/plan.h":
    ("",
     "dd_graph *graph, dd_weights *weights, const float **parameters, float *sample, float *timestep, "
     "float *context, float *eps"
     ), "graph/step.h": ("", "dd_plan *plan, dd_step *step, dd_call call"), "graph/weights.h":
    ("", "const dd_layout *layout, const void *data"), "kernels/kernels.h":
    ("base/status.h",
     "int n, int hw, int c, float *dst, float *src, float *gamma, float *beta, void *scratch"), "kernels/losses.h":
    ("base/status.h",
     "size_t n, size_t f, size_t c, float *y, float *x, float *w, float *b, float *dy, float *dx, float *dw, float "
     "*db, double *rows, int64_t *labels"), "kernels/table.h":
    ("base/status.h",
     "float *dst, float *src, float *gamma, float *beta, int rows, int c, float eps"), "kernels/train.h":
    ("base/status.h",
     "dd_isa isa, int rows, int c, float *gamma, float *beta, float *mean, float *variance, void *dst, void *src, "
     "void *residual, void *scratch, void *d_src, void *d_dst, float *d_gamma, float *d_beta"), "models/layers.h":
    ("", "dd_graph *g, dd_value x, dd_value emb"), "models/models.h": ("graph/plan.h",
                                                                       "dd_graph *graph, dd_plan *plan"),
    "onednn/internal.h": ("", "dnnl_memory_desc_t md, dnnl_dims_t dims"), "onednn/onednn.h":
    ("", "const float *plain, void *packed, void *src"), "training/plan.h": ("", "dd_trainer *t"), "training/trainer.h":
    ("",
     "dd_weights *weights, dd_graph *g, dd_resnet_config config, float *images, float *features, "
     "float *d_features, int rows"
     ),
}
# Parts of the template of kernels, which only an isa_*.c file can compile.
PARTS = {
    f"kernels/{part}.h"
    for part in ("attention", "batch_norm", "norm", "template", "tile_gradient", "tiles", "vector", "weight_gradient",
                 "winograd", "winograd_gradient", "winograd_pack")
}


def example_of(header: str) -> str:
    comment = (CORE / header).read_text().split("*/")[0]
    return "".join(line[7:] + "\n" for line in comment.splitlines() if line.startswith(" *     "))


def compiled(header: str, code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    includes, declarations = EXAMPLES[header]
    text = "".join(f'#include "{name}"\n' for name in (includes, header) if name)
    if declarations is None:  # a whole function
        text += ("typedef struct { int *part; } dd_thing;\n"
                 "dd_status dd_part_create(int **out);\n"
                 "void dd_thing_destroy(dd_thing *t);\n") + code
    else:
        status = "" if "dd_status status" in code + declarations else "dd_status status = DD_OK;\n"
        result, end = ("PyObject *", "") if "return dd_raise" in code else ("dd_status",
                                                                            "goto fail;\nfail:\n    return status;\n")
        text += f"{result} example({declarations});\n{result} example({declarations})\n{{\n{status}{code}{end}}}\n"
    file = folder / "example.c"
    file.write_text(text)
    if root := os.environ.get("ONEDNN_ROOT"):
        onednn = [f"{root}/include"]
    else:
        files = importlib.metadata.files("onednn-devel-cpu-gomp") or []
        onednn = [str(Path(str(f.locate())).parents[2]) for f in files if str(f).endswith("oneapi/dnnl/dnnl.h")]
    command = [
        "gcc", "-std=c11", "-fsyntax-only", "-fopenmp", "-Wall", "-Wno-unused", "-Wno-unused-but-set-variable",
        "-Werror", "-D_GNU_SOURCE"
    ]
    command += [f"-I{folder}" for folder in (CORE, numpy.get_include(), sysconfig.get_paths()["include"], *onednn)]
    return subprocess.run([*command, str(file)], capture_output=True, text=True)


def can_compile() -> bool:
    """Whether what a build needs is here; an installed wheel needs neither."""
    try:
        importlib.metadata.version("onednn-devel-cpu-gomp")
    except importlib.metadata.PackageNotFoundError:
        return "ONEDNN_ROOT" in os.environ and shutil.which("gcc") is not None
    return shutil.which("gcc") is not None


compiles = pytest.mark.skipif(not can_compile(), reason="no compiler, or no headers of oneDNN")


def test_every_header_has_an_example():
    headers = {name(path) for path in SOURCES if path.suffix == ".h"}
    assert headers == EXAMPLES.keys() | PARTS and not EXAMPLES.keys() & PARTS


@compiles
@pytest.mark.parametrize("header", EXAMPLES)
def test_the_example_of_a_header_compiles(header, tmp_path):
    assert example_of(header).count("\n") >= (1 if header == "models/layers.h" else
                                              2), "a header opens with a short example"
    result = compiled(header, example_of(header), tmp_path)
    assert result.returncode == 0, result.stderr


@compiles
def test_an_example_can_be_wrong(tmp_path):
    assert compiled("base/rng.h", example_of("base/rng.h").replace(".row", ".line"), tmp_path).returncode != 0


TABLED = re.compile(r"`([\w.]+)`")


def listed(page: str) -> set[str]:
    """The files that the architecture page's tables list, as ``folder/file``."""
    found: set[str] = set()
    for section in page.split("\n## Files\n")[1].split("\n## ")[0].split("\n### ")[1:]:
        folder, *lines = section.splitlines()
        for line in lines:
            if line.startswith("| `"):
                found |= {f"{folder}/{file}" for file in TABLED.findall(line.split("|")[1])}
    return found


def test_the_architecture_page_lists_every_file():
    page = (CORE / "ARCHITECTURE.md").read_text()
    assert listed(page) == {name(path) for path in SOURCES}
    assert re.findall(r"^\| `(\w+)/` \|", page, re.M) == LADDER, "the layers, from the first to the last"
    assert re.findall(r"^### (\w+)$", page, re.M) == LADDER
    for file in re.findall(r"`((?:%s)/[\w.]+)`" % "|".join(LADDER), page):  # named in the text
        assert file == "models/NAME.c" or (CORE / file).is_file(), file
    for file in re.findall(r"`(tests/[\w/.]+)`", page):
        assert (ROOT / file).is_file(), file


def test_the_architecture_page_can_be_wrong():
    page = (CORE / "ARCHITECTURE.md").read_text()
    files = {name(path) for path in SOURCES}
    assert files - listed(page.replace("`rng.c`", "")) == {"base/rng.c"}
    assert listed(page.replace("`rng.c`", "`rng.c` `gone.c`")) - files == {"base/gone.c"}


WORDS = {"nobody": "no one, or unused", "somebody": "someone", "mend": "fix", "mended": "fixed"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_lines_and_words(path):
    text = path.read_text()
    assert [line for line in text.splitlines() if len(line) > 120] == []
    assert [f"{word}: write {better}" for word, better in WORDS.items() if re.search(rf"\b{word}\b", text)] == []


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


# ---- lines

LONGEST = 120
CODE = [path for ending in ("*.py", "*.pyi", "*.c", "*.h") for folder in ("dreamda_c", "python", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob(ending))] + [ROOT / "setup.py"]


def long_lines(text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST]


def test_no_line_of_code_is_longer_than_120_columns():
    long = {str(path.relative_to(ROOT)): numbers for path in CODE if (numbers := long_lines(path.read_text()))}
    assert long == {} and len(CODE) > 200


def test_a_long_line_is_found():
    assert long_lines("x" * LONGEST + "\n" + "y" * (LONGEST + 1)) == [2]
