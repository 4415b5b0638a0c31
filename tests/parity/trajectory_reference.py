"""The three recursions written plainly with diffusers: one image and variant at a time, z formed, stock DDIM steps.

    TORCH_ENVIRONMENT/bin/python tests/parity/trajectory_reference.py WORK MODEL

Reads WORK/noise.npz and the seeds of WORK/ours.npz (trajectory_ours.py); writes WORK/reference.npz.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from trajectory_cases import COMMON, PROMPTS, TRAJECTORIES, VARIANTS
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_num_threads(1)  # rows this small gain nothing from more: a process for every processor instead
torch.set_grad_enabled(False)


class Side:
    """The networks, and the noise that belongs to one image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.added: torch.Tensor | None = None
        self.unet.mid_block.register_forward_hook(lambda module, arguments, output: output
                                                  if self.added is None else output + self.added)

    def embed(self, prompt: str) -> torch.Tensor:
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True,
                             return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state

    def predict(self, x: list[torch.Tensor], t: int, context: list[torch.Tensor],
                added: torch.Tensor | None) -> torch.Tensor:
        self.added = added
        return self.unet(torch.stack(x), t, torch.cat(context)).sample


def alpha(ddim: DDIMScheduler, t: int) -> torch.Tensor:
    return ddim.alphas_cumprod[t] if t >= 0 else ddim.final_alpha_cumprod


def split(ddim: DDIMScheduler, out: torch.Tensor, x: torch.Tensor,
          a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, clean image) from the network's output."""
    if ddim.config.prediction_type == "v_prediction":
        noise, clean = a.sqrt() * out + (1 - a).sqrt() * x, a.sqrt() * x - (1 - a).sqrt() * out
    else:
        noise, clean = out, (x - (1 - a).sqrt() * out) / a.sqrt()
    limit = ddim.config.clip_sample_range
    return noise, clean.clamp(-limit, limit) if ddim.config.clip_sample else clean


def cycle(side, ddim, timesteps, o, z0, prompt, noise, variant):
    context = [side.embed(o["source_prompt"] if i == 2 else prompt if i == 3 else "") for i in range(4)]
    stride = 1000 // o["steps"]
    own = 0 if o["share_source"] else variant
    a = alpha(ddim, timesteps[0])

    def begin(k):
        return a.sqrt() * z0 + (1 - a).sqrt() * noise["start"][0 if o["share_start"] else k]

    x_source, x = begin(own), begin(variant)
    for i, t in enumerate(timesteps):
        p = t - stride
        a_t, a_p = alpha(ddim, t), alpha(ddim, p)
        added = torch.zeros(4, *noise["bottleneck"].shape[3:])
        added[1], added[3] = o["noise_scale"] * noise["bottleneck"][variant, i,
                                                                    0], o["noise_scale"] * noise["bottleneck"][variant,
                                                                                                               i, 1]
        out = side.predict([x_source, x, x_source, x], t, context, added)
        out_source = out[0] + o["source_guidance_scale"] * (out[2] - out[0])
        out_target = out[1] + o["guidance_scale"] * (out[3] - out[1])
        sigma = o["eta"] * ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
        direction = (1 - a_p - sigma**2).clamp(min=0).sqrt()
        if p <= 0:
            following = z0
        else:
            e = (x_source - a_t.sqrt() * z0) / (1 - a_t).sqrt()
            following = a_p.sqrt() * z0 + direction * e + sigma * noise["step"][own, i]
        eps, clean = split(ddim, out_source, x_source, a_t)
        z = (following - a_p.sqrt() * clean - direction * eps) / sigma
        x = ddim.step(out_target, t, x, eta=o["eta"], variance_noise=z).prev_sample
        x_source = following
    return x


def asymmetric(side, ddim, timesteps, o, z0, prompt, noise, variant):
    empty, text, source = side.embed(""), side.embed(prompt), side.embed(o["source_prompt"])
    stride = 1000 // o["steps"]
    x = z0
    for t in reversed(timesteps):
        a_t, a_p = alpha(ddim, t), alpha(ddim, t - stride)
        eps, clean = split(ddim, side.predict([x], t, [source], None)[0], x, a_p)
        x = a_t.sqrt() * clean + (1 - a_t).sqrt() * eps

    def guided(t, added):
        if o["guidance_scale"] == 1:
            return side.predict([x], t, [text], None if added is None else added[1:])[0]
        out = side.predict([x, x], t, [empty, text], added)
        return out[0] + o["guidance_scale"] * (out[1] - out[0])

    for i, t in enumerate(timesteps):
        a_t, a_p = alpha(ddim, t), alpha(ddim, t - stride)
        eps, _ = split(ddim, guided(t, None), x, a_t)
        _, clean = split(ddim, guided(t, o["noise_scale"] * noise["bottleneck"][variant, i]), x, a_t)
        sigma = o["eta"] * ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
        x = a_p.sqrt() * clean + (1 - a_p - sigma**2).clamp(min=0).sqrt() * eps + sigma * noise["step"][variant, i]
    return x


