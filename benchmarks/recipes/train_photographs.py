"""Trains a small Stable-Diffusion-shaped model on photographs of 64 pixels: KL-VAE, CLIP-style text encoder,
conditional U-Net.

    python train_photographs.py DATA OUT [--vae-seconds 120] [--unet-seconds 320]

DATA: see photographs.py. `natural-mini`, the model of EFFICACY.md's tables on photographs, was made by an earlier form
of this script that read packed images: 100,000 of 200 classes, 4,792 steps of 512 on one large GPU (data and weights
are for research only and no part of this project). OUT becomes a diffusers folder in fp16, the U-Net in shards. Needs
torch, diffusers, transformers, tokenizers.
Everything is timed by the clock, so a slower device gives a worse model, not a longer run. Then finish_photographs.py.
"""
import argparse, json, os, subprocess, sys, time

T0 = time.time()
import numpy as np, torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from photographs import TEMPLATES, contact_sheet, read

ap = argparse.ArgumentParser()
ap.add_argument("data")
ap.add_argument("out")
ap.add_argument("--vae-seconds", type=float, default=120)
ap.add_argument("--unet-seconds", type=float, default=320)
ap.add_argument("--batch", type=int, default=512)
ap.add_argument("--compile", action="store_true")
ap.add_argument("--warm", action="store_true")
a = ap.parse_args()
dev = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
rng = np.random.default_rng(0)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True
LENGTH = 24
SCHEDULE = dict(beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                num_train_timesteps=1000,
                clip_sample=False)


def say(*words):
    print(f"[{time.time() - T0:6.1f}]", *words, flush=True)


def make_unet():
    return UNet2DConditionModel(sample_size=16,
                                in_channels=4,
                                out_channels=4,
                                block_out_channels=(128, 224, 256),
                                layers_per_block=1,
                                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                                cross_attention_dim=128,
                                attention_head_dim=4,
                                norm_num_groups=16).to(dev, memory_format=torch.channels_last)


import torch._dynamo

torch._dynamo.config.suppress_errors = True
amp = dict(device_type=dev, dtype=torch.bfloat16)
if a.warm:  # fills the compiler's cache while the VAE is trained
    net = make_unet()
    fast = torch.compile(net)
    for _ in range(2):
        with torch.autocast(**amp):
            e = fast(
                torch.randn(a.batch, 4, 16, 16, device=dev).to(memory_format=torch.channels_last),
                torch.randint(0, 1000, (a.batch, ), device=dev),
                torch.randn(a.batch, LENGTH, 128, device=dev, requires_grad=True)).sample
        e.float().pow(2).mean().backward()
    say("warm: compiled")
    sys.exit(0)
warm = subprocess.Popen([sys.executable, __file__, a.data, a.out, "--warm", "--batch",
                         str(a.batch)]) if a.compile else None

images, labels, NAMES = read(a.data)
images = torch.from_numpy(images).to(dev)
N = len(images)
say(f"{N} images")


def real(i):
    """indices -> float (n, 3, 64, 64) in [-1, 1]"""
    return (images[i].float() / 127.5 - 1).to(memory_format=torch.channels_last)


class Ema:
    def __init__(self, *mods, limit=0.9995):
        self.params = [p for m in mods for p in m.parameters()]
        self.limit, self.n = limit, 0
        self.state = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self):
        self.n += 1
        d = min(self.limit, self.n / (19 + self.n))
        torch._foreach_lerp_(self.state, self.params, 1 - d)

    @torch.no_grad()
    def load(self):
        for p, s in zip(self.params, self.state):
            p.copy_(s)


def timed(name, seconds, lr, opt, step):
    t0, it = time.time(), 0
    while (done := (time.time() - t0) / seconds) < 1:
        for g in opt.param_groups:
            g["lr"] = lr * min(1, (it + 1) / 300) * (0.5 * (1 + np.cos(np.pi * done)) + 0.01)
        loss = step()
        it += 1
        if it % 100 == 0 or it == 3:
            say(f"{name} {it}: loss {loss.item():.4f}, {time.time() - t0:.0f} s")
    say(f"{name}: {it} steps")


# 1. VAE: 3 x 64 x 64 -> 4 x 16 x 16
vae = AutoencoderKL(in_channels=3,
                    out_channels=3,
                    down_block_types=("DownEncoderBlock2D", ) * 3,
                    up_block_types=("UpDecoderBlock2D", ) * 3,
                    block_out_channels=(48, 96, 128),
                    layers_per_block=1,
                    latent_channels=4,
                    norm_num_groups=16,
                    sample_size=64)
