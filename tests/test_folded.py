"""ResNets in plans, with every batch norm folded into its convolution: the features of a trainer's evaluation, without
its gradients."""
import itertools

import numpy as np
import pytest

from dreamda import _core
from dreamda.networks.models import resolve_dtype

DTYPES = [
    "f32",
    pytest.param("bf16",
                 marks=pytest.mark.skipif(resolve_dtype("auto") != "bf16", reason="no bfloat16 instructions here"))
]
BATCH = 4
SHAPES = [
    ("resnet18", "small", 8, 16),
    ("resnet18", "small", 40, 16),
    ("resnet34", "small", 13, 8),
    ("resnet50", "small", 16, 8),
    # at 8 and 32 pixels the last windows are cropped
    ("resnet18", "imagenet", 32, 16),
    ("resnet50", "imagenet", 67, 8)
]


def trained(backbone="resnet18", stem="small", size=8, width=8, dtype="f32"):
    """A trainer with random weights and running statistics, and its config."""
    config = {"backbone": backbone, "stem": stem, "in_channels": 3, "width": width}
    trainer = _core.Trainer(config, batch=BATCH, height=size, width=size, dtype=dtype, threads=2)
    rng = np.random.default_rng(0)
    for name, array in {**trainer.parameters, **trainer.buffers}.items():
        if name.endswith("running_var"):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif array.ndim == 1:
            array[...] = 0.1 * rng.standard_normal(array.shape) + name.endswith("weight")
        else:
            array[...] = rng.standard_normal(array.shape) * np.sqrt(2 / np.prod(array.shape[1:]))
    return trainer, config


def folded(trainer, config, size=8, dtype="f32", order=lambda names: names, rows=BATCH):
    weights = {**trainer.parameters, **trainer.buffers}
    plan = _core.Model("resnet", config).plan(rows=rows, height=size, width=size, dtype=dtype, threads=2)
    for name in order(plan.missing()):
        plan.load(name, weights[name])
    return plan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backbone, stem, size, width", SHAPES)
def test_a_plan_computes_what_a_trainer_evaluates(backbone, stem, size, width, dtype):
    trainer, config = trained(backbone, stem, size, width, dtype)
    images = np.random.default_rng(1).standard_normal((BATCH, 3, size, size), np.float32)
    plan = folded(trainer, config, size, dtype)
    expected, features = trainer.evaluate(images), plan.run({"images": images})["features"]
    assert features.shape == (BATCH, trainer.features)
    np.testing.assert_allclose(features,
                               expected,
                               rtol=1e-5 if dtype == "f32" else 1e-2,
                               atol=1e-5 * np.abs(expected).max())
    assert {name for name, _ in _core.Model("resnet", config).parameters()} == {*trainer.parameters, *trainer.buffers}


def test_it_takes_a_fraction_of_a_trainers_memory():
    trainer, config = trained("resnet50", "imagenet", 64, 16)
    memory = folded(trainer, config, 64).memory
    assert 4 * (memory["arena"] + memory["weights"]) < trainer.memory


def test_parameters_come_in_any_order():
    trainer, config = trained()
    images = np.random.default_rng(1).standard_normal((BATCH, 3, 8, 8), np.float32)
    found = [
        folded(trainer, config, order=order).run({"images": images})["features"]
        for order in (sorted, lambda names: sorted(names, reverse=True),
                      lambda names: sorted(names, key=lambda name: name[::-1]))
    ]
    for one, other in itertools.pairwise(found):
        np.testing.assert_array_equal(one, other)


def test_plans_of_one_model_share_folded_weights():
    trainer, config = trained()
    weights = {**trainer.parameters, **trainer.buffers}
    model = _core.Model("resnet", config)
    plan = model.plan(rows=BATCH, height=8, width=8, dtype="f32", threads=2)
    for name in plan.missing():
        plan.load(name, weights[name])
    before = plan.memory["weights"]
    assert model.plan(rows=BATCH, height=8, width=8, dtype="f32", threads=2).missing() == []
    assert plan.memory["weights"] == before


def test_a_negative_variance_is_refused_by_name():
    trainer, config = trained()
    trainer.buffers["layer2.0.bn1.running_var"][3] = -1
    with pytest.raises(ValueError, match=r"parameter 'layer2.0.bn1.running_var' is negative"):
        folded(trainer, config)


def test_a_load_that_failed_can_be_tried_again():
    trainer, config = trained()
    weights, images = {**trainer.parameters, **trainer.buffers}, np.ones((BATCH, 3, 8, 8), np.float32)
    expected = folded(trainer, config).run({"images": images})["features"]
    plan, failures = folded(trainer, config, order=lambda names: []), 0
    for name in plan.missing():
        for n in itertools.count():
            _core._alloc_fail_after(n)
            try:
                plan.load(name, weights[name])
            except MemoryError:
                failures += 1
            else:
                break
            finally:
                _core._alloc_fail_after(-1)
    assert failures > 60
    np.testing.assert_array_equal(plan.run({"images": images})["features"], expected)
