"""Finishes a model of train_photographs.py on one large GPU: a better decoder for the same latents, and a few-step
student.

    python finish_photographs.py DATA MODEL OUT [--decoder-seconds 50] [--lcm-seconds 95]

The student is a latent consistency model (Luo et al., 2023) with the guidance scale as an input (time_cond_proj_dim),
distilled from MODEL's U-Net by a 50-step DDIM solver with guidance drawn from 1 to 5. Writes OUT/vae, OUT/lcm (a U-Net)
and a picture. Timed by the clock. `natural-mini-lcm` took 480 steps of 256.
"""
import argparse, os, time

T0 = time.time()
import numpy as np, torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from photographs import TEMPLATES, contact_sheet, read

ap = argparse.ArgumentParser()
ap.add_argument("data")
ap.add_argument("model")
ap.add_argument("out")
ap.add_argument("--decoder-seconds", type=float, default=50)
ap.add_argument("--lcm-seconds", type=float, default=95)
ap.add_argument("--batch", type=int, default=256)
a = ap.parse_args()
dev = "cuda" if torch.cuda.is_available() else "cpu"
amp = dict(device_type=dev, dtype=torch.bfloat16)
torch.manual_seed(1)
rng = np.random.default_rng(1)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True


def say(*words):
    print(f"[{time.time() - T0:6.1f}]", *words, flush=True)


images, lab, NAMES = read(a.data)
images = torch.from_numpy(images).to(dev)
lab = torch.from_numpy(lab).to(dev)
N = len(images)
say(f"{N} images")


def real(i):
    return (images[i].float() / 127.5 - 1).to(memory_format=torch.channels_last)


vae = AutoencoderKL.from_pretrained(os.path.join(a.model, "vae")).float().to(
    dev, memory_format=torch.channels_last).requires_grad_(False)
scale = vae.config.scaling_factor
with torch.no_grad(), torch.autocast(**amp):
    mean, std = [], []
    for b in torch.arange(N, device=dev).split(1000):
        for x in (real(b), real(b).flip(-1)):
            p = vae.encode(x).latent_dist
            mean.append(p.mean.half())
            std.append(p.std.half())
mean = torch.stack([torch.cat(mean[0::2]), torch.cat(mean[1::2])])
std = torch.stack([torch.cat(std[0::2]), torch.cat(std[1::2])])
say(f"latents; posterior std {std.float().mean().item():.4f}")


def draw(n):
    i = torch.randint(0, N, (n, ), device=dev)
    f = torch.randint(0, 2, (n, ), device=dev)
    m = mean[f, i].float()
    return i, f, m + std[f, i].float() * torch.randn_like(m)


def psnr():
    i = torch.arange(0, N, max(1, N // 400), device=dev)
    with torch.no_grad(), torch.autocast(**amp):
        return (10 * torch.log10(4 / (vae.decode(mean[0, i].float()).sample.float() - real(i)).pow(2).mean())).item()


def pyramid(x, y):
    loss = 0
    for _ in range(4):
        d = x - y
        loss = loss + d.abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :]
                                                                                  - d[..., :-1, :]).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss / 4


def lerp(state, params, w):
    with torch.no_grad():
        torch._foreach_lerp_(state, params, w)


# 1. the decoder alone: latents, and so the U-Net, stay as they are
say(f"reconstruction {psnr():.2f} dB")
params = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
for p in params:
    p.requires_grad_(True)
opt = torch.optim.AdamW(params, lr=1e-3, weight_decay=0, betas=(0.9, 0.99), fused=dev == "cuda")
state = [p.detach().clone() for p in params]
t0, it = time.time(), 0
while (part := (time.time() - t0) / a.decoder_seconds) < 1:
    opt.param_groups[0]["lr"] = 1e-3 * min(1, (it + 1) / 100) * (0.5 * (1 + np.cos(np.pi * part)) + 0.01)
    i, f, z = draw(a.batch)
    x = real(i)
    x = torch.where(f.view(-1, 1, 1, 1) == 1, x.flip(-1), x)
    with torch.autocast(**amp):
        r = vae.decode(z.to(memory_format=torch.channels_last)).sample
    loss = pyramid(r.float(), x)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    opt.step()
    it += 1
    lerp(state, params, max(0.005, 1 / (it + 1)))
    if it % 200 == 0:
        say(f"decoder {it}: loss {loss.item():.4f}")
lerp(params, state, 1.0)
vae.requires_grad_(False)
say(f"decoder: {it} steps, reconstruction {psnr():.2f} dB")
vae.half().save_pretrained(os.path.join(a.out, "vae"))
vae.float()

# 2. the student
text = CLIPTextModel.from_pretrained(os.path.join(a.model, "text_encoder")).float().to(dev).requires_grad_(False)
tok = CLIPTokenizer.from_pretrained(os.path.join(a.model, "tokenizer"))
teacher = UNet2DConditionModel.from_pretrained(os.path.join(a.model, "unet")).float().to(
    dev, memory_format=torch.channels_last).requires_grad_(False)


def encode(texts):
    ids = tok(texts, padding="max_length", truncation=True, max_length=tok.model_max_length,
              return_tensors="pt")["input_ids"].to(dev)
    with torch.no_grad():
        return text(ids)[0]


