"""diffusers' StableDiffusionXLImg2ImgPipeline, from an image to an image, with the noise that sdxl_ours.py has drawn.

    TORCH_ENVIRONMENT/bin/python tests/parity/sdxl_reference.py WORK TOKENIZER         # first: makes the models
    TORCH_ENVIRONMENT/bin/python tests/parity/sdxl_reference.py WORK                   # after sdxl_ours.py

WORK/MODEL: whole folders with random weights. WORK/reference.npz holds what WORK/ours.npz does.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from cases import _TEXT
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from sdxl_cases import CASES, ENCODES_EMPTY, LORA, LORA_LAYERS, MODELS, PROMPT, SCHEDULER, STEPS, STRENGTH
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.integrations import peft as integration

integration.MIN_PEFT_VERSION = "0.21.0"  # transformers 5.24 asks for a version of peft that is not published
torch.set_num_threads(1)  # networks this small gain nothing from more
torch.set_grad_enabled(False)
diffusers.utils.logging.set_verbosity_error()
# Where the pipeline draws noise: modules, and names in noise.npz.
DRAWN = {
    "pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img": "start",
    "models.autoencoders.vae": "posterior",
    **{f"schedulers.scheduling_{name}": "step" for name in ("ddim", "euler_ancestral_discrete", "lcm")},
}


def make(work: Path, tokenizer: Path) -> None:
    torch.manual_seed(0)
    length = json.loads((tokenizer / "tokenizer_config.json").read_text())["model_max_length"]
    sizes = _TEXT | dict(
        max_position_embeddings=length, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    first = CLIPTextModel(CLIPTextConfig(**sizes, hidden_size=48, hidden_act="quick_gelu"))
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(**sizes | dict(eos_token_id=2), hidden_size=64, projection_dim=72, hidden_act="gelu"))
    words, more = CLIPTokenizer.from_pretrained(tokenizer), CLIPTokenizer.from_pretrained(tokenizer, pad_token="!")
    for name, config in MODELS.items():
        vae = AutoencoderKL(block_out_channels=(16, 32, 32),
                            down_block_types=("DownEncoderBlock2D",) * 3,
                            up_block_types=("UpDecoderBlock2D",) * 3,
                            latent_channels=4,
                            norm_num_groups=8,
                            scaling_factor=0.13025,
                            force_upcast=True,
                            **(dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 0.8, 1.3])
                               if name == ENCODES_EMPTY else {}))
        StableDiffusionXLImg2ImgPipeline(vae, first, second, words, more, UNet2DConditionModel(**config),
                                         DDIMScheduler(**SCHEDULER),
                                         force_zeros_for_empty_prompt=name != ENCODES_EMPTY,
                                         add_watermarker=False).save_pretrained(work / name)


    tensors = {}
    for name, (out, inputs) in LORA_LAYERS.items():
        tensors |= {f"{name}.lora_down.weight": 0.3 * torch.randn(4, inputs),
                    f"{name}.lora_up.weight": 0.3 * torch.randn(out, 4),
                    f"{name}.alpha": torch.tensor(3.0)}
    save_file(tensors, work / LORA)


def run(work: Path, case: dict, noise: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    kind = getattr(diffusers, case["kind"])
    scheduler = kind(**SCHEDULER | case.get("scheduler", {})
                     | (dict(clip_sample=False, set_alpha_to_one=False) if case["kind"] == "DDIMScheduler" else {}))
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(work / case["model"], scheduler=scheduler,
                                                            add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    if "lora" in case:
        pipe.load_lora_weights(work, weight_name=LORA)
        pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=case["lora"])
        pipe.unload_lora_weights()
    results = []
    for output in ("latent", "np"):
        drawn = {name: iter(value if name == "step" else value[None])
                 for name, value in noise.items() if name != "image"}
        with ExitStack() as stack:
            for module, name in DRAWN.items():
                stack.enter_context(
                    mock.patch(f"diffusers.{module}.randn_tensor",
                               lambda *_, left=drawn[name], **__: next(left)[None]))
            results.append(
                pipe(PROMPT,
                     image=Image.fromarray(noise["image"].numpy()),
                     strength=case.get("strength", STRENGTH),
                     num_inference_steps=case.get("steps", STEPS),
                     guidance_scale=case["guidance_scale"],
                     negative_prompt=case.get("negative_prompt"),
                     eta=case["eta"],
                     output_type=output).images[0])
    return dict(latents=results[0].numpy(), pixels=np.rint(results[1] * 255).astype(np.uint8))


def main(work: Path) -> None:
    with np.load(work / "noise.npz") as stored:
        noise = {name: torch.from_numpy(stored[name]) for name in stored.files}
    results = {}
    for name, case in CASES.items():
        results |= {f"{name}.{key}": value for key, value in run(work, case, noise).items()}
    np.savez(work / "reference.npz", **results)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        make(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
