"""The noise schedule: alpha-bar in float64, and the coefficients of every reverse step. Tiny, and tested against diffusers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..options import ParameterError


@dataclass(frozen=True)
class Step:
    """One step from timestep t to the less noisy p (Song et al., 2021, eq. 12 and 16).

    Attributes
    ----------
    index : int
        0 for the first step that is run.
    t, p : int
        Timesteps; p may be negative at the end.
    a_t, a_p : float
        Cumulative alpha products.
    sigma : float
        Standard deviation of the fresh noise: eta sqrt((1 - a_p) / (1 - a_t) (1 - a_t / a_p)).
    """

    index: int
    t: int
    p: int
    a_t: float
    a_p: float
    sigma: float

    @property
    def direction(self) -> float:
        """Weight of the direction term, sqrt(1 - a_p - sigma^2)."""
        return math.sqrt(max(0.0, 1 - self.a_p - self.sigma**2))


class Schedule:
    """DDIM on a diffusers scheduler configuration, always with "leading" spacing as the authors run it.

    Parameters
    ----------
    config : dict
        From `dreamda.networks.config.read_scheduler_config`.

    Raises
    ------
    ValueError
        Betas that leave all signal, or none, at some timestep: steps divide by both.
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
        if not (self.alphas_cumprod[0] < 1 and self.alphas_cumprod[-1] > 1e-9):
            raise ValueError(f"the betas have to leave some noise in the first timestep and some signal in the last; the products of 1 - beta "
                             f"go from {self.alphas_cumprod[0]:g} to {self.alphas_cumprod[-1]:g}")
        self.num_train_timesteps = n
        self.final_alpha = 1.0 if config["set_alpha_to_one"] else float(self.alphas_cumprod[0])
        self.v_prediction: bool = config["prediction_type"] == "v_prediction"
        self.clip: float | None = config["clip_sample_range"] if config["clip_sample"] else None
        self._offset: int = config["steps_offset"]

    def alpha(self, t: int) -> float:
        """Cumulative alpha product at t; the configured final value below 0."""
        return float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha

    def steps(self, steps: int, strength: float, eta: float) -> list[Step]:
        """The last int(steps * strength) of `steps` DDIM steps, noisiest first.

        Raises
        ------
        ParameterError
            Where `steps` exceeds what the model was trained with, or nothing is left to run.
        """
        stride = self.num_train_timesteps // steps if steps > 0 else 0
        run = min(int(steps * strength), steps)
        if stride < 1 or (run - 1) * stride + self._offset >= self.num_train_timesteps:
            raise ParameterError("steps", f"{steps} is not possible with {self.num_train_timesteps} training timesteps; use fewer")
        if run < 1:
            raise ParameterError("strength", f"{strength} of {steps} steps leaves no step to run; raise it, or `steps`")
        result = []
        for index, i in enumerate(range(run - 1, -1, -1)):
            t = i * stride + self._offset
            p = t - stride
            a_t, a_p = self.alpha(t), self.alpha(p)
            variance = max(0.0, (1 - a_p) / (1 - a_t) * (1 - a_t / a_p))
            result.append(Step(index, t, p, a_t, a_p, eta * math.sqrt(variance)))
        return result

    def noise_and_image(self, prediction: np.ndarray, x: np.ndarray, a_t: float) -> tuple[np.ndarray, np.ndarray]:
        """The U-Net's output as (noise, clean image) at x, whatever it was trained to predict; the image clipped where configured.

        Velocity is v = sqrt(a_t) noise - sqrt(1 - a_t) image (Salimans and Ho, 2022).
        """
        signal, spread = np.float32(math.sqrt(a_t)), np.float32(math.sqrt(1 - a_t))
        if self.v_prediction:
            noise: np.ndarray = signal * prediction + spread * x
            image: np.ndarray = signal * x - spread * prediction
        else:
            noise, image = prediction, (x - spread * prediction) * np.float32(1 / math.sqrt(a_t))
        return noise, image if self.clip is None else np.clip(image, -self.clip, self.clip)

    def mean(self, prediction: np.ndarray, x: np.ndarray, step: Step) -> np.ndarray:
        """The DDIM step without its fresh noise: sqrt(a_p) x0 + sqrt(1 - a_p - sigma^2) eps."""
        noise, image = self.noise_and_image(prediction, x, step.a_t)
        return np.float32(math.sqrt(step.a_p)) * image + np.float32(step.direction) * noise

    def undo(self, prediction: np.ndarray, x: np.ndarray, step: Step) -> np.ndarray:
        """DDIM inversion: from x at p to t, with the prediction made for x under timestep t (diffusers' DDIMInverseScheduler)."""
        noise, image = self.noise_and_image(prediction, x, step.a_p)
        return np.float32(math.sqrt(step.a_t)) * image + np.float32(math.sqrt(1 - step.a_t)) * noise
