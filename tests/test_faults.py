"""Every public entry of the core with every one of its allocations failing in turn, and thousands of calls that must
leave nothing behind."""
import functools
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from networks import CLIP, TINY_VAE, UNET, VAE, load

from dreamda import _core, normals

CALLS = 1_000 if os.environ.get("DREAMDA_SANITIZED") else 10_000  # under two seconds; sanitizers are ten times slower
SMALL_UNET = UNET | {
    "block_out_channels": [8], "layers_per_block": [1], "down_attention": [True], "up_attention": [True],
    "transformer_layers": [1], "up_transformer_layers": [1, 1], "heads": [1], "context_dim": 4, "norm_num_groups": 2
}
# Self-attention, norms that the timestep scales, and a table of classes
PIXEL_UNET = SMALL_UNET | {
    "down_attention": [2], "up_attention": [2], "mid_attention": 2, "context_dim": 0, "class_embedding": 1,
    "num_class_embeds": 3, "scale_shift": True, "downsample_one_sided": True
}
SMALL_VAE = VAE | {"block_out_channels": [8], "norm_num_groups": 2}
SMALL_CLIP = CLIP | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TRAINER = {"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 2}
IMAGES, Z = np.ones((2, 3, 8, 8), np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)


def model_run(family, config, **shape):
    model = _core.Model(family, config)
    plan = load(model.plan(rows=1, dtype="f32", threads=1, **shape), model)
    return plan.run({name: np.zeros(s, "f4" if kind == "float32" else kind) for name, (kind, s) in plan.inputs.items()})


def replaced_plan():
    """A plan whose shape packs other weights than that of the plan before it, which is gone."""
    model = _core.Model("unet", SMALL_UNET)
    for size in (32, 4):
        load(model.plan(rows=1, height=size, width=size, tokens=3, dtype="f32", threads=1), model)


def trainer_run():
    trainer = _core.Trainer(TRAINER, batch=2, height=8, width=8, dtype="f32", threads=1, slots=2)
    features = trainer.forward(IMAGES, 1)
    trainer.zero_grad()
    trainer.backward(features, 1)
    trainer.gradient_norm()
    trainer.step(0.1, 0.9, 1e-4, True, 1.0)
    return trainer.evaluate(IMAGES[:1]), trainer.profile(), trainer.memory


def losses():
    ones = np.ones((4, 3), np.float32)
    return (_core.linear(Z, ones, ones[:, 0].copy()),
            _core.linear_backward(Z, ones, np.ones((4, 4), np.float32), ones.copy(), ones[:,
                                                                                          0].copy()), _core.softmax(Z),
            _core.softmax_cross_entropy(Z, [0, 1, 2, 0], np.ones(4), 0.1), _core.consistency(Z, Z, 0.5),
            _core.pseudo_label(Z[None], 0.5), _core.sgd_step(ones.copy(), ones, ones.copy(),
                                                             0.1), normals(1, 2, 3, 4, 5, 6, (70, 3)))


ENTRIES = {
    "unet": lambda: model_run("unet", SMALL_UNET, height=4, width=4, tokens=3, decoders=1), "unet, two decoders":
    lambda: model_run("unet", SMALL_UNET, height=4, width=4, tokens=3, decoders=2), "guided unet":
    lambda: model_run("unet", SMALL_UNET | {"time_cond_proj_dim": 4}, height=4, width=4, tokens=3), "sdxl unet":
    lambda: model_run("unet", SMALL_UNET | {"text_embeds_dim": 3, "time_ids_dim": 2}, height=4, width=4, tokens=3),
    "pixel unet": lambda: model_run("unet", PIXEL_UNET, height=4, width=4), "tiny_vae_encoder":
    lambda: model_run("tiny_vae_encoder", TINY_VAE, height=4, width=4), "tiny_vae_decoder":
    lambda: model_run("tiny_vae_decoder", TINY_VAE, height=4, width=4), "vae_encoder":
    lambda: model_run("vae_encoder", SMALL_VAE, height=4, width=4), "vae_decoder":
    lambda: model_run("vae_decoder", SMALL_VAE, height=4, width=4), "clip_text":
    lambda: model_run("clip_text", SMALL_CLIP, tokens=4), "projected clip_text":
    lambda: model_run("clip_text", SMALL_CLIP | {"projection_dim": 4}, tokens=4), "resnet":
    lambda: model_run("resnet", TRAINER, height=8, width=8),
    "replaced plan": replaced_plan, "trainer": trainer_run, "losses": losses
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_failed_allocation_of_every_entry(name):
    """The Nth allocation fails, for every N: a MemoryError, nothing leaks, and the very next call works."""
    gc.collect()
    before, failures = _core.info()["live_bytes"], 0
    for n in range(100_000):
        _core._alloc_fail_after(n)
        try:
            ENTRIES[name]()
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            _core._alloc_fail_after(-1)
        assert _core.info()["live_bytes"] == before, f"allocation {n}"
        if n % 100 == 0:
            ENTRIES[name]()
    assert failures == n >= (2 if name == "losses" else 100)
    assert _core.info()["live_bytes"] == before


def wide_plan():
    """Sizes of more than 256: Python keeps no ints for them, so that each takes memory."""
    model = _core.Model("unet", SMALL_UNET | {"context_dim": 300})
    return load(model.plan(rows=1, dtype="f32", threads=1, height=1, width=300, tokens=300), model), model


@functools.cache
def unloaded():
    return _core.Model("clip_text", SMALL_CLIP).plan(rows=1, dtype="f32", threads=1, tokens=4)


# What Python sees of a plan, a model and a trainer: none may lose an exception, or hand out an object with a hole in
# it.
LOOKS = {
    "inputs": lambda plan, model, trainer: plan.inputs, "outputs": lambda plan, model, trainer: plan.outputs, "memory":
    lambda plan, model, trainer: plan.memory, "missing": lambda plan, model, trainer: unloaded().missing(), "profile":
    lambda plan, model, trainer: len(plan.profile()), "parameters": lambda plan, model, trainer: model.parameters(),
    "a run": lambda plan, model, trainer: sorted(plan.run(RUN)), "a trainer's parameters":
    lambda plan, model, trainer: sorted(trainer.parameters), "a trainer's profile": lambda plan, model, trainer:
    (trainer.forward(IMAGES), len(trainer.profile()))[1], "info": lambda plan, model, trainer: sorted(_core.info())
}
RUN = {
    "sample": np.zeros((1, 4, 1, 300), np.float32), "timestep": np.zeros(1, np.float32), "context": np.zeros(
        (1, 300, 300), np.float32)
}


@pytest.mark.parametrize("name", LOOKS)
def test_every_failed_allocation_of_python(name):
    """Python's Nth allocation fails, for every N: a MemoryError, never another error, a crash, or a result with a hole
    in it."""
    testcapi = pytest.importorskip("_testcapi", reason="this Python was installed without its own test modules")
    (plan, model), trainer = wide_plan(), _core.Trainer(TRAINER, batch=2, height=8, width=8, dtype="f32", threads=1)
    trainer.forward(IMAGES), trainer.profile()  # packs the weights, once
    look, expected, failures, successes, n = LOOKS[name], LOOKS[name](plan, model, trainer), 0, 0, 0
    while successes < 20:  # the first ones may be an allocation that Python can do without
        n += 1
        testcapi.set_nomemory(n, n + 1)
        try:
            found = look(plan, model, trainer)
        except MemoryError:
            failures, successes = failures + 1, 0
        else:
            successes += 1
            assert found == expected, n
        finally:
            testcapi.remove_mem_hooks()
    assert failures


NARROW = """
import os, resource
from pathlib import Path
import numpy.random
from networks import unet
from dreamda import _core

def plan():
    made, inputs = unet(threads=1)
    made.run(inputs)

def trainer():
    _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 4},
                  batch=2, height=8, width=8, dtype="f32", threads=1)

for call in (plan, trainer):
    for room in range(0, 160 << 20, 2 << 20):
        child = os.fork()  # before the engine's first use, so each child has one of its own
        if child == 0:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + room, resource.RLIM_INFINITY))
            try:
                call()
            except MemoryError:
                os._exit(10)
            os._exit(0)
        print(call.__name__, room, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(bool(os.environ.get("DREAMDA_SANITIZED")), reason="sanitizers map terabytes of address space")
def test_address_space_that_runs_out_is_a_memory_error():
    """oneDNN itself would crash in a third of these children; the core asks for room first."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent),
                                       os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)
    for name in ("plan", "trainer"):
        answers = [int(line.split()[2]) for line in done.stdout.splitlines() if line.startswith(name)]
        assert len(answers) == 80 and set(answers) == {0, 10}, (name, answers)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def refused(call, *arguments):
    with pytest.raises((ValueError, TypeError)):
        call(*arguments)


def test_thousands_of_calls_leave_nothing_behind():
    """References, the core's bytes and the process's memory are level over calls that succeed and calls that are
    refused."""
    model = _core.Model("clip_text", SMALL_CLIP)
    plan = load(model.plan(rows=1, tokens=4, dtype="f32", threads=1), model)
    trainer = _core.Trainer(TRAINER, batch=2, height=8, width=8, dtype="f32", threads=1)
    tokens, parameters = np.zeros((1, 4), np.int32), dict(model.parameters())
    name, shape = next(iter(parameters.items()))
    weight, labels = np.zeros(shape, np.float32), np.zeros(4, np.int64)
    kept = [
        model, plan, trainer, tokens, Z, IMAGES, weight, labels, name, TRAINER, SMALL_CLIP, None, ValueError,
        np.dtype("f4"),
        type(plan)
    ]
    given = {"tokens": tokens}

    def good():
        plan.run(given), plan.load(
            name, weight), plan.missing(), plan.profile(), plan.inputs, plan.outputs, plan.memory, model.parameters()
        losses()

    def bad():
        refused(plan.run,
                {"tokens": Z}), refused(plan.run,
                                        given | {"x": Z}), refused(plan.run,
                                                                   []), refused(plan.run, {"tokens": tokens - 1})
        refused(plan.load, "no",
                weight), refused(plan.load, name,
                                 Z), refused(plan.load, name,
                                             weight.astype("f8")), refused(plan.load, name, weight + np.nan)
        refused(_core.softmax_cross_entropy, Z, labels + 9), refused(_core.linear, Z, IMAGES,
                                                                     Z), refused(_core.sgd_step, Z, IMAGES, Z, 0.1)
        refused(_core.Model, "x", SMALL_CLIP), refused(_core.Model, "clip_text",
                                                       SMALL_CLIP | {"vocab_size": "x"}), refused(_core.Trainer, {})
        refused(trainer.forward, Z), refused(trainer.forward, IMAGES, 7), refused(trainer.backward,
                                                                                  Z), refused(trainer.evaluate, labels)
        refused(trainer.step, -1.0, 0, 0), refused(normals, 0, 0, -1, 0, 0, 0,
                                                   (3, )), refused(_core.pseudo_label, Z, 0.5)

    def heavy():
        _core.Model("clip_text", SMALL_CLIP)
        trainer.forward(IMAGES), trainer.evaluate(
            IMAGES), trainer.parameters, trainer.gradients, trainer.buffers, trainer.moments, trainer.profile()

    for call, times in ((good, CALLS), (bad, CALLS // 4), (heavy, CALLS // 4)):
        for _ in range(20):
            call()
        gc.collect()
        live, before, memory = _core.info()["live_bytes"], [sys.getrefcount(o) for o in kept], resident()
        for _ in range(times):
            call()
        gc.collect()
        after = [sys.getrefcount(o) for o in kept]
        assert _core.info()["live_bytes"] == live
        assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True)), (call.__name__, before, after)
        # AddressSanitizer keeps what was freed, up to 256 MB of it, to see whether it is used again.
        assert resident() - memory < (320 << 20 if os.environ.get("DREAMDA_SANITIZED") else 8 << 20), call.__name__


def test_an_object_in_use_outlives_its_last_name():
    """Plans keep their model, views their trainer, and a thread in a run keeps the plan."""
    import threading

    model = _core.Model("clip_text", SMALL_CLIP)
    plan = load(model.plan(rows=1, tokens=4, dtype="f32", threads=1), model)
    expected, results = plan.run({"tokens": np.zeros((1, 4), np.int32)})["hidden"], []
    del model
    threads = [
        threading.Thread(target=lambda run=plan.run: results.extend(
            run({"tokens": np.zeros((1, 4), np.int32)})["hidden"] for _ in range(50))) for _ in range(4)
    ]
    del plan
    for thread in threads:
        thread.start()
    view = _core.Trainer(TRAINER, batch=2, height=8, width=8, dtype="f32", threads=1).parameters["conv1.weight"]
    gc.collect()
    view[...] = 3
    for thread in threads:
        thread.join()
    assert len(results) == 200 and all(np.array_equal(r, expected) for r in results) and (view == 3).all()
