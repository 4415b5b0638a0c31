"""What surrounds the process: OpenMP's variables, the processors and CPU quota we may use, and who calls.

Every line of THREADS (in batteries/environments.py) is computed in a process of its own, by default and with two
threads asked for, and has to give the very bytes of an undisturbed process with as many threads.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from batteries.environments import QUOTAS, THREADS
from dreamda.networks.threads import (cpu_quota, explain_threads, free_threads, idle_processors, resolve_threads,
                                      thread_limits)

TESTS = Path(__file__).parent
PROCESSORS = len(os.sched_getaffinity(0))
VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_")
SETUP = """
import hashlib, json, sys, warnings
import numpy as np
import networks
import dreamda
from dreamda import _core
from dreamda.networks.threads import resolve_threads

def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

def trainer(threads):
    t = _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 16},
                      batch=4, height=16, width=16, dtype="f32",
                      threads=threads)
    rng = np.random.default_rng(1)
    for name, value in t.parameters.items():
        value[...] = rng.standard_normal(value.shape) * 0.1
    return t

def train(t):
    images = np.random.default_rng(2).standard_normal((4, 3, 16, 16), dtype=np.float32)
    for _ in range(2):
        t.zero_grad()
        t.backward(t.forward(images))
        t.step(0.1, 0.9, 1e-4, clip_norm=1.0)
    return digest(t.evaluate(images), *t.parameters.values())

def generate(threads):
    pipe = dreamda.Pipeline.load("fashion-mini", "f32", threads)
    seeds = dreamda.load_bundled("fashion-mini").seeds[:2]
    made = pipe.augment(seeds, ["a photo of a bag"] * 2, variants=1, steps=4)
    return digest(made, pipe.vae.decode(pipe.encode(seeds)))

def network(threads):
    plan, inputs = networks.unet(rows=2, height=32, width=32, threads=threads)
    return digest(plan.run(inputs)["sample"])

def everything(threads):
    used = resolve_threads(threads)
    return {"threads": used, "network": network(used), "generate": generate(threads), "train": train(trainer(used))}
"""
CALL = "print(json.dumps([everything(int(n) or None) for n in sys.argv[1].split(',')]))"


def run(code, *arguments, before=(), seconds=120, **environment):
    """A Python process in that environment, free of the variables of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    clean |= {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]), "PYTHONWARNINGS": "ignore"
    } | environment
    return subprocess.run([*before, sys.executable, "-c", SETUP + code, *arguments],
                          capture_output=True,
                          text=True,
                          timeout=seconds,
                          env=clean)


def results(code, *arguments, **options):
    done = run(code, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed():
    """By number of threads: what everything gives."""
    return dict(zip((1, 2), results(CALL, "1,2"), strict=True))


ONE_PROCESSOR = str(min(os.sched_getaffinity(0)))


@pytest.mark.parametrize("case", THREADS, ids=lambda case: case["what"])
def test_the_bytes_are_those_of_as_many_threads(case, undisturbed):
    variables = {name: value.format(processor=ONE_PROCESSOR) for name, value in case["variables"].items()}
    before = [word.format(processor=ONE_PROCESSOR) for word in case["before"]]
    by_default, asked = case["threads"]
    if before and not shutil.which(before[0]):
        pytest.skip(f"no {before[0]} on this machine")
    default, two = results(CALL, "0,2", before=before, **variables)
    assert by_default is None or default["threads"] == min(by_default, PROCESSORS)
    assert two["threads"] == asked
    for found in (default, two):
        if found["threads"] in undisturbed:  # by default a larger machine may use more
            assert found == undisturbed[found["threads"]]


def test_images_are_the_same_with_any_number_of_threads(undisturbed):
    assert undisturbed[1]["generate"] == undisturbed[2]["generate"]


def test_callers_in_threads_of_their_own(undisturbed):
    """A pool of Python threads, each with everything; OpenMP limits each of them by itself."""
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(3) as pool:
    print(json.dumps(list(pool.map(everything, [2, 2, 2]))))
"""
    assert results(code) == [undisturbed[2]] * 3
    assert results(code, OMP_THREAD_LIMIT="1") == [undisturbed[1]] * 3


# A parallel region of somebody else, made as the compiler would; its first thread calls us.
REGION = """
import ctypes
gomp = ctypes.CDLL("libgomp.so.1")

def inside(call):
    found = []
    def body(_):
        if gomp.omp_get_thread_num() == 0:
            try:
                found.append(call())
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body)
    gomp.GOMP_parallel(function, None, 2, 0)
    return found[0]
