"""U-Net folders as people have them, and those that are refused: a line each. Add a line to add a test.

Every configuration of UNETS is read, and the network has as many parameters as diffusers'. Every one of REFUSED is
refused with a message that says `says`.

    name        what the folder stands for
    config      its config.json
    parameters  their number, as diffusers counts them
"""

from typing import Any

CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
PLAIN = "DownBlock2D", "UpBlock2D"
SELF = "AttnDownBlock2D", "AttnUpBlock2D"


def _blocks(*kinds: tuple[str, str]) -> dict[str, list[str]]:
    return dict(down_block_types=[kind[0] for kind in kinds], up_block_types=[kind[1] for kind in reversed(kinds)])


def _text(channels: list[int], **options: Any) -> dict[str, Any]:
    """As Stable Diffusion 1.5, with other widths of its levels."""
    last = CROSS if len(channels) < 4 else PLAIN
    return dict(_class_name="UNet2DConditionModel", in_channels=4, out_channels=4, block_out_channels=channels,
                layers_per_block=2, cross_attention_dim=768, attention_head_dim=8, sample_size=64,
                **_blocks(*[CROSS] * (len(channels) - 1), last)) | options


def _pixels(channels: list[int], *attention: int, **options: Any) -> dict[str, Any]:
    """A UNet2DModel with attention at some levels."""
    kinds = [SELF if level in attention else PLAIN for level in range(len(channels))]
    return dict(_class_name="UNet2DModel", in_channels=3, out_channels=3, block_out_channels=channels,
                layers_per_block=2, sample_size=64, **_blocks(*kinds)) | options


SD15 = _text([320, 640, 1280, 1280])
SD21 = SD15 | dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
CIFAR = _pixels([128, 256, 256, 256], 1, attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False,
                freq_shift=1, norm_eps=1e-6, sample_size=32)
TRAINED = _pixels([128, 128, 256, 256, 512, 512], 4)

UNETS: list[dict[str, Any]] = [
    dict(name="Stable Diffusion 1.5", config=SD15, parameters=859_520_964),
    dict(name="Stable Diffusion 2.1", config=SD21, parameters=865_910_724),
    dict(name="LCM_Dreamshaper_v7: guidance as an input", config=SD15 | dict(time_cond_proj_dim=256),
         parameters=859_602_884),
    dict(name="BK-SDM-base", config=SD15 | dict(layers_per_block=1), parameters=579_384_964),
    dict(name="BK-SDM-tiny: no mid block",
         config=_text([320, 640, 1280], layers_per_block=1, mid_block_type=None), parameters=323_384_964),
    dict(name="classes beside the text (alone, not in a pipeline)",
         config=_text([64, 128], num_class_embeds=10, resnet_time_scale_shift="scale_shift"), parameters=7_980_420),
    dict(name="google/ddpm-cifar10-32", config=CIFAR, parameters=35_746_307),
    dict(name="google/ddpm-celebahq-256",
         config=CIFAR | _pixels([128, 128, 256, 256, 512, 512], 4, sample_size=256), parameters=113_673_219),
    dict(name="diffusers' example of unconditional training", config=TRAINED, parameters=113_673_219),
    dict(name="the same with ten classes", config=TRAINED | dict(num_class_embeds=10), parameters=113_678_339),
    dict(name="grey images with classes (MNIST)",
         config=_pixels([32, 64, 64], 1, 2, in_channels=1, out_channels=1, num_class_embeds=10, sample_size=28),
         parameters=1_708_289),
    dict(name="classes as timesteps, shifted norms, no attention in the mid block",
         config=_pixels([64, 128], 1, class_embed_type="timestep", resnet_time_scale_shift="scale_shift",
                        add_attention=False), parameters=4_320_963),
    dict(name="in pixel space without a mid block", config=_pixels([64, 128], mid_block_type=None),
         parameters=2_937_347),
]

_PIXELS = _pixels([32, 64], 1)
REFUSED: list[dict[str, Any]] = [
    dict(name="self-attention beside text", config=SD15 | _blocks(CROSS, CROSS, SELF, PLAIN),
         says="'down_block_types' names 'AttnDownBlock2D'"),
    dict(name="simple cross-attention", config=SD15 | dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn"),
         says="'mid_block_type' is 'UNetMidBlock2DSimpleCrossAttn'"),
    dict(name="classes by a projection", config=SD15 | dict(class_embed_type="projection"),
         says="'class_embed_type' is 'projection'"),
    dict(name="a table without classes", config=SD15 | dict(num_class_embeds=0),
         says="'num_class_embeds' has to be null or a whole number from 1 to 1048576"),
    dict(name="norms by spatial conditions", config=SD15 | dict(resnet_time_scale_shift="spatial"),
         says="'resnet_time_scale_shift' is 'spatial'"),
    dict(name="another padding", config=SD15 | dict(downsample_padding=2), says="'downsample_padding' is 2"),
    dict(name="in pixel space, cross-attention", config=_PIXELS | _blocks(PLAIN, CROSS),
         says="'down_block_types' names 'CrossAttnDownBlock2D'"),
    dict(name="in pixel space, a mid block for text", config=_PIXELS | dict(mid_block_type="UNetMidBlock2DCrossAttn"),
         says="'mid_block_type' is 'UNetMidBlock2DCrossAttn'"),
    dict(name="in pixel space, heads that do not fit", config=_PIXELS | dict(attention_head_dim=5),
         says="'attention_head_dim' is 5, which does not divide the 64 channels of level 1"),
    dict(name="in pixel space, downsampling by ResNet blocks", config=_PIXELS | dict(downsample_type="resnet"),
         says="'downsample_type' is 'resnet', but only 'conv' is supported"),
    dict(name="in pixel space, upsampling by ResNet blocks", config=_PIXELS | dict(upsample_type="resnet"),
         says="'upsample_type' is 'resnet', but only 'conv' is supported"),
    dict(name="ResNet blocks that change the size (guided diffusion)",
         config=_PIXELS | _blocks(("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), PLAIN),
         says="'down_block_types' names 'ResnetDownsampleBlock2D'"),
    dict(name="skip connections of images (NCSN++)", config=_PIXELS | _blocks(("SkipDownBlock2D", "SkipUpBlock2D"),
                                                                              PLAIN),
         says="'down_block_types' names 'SkipDownBlock2D'"),
    dict(name="timesteps as Fourier features (score_sde_ve)", config=_PIXELS | dict(time_embedding_type="fourier"),
         says="'time_embedding_type' is 'fourier'"),
    dict(name="in pixel space, no size", config=_PIXELS | dict(sample_size=None),
         says="'sample_size' has to be a whole number from 1 to 1048576, or [height, width], got None"),
    dict(name="in pixel space, no groups for attention", config=_PIXELS | dict(attn_norm_num_groups=0),
         says="'attn_norm_num_groups' has to be null or a whole number from 1 to 1048576"),
    dict(name="in pixel space, a feature that came later", config=_PIXELS | dict(new_feature=1),
         says="'new_feature' is unknown"),
]
