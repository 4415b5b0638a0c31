"""Writes samplers.json: whole trajectories of diffusers' few-step and multistep schedulers on a toy network.

    TORCH_ENVIRONMENT/bin/python tests/golden/make_samplers.py

The network predicts `toy(x, t)`. The noise of step i is `noise(i)`; x starts as add_noise(z0, noise(99), first
timestep).
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
V = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)
# class, what differs from SD, steps, strength, eta
CASES = [("LCMScheduler", {}, 4, 1.0, 1.0), ("LCMScheduler", {}, 4, 0.8, 1.0), ("LCMScheduler", {}, 3, 0.5, 1.0),
         ("LCMScheduler", {}, 1, 0.8, 1.0), ("LCMScheduler", dict(prediction_type="v_prediction"), 2, 1.0, 1.0),
         ("TCDScheduler", {}, 4, 1.0, 0.3), ("TCDScheduler", {}, 4, 0.7, 1.0), ("TCDScheduler", {}, 8, 0.8, 0.0),
         ("EulerDiscreteScheduler", dict(timestep_spacing="trailing"), 4, 1.0, 0.0),
         ("EulerDiscreteScheduler", dict(timestep_spacing="trailing"), 1, 1.0, 0.0),
         ("EulerDiscreteScheduler", dict(timestep_spacing="trailing", **V), 4, 0.75, 0.0),
         ("EulerAncestralDiscreteScheduler", dict(timestep_spacing="trailing"), 4, 1.0, 1.0),
         ("EulerAncestralDiscreteScheduler", dict(timestep_spacing="trailing",
                                                  prediction_type="v_prediction"), 5, 0.6, 1.0),
         ("DDIMScheduler", dict(timestep_spacing="trailing", clip_sample=False), 4, 1.0, 0.0),
         ("DDIMScheduler", dict(timestep_spacing="trailing", clip_sample=False, **V), 8, 1.0, 1.0),
         ("DPMSolverMultistepScheduler", {}, 20, 0.8, 0.0), ("DPMSolverMultistepScheduler", {}, 10, 1.0, 0.0),
         ("DPMSolverMultistepScheduler", dict(timestep_spacing="leading", steps_offset=1), 25, 0.8, 0.0),
         ("DPMSolverMultistepScheduler", dict(timestep_spacing="trailing", **V), 20, 1.0, 0.0),
         ("DPMSolverMultistepScheduler", dict(final_sigmas_type="sigma_min"), 20, 1.0, 0.0),
         ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++"), 20, 0.8, 1.0),
         ("DPMSolverMultistepScheduler", dict(solver_order=1), 10, 1.0, 0.0), ]
Z0 = np.array([-1.7, -0.4, 0.1, 0.9, 2.3])


def noise(i):
    return np.random.RandomState(1000 + i).standard_normal(5)


def toy(x, t):
    return 0.4 * np.tanh(x) + 0.3 * np.sin(3 * x + t / 200)


def main():
    import diffusers
    import torch

    results = []
    for name, changes, steps, strength, eta in CASES:
        scheduler = getattr(diffusers, name)(**SD | changes)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        if name in ("LCMScheduler", "TCDScheduler"):
            scheduler.set_timesteps(steps, strength=strength)
            timesteps = scheduler.timesteps
        else:
            scheduler.set_timesteps(steps)
            begin = max(steps - int(steps * strength), 0)
            timesteps = scheduler.timesteps[begin:]
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
        drawn = iter(range(1000))

        def draw(shape, **_):
            return torch.from_numpy(noise(next(drawn)))[None]

        x = scheduler.add_noise(torch.from_numpy(Z0)[None], torch.from_numpy(noise(99))[None], timesteps[:1])
        module = f"diffusers.schedulers.{type(scheduler).__module__.split('.')[-1]}.randn_tensor"
        with mock.patch(module, draw):
            for t in timesteps:
                scaled = scheduler.scale_model_input(x, t)
                options = {"eta": eta} if name in ("TCDScheduler", "DDIMScheduler") else {}
                x = scheduler.step(torch.from_numpy(toy(scaled.numpy(), float(t))), t, x, return_dict=True,
                                   **options).prev_sample
        results.append(dict(timesteps=[int(t) for t in timesteps], result=x[0].double().tolist()))
    (Path(__file__).parent / "samplers.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
