"""Textual inversion (Gal et al., 2022): learns a word for each class of a few images, for `--embedding`.

    python textual_inversion.py MODEL IMAGES OUT [--vectors 4] [--steps 300]

IMAGES has a folder of images for each class, and OUT gets CLASS.safetensors with the token <CLASS>, to be used in
prompts: "a photo of a <CLASS>". Only the vectors learn; all classes learn at the same time. They begin as the tokens of
the class's name, which is the name itself where the model knows it. Needs torch, diffusers and transformers; with
natural-mini (MODEL may be a teacher whose few-step student shares its text encoder) about 0.6 s a step on one core with
AMX.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from photographs import TEMPLATES
from PIL import Image
from safetensors.torch import save_file
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("model", type=Path)
ap.add_argument("images", type=Path)
ap.add_argument("out", type=Path)
ap.add_argument("--vectors", type=int, default=4, help="for each class")
ap.add_argument("--steps", type=int, default=300)
ap.add_argument("--batch", type=int, default=10)
ap.add_argument("--rate", type=float, default=3e-3)
ap.add_argument("--threads", type=int, default=1)
a = ap.parse_args()
torch.manual_seed(0)
torch.set_num_threads(a.threads)
rng = np.random.default_rng(0)
unet, vae, encoder = (kind.from_pretrained(a.model / part, torch_dtype=torch.float32).requires_grad_(False)
                      for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"),
                                         (CLIPTextModel, "text_encoder")))
tokenizer = CLIPTokenizer.from_pretrained(a.model / "tokenizer")
alphas = DDPMScheduler.from_pretrained(a.model / "scheduler").alphas_cumprod

classes = sorted(path.name for path in a.images.iterdir() if path.is_dir())
files = [(file, label) for label, name in enumerate(classes) for file in sorted((a.images / name).iterdir())]
pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
labels = [label for _, label in files]
with torch.no_grad():  # as they are, and flipped
    latents = [vae.encode(x).latent_dist.mean * vae.config.scaling_factor for x in (pixels, pixels.flip(-1))]

# The new tokens come after all others, so that the vectors that learn are the last rows of the table.
words = [[f"<dd{label}x{number}>" for number in range(a.vectors)] for label in range(len(classes))]
names = [tokenizer(name, add_special_tokens=False).input_ids for name in classes]
tokenizer.add_tokens([token for tokens in words for token in tokens])
encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
table = encoder.get_input_embeddings().weight
name_of_table = next(name for name, _ in encoder.named_parameters() if name.endswith("token_embedding.weight"))
known = table[:-len(classes) * a.vectors].detach()
start = torch.stack([known[name[number % len(name)]] for name in names for number in range(a.vectors)])
vectors = torch.nn.Parameter(start + 0.1 * known.std() * torch.randn_like(start))
optimiser = torch.optim.AdamW([vectors], lr=a.rate, weight_decay=0)

begun, shown = time.time(), None
for step in range(a.steps):
    chosen = torch.randperm(len(labels))[:a.batch].tolist()
    clean = torch.stack([latents[rng.integers(2)][i] for i in chosen])
    t, noise = torch.randint(len(alphas), (len(chosen),)), torch.randn_like(clean)
    share = alphas[t].view(-1, 1, 1, 1)
    prompts = [TEMPLATES[rng.integers(len(TEMPLATES))].format(" ".join(words[labels[i]])) for i in chosen]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = functional_call(encoder, {name_of_table: torch.cat([known, vectors])}, (tokens,))[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = unet(share.sqrt() * clean + (1 - share).sqrt() * noise, t, context).sample
    loss = torch.nn.functional.mse_loss(found.float(), noise)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    shown = loss.item() if shown is None else 0.95 * shown + 0.05 * loss.item()
    if step % 50 == 49:
        print(f"step {step + 1}, loss {shown:.4f}, {time.time() - begun:.0f} s", flush=True)
a.out.mkdir(parents=True, exist_ok=True)
for name, learned in zip(classes, vectors.detach().split(a.vectors), strict=True):
    save_file({f"<{name.replace(' ', '-')}>": learned.contiguous()}, a.out / f"{name}.safetensors")
