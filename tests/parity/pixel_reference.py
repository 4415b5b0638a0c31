"""PyTorch's side of the models in pixel space: diffusers' networks and schedulers, with the noise of our side.

    TORCH_ENVIRONMENT/bin/python tests/parity/pixel_reference.py WORK

Reads WORK/CASE, WORK/noise.npz and `z0` of WORK/ours.npz (pixel_ours.py); writes WORK/reference.npz.
"""

import sys
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from pixel_cases import CASES, CLASSES, OPTIONS

torch.set_num_threads(1)
torch.set_grad_enabled(False)


class Network:
    """The U-Net of a case, with noise at its bottleneck."""

    def __init__(self, folder: Path) -> None:
        self.unet = diffusers.UNet2DModel.from_pretrained(folder).eval()
        self.added: torch.Tensor | float = 0.0
        self.unet.mid_block.register_forward_hook(lambda module, arguments, output: output + self.added)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, added: torch.Tensor | float) -> torch.Tensor:
        self.added = added
        return self.unet(x, t, torch.tensor(CLASSES)).sample


def sdedit(network: Network, scheduler, o: dict, z0: torch.Tensor, noise: dict[str, torch.Tensor]) -> torch.Tensor:
    """img2img with the scheduler's own steps, which draw our noise."""
    if type(scheduler).__name__ == "LCMScheduler":
        scheduler.set_timesteps(o["steps"], strength=o["strength"])
        timesteps = scheduler.timesteps
    else:
        scheduler.set_timesteps(o["steps"])
        timesteps = scheduler.timesteps[-int(o["steps"] * o["strength"]):]
    x = scheduler.add_noise(z0, noise["start"], timesteps[:1].repeat(len(z0)))
    for i, t in enumerate(timesteps):
        out = network(x, t, o["noise_scale"] * noise["bottleneck"][:, i])
        drawn = noise["step"][:, i]
        if type(scheduler).__name__ == "DDIMScheduler":
            x = scheduler.step(out, t, x, eta=o["eta"], variance_noise=drawn).prev_sample
        else:
            with mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: drawn):
                x = scheduler.step(out, t, x).prev_sample
    return x


def cycle(network: Network, ddim, o: dict, z0: torch.Tensor, noise: dict[str, torch.Tensor]) -> torch.Tensor:
    """The authors' recursion with eta 1: the noise that leads the source to its next latent drives the target."""
    ddim.set_timesteps(o["steps"])
    timesteps = [int(t) for t in ddim.timesteps[-int(o["steps"] * o["strength"]):]]
    stride = ddim.config.num_train_timesteps // o["steps"]
    x = source = ddim.add_noise(z0, noise["start"], torch.tensor(timesteps[:1] * len(z0)))
    for i, t in enumerate(timesteps):
        p = t - stride
        a_t, a_p = ddim.alphas_cumprod[t], ddim.alphas_cumprod[p] if p >= 0 else ddim.final_alpha_cumprod
        sigma = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
        direction = (1 - a_p - sigma**2).clamp(min=0).sqrt()
        following = z0
        if p > 0:
            e = (source - a_t.sqrt() * z0) / (1 - a_t).sqrt()
            following = a_p.sqrt() * z0 + direction * e + sigma * noise["step"][:, i]
        means = []
        for latent, scale in ((source, 0.0), (x, o["noise_scale"])):
            out = network(latent, torch.tensor(t), scale * noise["bottleneck"][:, i])
            means.append(ddim.step(out, t, latent, eta=1.0, variance_noise=torch.zeros_like(latent)).prev_sample)
        z = (following - means[0]) / sigma if sigma > 0 else None
        x = following + means[1] - means[0] if z is None else means[1] + sigma * z
        source = following
    return x


def main(work: Path) -> None:
    with np.load(work / "noise.npz") as stored:
        noise = {name: torch.from_numpy(stored[name]) for name in stored.files}
    z0 = torch.from_numpy(np.load(work / "ours.npz")["z0"])
    results = {}
    for name, (kind, _, options) in CASES.items():
        o = dict(eta=1.0, noise_scale=0.0) | OPTIONS | options
        scheduler = getattr(diffusers, kind).from_pretrained(work / name / "scheduler")
        make = cycle if o["method"] == "cycle" else sdedit
        results[name] = make(Network(work / name / "unet"), scheduler, o, z0, noise).numpy()
    np.savez(work / "reference.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
