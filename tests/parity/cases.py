"""The networks that both sides run, as diffusers and transformers configurations. NumPy and the standard library
only."""

from collections.abc import Callable

import numpy as np

CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")


def _unet(channels: tuple[int, ...], plain: tuple[int, ...], **options) -> dict:
    """Keyword arguments of UNet2DConditionModel; `plain` lists the levels without attention."""
    kinds = [PLAIN if level in plain else CROSS for level in range(len(channels))]
    return dict(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=tuple(kind[0] for kind in kinds),
        up_block_types=tuple(kind[1] for kind in reversed(kinds)),
    ) | options


def _pixel_unet(channels: tuple[int, ...], attention: tuple[int, ...], **options) -> dict:
    """Keyword arguments of UNet2DModel; `attention` lists the levels with attention."""
    levels = range(len(channels))
    return dict(
        in_channels=3,
        out_channels=3,
        sample_size=32,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if level in attention else "DownBlock2D" for level in levels),
        up_block_types=tuple("AttnUpBlock2D" if level in attention else "UpBlock2D" for level in reversed(levels)),
    ) | options


_SMALL = _unet((32, 64), (1, ),
               layers_per_block=1,
               cross_attention_dim=48,
               attention_head_dim=4,
               norm_num_groups=8,
               sample_size=16)
_SDXL = _unet((64, 128, 256), (0, ),
              layers_per_block=2,
              transformer_layers_per_block=[1, 2, 10],
              cross_attention_dim=112,
              attention_head_dim=(1, 2, 4),
              use_linear_projection=True,
              addition_embed_type="text_time",
              addition_time_embed_dim=32,
              projection_class_embeddings_input_dim=72 + 6 * 32,
              sample_size=32)
_TEXT = dict(vocab_size=1000, max_position_embeddings=77, bos_token_id=998, eos_token_id=999, pad_token_id=999)

