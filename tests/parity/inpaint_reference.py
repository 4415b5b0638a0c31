"""Inpainting by diffusers' own StableDiffusionInpaintPipeline, which draws our noise.

    TORCH_ENVIRONMENT/bin/python tests/parity/inpaint_reference.py WORK MODEL4 [MODEL9]

Reads WORK/ours.npz (inpaint_ours.py); writes WORK/reference.npz. MODEL9 is WORK/9 where it is not given.
"""

import sys
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.models.autoencoders import vae as autoencoder
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpainting
from inpaint_cases import CASES, COMMON, PROMPT
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_grad_enabled(False)


def pipeline(folder: Path) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(vae=AutoencoderKL.from_pretrained(folder / "vae").float().eval(),
                                          text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").float(),
                                          tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                                          unet=UNet2DConditionModel.from_pretrained(folder / "unet").float().eval(),
                                          scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
                                          safety_checker=None,
                                          feature_extractor=None,
                                          requires_safety_checker=False)


def run(pipe: StableDiffusionInpaintPipeline, folder: Path, case: dict, given: dict[str, np.ndarray]) -> np.ndarray:
    noise = {key: torch.from_numpy(given[key])[None] for key in ("posterior", "masked", "start")}
    steps = iter(torch.from_numpy(given["steps"])[:, None])
    kind = getattr(diffusers, case.get("kind", "DDIMScheduler"))
    pipe.scheduler = kind.from_pretrained(folder / "scheduler", **case.get("scheduler", {}))
    chosen = dict(strength=COMMON["strength"], num_inference_steps=len(given["steps"]))
    posteriors = [noise["posterior"], noise["masked"]]
    image, hidden = Image.fromarray(given["image"]), Image.fromarray(given["hidden"].astype(np.uint8) * 255)
    keep = torch.from_numpy(~given["hidden"]).float()[None, None]
    keep = torch.nn.functional.interpolate(keep, size=given["start"].shape[1:])
    pixels = torch.from_numpy(given["image"]).permute(2, 0, 1)[None].float() / 127.5 - 1
    moments = pipe.vae.encode(pixels).latent_dist
    z0 = (moments.mean + moments.std * noise["posterior"]) * pipe.vae.config.scaling_factor

    if "kind" in case:  # the pipeline cuts a consistency model's timesteps off, instead of spacing them by the strength
        pipe.scheduler.set_timesteps(chosen["num_inference_steps"], strength=chosen["strength"])
        timesteps = pipe.scheduler.timesteps
        chosen = dict(strength=1.0, timesteps=timesteps.tolist(),
                      latents=pipe.scheduler.add_noise(z0, noise["start"], timesteps[:1]))
        del posteriors[0]  # of the image itself, which it does not encode then
    drawn = iter(posteriors)

    def blend(pipe, i, t, values):
        left, timesteps = values["latents"], pipe.scheduler.timesteps
        at = timesteps.tolist().index(int(t)) + 1
        known = pipe.scheduler.add_noise(z0, noise["start"], timesteps[at: at + 1]) if at < len(timesteps) else z0
        return {"latents": keep * known + (1 - keep) * left}

    with mock.patch(f"{type(pipe.scheduler).__module__}.randn_tensor", lambda shape, **_: next(steps)), \
            mock.patch.object(autoencoder, "randn_tensor", lambda shape, **_: next(drawn)), \
            mock.patch.object(inpainting, "randn_tensor", lambda shape, **_: noise["start"]):
        made = pipe(PROMPT, image, hidden, height=image.height, width=image.width, eta=COMMON["eta"],
                    guidance_scale=case["guidance_scale"], output_type="latent", **chosen,
                    callback_on_step_end=blend if case["blended"] and case["channels"] == 9 else None)
    return made.images[0].numpy()


def main(work: Path, plain: Path, inpaint: Path) -> None:
    with np.load(work / "ours.npz") as ours:
        given = {name: {key.split(".", 1)[1]: ours[key] for key in ours.files if key.startswith(name + ".")}
                 for name in CASES}
    results = {}
    for channels, folder in ((9, inpaint), (4, plain)):
        names = [name for name, case in CASES.items() if case["channels"] == channels and given[name]]
        pipe = pipeline(folder) if names else None
        if names:
            pipe.set_progress_bar_config(disable=True)
        for name in names:
            results[name] = run(pipe, folder, CASES[name], given[name])
    np.savez(work / "reference.npz", **results)


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        torch.set_num_threads(1)  # networks this small gain nothing from more
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else f"{sys.argv[1]}/9"))