table = [(c, t.format(n)) for c, ns in enumerate(NAMES) for n in ns for t in TEMPLATES]
context = torch.cat([encode([p for _, p in table[k:k + 500]]) for k in range(0, len(table), 500)])
empty = encode([""])
rows = [[i for i, (c, _) in enumerate(table) if c == k] for k in range(len(NAMES))]
width = max(map(len, rows))
pick = torch.tensor([r * (width // len(r)) + r[:width % len(r)] for r in rows], device=dev)
DIM = 64


def student_like():
    m = UNet2DConditionModel.from_config(dict(teacher.config) | dict(time_cond_proj_dim=DIM)).to(
        dev, memory_format=torch.channels_last)
    m.load_state_dict(teacher.state_dict(), strict=False)
    torch.nn.init.zeros_(m.time_embedding.cond_proj.weight)
    return m


student, target = student_like(), student_like().requires_grad_(False)
schedule = DDIMScheduler.from_pretrained(os.path.join(a.model, "scheduler"))
ac = schedule.alphas_cumprod.to(dev)
grid = (torch.arange(1, 51, device=dev) * 20 - 1)
ac_prev = torch.cat([ac[:1], ac[grid[:-1]]])
column = lambda v: v.view(-1, 1, 1, 1)


def embedding(w):
    f = torch.exp(torch.arange(DIM // 2, device=dev) * -(np.log(10000.0) / (DIM // 2 - 1)))
    e = (w * 1000)[:, None] * f[None]
    return torch.cat([e.sin(), e.cos()], 1)


def consistency(net, x, t, ctx, emb):
    with torch.autocast(**amp):
        e = net(x, t, ctx, timestep_cond=emb).sample.float()
    s = t.float() * 10
    skip, out = 0.25 / (s**2 + 0.25), s / (s**2 + 0.25).sqrt()
    return column(skip) * x + column(out) * (x - column((1 - ac[t]).sqrt()) * e) / column(ac[t].sqrt())


params, state = list(student.parameters()), list(target.parameters())
opt = torch.optim.AdamW(params, lr=3e-4, weight_decay=0, betas=(0.9, 0.99), fused=dev == "cuda")
t0, it = time.time(), 0
while (part := (time.time() - t0) / a.lcm_seconds) < 1:
    opt.param_groups[0]["lr"] = 3e-4 * min(1, (it + 1) / 50) * (0.5 * (1 + np.cos(np.pi * part)) + 0.02)
    B = a.batch
    i, _, z = draw(B)
    x0 = z * scale
    k = torch.randint(0, 50, (B, ), device=dev)
    t = grid[k]
    tp = (t - 20).clamp(min=0)
    w = torch.rand(B, device=dev) * 4
    emb = embedding(w)
    ctx = context[pick[lab[i], torch.randint(0, width, (B, ), device=dev)]]
    x = (column(ac[t].sqrt()) * x0 + column(
        (1 - ac[t]).sqrt()) * torch.randn_like(x0)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with torch.autocast(**amp):
            u, c = teacher(torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty.expand(B, -1, -1),
                                                                            ctx])).sample.float().chunk(2)
        e = c + column(w) * (c - u)
        clean = (x - column((1 - ac[t]).sqrt()) * e) / column(ac[t].sqrt())
        xp = (column(ac_prev[k].sqrt()) * clean + column(
            (1 - ac_prev[k]).sqrt()) * e).contiguous(memory_format=torch.channels_last)
        goal = consistency(target, xp, tp, ctx, emb)
    loss = ((consistency(student, x, t, ctx, emb) - goal).pow(2) + 1e-6).sqrt().mean() - 1e-3
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    opt.step()
    it += 1
    lerp(state, params, 0.05)
    if it % 100 == 0 or it == 3:
        say(f"lcm {it}: loss {loss.item():.4f}")
say(f"lcm: {it} steps")
target.half().save_pretrained(os.path.join(a.out, "lcm"), max_shard_size="14MB")
target.float()
lcm = LCMScheduler.from_config(schedule.config)
lcm.save_pretrained(os.path.join(a.out, "lcm_scheduler"))


@torch.no_grad()
def few(prompts, steps, guidance):
    ctx = encode(prompts)
    g = torch.Generator(dev).manual_seed(1)
    x = torch.randn(len(prompts), 4, 16, 16, device=dev, generator=g)
    emb = embedding(torch.full((len(prompts), ), guidance - 1.0, device=dev))
    lcm.set_timesteps(steps)
    for t in lcm.timesteps:
        e = target(x, t.to(dev), ctx, timestep_cond=emb).sample
        x, clean = lcm.step(e, t, x, generator=g, return_dict=False)
    return vae.decode(clean / scale).sample


@torch.no_grad()
def many(prompts, steps, guidance):
    ctx = torch.cat([empty.expand(len(prompts), -1, -1), encode(prompts)])
    g = torch.Generator(dev).manual_seed(1)
    x = torch.randn(len(prompts), 4, 16, 16, device=dev, generator=g)
    schedule.set_timesteps(steps)
    for t in schedule.timesteps.tolist():
        u, c = teacher(torch.cat([x, x]), t, ctx).sample.chunk(2)
        x = schedule.step(u + guidance * (c - u), t, x).prev_sample
    return vae.decode(x / scale).sample


shown = [f"a photo of a {NAMES[c][0]}" for c in range(0, len(NAMES), max(1, len(NAMES) // 12)) for _ in range(4)][:48]
contact_sheet(
    torch.cat([
        torch.stack([m, f4, f2], 1).flatten(0, 1)
        for m, f4, f2 in [(many(shown, 25, 2.0), few(shown, 4, 2.0), few(shown, 2, 2.0))]
    ]), 12, os.path.join(a.out, "few.png"))
say("done: each triple is 25 steps, 4 steps, 2 steps")