# name -> family, configuration, and the shape of the inputs. `file` is what the weights are saved as; `norms` makes the
# affine parameters of the norms random too (their initial ones and zeros would hide a mix-up).
CASES: dict[str, dict] = {
    # Stable Diffusion 1.5, 860 M parameters, initialised as PyTorch does.
    "sd15":
    dict(family="unet",
         rows=2,
         height=64,
         width=64,
         tokens=77,
         config=_unet((320, 640, 1280, 1280), (3, ),
                      layers_per_block=2,
                      cross_attention_dim=768,
                      attention_head_dim=8,
                      sample_size=64),
         ),
    # A latent consistency model of that size (LCM_Dreamshaper_v7): the guidance scale is an input.
    "lcm":
    dict(family="unet",
         rows=2,
         height=64,
         width=64,
         tokens=77,
         config=_unet((320, 640, 1280, 1280), (3, ),
                      layers_per_block=2,
                      cross_attention_dim=768,
                      attention_head_dim=8,
                      sample_size=64,
                      time_cond_proj_dim=256),
         ),
    # Stable Diffusion 2.1 at half its width.
    "sd21":
    dict(family="unet",
         rows=2,
         height=32,
         width=32,
         tokens=77,
         norms=True,
         config=_unet((160, 320, 640, 640), (3, ),
                      layers_per_block=2,
                      cross_attention_dim=1024,
                      attention_head_dim=(5, 10, 20, 20),
                      use_linear_projection=True,
                      sample_size=32),
         ),
    # Sizes that no level divides: each upsampling has to aim at the skip connection's size.
    "odd":
    dict(family="unet",
         rows=3,
         height=9,
         width=7,
         tokens=11,
         norms=True,
         config=_unet((32, 64, 96), (1, ),
                      layers_per_block=1,
                      cross_attention_dim=40,
                      attention_head_dim=(2, 4, 3),
                      norm_num_groups=8,
                      sample_size=8),
         ),
    # SD 2's 64 channels a head, several transformer layers, other time embedding, other input and output widths.
    "deep":
    dict(family="unet",
         rows=2,
         height=16,
         width=24,
         tokens=77,
         norms=True,
         config=_unet((64, 128, 192), (0, ),
                      layers_per_block=2,
                      transformer_layers_per_block=(1, 2, 3),
                      cross_attention_dim=64,
                      attention_head_dim=(1, 2, 3),
                      use_linear_projection=True,
                      flip_sin_to_cos=False,
                      freq_shift=1,
                      in_channels=5,
                      out_channels=3,
                      norm_num_groups=16,
                      sample_size=16),
         ),
    # SDXL at a fifth of its width: the pooled text and the size of the image as conditions.
    "sdxl":
    dict(family="unet", rows=2, height=32, width=24, tokens=77, norms=True, config=_SDXL),
    # SSD-1B's numbers of transformer layers, and its mid block without attention.
    "ssd1b":
    dict(family="unet",
         rows=3,
         height=16,
         width=16,
         tokens=77,
         norms=True,
         file="bfloat16",
         config=_SDXL | dict(mid_block_type="UNetMidBlock2D",
                             transformer_layers_per_block=[1, [2, 2], [4, 4]],
                             reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1]),
         ),
    # BK-SDM-tiny at a tenth of its width: no mid block.
    "cut":
    dict(family="unet",
         rows=2,
         height=16,
         width=24,
         tokens=77,
         norms=True,
         config=_unet((32, 64, 128), (),
                      layers_per_block=1,
                      cross_attention_dim=48,
                      attention_head_dim=8,
                      norm_num_groups=8,
                      mid_block_type=None,
                      sample_size=16),
         ),
    # Classes beside the text, norms that the timestep scales, and a mid block of one ResNet block.
    "classes":
    dict(family="unet",
         rows=3,
         height=16,
         width=16,
         tokens=9,
         norms=True,
         config=_SMALL | dict(num_class_embeds=7, resnet_time_scale_shift="scale_shift",
                              mid_block_type="UNetMidBlock2D"),
         ),
    # google/ddpm-cifar10-32 at full size, 35.7 M parameters.
    "ddpm":
    dict(family="pixel_unet",
         rows=2,
         height=32,
         width=32,
         norms=True,
         config=_pixel_unet((128, 256, 256, 256), (1, ),
                            attention_head_dim=None,
                            downsample_padding=0,
                            flip_sin_to_cos=False,
                            freq_shift=1,
                            norm_eps=1e-6),
         ),
    # What diffusers' example of unconditional training makes, at a quarter of its width, with classes.
    "ddpm-classes":
    dict(family="pixel_unet",
         rows=2,
         height=64,
         width=64,
         norms=True,
         config=_pixel_unet((32, 32, 64, 64, 128, 128), (4, ), num_class_embeds=10),
         ),
    "ddpm-shift":
    dict(family="pixel_unet",
         rows=2,
         height=16,
         width=24,
         norms=True,
         config=_pixel_unet((32, 64), (0, 1),
                            norm_num_groups=8,
                            attention_head_dim=16,
                            class_embed_type="timestep",
                            center_input_sample=True,
                            resnet_time_scale_shift="scale_shift",
                            in_channels=1,
                            out_channels=1),
         ),
    "ddpm-cut":
    dict(family="pixel_unet",
         rows=2,
         height=16,
         width=16,
         norms=True,
         config=_pixel_unet((32, 64), (1, ), norm_num_groups=8, class_embed_type="identity", mid_block_type=None),
         ),
    "fp16-file":
    dict(family="unet", rows=2, height=16, width=16, tokens=9, norms=True, file="float16", config=_SMALL),
    "bf16-file":
    dict(family="unet", rows=2, height=16, width=16, tokens=9, norms=True, file="bfloat16", config=_SMALL),
    "fp16-shards":
    dict(family="unet", rows=1, height=8, width=16, tokens=9, norms=True, file="float16", shards=True, config=_SMALL),
    # Stable Diffusion's VAE at 256 x 256 pixels, and a small one without its optional parts.
    "vae":
    dict(family="vae",
         rows=1,
         height=256,
         width=256,
         config=dict(block_out_channels=(128, 256, 512, 512),
                     layers_per_block=2,
                     down_block_types=("DownEncoderBlock2D", ) * 4,
                     up_block_types=("UpDecoderBlock2D", ) * 4,
                     latent_channels=4,
                     sample_size=256),
         ),
    "vae-plain":
    dict(family="vae",
         rows=2,
         height=48,
         width=32,
         norms=True,
         config=dict(block_out_channels=(32, 48, 64),
                     layers_per_block=1,
                     down_block_types=("DownEncoderBlock2D", ) * 3,
                     up_block_types=("UpDecoderBlock2D", ) * 3,
                     latent_channels=8,
                     norm_num_groups=8,
                     use_quant_conv=False,
                     use_post_quant_conv=False,
                     mid_block_add_attention=False,
                     sample_size=32),
         ),
    # TAESD at Stable Diffusion's size, and a small one with another depth and width.
    "taesd":
    dict(family="tiny_vae", rows=1, height=512, width=512, config={}),
    "tiny-vae":
    dict(family="tiny_vae",
         rows=3,
         height=24,
         width=40,
         config=dict(encoder_block_out_channels=(32, ) * 3,
                     decoder_block_out_channels=(48, ) * 3,
                     num_encoder_blocks=(1, 2, 1),
                     num_decoder_blocks=(2, 1, 1),
                     latent_channels=8,
                     scaling_factor=0.5),
         ),
    # The text half of CLIP ViT-L/14 (SD 1.x), and SD 2's at 4 of 23 layers.
    "clip-l":
    dict(family="clip",
         rows=2,
         lengths=(77, 20),
         config=dict(vocab_size=49408,
                     hidden_size=768,
                     intermediate_size=3072,
                     num_hidden_layers=12,
                     num_attention_heads=12,
                     max_position_embeddings=77,
                     hidden_act="quick_gelu"),
         ),
    "clip-h":
    dict(family="clip",
         rows=2,
         lengths=(77, 5),
         norms=True,
         config=_TEXT | dict(
             hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=16, hidden_act="gelu"),
         ),
    # SDXL's second text encoder at 6 of 32 layers and a quarter of its width.
    "clip-g":
    dict(family="clip_projection",
         rows=3,
         lengths=(77, 9),
         norms=True,
         config=_TEXT | dict(architectures=["CLIPTextModelWithProjection"],
                             hidden_size=320,
                             intermediate_size=1280,
                             num_hidden_layers=6,
                             num_attention_heads=5,
                             projection_dim=256,
                             hidden_act="gelu",
                             eos_token_id=2),
         ),
}
NOISE_SCALE = 3.0


