"""Distills the bundled `fashion-mini` into a few-step student, `fashion-mini-lcm`.

    python distill_fashion_mini.py DATA OUT [--seconds 5400] [--threads 2] [--start FOLDER]

Latent consistency distillation (Luo et al., 2023): the student jumps from any timestep to the clean image, and learns
to land where it lands one step later on the teacher's 50-step DDIM path. Guidance is an input (`time_cond_proj_dim`), w
= guidance_scale - 1 drawn from 0 to 4, so that no second row is needed; one prompt in ten is empty, which the source of
`cycle` and the inversion of `asymmetric` run on.

DATA holds Fashion-MNIST's idx .gz files (Debian: dataset-fashion-mnist, /usr/share/datasets/fashion-mnist). As for the
teacher only the first 50,000 training images are used. Needs torch, diffusers and transformers; 2 CPU cores suffice.
dreamda itself computes the teacher, four times as fast as PyTorch. The learning rate follows the clock.

OUT becomes a U-Net folder in fp16 (averaged weights), saved every five minutes. Beside it, OUT.state.pt holds what the
same command needs to go on after an interruption; its time counts from there. `--start` begins from the weights of an
earlier student instead of the teacher's. How python/dreamda/bundled/fashion-mini-lcm was made: 828 steps of 32 images
in 56 minutes, on two cores that were busy with other work, the teacher in PyTorch.
"""
import argparse
import gzip
import os
import time
from pathlib import Path

import dreamda
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

TEACHER = Path(__file__).parents[2] / "python/dreamda/bundled/fashion-mini"
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
TEMPLATES = [
    "a photo of a {}", "a picture of a {}", "an image of a {}", "a product photo of a {}", "a grayscale photo of a {}",
    "a studio photo of a {} on a black background", "{}", "a {}"
]
DIM, SOLVER_STEPS, EMPTY, BATCH, RATE, SAVE_SECONDS = 64, 50, 0.1, 32, 3e-4, 300
HUBER = 1e-3  # the loss is sqrt(difference^2 + HUBER^2) - HUBER

ap = argparse.ArgumentParser()
ap.add_argument("data", type=Path)
ap.add_argument("out", type=Path)
ap.add_argument("--seconds", type=float, default=5400)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--start", type=Path)
a = ap.parse_args()
torch.manual_seed(0)
torch.set_num_threads(a.threads)
start = time.time()


def idx(name: str, offset: int) -> np.ndarray:
    return np.frombuffer(gzip.open(a.data / name).read(), np.uint8, offset=offset)


def say(*words: object) -> None:
    print(f"[{time.time() - start:7.1f}]", *words, flush=True)


def column(v: torch.Tensor) -> torch.Tensor:
    return v.view(-1, 1, 1, 1)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


# 1. images, encoded as they are drawn
images = torch.from_numpy(
    np.pad(idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:50000], ((0, 0), (2, 2), (2, 2))))
labels = torch.from_numpy(idx("train-labels-idx1-ubyte.gz", 8)[:50000].astype(np.int64))
vae = AutoencoderKL.from_pretrained(TEACHER / "vae").float().to(memory_format=torch.channels_last).requires_grad_(False)


def latents(i: torch.Tensor) -> torch.Tensor:
    """Scaled samples of the posterior, half of the images mirrored."""
    x = (images[i].float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)
    x = torch.where(column(torch.rand(len(i))) < 0.5, x.flip(-1), x)
    with torch.no_grad(), autocast():
        return vae.encode(x).latent_dist.sample().float() * vae.config.scaling_factor


# 2. prompts
tokenizer = CLIPTokenizer.from_pretrained(TEACHER / "tokenizer")
text = CLIPTextModel.from_pretrained(TEACHER / "text_encoder").float()
prompts = [t.format(n).replace("a ankle", "an ankle") for n in NAMES for t in TEMPLATES] + [""]
with torch.no_grad():
    ids = tokenizer(prompts,
                    padding="max_length",
                    truncation=True,
                    max_length=tokenizer.model_max_length,
                    return_tensors="pt")["input_ids"]
    contexts = text(ids)[0]

# 3. teacher, student, and the student's moving average, which is also the target
teacher = dreamda.UNet.load(TEACHER / "unet", threads=a.threads)
weights = UNet2DConditionModel.from_pretrained(a.start or TEACHER / "unet").float()


def student_like() -> UNet2DConditionModel:
    model = UNet2DConditionModel.from_config({**weights.config, "time_cond_proj_dim": DIM})
    torch.nn.init.zeros_(model.time_embedding.cond_proj.weight)
    model.load_state_dict(weights.state_dict(), strict=False)
    return model.to(memory_format=torch.channels_last)


