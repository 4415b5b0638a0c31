"""Tiny networks with random weights, for tests of the engine: made from a seed, so that nothing has to be stored."""

import json
import shutil

import numpy as np
from safetensors.numpy import save_file

from random_weights import weight

from dreamda import _core
from dreamda.networks.config import read_text_config, read_unet_config, read_vae_config
from dreamda.networks.hub import BUNDLED

UNET = dict(
    in_channels=4,
    out_channels=4,
    block_out_channels=[16, 32],
    layers_per_block=[1, 1],
    down_attention=[True, False],
    up_attention=[False, True],
    mid_resnets=2,
    mid_attention=1,
    mid_attention_groups=0,
    transformer_layers=[1, 1],
    mid_transformer_layers=1,
    up_transformer_layers=[1] * 4,
    heads=[2, 4],
    context_dim=24,
    norm_num_groups=8,
    norm_eps=1e-5,
    linear_projection=False,
    flip_sin_to_cos=True,
    freq_shift=0.0,
    time_cond_proj_dim=0,
    text_embeds_dim=0,
    time_ids_dim=0,
    class_embedding=0,
    num_class_embeds=0,
    scale_shift=False,
    downsample_one_sided=False,
)
VAE = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=[16, 32],
    layers_per_block=1,
    norm_num_groups=8,
    quant_conv=True,
    post_quant_conv=True,
    mid_attention=True,
)
TINY_VAE = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    encoder_channels=16,
    decoder_channels=16,
    encoder_blocks=[1, 2],
    decoder_blocks=[2, 1],
)
CLIP = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=12,
    projection_dim=0,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)


def load(plan, model):
    shapes = dict(model.parameters())
    for name in plan.missing():
        plan.load(name, weight(name, shapes[name]))
    return plan


def unet(rows=2, height=8, width=8, tokens=5, dtype="f32", threads=2, decoders=1, **changes):
    """A loaded plan, and inputs that fit it."""
    config = UNET | changes
    model = _core.Model("unet", config)
    plan = load(
        model.plan(rows=rows,
                   height=height,
                   width=width,
                   tokens=tokens,
                   dtype=dtype,
                   threads=threads,
                   decoders=decoders), model)
    rng = np.random.default_rng(7)
    inputs = dict(
        sample=rng.standard_normal((rows, 4, height, width), dtype=np.float32),
        timestep=np.linspace(20, 900, rows, dtype=np.float32),
        context=rng.standard_normal((rows, tokens, config["context_dim"]), dtype=np.float32),
    )
    if config["time_cond_proj_dim"]:
        inputs["guidance"] = np.linspace(0, 4000, rows, dtype=np.float32)
    return plan, inputs


# ---- model folders in diffusers' format; images of 16 x 16 pixels

FOLDER_UNET = dict(_class_name="UNet2DConditionModel",
                   sample_size=8,
                   in_channels=4,
                   out_channels=4,
                   block_out_channels=[16, 32],
                   layers_per_block=1,
                   down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                   up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
                   attention_head_dim=[2, 4],
                   cross_attention_dim=32,
                   norm_num_groups=8)
FOLDER_VAE = dict(_class_name="AutoencoderKL",
                  latent_channels=4,
                  block_out_channels=[16, 32],
                  down_block_types=["DownEncoderBlock2D"] * 2,
                  up_block_types=["UpDecoderBlock2D"] * 2,
                  norm_num_groups=8)
FOLDER_TINY_VAE = dict(_class_name="AutoencoderTiny",
                       encoder_block_out_channels=[16] * 2,
                       decoder_block_out_channels=[16] * 2,
                       num_encoder_blocks=[1, 2],
                       num_decoder_blocks=[2, 1])
FOLDER_TEXT = dict(model_type="clip_text_model",
                   vocab_size=598,
                   hidden_size=32,
                   intermediate_size=64,
                   num_hidden_layers=1,
                   num_attention_heads=4,
                   max_position_embeddings=16)