vae = vae.to(dev, memory_format=torch.channels_last)
opt = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99), fused=dev == "cuda")
ema = Ema(vae)


def pyramid(x, y):
    """L1 at four scales, with gradients: keeps edges that plain L1 blurs"""
    loss = 0
    for _ in range(4):
        d = x - y
        loss = loss + d.abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :]
                                                                                  - d[..., :-1, :]).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss / 4


def vae_step(batch=192):
    x = real(torch.randint(0, N, (batch, ), device=dev))
    x = x.flip(-1) if rng.random() < 0.5 else x
    with torch.autocast(**amp):
        post = vae.encode(x).latent_dist
        r = vae.decode(post.sample()).sample
    loss = pyramid(r.float(), x) + 2e-5 * post.kl().float().mean() / (4 * 256) * 5
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    opt.step()
    ema.update()
    return loss


timed("vae", a.vae_seconds, 1e-3, opt, vae_step)
ema.load()
vae.eval().requires_grad_(False)

# 2. tokenizer in CLIP's layout
tk = Tokenizer(models.BPE(unk_token="<|endoftext|>", continuing_subword_prefix="", end_of_word_suffix="</w>"))
tk.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
tk.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(words, "removed", invert=True),
     pre_tokenizers.ByteLevel(add_prefix_space=False)])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tk.train_from_iterator([t.format(n) for t in TEMPLATES for ns in NAMES for n in ns] * 3,
                       trainers.BpeTrainer(vocab_size=2600,
                                           end_of_word_suffix="</w>",
                                           initial_alphabet=alphabet,
                                           special_tokens=[]))
merges = [m if isinstance(m, list) else m.split(" ") for m in json.loads(tk.to_str())["model"]["merges"]]
vocab = list(dict.fromkeys(alphabet + [b + "</w>"
                                       for b in alphabet] + ["".join(m)
                                                             for m in merges])) + ["<|startoftext|>", "<|endoftext|>"]
folder = os.path.join(a.out, "tokenizer")
os.makedirs(folder, exist_ok=True)
special = dict(bos_token="<|startoftext|>",
               eos_token="<|endoftext|>",
               pad_token="<|endoftext|>",
               unk_token="<|endoftext|>")
json.dump({t: i for i, t in enumerate(vocab)}, open(os.path.join(folder, "vocab.json"), "w"), ensure_ascii=False)
open(os.path.join(folder, "merges.txt"), "w").write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
json.dump(dict(special, model_max_length=LENGTH, tokenizer_class="CLIPTokenizer", do_lower_case=True),
          open(os.path.join(folder, "tokenizer_config.json"), "w"),
          indent=1)
