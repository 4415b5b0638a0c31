"""PyTorch's side of LoRA: makes networks and LoRA files as peft, diffusers and kohya's scripts write them, loads each
with `load_lora_weights`, merges it with `fuse_lora` and runs the networks.

    TORCH_ENVIRONMENT/bin/python tests/parity/lora_reference.py WORK

WORK/unet and WORK/text_encoder: the networks. WORK/FILE.safetensors: the LoRA files. WORK/reference.npz: `CASE.sample`
and `CASE.hidden`, and the unchanged networks' as `none.sample` and `none.hidden`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from cases import _SMALL, _TEXT
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya, logging
from lora_cases import LORAS, inputs
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.integrations import peft as integration

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
integration.MIN_PEFT_VERSION = "0.21.0"  # transformers 5.24 asks for a version of peft that is not published
torch.set_num_threads(2)
logging.set_verbosity_error()


def pipeline(work: Path) -> StableDiffusionPipeline:
    """The networks as they were saved, in a pipeline without a VAE."""
    return StableDiffusionPipeline(vae=None,
                                   text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder").eval(),
                                   tokenizer=None,
                                   unet=UNet2DConditionModel.from_pretrained(work / "unet").eval(),
                                   scheduler=DDIMScheduler(),
                                   safety_checker=None,
                                   feature_extractor=None,
                                   requires_safety_checker=False)


def layers(work: Path, targets: list[str], text_targets: list[str], **options) -> tuple[dict, dict, dict, dict]:
    """Random LoRA layers of both networks with peft's names, and their configurations."""
    pipe, found = pipeline(work), []
    for network, wanted in ((pipe.unet, targets), (pipe.text_encoder, text_targets)):
        config = LoraConfig(target_modules=wanted, init_lora_weights=False, **({"r": 4, "lora_alpha": 4} | options))
        network.add_adapter(config)
        state = {name: 0.3 * torch.randn(value.shape) for name, value in get_peft_model_state_dict(network).items()}
        found += [state, config.to_dict()]
    return found[0], found[2], found[1], found[3]


def save(work: Path, name: str, unet: dict, text: dict, **options) -> None:
    StableDiffusionPipeline.save_lora_weights(work, unet, text, weight_name=f"{name}.safetensors", **options)


def make(work: Path) -> None:
    torch.manual_seed(0)
    UNet2DConditionModel(**_SMALL).save_pretrained(work / "unet")
    CLIPTextModel(
        CLIPTextConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                       **_TEXT)).save_pretrained(work / "text_encoder")
    unet, text, unet_config, text_config = layers(work, ATTENTION, TEXT, lora_alpha=7, alpha_pattern={"to_q": 3})
    save(work, "peft", unet, text)
    save(work, "metadata", unet, text, unet_lora_adapter_metadata=unet_config,
         text_encoder_lora_adapter_metadata=text_config)
    # diffusers reads a file as peft's or as its own by the first key, and loses the keys of the other kind
    save(work, "diffusers", *({k: v for k, v in convert_state_dict_to_diffusers(state).items() if "lora_A" not in k
                               and "lora_B" not in k} for state in (unet, text)))
    kohya = convert_state_dict_to_kohya(load_file(work / "peft.safetensors"))
    save_file(kohya, work / "kohya.safetensors")  # whole numbers as alphas
    # One alpha for all: of several, diffusers gives the layers of attention the most frequent.
    save_file({k: torch.tensor(2.5) if k.endswith(".alpha") else v.half() for k, v in kohya.items()},
              work / "kohya-alpha.safetensors")
    unet, text, *_ = layers(work, [*ATTENTION, "conv1", "conv2", "conv_shortcut", "conv"], TEXT)
    save(work, "locon", unet, text)
    unet, text, *_ = layers(work, ATTENTION, TEXT, rank_pattern={"to_q": 2, "proj_in": 7, "fc1": 1})
    save(work, "ranks", unet, text)


@torch.no_grad()
def run(pipe: StableDiffusionPipeline) -> dict[str, np.ndarray]:
    x = {name: torch.from_numpy(array) for name, array in inputs().items()}
    return dict(sample=pipe.unet(x["sample"], x["timestep"], x["context"]).sample.numpy(),
                hidden=pipe.text_encoder(x["tokens"].long()).last_hidden_state.numpy())


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    make(work)
    results = {f"none.{key}": value for key, value in run(pipeline(work)).items()}
    for name, files in LORAS.items():
        pipe = pipeline(work)
        for file, scale in files:  # one after the other, as their scales differ
            pipe.load_lora_weights(work, weight_name=f"{file}.safetensors")
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
        results |= {f"{name}.{key}": value for key, value in run(pipe).items()}
    np.savez(work / "reference.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