def write_network(folder, config, families, read, file="diffusion_pytorch_model.safetensors"):
    """A folder with a configuration and random weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = [each for family in families for each in _core.Model(family, read(folder)).parameters()]
    save_file({name: weight(name, shape) for name, shape in shapes}, folder / file)
    return folder


def write_vae(folder, **changes):
    """An AutoencoderKL's folder."""
    return write_network(folder, FOLDER_VAE | changes, ["vae_encoder", "vae_decoder"], read_vae_config)


def write_tiny_vae(folder, **changes):
    """An AutoencoderTiny's folder, as of TAESD."""
    return write_network(folder, FOLDER_TINY_VAE | changes, ["tiny_vae_encoder", "tiny_vae_decoder"], read_vae_config)


def write_model(folder, scheduler=(), **changes):
    """The folder of a whole model; `changes` are those of the U-Net's configuration, `scheduler` of the scheduler's."""
    bundled = BUNDLED / "fashion-mini"
    write_network(folder / "unet", FOLDER_UNET | changes, ["unet"], read_unet_config)
    write_network(folder / "text_encoder", FOLDER_TEXT, ["clip_text"], read_text_config, "model.safetensors")
    write_vae(folder / "vae")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(bundled / name, folder / name)
    shutil.copy(bundled / "model_index.json", folder)
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(scheduler)))
    return folder


XL_UNET = dict(cross_attention_dim=32 + 24,
               use_linear_projection=True,
               transformer_layers_per_block=[2, 1],
               addition_embed_type="text_time",
               addition_time_embed_dim=4,
               projection_class_embeddings_input_dim=20 + 6 * 4)
XL_TEXT = FOLDER_TEXT | dict(architectures=["CLIPTextModelWithProjection"],
                             hidden_size=24,
                             hidden_act="gelu",
                             num_hidden_layers=2,
                             projection_dim=20,
                             eos_token_id=2)


def write_sdxl(folder, scheduler=(), index=(), **changes):
    """The folder of an SDXL: `changes` as in `write_model`, `index` those of model_index.json."""
    write_model(folder, scheduler, **XL_UNET | changes)
    write_network(folder / "text_encoder_2", XL_TEXT, ["clip_text"], read_text_config, "model.safetensors")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    for part, change in (("tokenizer", {}), ("tokenizer_2", {"pad_token": "!"})):
        file = folder / part / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        (folder / part / "special_tokens_map.json").unlink(missing_ok=True)
    file = folder / "model_index.json"
    parts = dict(_class_name="StableDiffusionXLPipeline",
                 force_zeros_for_empty_prompt=True,
                 text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
                 tokenizer_2=["transformers", "CLIPTokenizer"])
    file.write_text(json.dumps(json.loads(file.read_text()) | parts | dict(index)))
    return folder


PIXEL_UNET = dict(_class_name="UNet2DModel",
                  sample_size=16,
                  in_channels=3,
                  out_channels=3,
                  block_out_channels=[8, 16],
                  layers_per_block=1,
                  down_block_types=["DownBlock2D", "AttnDownBlock2D"],
                  up_block_types=["AttnUpBlock2D", "UpBlock2D"],
                  attention_head_dim=8,
                  norm_num_groups=4)
DDPM = dict(_class_name="DDPMScheduler", beta_schedule="linear", num_train_timesteps=1000)


def write_pixel_model(folder, scheduler=(), **changes):
    """A model in pixel space, as `DDPMPipeline.save_pretrained` writes it."""
    write_network(folder / "unet", PIXEL_UNET | changes, ["unet"], read_unet_config)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(DDPM | dict(scheduler)))
    (folder / "model_index.json").write_text(
        json.dumps({
            "_class_name": "DDPMPipeline", "_diffusers_version": "0.35.1", "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"]
        }))
    return folder


def write_lcm(folder, **changes):
    """A latent consistency model, which takes the guidance as an input."""
    return write_model(folder, {"_class_name": "LCMScheduler"}, time_cond_proj_dim=8, **changes)