"""


@pytest.mark.parametrize("variables", [{}, {"OMP_MAX_ACTIVE_LEVELS": "3"}], ids=["default", "nested"])
def test_callers_in_a_parallel_region(undisturbed, variables):
    """There one thread computes; what was made for two is told so, and goes on outside."""
    found = results(
        REGION + """
made_outside, (plan, inputs) = trainer(2), networks.unet(rows=2, height=32, width=32, threads=2)
pipe = dreamda.Pipeline.load("fashion-mini", "f32", 2)
z = pipe.encode(dreamda.load_bundled("fashion-mini").seeds[:1])
outside = digest(pipe.vae.decode(z))
print(json.dumps({"inside": inside(lambda: everything(2)), "plan": inside(lambda: plan.run(inputs)),
                  "trainer": inside(lambda: train(made_outside)),
                  "loaded outside": np.abs(inside(lambda: pipe.vae.decode(z)) - pipe.vae.decode(z)).max().item(),
                  "again": digest(pipe.vae.decode(z)) == outside, "train": train(made_outside),
                  "network": digest(plan.run(inputs)["sample"])}))
""", **variables)
    assert found["inside"] == undisturbed[1]
    for refused in (found["plan"], found["trainer"]):
        assert refused.startswith("Error: threads: made for 2 threads, but called inside of an OpenMP parallel region")
    assert found["loaded outside"] < 1e-4 and found["again"]
    assert (found["train"], found["network"]) == (undisturbed[2]["train"], undisturbed[2]["network"])


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT=1", "OMP_MAX_ACTIVE_LEVELS=0"])
def test_the_core_refuses_a_smaller_team_by_name(variable):
    """Below `resolve_threads` nothing computes with fewer threads than it was made for."""
    for call in ("network(2)", "trainer(2)"):
        done = run(call, **dict([variable.split("=")]))
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("dreamda.Error: threads: 2 are needed, but OpenMP gives 1 ("
                                                       + variable)


def test_the_commands_compute_right_with_fewer_threads_than_asked(tmp_path):
    """As a user met it: garbage with exit code 0, and a training that never ended."""
    code = """