json.dump(special, open(os.path.join(folder, "special_tokens_map.json"), "w"), indent=1)
tok = CLIPTokenizer(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"), model_max_length=LENGTH)


def tokens(texts):
    return tok(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]


# every prompt of every class once: training picks rows of this table
table = [(c, t.format(n)) for c, ns in enumerate(NAMES) for n in ns for t in TEMPLATES]
ids = tokens([p for _, p in table]).to(dev)
empty = tokens([""]).to(dev)
rows = [[i for i, (c, _) in enumerate(table) if c == k] for k in range(len(NAMES))]
width = max(map(len, rows))
pick = torch.tensor([r * (width // len(r)) + r[:width % len(r)] for r in rows], device=dev)

# 3. latents of every image and its mirror
with torch.no_grad(), torch.autocast(**amp):
    mean, std = [], []
    for b in torch.arange(N, device=dev).split(1000):
        for x in (real(b), real(b).flip(-1)):
            p = vae.encode(x).latent_dist
            mean.append(p.mean.half())
            std.append(p.std.half())
mean = torch.stack([torch.cat(mean[0::2]), torch.cat(mean[1::2])])
std = torch.stack([torch.cat(std[0::2]), torch.cat(std[1::2])])
z = (mean[0, ::20].float() + std[0, ::20].float() * torch.randn_like(mean[0, ::20].float()))
vae.register_to_config(scaling_factor=1 / z.std().item())
with torch.no_grad():
    x = real(torch.arange(0, N, max(1, N // 512), device=dev))
    r = vae.decode(vae.encode(x).latent_dist.mean).sample
    psnr = 10 * torch.log10(4 / (x - r).pow(2).mean()).item()
    say(f"latents: scaling {vae.config.scaling_factor:.4f}, channel std {z.std((0, 2, 3)).tolist()}, "
        f"reconstruction {psnr:.2f} dB")

# 4. text encoder and U-Net, min-SNR-5 weighted epsilon loss, 10 % empty prompts
V = len(vocab)
text = CLIPTextModel(
    CLIPTextConfig(vocab_size=V,
                   hidden_size=128,
                   intermediate_size=256,
                   num_hidden_layers=2,
                   num_attention_heads=4,
                   max_position_embeddings=LENGTH,
                   bos_token_id=V - 2,
                   eos_token_id=V - 1,
                   pad_token_id=V - 1,
                   projection_dim=128)).to(dev)
unet = make_unet()
sizes = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (unet, text)]
say(f"U-Net {sizes[0]:.1f} M parameters, text {sizes[1]:.1f} M, {V} tokens")
if warm is not None:
    warm.wait(120)
fast = torch.compile(unet) if a.compile else unet
schedule = DDPMScheduler(**SCHEDULE)
ac = schedule.alphas_cumprod.to(dev)
snr = ac / (1 - ac)
weight = snr.clamp(max=5) / snr
weight = weight / weight.mean()
params = [*unet.parameters(), *text.parameters()]
opt = torch.optim.AdamW(params, lr=8e-4, weight_decay=1e-2, betas=(0.9, 0.99), fused=dev == "cuda")
ema = Ema(unet, text, limit=0.999)
lab = torch.from_numpy(labels).to(dev)


def unet_step():
    i = torch.randint(0, N, (a.batch, ), device=dev)
    f = torch.randint(0, 2, (a.batch, ), device=dev)
    m, s = mean[f, i].float(), std[f, i].float()
    x = (m + s * torch.randn_like(m)) * vae.config.scaling_factor
    token = ids[pick[lab[i], torch.randint(0, width, (a.batch, ), device=dev)]]
    token = torch.where(torch.rand(a.batch, 1, device=dev) < 0.1, empty, token)
    t = torch.randint(0, 1000, (a.batch, ), device=dev)
    n = torch.randn_like(x)
    noisy = ac[t].sqrt().view(-1, 1, 1, 1) * x + (1 - ac[t]).sqrt().view(-1, 1, 1, 1) * n
    with torch.autocast(**amp):
        e = fast(noisy.to(memory_format=torch.channels_last), t, text(token)[0].float()).sample
    loss = (((e.float() - n)**2).mean((1, 2, 3)) * weight[t]).mean()
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    opt.step()
    ema.update()
    return loss


timed("unet", a.unet_seconds, 8e-4, opt, unet_step)
ema.load()
unet.eval()
text.eval()

# 5. save, and a look
scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1)


@torch.no_grad()
def sample(prompts, guidance=3.0, steps=25):
    g = torch.Generator(dev).manual_seed(1)
    x = torch.randn(len(prompts), 4, 16, 16, device=dev, generator=g)
    c = text(torch.cat([empty.expand(len(prompts), -1), tokens(prompts).to(dev)]))[0]
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        u, k = unet(torch.cat([x, x]), t, c).sample.chunk(2)
        x = scheduler.step(u + guidance * (k - u), t, x).prev_sample
    return vae.decode(x / vae.config.scaling_factor).sample


vae.half().save_pretrained(os.path.join(a.out, "vae"))
vae.float()
unet.half().save_pretrained(os.path.join(a.out, "unet"), max_shard_size="14MB")
unet.float()
text.half().save_pretrained(os.path.join(a.out, "text_encoder"))
text.float()
scheduler.save_pretrained(os.path.join(a.out, "scheduler"))
json.dump(
    {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "scheduler": [
            "diffusers", "DDIMScheduler"
        ], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"], "unet":
        ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None],
        "feature_extractor": [None, None], "requires_safety_checker": False
    },
    open(os.path.join(a.out, "model_index.json"), "w"),
    indent=1)
say("saved")
shown = list(range(0, len(NAMES), max(1, len(NAMES) // 20)))[:20]
contact_sheet(sample([f"a photo of a {NAMES[c][0]}" for c in shown for _ in range(8)]), 8,
              os.path.join(a.out, "samples.png"))
say("samples of", [NAMES[c][0] for c in shown])
