"""The noise schedule and the sampler of a model: alpha-bar in float64, and the coefficients of every step.

They are tested against diffusers. All samplers take the same step with different coefficients:
x_p = sqrt(a_p) image + direction noise + sigma n. DDIM's variance grows with eta; Euler is DDIM with eta 0, Euler
ancestral with eta 1. A latent consistency model replaces its noise (sigma^2 = 1 - a_p); TCD keeps a share of it.
DPM-Solver++ 2M extrapolates the image from those of this step and the last one; with eta 1 it is the SDE solver.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..options import ParameterError
from ..text import counted

CONSISTENCY = ("LCMScheduler", "TCDScheduler")  # for them, strength selects the timesteps, and all steps are run
MOST_OF_FEW_STEPS = 8  # models that were distilled for few steps are made for up to about so many
_EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_DDPM = ("DDPMScheduler", "DDPMParallelScheduler")
_MULTISTEP = "DPMSolverMultistepScheduler"
_SIGMA_DATA = 0.5
_EPSILON = 2.0**-24  # signal that diffusers leaves instead of 0, for schedulers that divide by it


@dataclass(frozen=True)
class Step:
    """One step from timestep t to the less noisy p.

    Attributes
    ----------
    index : int
        Number of the step; 0 for the first one that is run.
    t, p : int
        Timesteps; p may be negative at the end.
    a_t, a_p : float
        Cumulative alpha products.
    sigma : float
        Standard deviation of the fresh noise.
    skip, out : float
        Weights of x and of the predicted image in the image; 0 and 1 except for latent consistency models.
    extrapolation : float
        For multistep solvers: how far the image is extrapolated from that of the last step.
    """

    index: int
    t: int
    p: int
    a_t: float
    a_p: float
    sigma: float
    skip: float = 0.0
    out: float = 1.0
    extrapolation: float = 0.0

    @property
    def direction(self) -> float:
        """Weight of the direction term, sqrt(1 - a_p - sigma^2)."""
        return math.sqrt(max(0.0, 1 - self.a_p - self.sigma**2))


class Schedule:
    """The sampler of a diffusers scheduler configuration.

    It is LCM, TCD, DPM-Solver++ 2M, or else DDIM with the caller's eta. Timesteps are spaced as "trailing" if the
    configuration says so, as those of DPM-Solver for that class, and otherwise as "leading", which the authors use.

    Parameters
    ----------
    config : dict
        From `dreamda.networks.config.read_scheduler_config`.

    Raises
    ------
    ValueError
        At some timestep, the betas leave all signal or none, and a step would divide by 0.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        n = config["num_train_timesteps"]
        if config["trained_betas"] is not None:
            betas = np.asarray(config["trained_betas"], np.float64)
            n = len(betas)
        elif config["beta_schedule"] == "linear":
            betas = np.linspace(config["beta_start"], config["beta_end"], n)
        elif config["beta_schedule"] == "scaled_linear":
            betas = np.linspace(math.sqrt(config["beta_start"]), math.sqrt(config["beta_end"]), n) ** 2
        else:  # squaredcos_cap_v2
            bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        self.alphas_cumprod: np.ndarray = np.cumprod(1 - betas)
        self.prediction_type: str = config["prediction_type"]
        self.name: str = config["class_name"]
        if config["rescale_betas_zero_snr"]:
            if self.prediction_type == "epsilon":
                raise ValueError(
                    "'rescale_betas_zero_snr' leaves no signal at the last timestep, from which a prediction of the "
                    "noise tells no image; it needs 'prediction_type' v_prediction")
            roots = np.sqrt(self.alphas_cumprod)
            self.alphas_cumprod = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
            if self.name in (*_EULER, _MULTISTEP):
                self.alphas_cumprod[-1] = _EPSILON
        if not (self.alphas_cumprod[0] < 1 and (self.alphas_cumprod[-1] > 1e-9 or config["rescale_betas_zero_snr"])):
            raise ValueError(
                "the betas have to leave some noise in the first timestep and some signal in the last; the products "
                f"of 1 - beta go from {self.alphas_cumprod[0]:g} to {self.alphas_cumprod[-1]:g}")
        self.num_train_timesteps = n
        self.clip: float | None = config["clip_sample_range"] if config["clip_sample"] else None
        self._trailing: bool = config["timestep_spacing"] == "trailing"
        final_one = config["final_sigmas_type"] == "zero" if self.name == _MULTISTEP else (
            config["set_alpha_to_one"] or self.name == "LCMScheduler" or self.name in _EULER and self._trailing)
        self.final_alpha = 1.0 if final_one else float(self.alphas_cumprod[0])
        self._spacing: str = config["timestep_spacing"]
        self._offset: int = config["steps_offset"]
        self._original_steps: int = config["original_inference_steps"]
        self._timestep_scaling: float = config["timestep_scaling"]
        self._second_order: bool = self.name == _MULTISTEP and config["solver_order"] == 2

    @property
    def few_steps(self) -> bool:
        """Whether the model was distilled for few steps."""
        return self.name in CONSISTENCY

    @property
    def most_steps(self) -> int:
        """The maximum number of steps."""
        return self._original_steps if self.name in CONSISTENCY else self.num_train_timesteps

    def alpha(self, t: int) -> float:
        """Cumulative alpha product at t; the configured final value below 0."""
        return float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha

    def steps(self, steps: int, strength: float, eta: float) -> list[Step]:
        """The steps that are run, noisiest first.

        These are the last int(steps * strength) of `steps` steps over the whole schedule. LCM and TCD run all `steps`
        steps, over the timesteps that `strength` leaves.

        Raises
        ------
        ParameterError
            `steps` exceeds the number that the model allows, or no step is left to run.
        """
        timesteps, last = self._timesteps(steps, strength)
        result: list[Step] = []
        for index, (t, p) in enumerate(zip(timesteps, [*timesteps[1:], last])):
            a_t, a_p = self.alpha(t), self.alpha(p)
            step = Step(index, t, p, a_t, a_p, self._sigma(p, a_t, a_p, eta))
            if self.name == "LCMScheduler":
                s = self._timestep_scaling * t
                variance = s * s + _SIGMA_DATA**2
                step = replace(step, skip=_SIGMA_DATA**2 / variance, out=s / math.sqrt(variance))
            if self._second_order and result and not (p == last and (steps < 15 or a_p == 1)):
                step = replace(step, extrapolation=_extrapolation(result[-1].a_t, step))
            result.append(step)
        return result

    def _timesteps(self, steps: int, strength: float) -> tuple[list[int], int]:
        """The timesteps that are run, and the one after the last."""
        n = self.num_train_timesteps
        too_many = ParameterError("steps", f"{steps} is not possible with {n} training timesteps; use fewer")
        if not 1 <= steps <= n:
            raise too_many
        if self.name in CONSISTENCY:
            origin, stride = self.most_steps, n // self.most_steps
            if steps > origin:
                raise ParameterError(
                    "steps",
                    f"{steps} exceeds the {origin} of this model's schedule ({self.name}); few-step models are made "
                    f"for about 1 to {MOST_OF_FEW_STEPS}")
            kept = int(origin * strength)
            if kept < steps:
                raise ParameterError(
                    "strength", f"{strength} leaves {counted(kept, 'timestep')} for {counted(steps, 'step')}; use "
                    f"at least {_least_strength(origin, steps)}, or fewer steps")
            return [(kept - math.floor(i)) * stride - 1
                    for i in np.linspace(0, kept, steps, endpoint=False)], 0 if self.name == "TCDScheduler" else -1
        run = min(int(steps * strength), steps)
        if run < 1:
            raise ParameterError(
                "strength",
                f"{strength} of {steps} steps leaves no step to run; use at least "
                f"{_least_strength(steps, 1)}, or raise `steps`")
        if self._trailing:
            timesteps, last = np.round(np.arange(n, 0, -n / steps)[:steps]).astype(int) - 1, -1
        elif self.name == _MULTISTEP and self._spacing == "linspace":
            timesteps, last = np.round(np.linspace(0, n - 1, steps + 1)).astype(int)[:0:-1], -1
        elif self.name == _MULTISTEP:
            timesteps, last = np.arange(steps, 0, -1) * (n // (steps + 1)) + self._offset, -1
        else:
            stride = n // steps
            timesteps, last = np.arange(steps - 1, -1, -1) * stride + self._offset, self._offset - stride
        timesteps = timesteps[len(timesteps) - run :]
        if timesteps[0] >= n or len(set(timesteps.tolist())) < run:
            raise too_many
        return timesteps.tolist(), last

    def _sigma(self, p: int, a_t: float, a_p: float, eta: float) -> float:
        if self.name == "LCMScheduler":
            return eta * math.sqrt(1 - a_p)
        if self.name == "TCDScheduler":
            return math.sqrt(1 - a_p / self.alpha(math.floor((1 - eta) * p)))
        return eta * math.sqrt(max(0.0, (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)))

    def noise_and_image(self, prediction: np.ndarray, x: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """The U-Net's output as (noise, clean image) at x, for every prediction type.

        The image is clipped if the configuration says so. DDPM then takes the noise that belongs to the clipped image,
        so that a step with eta 1 has the mean of its posterior; DDIM takes the predicted noise.
        """
        noise, image = self._split(prediction, x, step.a_t)
        if self.clip is not None and self.name in _DDPM:
            noise = _noise_between(x, image, step.a_t)
        if step.skip:
            image = np.float32(step.out) * image + np.float32(step.skip) * x
        return noise, image

    def _split(self, prediction: np.ndarray, x: np.ndarray, a_t: float) -> tuple[np.ndarray, np.ndarray]:
        """Noise and image at a noise level.

        Velocity is v = sqrt(a_t) noise - sqrt(1 - a_t) image (Salimans and Ho, 2022).
        """
        signal, spread = np.float32(math.sqrt(a_t)), np.float32(math.sqrt(1 - a_t))
        if self.prediction_type == "v_prediction":
            noise: np.ndarray = signal * prediction + spread * x
            image: np.ndarray = signal * x - spread * prediction
        elif self.prediction_type == "sample":
            noise, image = _noise_between(x, prediction, a_t), prediction
        else:
            noise, image = prediction, (x - spread * prediction) * np.float32(1 / math.sqrt(a_t))
        return noise, image if self.clip is None else np.clip(image, -self.clip, self.clip)

    def combine(self, noise: np.ndarray, image: np.ndarray, step: Step, before: np.ndarray | None = None) -> np.ndarray:
        """The step without its fresh noise: sqrt(a_p) image + sqrt(1 - a_p - sigma^2) noise.

        `before` is the image of the previous step.
        """
        if step.extrapolation and before is not None:
            image = image + np.float32(step.extrapolation) * (image - before)
        return np.float32(math.sqrt(step.a_p)) * image + np.float32(step.direction) * noise

    def mean(self,
             prediction: np.ndarray,
             x: np.ndarray,
             step: Step,
             before: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`combine` for a prediction at x, and its image, which is `before` for the next step."""
        noise, image = self.noise_and_image(prediction, x, step)
        return self.combine(noise, image, step, before), image

    def undo(self, prediction: np.ndarray, x: np.ndarray, step: Step) -> np.ndarray:
        """DDIM inversion from x at p to t, with the prediction for x at timestep t.

        This is diffusers' DDIMInverseScheduler. A predicted image tells no noise where x has none; then the noise is
        that at t.
        """
        level = step.a_t if self.prediction_type == "sample" and step.a_p == 1 else step.a_p
        noise, image = self._split(prediction, x, level)
        return np.float32(math.sqrt(step.a_t)) * image + np.float32(math.sqrt(1 - step.a_t)) * noise


def _noise_between(x: np.ndarray, image: np.ndarray, a_t: float) -> np.ndarray:
    """The noise that makes x of an image at a noise level."""
    noise: np.ndarray = (x - np.float32(math.sqrt(a_t)) * image) * np.float32(1 / math.sqrt(1 - a_t))
    return noise


def _extrapolation(a_before: float, step: Step) -> float:
    """DPM-Solver++ 2M (Lu et al., 2022), midpoint form: its share of the difference between the last two images.

    With the direction of `step` it is the deterministic solver for eta 0 and the SDE solver for eta 1.
    """
    before, now, after = (0.5 * math.log(a / (1 - a)) for a in (a_before, step.a_t, step.a_p))
    weight = 1 - step.direction * math.sqrt(step.a_t / ((1 - step.a_t) * step.a_p))
    return 0.5 * weight * (after - now) / (now - before)


def _least_strength(steps: int, run: int) -> float:
    """The minimum strength, a multiple of 0.001, at which `run` of `steps` steps are left."""
    return next(k for k in range(1, 1001) if int(steps * (k / 1000)) >= run) / 1000