from pathlib import Path
from PIL import Image
from dreamda import cli
bundled, folder = dreamda.load_bundled("fashion-mini"), Path(sys.argv[1])
for i in range(4):
    (folder / "real" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(bundled.seeds[i]).save(folder / "real" / "ab"[i % 2] / f"{i}.png")
made = cli.main(["generate", f"{folder}/real", "--out", f"{folder}/out", "-m", "fashion-mini", "--variants", "1",
                 "--steps", "4", "--threads", "2"])
trained = cli.main(["train", f"{folder}/real", "--out", f"{folder}/run", "--method", "real-only", "--epochs", "1",
                    "--batch-size", "2", "--width", "8",
                    "--threads", "2", "--validation", "0"])
pixels = [np.asarray(Image.open(path)) for path in sorted((folder / "out").rglob("*.png"))]
print(json.dumps({"codes": [made, trained], "images": len(pixels), "digest": digest(*pixels)}))
"""
    limited = run(code, str(tmp_path / "limited"), OMP_THREAD_LIMIT="1", PYTHONWARNINGS="default")
    assert limited.returncode == 0, limited.stderr
    found, free = json.loads(limited.stdout.splitlines()[-1]), results(code, str(tmp_path / "free"))
    assert found == free and found["codes"] == [0, 0] and found["images"] == 4
    assert limited.stderr.count(
        "dreamda: threads: 2 were asked for, 1 will compute: OpenMP gives 1 of 2 (OMP_THREAD_LIMIT=1)") == 2


# ---- the default number of threads ---------------------------------------------------------------------------------

def grow(root, memberships, mounts, files):
    for name, content in {"proc/self/cgroup": memberships, "proc/self/mountinfo": mounts,
                          **{f"sys/fs/cgroup/{name}": content for name, content in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize("case", QUOTAS, ids=lambda case: case["what"])
def test_cpu_quotas(case, tmp_path, monkeypatch):
    quota = case["quota"]
    root = grow(tmp_path, case["memberships"], case["mounts"], case["files"])
    assert cpu_quota(root) == quota
    monkeypatch.setattr("dreamda.networks.threads.os",
                        SimpleNamespace(sched_getaffinity=lambda pid: set(range(4)), cpu_count=lambda: 8, environ={}))
    monkeypatch.setattr("dreamda.networks.threads._core",
                        SimpleNamespace(info=lambda: {"threads": 4}, team=lambda threads: threads))
    used, reason = explain_threads(None, root)
    assert used == min(4, math.ceil(quota or 4))
    assert reason == (f"a CPU quota of {quota:.3g} processors"
                      if quota and quota <= 3 else "4 of 8 processors allowed (taskset or cpuset)")


def test_without_proc(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize("allowed, openmp, variable, used, reason", [
    (8, 8, None, 8, "8 processors"),
    (3, 3, None, 3, "3 of 8 processors allowed (taskset or cpuset)"),
    (8, 2, "2", 2, "OMP_NUM_THREADS=2"),
    (2, 6, "6", 2, "2 of 8 processors allowed (taskset or cpuset)"),
    (8, 5, None, 5, "OpenMP's default of 5"),
])
def test_the_smallest_limit_applies(allowed, openmp, variable, used, reason, tmp_path, monkeypatch):
    environ = {"OMP_NUM_THREADS": variable} if variable else {}
    monkeypatch.setattr(
        "dreamda.networks.threads.os",
        SimpleNamespace(sched_getaffinity=lambda pid: set(range(allowed)), cpu_count=lambda: 8, environ=environ))
    monkeypatch.setattr("dreamda.networks.threads._core",
                        SimpleNamespace(info=lambda: {"threads": openmp}, team=lambda threads: threads))
    assert explain_threads(None, tmp_path) == (used, reason)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, "2", True])
def test_numbers_that_are_not_possible(threads):
    with pytest.raises(ValueError, match="threads: .* is not possible"):
        resolve_threads(threads)


def test_the_default_here_is_within_the_limits():
    assert 1 <= resolve_threads(None) <= min(limit.threads for limit in thread_limits())


def test_doctor_says_which_limit_applies():
    code = ("from dreamda.runs.inspection import _threads; "
            "print(json.dumps([next(_threads(n)).found for n in (None, 2)]))")
    default, asked = results(code, OMP_NUM_THREADS="1")
    assert default.startswith("1 will compute (OMP_NUM_THREADS=1)") or PROCESSORS == 1
    assert asked.startswith("2 will compute (as asked for); limits: ")
    for found in results(code, OMP_THREAD_LIMIT="1"):
        assert found.startswith("1 will compute") and ("(OMP_THREAD_LIMIT=1)" in found or PROCESSORS == 1)


# ---- a training leaves the processors that other programs use -------------------------------------------------------

@pytest.mark.parametrize("busy, allowed, idle", [([0, 0, 0, 0], range(4), 4), ([1, 0, 0, 0], range(4), 3),
                                                 ([0.5, 0.5, 0.5, 0.5], range(4), 2), ([1, 1, 1, 1], range(4), 0),
                                                 ([1, 1, 0, 0], (2, 3), 2), ([1, 1, 0, 0], (0, 3), 1), ])
def test_idle_processors(busy, allowed, idle):
    """100 ticks on each of four processors, the busy share of them for a user's program."""
    def text(ticks):
        lines = [
            f"cpu{i} {1000 + round(ticks * b)} 5 300 {7000 + round(ticks * (1 - b))} 40 0 2 0 0 0"
            for i, b in enumerate(busy)
        ]
        return "\n".join(["cpu  9 9 9 9 9 9 9 0 0 0", *lines, "intr 12 0 0"])

    assert idle_processors(text(0), text(100), set(allowed)) == pytest.approx(idle)


def test_idle_processors_without_an_answer():
    assert idle_processors("", "", {0, 1}) is None and idle_processors("cpu0 1 2", "cpu0 1 3", {0}) is None
    assert idle_processors("cpu0 1 2 3 4 5 6 7 8\n", "cpu0 1 2 3 4 5 6 7 8\n", {0}) is None  # no time has passed


@pytest.mark.parametrize("idle, variable, threads", [(4.0, None, 4), (2.4, None, 2), (0.2, None, 1), (None, None, 4),
                                                     (0.2, "4", 4)])
def test_free_threads(idle, variable, threads, tmp_path, monkeypatch):
    environ = {"OMP_NUM_THREADS": variable} if variable else {}
    monkeypatch.setattr(
        "dreamda.networks.threads.os",
        SimpleNamespace(sched_getaffinity=lambda pid: set(range(4)), cpu_count=lambda: 4, environ=environ))
    monkeypatch.setattr("dreamda.networks.threads._core",
                        SimpleNamespace(info=lambda: {"threads": 4}, team=lambda threads: threads))
    monkeypatch.setattr("dreamda.networks.threads.idle_processors", lambda before, after, allowed: idle)
    assert free_threads(0, tmp_path)[0] == threads
