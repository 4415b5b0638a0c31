"""Trains a diffusion model to memorise 20 images: what `dreamda audit` has to catch.

    python memorise.py IMAGES OUT [--steps 2500]

A small U-Net in pixel space sees nothing but the images in the folder IMAGES, again and again, until all that it makes
is one of them. OUT becomes a folder of diffusers (DDPMPipeline). Needs torch and diffusers; minutes on 2 CPU cores.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

ap = argparse.ArgumentParser()
ap.add_argument("images")
ap.add_argument("out")
ap.add_argument("--steps", type=int, default=2500)
a = ap.parse_args()
torch.manual_seed(0)
files = sorted(Path(a.images).rglob("*.png"))
pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
unet = UNet2DModel(sample_size=images.shape[-1], in_channels=3, out_channels=3, layers_per_block=1,
                   block_out_channels=(16, 32, 64), norm_num_groups=8,
                   down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
                   up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"))
scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=True)
optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=0)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, a.steps, pct_start=0.05)
average = {name: value.clone() for name, value in unet.state_dict().items()}
begun = time.time()
for step in range(a.steps):
    batch = images[torch.randint(len(images), (16,))]
    noise, t = torch.randn_like(batch), torch.randint(1000, (len(batch),))
    loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(batch, noise, t), t).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1)
    optimizer.step()
    rate.step()
    with torch.no_grad():
        kept = min(0.995, (step + 1) / (step + 10))
        for name, value in unet.state_dict().items():
            average[name].lerp_(value, 1 - kept)
    if step % 100 == 99:
        print(f"step {step + 1}, loss {loss.item():.4f}, {time.time() - begun:.0f} s", flush=True)
unet.load_state_dict(average)
out = Path(a.out)
unet.save_pretrained(out / "unet")
scheduler.save_pretrained(out / "scheduler")
(out / "model_index.json").write_text(json.dumps({
    "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]
}))
