"""compare.py's worker for PyTorch with diffusers: eager and channels-last, or torch.compile with freezing."""

import statistics
import time

import numpy as np
import torch
from worker import serve, unet_inputs

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def load(job):
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    label = f"PyTorch {torch.__version__}{' compiled' if job.get('compile') else ''}"
    if job["task"] == "unet":
        from diffusers import UNet2DConditionModel

        dtype = DTYPES[job["dtype"]]
        unet = UNet2DConditionModel.from_pretrained(f"{job['model']}/unet",
                                                    torch_dtype=dtype).eval().to(memory_format=torch.channels_last)
        if job.get("compile"):
            from torch._inductor import config as inductor

            inductor.freezing = True
            unet = torch.compile(unet)
        inputs = {name: torch.from_numpy(array).to(dtype) for name, array in unet_inputs(job).items()}
        sample, context = inputs.pop("sample").to(memory_format=torch.channels_last), inputs.pop("context")
        t = torch.tensor(500)
        return lambda: unet(sample, t, context, added_cond_kwargs=inputs), label
    if job["task"] == "vae":
        from diffusers import AutoencoderKL

        dtype = DTYPES[job["dtype"]]
        vae = AutoencoderKL.from_pretrained(f"{job['model']}/vae",
                                            torch_dtype=dtype).eval().to(memory_format=torch.channels_last)
        if job["direction"] == "decode":
            z = torch.randn(1, 4, 64, 64).to(dtype).to(memory_format=torch.channels_last)
            return lambda: vae.decode(z), label
        x = torch.randn(1, 3, 512, 512).to(dtype).to(memory_format=torch.channels_last)
        return lambda: vae.encode(x), label
    if job["task"] == "attention":
        q, k, v = (torch.randn(job["rows"], job["heads"], job["tokens"], job["width"]).to(DTYPES[job["dtype"]])
                   for _ in range(3))
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), label
    if job["task"] == "generate" and job.get("img2img"):
        return img2img(job), f"{label}, diffusers' LCM img2img"
    if job["task"] == "generate":
        return authors(job), f"{label}, the authors' recursion"
    raise ValueError(f"unknown task {job['task']!r}")


def img2img(job, unet=None):
    """diffusers' img2img of a latent consistency model; `unet` stands in for the U-Net."""
    from diffusers import (AutoencoderKL, AutoencoderTiny, LatentConsistencyModelImg2ImgPipeline, LCMScheduler,
                           UNet2DConditionModel)
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, dtype = job["model"], DTYPES[job["dtype"]]
    vae = AutoencoderTiny.from_pretrained(job["vae"], torch_dtype=dtype) if job.get(
        "vae") else AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=dtype)
    if unet is None:
        unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet",
                                                    torch_dtype=dtype).to(memory_format=torch.channels_last)
    pipe = LatentConsistencyModelImg2ImgPipeline(
        vae=vae.to(memory_format=torch.channels_last),
        text_encoder=CLIPTextModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(f"{folder}/tokenizer"),
        unet=unet,
        scheduler=LCMScheduler.from_pretrained(f"{folder}/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    size = unet.config.sample_size * pipe.vae_scale_factor
    pixels = np.random.default_rng(0).integers(0, 256, (job["images"], size, size, 3), dtype=np.uint8)
    options = dict(num_inference_steps=job["steps"], strength=job["strength"], guidance_scale=7.5, output_type="np")

    def run():
        for image in pixels:
            for _ in range(job["variants"]):
                pipe("a photo of a coat", image=Image.fromarray(image), **options)

    return run


def authors(job, predict=None):
    """Their pipeline as published, on a CPU: for each image and variant, four U-Net rows a step, one after the other.
    `predict` (latents, timestep, context, all float32) stands in for the U-Net."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, dtype = job["model"], DTYPES[job["dtype"]]
    if predict is None:
        unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet",
                                                    torch_dtype=dtype).eval().to(memory_format=torch.channels_last)
        unet.mid_block.register_forward_hook(perturb)
        predict = lambda x, t, context: unet(x.to(dtype), t, context.to(dtype)).sample.float()  # noqa: E731
    vae = AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=dtype).eval().to(memory_format=torch.channels_last)
    text = CLIPTextModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=dtype).eval()
    tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
    ddim = DDIMScheduler.from_pretrained(f"{folder}/scheduler")
    ddim.set_timesteps(job["steps"])
    timesteps = ddim.timesteps[-int(job["steps"] * job["strength"]):]
    stride = ddim.config.num_train_timesteps // job["steps"]
    size = UNet2DConditionModel.load_config(f"{folder}/unet")["sample_size"] * 2**(len(vae.config.block_out_channels)
                                                                                   - 1)
    scale, seconds = vae.config.scaling_factor, []
    images = np.random.default_rng(0).integers(0, 256, (job["images"], size, size, 3), dtype=np.uint8)

    def embed(prompt):
        ids = tokenizer(prompt,
                        padding="max_length",
                        max_length=tokenizer.model_max_length,
                        truncation=True,
                        return_tensors="pt").input_ids
        return text(ids).last_hidden_state

    def alpha(t):
        return ddim.alphas_cumprod[t] if t >= 0 else ddim.final_alpha_cumprod

    def variant(z0, start, context):
        x_source = x = start
        for t in timesteps:
            begun = time.perf_counter()
            t, p = int(t), int(t) - stride
            a_t, a_p = alpha(t), alpha(p)
            sigma = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
            eps = predict(torch.cat([x_source, x, x_source, x]), t, context)
            eps_source = eps[0:1] + 1.5 * (eps[2:3] - eps[0:1])
            eps_target = eps[1:2] + 7.5 * (eps[3:4] - eps[1:2])
            if p <= 0:
                following = z0
            else:
                e = (x_source - a_t.sqrt() * z0) / (1 - a_t).sqrt()
                following = a_p.sqrt() * z0 + (1 - a_p - sigma**2).sqrt() * e + sigma * torch.randn_like(z0)
            clean = (x_source - (1 - a_t).sqrt() * eps_source) / a_t.sqrt()
            z = (following - a_p.sqrt() * clean - (1 - a_p - sigma**2).clamp(min=0).sqrt() * eps_source) / sigma
            x = ddim.step(eps_target, t, x, eta=1.0, variance_noise=z).prev_sample
            x_source = following
            seconds.append(time.perf_counter() - begun)
        return x

    def run():
        seconds.clear()
        source = embed("")
        for image in images:
            target = embed("a photo of a coat")
            context = torch.cat([source, source, source, target])
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
            z0 = vae.encode(pixels.to(dtype)).latent_dist.sample().float() * scale
            start = ddim.add_noise(z0, torch.randn_like(z0), timesteps[:1])
            latents = torch.cat([variant(z0, start, context) for _ in range(job["variants"])])
            for latent in latents:  # one by one: all at once, as published, only costs memory
                vae.decode((latent[None] / scale).to(dtype))
        return statistics.median(seconds) * job["images"] * job["variants"]

    return run


def perturb(module, arguments, output):
    output = output.clone()
    output[1::2] += 3 * torch.randn_like(output[1::2])
    return output


if __name__ == "__main__":
    serve(load)