def inputs(case: dict, turn: int) -> dict[str, np.ndarray]:
    """What is fed in at turn 0 or 1; different values, and for CLIP different lengths."""
    rng = np.random.RandomState(100 + turn)

    def normals(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    config, rows = case["config"], case["rows"]
    if case["family"].startswith("clip"):
        tokens = rng.randint(0, config["vocab_size"] - 1, (rows, case["lengths"][turn])).astype(np.int32)
        if case["family"] == "clip_projection":  # an end token somewhere
            tokens[np.arange(rows), rng.randint(0, case["lengths"][turn], rows)] = config["vocab_size"] - 1
        return dict(tokens=tokens)
    height, width = case["height"], case["width"]
    if case["family"] in ("vae", "tiny_vae"):
        levels = config.get("block_out_channels") or config.get("num_encoder_blocks", (1, 3, 3, 3))
        factor = 2 ** (len(levels) - 1)
        return dict(image=rng.uniform(-1, 1, (rows, 3, height, width)).astype(np.float32),
                    latent=normals(rows, config.get("latent_channels", 4), height // factor, width // factor))
    if case["family"] == "pixel_unet":
        return _pixels(case, rng, normals)
    bottom = [size for size in (height, width)]
    for _ in config["block_out_channels"][1:]:
        bottom = [(size + 1) // 2 for size in bottom]
    scale = np.full(rows, NOISE_SCALE, np.float32)
    scale[: rows - 1 : 2] = 0  # some rows stay clean
    more = dict(guidance_scale=rng.uniform(1, 8, rows).astype(np.float32)) if config.get("time_cond_proj_dim") else {}
    if ids := config.get("addition_time_embed_dim"):
        more = dict(text_embeds=normals(rows, config["projection_class_embeddings_input_dim"] - 6 * ids),
                    time_ids=rng.randint(0, 1200, (rows, 6)).astype(np.float32))
    if classes := config.get("num_class_embeds"):
        more |= dict(class_labels=rng.randint(0, classes, rows).astype(np.int32))
    return more | dict(
        sample=normals(rows, config["in_channels"], height, width),
        timestep=rng.randint(1, 1000, rows).astype(np.float32),
        context=normals(rows, case["tokens"], config["cross_attention_dim"]),
        noise=normals(rows, config["block_out_channels"][-1], *bottom),
        noise_scale=scale,
    )


def _pixels(case: dict, rng: np.random.RandomState, normals: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of a UNet2DModel."""
    config, rows, height, width = (case[key] for key in ("config", "rows", "height", "width"))
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    given = dict(
        sample=normals(rows, config["in_channels"], height, width),
        timestep=rng.randint(1, 1000, rows).astype(np.float32),
        noise=normals(rows, config["block_out_channels"][-1], height // factor, width // factor),
        noise_scale=np.full(rows, NOISE_SCALE, np.float32),
    )
    if classes := config.get("num_class_embeds"):
        given |= dict(class_labels=rng.randint(0, classes, rows).astype(np.int32))
    elif config.get("class_embed_type") == "timestep":
        given |= dict(class_labels=rng.randint(0, 20, rows).astype(np.float32))
    elif config.get("class_embed_type") == "identity":
        given |= dict(class_labels=normals(rows, 4 * config["block_out_channels"][0]))
    return given