student, averaged = student_like(), student_like().requires_grad_(False)
target = student_like().bfloat16().requires_grad_(False)  # a copy of `averaged` that computes fast
alphas = DDIMScheduler.from_pretrained(TEACHER / "scheduler").alphas_cumprod
stride = len(alphas) // SOLVER_STEPS
grid = torch.arange(1, SOLVER_STEPS + 1) * stride - 1
alphas_after = torch.cat([alphas[:1], alphas[grid[:-1]]])


def guidance_embedding(w: torch.Tensor) -> torch.Tensor:
    frequencies = torch.exp(torch.arange(DIM // 2) * -(np.log(10000.0) / (DIM // 2 - 1)))
    angles = (w * 1000)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def clean_image(noise: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The clean image under LCM's boundary conditions."""
    s = t.float() * 10
    skip, out = 0.25 / (s**2 + 0.25), s / (s**2 + 0.25).sqrt()
    return column(skip) * x + column(out) * (x - column((1 - alphas[t]).sqrt()) * noise) / column(alphas[t].sqrt())


def save() -> None:
    half = UNet2DConditionModel.from_config(averaged.config)
    half.load_state_dict(averaged.state_dict())
    half.half().save_pretrained(a.out)
    parts = dict(student=student, averaged=averaged, optimiser=optimiser)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | dict(step=step, seconds=time.time() - begun, random=torch.get_rng_state()), f"{state_file}.tmp")
    os.replace(f"{state_file}.tmp", state_file)


parameters, means, halves = (list(m.parameters()) for m in (student, averaged, target))
optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0, betas=(0.9, 0.99), fused=True)
empty = len(prompts) - 1
begun = saved = time.time()
step, mean_loss = 0, 0.0
state_file = a.out.with_name(a.out.name + ".state.pt")
if state_file.exists():
    state = torch.load(state_file, weights_only=True)
    for name, part in dict(student=student, averaged=averaged, optimiser=optimiser).items():
        part.load_state_dict(state[name])
    torch._foreach_copy_(halves, means)
    torch.set_rng_state(state["random"])
    step, begun = state["step"], time.time() - state["seconds"]
while (part := (time.time() - begun) / a.seconds) < 1:
    optimiser.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (0.5 * (1 + np.cos(np.pi * part)) + 0.02)
    i = torch.randint(0, len(labels), (BATCH,))
    x0 = latents(i)
    chosen = torch.where(
        torch.rand(BATCH) < EMPTY, empty, labels[i] * len(TEMPLATES) + torch.randint(0, len(TEMPLATES), (BATCH, )))
    context, w, k = contexts[chosen], torch.rand(BATCH) * 4, torch.randint(0, SOLVER_STEPS, (BATCH,))
    t, before = grid[k], (grid[k] - stride).clamp(min=0)
    guidance = guidance_embedding(w)
    x = (column(alphas[t].sqrt()) * x0 + column(
        (1 - alphas[t]).sqrt()) * torch.randn_like(x0)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        both = torch.cat([contexts[empty].expand(BATCH, -1, -1), context])
        rows = teacher(torch.cat([x, x]).contiguous().numpy(), torch.cat([t, t]).numpy(), both.numpy())
        unconditional, conditional = torch.from_numpy(rows).chunk(2)
        noise = conditional + column(w) * (conditional - unconditional)
        clean = (x - column((1 - alphas[t]).sqrt()) * noise) / column(alphas[t].sqrt())
        x_after = (column(alphas_after[k].sqrt()) * clean + column(
            (1 - alphas_after[k]).sqrt()) * noise).contiguous(memory_format=torch.channels_last)
        noise = target(x_after.bfloat16(), before, context.bfloat16(), timestep_cond=guidance.bfloat16()).sample.float()
        goal = clean_image(noise, x_after, before)
    loss = ((clean_image(student(x, t, context, timestep_cond=guidance).sample, x, t) - goal).pow(2)
            + HUBER**2).sqrt().mean() - HUBER
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    with torch.no_grad():
        torch._foreach_lerp_(means, parameters, 0.05)
        torch._foreach_copy_(halves, means)
    step, mean_loss = step + 1, mean_loss + loss.item()
    if step % 100 == 0:
        say(f"step {step}: loss {mean_loss / 100:.4f}")
        mean_loss = 0.0
    if time.time() - saved > SAVE_SECONDS:
        save()
        saved = time.time()
save()
say(f"{step} steps of {BATCH}")
