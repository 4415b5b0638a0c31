"""The process around the engine: forks, spawned children, and an end in the middle of a run. Each in a process of its
own, with a time limit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SETUP = """
import multiprocessing, os, sys, threading, time
import numpy as np
from networks import unet
import dreamda
from dreamda import _core

def sample(threads=2):
    plan, inputs = unet(threads=threads)
    return plan.run(inputs)["sample"]

def answer(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
"""
MESSAGE = "dreamda.Error: the engine was used before this process was forked"


def run(code, *arguments, seconds=120):
    """What the script printed, as lines; it has to end by itself, without a signal and without a word on stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", SETUP + code, *arguments],
                          capture_output=True,
                          text=True,
                          timeout=seconds,
                          env=environment)
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)
    return done.stdout.splitlines()


def test_a_forked_child_of_a_used_engine_is_told_to_spawn():
    """Every call that may use threads answers at once, where GNU OpenMP would wait for ever; the parent goes on."""
    lines = run("""
plan, inputs = unet()
expected = plan.run(inputs)["sample"]
trainer = _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 8},
                        batch=2, height=8, width=8, dtype="f32", threads=2)
ones, images, f = np.ones((2, 3), np.float32), np.ones((2, 3, 8, 8), np.float32), trainer.features
calls = {
    "plan.run": lambda: plan.run(inputs), "plan.load": lambda: plan.load("conv_in.bias", np.zeros(16, np.float32)),
    "profile": plan.profile, "trainer.profile": trainer.profile, "unet": unet,
    "Trainer": lambda: _core.Trainer({}, batch=1), "forward": lambda: trainer.forward(images),
    "backward": lambda: trainer.backward(np.ones((2, f))), "evaluate": lambda: trainer.evaluate(images),
    "step": lambda: trainer.step(0.1, 0.9, 0.0), "zero_grad": trainer.zero_grad, "gradient_norm": trainer.gradient_norm,
    "normals": lambda: dreamda.normals(0, 0, 0, 0, 0, 0, (3,)), "linear": lambda: _core.linear(ones, ones, ones[0, :2]),
    "linear_backward": lambda: _core.linear_backward(ones, ones, ones[:, :2], ones.copy(), ones[0, :2].copy()),
    "softmax": lambda: _core.softmax(ones), "softmax_cross_entropy": lambda: _core.softmax_cross_entropy(ones, [0, 1]),
    "consistency": lambda: _core.consistency(ones, ones, 0.5),
    "pseudo_label": lambda: _core.pseudo_label(ones[None], 0.5),
    "sgd_step": lambda: _core.sgd_step(ones, ones, ones, 0.1),
    "augment": lambda: dreamda.Pipeline.load("fashion-mini"),
}
child = os.fork()
if child == 0:
    print(*(f"{name}: {answer(call)}" for name, call in calls.items()), sep="\\n", flush=True)
    grandchild = os.fork()
    if grandchild == 0:
        print("grandchild:", answer(calls["plan.run"]), flush=True)
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1])
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(plan.run(inputs)["sample"], expected)
print(len(calls) + 1)
""")
    assert len(lines) == int(lines[-1]) + 1
    for line in lines[:-1]:
        assert MESSAGE in line and '"spawn"' in line


def test_pools_of_processes():
    """A fork pool passes the error on; spawn gives the parent's bits; a child forked before the first use computes."""
    lines = run("""
if __name__ == "__main__":
    early_read, early_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(early_write, sample().tobytes())
        os._exit(0)
    early = os.read(early_read, 1 << 20)
    os.waitpid(child, 0)
    expected = sample().tobytes()
    print(early == expected)
    from process_children import work
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(answer(lambda: pool.apply(work)))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(work, range(2)) == [expected] * 2)
""")
    assert lines[0] == lines[2] == "True" and lines[1].startswith(MESSAGE)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_interpreter_may_end_during_a_run(threads):
    """Daemon threads are in the middle of runs when main returns: what they use must not be taken from under them."""
    code = """
pairs = [unet(rows=2, height=32, width=32, threads=int(sys.argv[1])) for _ in range(3)]
barrier = threading.Barrier(len(pairs) + 1)
def work(plan, inputs):
    plan.run(inputs)
    barrier.wait()
    while True:
        plan.run(inputs)
for pair in pairs:
    threading.Thread(target=work, args=pair, daemon=True).start()
barrier.wait()
time.sleep(float(sys.argv[2]))
"""
    for delay in ("0", "0.005", "0.011", "0.02", "0.027", "0.033"):
        run(code, str(threads), delay)


def test_the_interpreter_may_end_during_a_training_step():
    run("""
trainer = _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 8},
                        batch=32, height=32, width=32, dtype="f32", threads=2)
images, started = np.ones((32, 3, 32, 32), np.float32), threading.Event()
def work():
    while True:
        d = trainer.forward(images)
        started.set()
        trainer.backward(d)
        trainer.step(0.1, 0.9, 0.0)
threading.Thread(target=work, daemon=True).start()
started.wait()
""")
