"""The noise schedule against values from diffusers (golden/schedules.json, schedulers.json), and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from make_samplers import CASES, SD, Z0, noise, toy  # noqa: E402

from batteries.schedulers import REFUSED, SCHEDULERS
from dreamda.networks import config as configurations
from dreamda.networks.config import read_scheduler_config
from dreamda.generation.schedulers import Schedule, Step

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
SAMPLERS = json.loads((Path(__file__).parent / "golden" / "samplers.json").read_text())
CLASSES_GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedulers.json").read_text())


def schedule(tmp_path, **config):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    return Schedule(read_scheduler_config(tmp_path))


@pytest.mark.parametrize("entry", SCHEDULERS, ids=lambda e: e["name"])
def test_classes_have_the_noise_levels_of_diffusers(tmp_path, entry):
    made, expected = schedule(tmp_path, **entry["config"]), CLASSES_GOLDEN[entry["name"]]
    assert made.num_train_timesteps == expected["count"]
    for place, alpha in expected["alphas"].items():
        assert made.alpha(int(place)) == pytest.approx(alpha, rel=3e-5)  # diffusers' table is float32
    assert made.alpha(-1) == pytest.approx(expected["final"], rel=1e-6) and made.clip == expected["clip"]


@pytest.mark.parametrize("entry", REFUSED, ids=lambda e: e["name"])
def test_refused_schedulers(tmp_path, entry):
    with pytest.raises(ValueError) as caught:
        schedule(tmp_path, **entry["config"])
    assert entry["says"] in str(caught.value) and str(tmp_path / "scheduler_config.json") in str(caught.value)


def test_the_table_names_every_class():
    tested = {entry["config"].get("_class_name", "DDIMScheduler") for entry in SCHEDULERS}
    # diffusers needs another package (torchsde) to construct this one; its defaults were read from its source.
    assert tested == configurations.SCHEDULERS.keys() - {"DPMSolverSDEScheduler"}
    assert {entry["name"] for entry in SCHEDULERS} == CLASSES_GOLDEN.keys()


@pytest.mark.parametrize("case",
                         GOLDEN["cases"],
                         ids=lambda c: f"{c['config']['beta_schedule']}-{c['config']['prediction_type']}-{c['steps']}")
def test_steps_equal_diffusers(tmp_path, case):
    made = schedule(tmp_path, **case["config"])
    steps = made.steps(case["steps"], case["strength"], case["eta"])
    assert [s.t for s in steps] == case["timesteps"]
    assert [s.index for s in steps] == list(range(len(steps)))
    x, prediction, noise = (np.array(GOLDEN[k], np.float32) for k in ("x", "prediction", "noise"))
    by_t = {s.t: s for s in steps}
    for row in case["rows"]:
        step = by_t[row["t"]]
        # diffusers makes its table in float32, which is what the tolerance is for
        np.testing.assert_allclose(made.mean(prediction, x, step)[0] + np.float32(step.sigma) * noise,
                                   row["down"],
                                   rtol=2e-5,
                                   atol=2e-5)
        np.testing.assert_allclose(made.undo(prediction, x, step), row["up"], rtol=2e-5, atol=2e-5)


def test_velocity_and_noise_are_two_names_for_one_thing(tmp_path):
    config = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    by_noise, by_velocity = schedule(tmp_path, **config), schedule(tmp_path, **config, prediction_type="v_prediction")
    rng = np.random.default_rng(0)
    noise, image = rng.standard_normal((2, 64)).astype(np.float32)
    for a in (0.999, 0.5, 0.01):
        x = np.float32(a**0.5) * image + np.float32((1 - a) ** 0.5) * noise
        velocity = np.float32(a**0.5) * noise - np.float32((1 - a) ** 0.5) * image
        step = Step(0, 500, 400, a, a, 0.0)
        for got in (by_noise.noise_and_image(noise, x, step), by_velocity.noise_and_image(velocity, x, step)):
            np.testing.assert_allclose(got[0], noise, atol=1e-5)
            np.testing.assert_allclose(got[1], image, atol=3e-5)


def test_strength_keeps_the_last_steps(tmp_path):
    made = schedule(tmp_path, steps_offset=1, clip_sample=False)
    assert [s.t for s in made.steps(100, 0.8, 1.0)][:3] == [791, 781, 771]
    assert [s.t for s in made.steps(100, 0.8, 1.0)][-1] == 1
    assert len(made.steps(100, 1.0, 1.0)) == 100
    assert made.steps(1000, 0.8, 1.0)[0].t == 800
    assert len(made.steps(100, 0.29, 1.0)) == int(100 * 0.29) == 28  # as Python and diffusers round


def test_without_eta_nothing_is_random(tmp_path):
    made = schedule(tmp_path)
    assert all(s.sigma == 0 for s in made.steps(50, 0.8, 0.0))
    assert all(s.sigma > 0 for s in made.steps(50, 0.8, 1.0)[:-1])


@pytest.mark.parametrize("steps, strength, option", [(1001, 1.0, "steps"), (0, 1.0, "steps"), (10, 0.05, "strength"),
                                                     (1000, 1.0, "steps")])
def test_impossible_numbers_of_steps(tmp_path, steps, strength, option):
    made = schedule(tmp_path, steps_offset=1)  # with an offset the 1000th of 1000 timesteps does not exist
    with pytest.raises(ValueError, match=f"^{option}: "):
        made.steps(steps, strength, 1.0)


@pytest.mark.parametrize("case, expected",
                         list(zip(CASES, SAMPLERS, strict=True)),
                         ids=lambda c: "-".join(map(str, c)) if isinstance(c, tuple) else "")
def test_trajectories_equal_diffusers(tmp_path, case, expected):
    """LCM, TCD, Euler, Euler ancestral, DDIM trailing, DPM-Solver++ 2M and its SDE form, on a toy network
    (golden/make_samplers.py)."""
    name, changes, count, strength, eta = case
    made = schedule(tmp_path, _class_name=name, **SD | changes)
    steps = made.steps(count, strength, eta)
    assert [s.t for s in steps] == expected["timesteps"]
    x = np.sqrt(steps[0].a_t) * Z0 + np.sqrt(1 - steps[0].a_t) * noise(99)
    before = None
    for step in steps:
        mean, before = made.mean(toy(x, step.t), x, step, before)
        x = mean + step.sigma * noise(step.index)
    # diffusers' tables are float32
    np.testing.assert_allclose(x, expected["result"], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "config, steps, strength, message",
    [
        (dict(_class_name="LCMScheduler"), 51, 1.0, "steps: 51 exceeds the 50 of this model's schedule"),
        (dict(_class_name="LCMScheduler"), 100, 0.8, "steps: 100 exceeds the 50"),
        (dict(_class_name="LCMScheduler"), 4, 0.05, "strength: 0.05 leaves 2 timesteps for 4 steps; use at least 0.08"),
        (dict(_class_name="LCMScheduler"), 29, 0.58, "use at least 0.581"),  # int(50 * 0.58) is 28
        (dict(_class_name="TCDScheduler", original_inference_steps=20), 21, 1.0, "steps: 21 exceeds the 20"),
        (dict(_class_name="EulerDiscreteScheduler",
              timestep_spacing="trailing"), 1, 0.8, "strength: 0.8 of 1 steps leaves no step to run; use at least 1.0"),
        (dict(_class_name="EulerDiscreteScheduler", timestep_spacing="trailing"), 4, 0.2, "use at least 0.25"),
        (dict(_class_name="DPMSolverMultistepScheduler"), 1001, 1.0, "steps: 1001 is not possible"),
    ])
def test_few_steps_that_are_impossible(tmp_path, config, steps, strength, message):
    with pytest.raises(ValueError) as caught:
        schedule(tmp_path, **config).steps(steps, strength, 1.0)
    assert message in str(caught.value)


def test_zero_terminal_snr(tmp_path):
    """Without a signal at the last timestep nothing is divided by it; a prediction of the noise contradicts it."""
    config = dict(timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False)
    made = schedule(tmp_path, prediction_type="v_prediction", **config)
    steps = made.steps(4, 1.0, 1.0)
    assert steps[0].a_t == 0 and steps[0].direction == 0
    x, prediction = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    for step in steps:
        for value in (made.mean(prediction, x, step)[0], made.undo(prediction, x, step), step.sigma, step.direction):
            assert np.isfinite(value).all()
    with pytest.raises(ValueError,
                       match="scheduler_config.json: 'rescale_betas_zero_snr' .* needs 'prediction_type' v_prediction"):
        schedule(tmp_path, **config)