def sdedit(side, ddim, timesteps, o, z0, prompt, noise, variant):
    empty, text = side.embed(""), side.embed(prompt)
    x = ddim.add_noise(z0[None], noise["start"][0 if o["share_start"] else variant][None],
                       torch.tensor(timesteps[:1]))[0]
    for i, t in enumerate(timesteps):
        out = side.predict([x, x], t, [empty, text], o["noise_scale"] * noise["bottleneck"][variant, i])
        out = out[0] + o["guidance_scale"] * (out[1] - out[0])
        x = ddim.step(out, t, x, eta=o["eta"], variance_noise=noise["step"][variant, i]).prev_sample
    return x


def few_steps(side, scheduler, o, z0, prompt, noise, variant):
    """img2img with a scheduler of diffusers', which draws the noise of our steps."""
    if o["kind"] in ("LCMScheduler", "TCDScheduler"):
        scheduler.set_timesteps(o["steps"], strength=o["strength"])
        timesteps = scheduler.timesteps
    else:
        scheduler.set_timesteps(o["steps"])
        begin = o["steps"] - int(o["steps"] * o["strength"])
        timesteps = scheduler.timesteps[begin:]
        scheduler.set_begin_index(begin)
    text, empty = side.embed(prompt), side.embed("")
    drawn = iter(noise["step"][variant])
    options = {"eta": o["eta"]} if o["kind"] == "TCDScheduler" else {}
    x = scheduler.add_noise(z0[None], noise["start"][0][None], timesteps[:1])[0]
    with mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda shape, **_: next(drawn)):
        for i, t in enumerate(timesteps):
            scaled, added = scheduler.scale_model_input(x, t), o["noise_scale"] * noise["bottleneck"][variant, i]
            if o["guidance_scale"] in (0, 1):
                out = side.predict([scaled], t, [text], added[1:])[0]
            else:
                out = side.predict([scaled, scaled], t, [empty, text], added)
                out = out[0] + o["guidance_scale"] * (out[1] - out[0])
            x = scheduler.step(out, t, x, **options).prev_sample
    return x


def few_steps_cycle(side, lcm, o, z0, prompt, noise, variant):
    """InfEdit's DDCM (Xu et al., 2024) as it is written there, with eta 1."""
    lcm.set_timesteps(o["steps"], strength=o["strength"])
    timesteps = [int(t) for t in lcm.timesteps]
    a_t = lcm.alphas_cumprod[timesteps[0]]
    x = x_source = a_t.sqrt() * z0 + (1 - a_t).sqrt() * noise["start"][0]
    text, empty = side.embed(prompt), side.embed("")
    for i, t in enumerate(timesteps):
        a_t = lcm.alphas_cumprod[t]
        added = torch.zeros(3, *noise["bottleneck"].shape[3:])
        added[1:] = o["noise_scale"] * noise["bottleneck"][variant, i]
        out = side.predict([x_source, x, x], t, [empty, empty, text], added)
        target = out[1] + o["guidance_scale"] * (out[2] - out[1])
        clean = z0 + ((x - x_source) - (1 - a_t).sqrt() * (target - out[0])) / a_t.sqrt()
        if i + 1 == len(timesteps):
            return clean
        a_p = lcm.alphas_cumprod[timesteps[i + 1]]
        n = (1 - a_p).sqrt() * noise["step"][variant, i]
        x, x_source = a_p.sqrt() * clean + n, a_p.sqrt() * z0 + n


def trajectory(work: Path, model: Path, name: str) -> np.ndarray:
    side = Side(model)
    z0 = torch.from_numpy(np.load(work / "ours.npz")["z0"])
    with np.load(work / "noise.npz") as stored:
        noise = {kind: torch.from_numpy(stored[kind]) for kind in stored.files}
    o = COMMON | TRAJECTORIES[name]
    if "kind" in o:
        run = few_steps_cycle if o["method"] == "cycle" else few_steps

        def one(i, prompt, k):
            scheduler = getattr(diffusers, o["kind"]).from_pretrained(model / "scheduler", **o.get("scheduler", {}))
            return run(side, scheduler, o, z0[i], prompt, {n: v[i] for n, v in noise.items()}, k).numpy()

        return np.stack([np.stack([one(i, prompt, k) for k in range(VARIANTS)]) for i, prompt in enumerate(PROMPTS)])
    ddim = DDIMScheduler.from_pretrained(model / "scheduler", **o.get("scheduler", {}))
    ddim.set_timesteps(o["steps"])
    timesteps = [int(t) for t in ddim.timesteps[-int(o["steps"] * o["strength"]):]]
    recursion = {"cycle": cycle, "asymmetric": asymmetric, "sdedit": sdedit}[o["method"]]
    return np.stack([
        np.stack([
            recursion(side, ddim, timesteps, o, z0[i], prompt, {n: v[i]
                                                                for n, v in noise.items()}, k).numpy()
            for k in range(VARIANTS)
        ]) for i, prompt in enumerate(PROMPTS)
    ])


def main(work: Path, model: Path) -> None:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        made = pool.map(partial(trajectory, work, model), TRAJECTORIES)
        np.savez(work / "reference.npz", **dict(zip(TRAJECTORIES, made)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
