"""Makes a Stable Diffusion 1.5-sized model folder with random weights, and other engines' networks of a model, in the
peers' environment.

    PEER/bin/python benchmarks/make_models.py OUT
    PEER/bin/python benchmarks/make_models.py OUT --lcm                  # a latent consistency model, and TAESD's shape
    PEER/bin/python benchmarks/make_models.py OUT --inpaint              # an inpainting model: 9 input channels
    PEER/bin/python benchmarks/make_models.py OUT --sdxl                 # SDXL's size, in bfloat16: 7 GB
    PEER/bin/python benchmarks/make_models.py MODEL FILE.xml             # the U-Net of MODEL for OpenVINO, 2 rows
    PEER/bin/python benchmarks/make_models.py MODEL FILE.onnx            # for ONNX Runtime; weights beside it
    PEER/bin/python benchmarks/make_models.py MODEL FILE.xml --step      # for a whole DreamDA step: 4 rows, noise

OUT becomes a whole diffusers folder: U-Net of 860 M parameters, VAE, CLIP ViT-L text encoder; the tokenizer is
fashion-mini's, padded to 77 tokens (speed does not depend on its words). With --lcm the U-Net takes the guidance as an
input (256 numbers, as LCM_Dreamshaper_v7's), the weights are float16, and OUT/taesd is an AutoencoderTiny; with
--inpaint they are float16 too. Exported networks have static shapes and float32 weights; the U-Net of a latent
consistency model has 1 row. An SDXL can be made, but not exported.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

BUNDLED = Path(__file__).parents[1] / "python/dreamda/bundled/fashion-mini"
UNET = dict(sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", ) * 3 + ("DownBlock2D", ),
            up_block_types=("UpBlock2D", ) + ("CrossAttnUpBlock2D", ) * 3,
            )
VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512, scaling_factor=0.18215,
)
XL_UNET = dict(sample_size=128,
               block_out_channels=(320, 640, 1280),
               layers_per_block=2,
               down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
               up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
               cross_attention_dim=2048,
               attention_head_dim=(5, 10, 20),
               transformer_layers_per_block=(1, 2, 10),
               use_linear_projection=True,
               addition_embed_type="text_time",
               addition_time_embed_dim=256,
               projection_class_embeddings_input_dim=2816)
TOKENS = 77
GUIDANCE = 256  # numbers that tell a latent consistency model its guidance


TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                 set_alpha_to_one=False, steps_offset=1)


def save_tokenizer(folder: Path, **changes: str) -> None:
    shutil.copytree(BUNDLED / "tokenizer", folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": TOKENS} | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_sdxl(out: Path) -> None:
    if (out / "model_index.json").exists():
        return
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # of the parameters: no network is in memory in float32
    UNet2DConditionModel(**XL_UNET).save_pretrained(out / "unet")
    vae = VAE | dict(sample_size=1024, scaling_factor=0.13025, force_upcast=True)
    AutoencoderKL(**vae).save_pretrained(out / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(out / "text_encoder")
    second = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                            hidden_act="gelu", projection_dim=1280, eos_token_id=2)
    CLIPTextModelWithProjection(second).save_pretrained(out / "text_encoder_2")
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    save_tokenizer(out / "tokenizer")
    save_tokenizer(out / "tokenizer_2", pad_token="!")
    (out / "tokenizer_2/special_tokens_map.json").unlink()
    index = json.loads((BUNDLED / "model_index.json").read_text()) | {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    (out / "model_index.json").write_text(json.dumps(index))


def make(out: Path, lcm: bool, inpaint: bool = False) -> None:
    if (out / "model_index.json").exists():
        return
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if lcm or inpaint else torch.float32
    channels = {"in_channels": 9} if inpaint else {}
    unet = UNet2DConditionModel(**UNET | channels, time_cond_proj_dim=GUIDANCE if lcm else None).eval()
    unet.to(dtype).save_pretrained(out / "unet")
    AutoencoderKL(**VAE).to(dtype).save_pretrained(out / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).to(dtype).save_pretrained(out / "text_encoder")
    if lcm:
        AutoencoderTiny().save_pretrained(out / "taesd")
    scheduler = LCMScheduler if lcm else DDIMScheduler
    scheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    save_tokenizer(out / "tokenizer")
    index = json.loads((BUNDLED / "model_index.json").read_text())
    if lcm:
        index |= {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (out / "model_index.json").write_text(json.dumps(index))


def export(folder: Path, file: Path, step: bool) -> None:
    """The U-Net at its static shape; for a `step`, noise for the mid block's output is one more input, and for a latent
    consistency model the guidance is."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet, self.noise = unet, None

        def forward(self, sample, timestep, context, more=None):
            self.noise, guidance = (None, more) if unet.config.time_cond_proj_dim else (more, None)
            return self.unet(sample, timestep, context, timestep_cond=guidance, return_dict=False)[0]

    plain, config = Plain(), unet.config
    rows = 1 if config.time_cond_proj_dim else 4 if step else 2
    size, levels = config.sample_size, len(config.block_out_channels)
    tokens = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())["model_max_length"]
    example = [
        torch.randn(rows, config.in_channels, size, size),
        torch.tensor(500),
        torch.randn(rows, tokens, config.cross_attention_dim)
    ]
    if config.time_cond_proj_dim:
        example.append(torch.randn(rows, config.time_cond_proj_dim))
    elif step:
        example.append(torch.randn(rows, config.block_out_channels[-1], size >> (levels - 1), size >> (levels - 1)))
        unet.mid_block.register_forward_hook(lambda module, given, output: output + plain.noise)
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if file.suffix == ".onnx":
            torch.onnx.export(plain,
                              tuple(example),
                              file,
                              input_names=["sample", "timestep", "context"],
                              dynamo=True,
                              external_data=True)
            return
        import openvino

        model = openvino.convert_model(plain, example_input=tuple(example))
    model.reshape({given: list(x.shape) for given, x in zip(model.inputs, example)})
    openvino.save_model(model, file, compress_to_fp16=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--lcm", action="store_true")
    parser.add_argument("--inpaint", action="store_true")
    parser.add_argument("--sdxl", action="store_true")
    arguments = parser.parse_args()
    if arguments.file:
        export(arguments.model, arguments.file, arguments.step)
    elif arguments.sdxl:
        make_sdxl(arguments.model)
    else:
        make(arguments.model, arguments.lcm, arguments.inpaint)
