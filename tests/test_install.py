"""What an installed package promises: it finds its oneDNN, loads one of everything, fast, and without PyTorch."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

CORE = importlib.util.find_spec("dreamda._core").origin


def run(code, **env):
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"} | env
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf (binutils) is not installed")
def test_runpath_and_soname():
    dynamic = subprocess.run(["readelf", "-d", CORE], capture_output=True, text=True, check=True).stdout
    assert "[libdnnl.so.3]" in dynamic
    assert "$ORIGIN/../../.." in dynamic


def test_one_openmp_and_one_onednn_in_the_process():
    code = (
        "import dreamda, numpy\n"
        "paths = {l.split()[-1] for l in open('/proc/self/maps') if '.so' in l}\n"
        "for name in ('libgomp', 'libdnnl', 'libiomp', 'libomp.'):\n"
        "    print(name, sum(name in p for p in paths))\n")
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:4] == ["libgomp 1", "libdnnl 1", "libiomp 0", "libomp. 0"]


def test_import_loads_the_core_and_nothing_heavy():
    code = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import dreamda\n"
        "print(*sorted(n for n in set(sys.modules) - before if n.split('.')[0] not in sys.stdlib_module_names))\n")
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["dreamda", "dreamda._core", "dreamda._onednn"]


@pytest.mark.parametrize("path", ["/nonexistent/libdnnl.so.3", "/dev/null"])
def test_a_missing_library_is_explained(path):
    result = run("import dreamda", DREAMDA_ONEDNN=path)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: dreamda needs oneDNN's libdnnl.so.3: pip install onednn-cpu-gomp")
    assert path in last


def test_lower_instruction_sets_can_be_asked_for():
    for isa, kernels in (("AVX2", "avx2"), ("AVX512_CORE", "avx512")):
        result = run("import dreamda; i = dreamda.info(); print(i['onednn_isa'], i['kernels_isa'])",
                     ONEDNN_MAX_CPU_ISA=isa)
        assert result.returncode == 0, result.stderr
        if "avx512f" in open("/proc/cpuinfo").read() or isa == "AVX2":
            assert result.stdout.split() == [isa, kernels]
