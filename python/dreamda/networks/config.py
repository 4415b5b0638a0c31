"""Read the JSON configurations of diffusers folders for `dreamda._core.Model`.

Settings that it cannot compute are refused.
"""

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..options import ParameterError

MAX_JSON_BYTES = 16 << 20
_ABSENT = object()
_shown = reprlib.Repr()  # shortens values from untrusted files for messages
_shown.maxstring = _shown.maxother = _shown.maxlong = 200
shown = _shown.repr

_LARGEST = 1 << 20  # whole number in a configuration
_POSITIVE = f"a whole number from 1 to {_LARGEST}"
_LEVELS = f"a list of 1 to 8 whole numbers from 1 to {_LARGEST}"

# The numbers of the core's dd_attention_kind and dd_class_embedding
_NO_ATTENTION, _CROSS_ATTENTION, _SELF_ATTENTION = range(3)
_CLASS_EMBEDDINGS = {"none": 0, "table": 1, "timestep": 2, "identity": 3}
# Features of diffusers' UNet2DConditionModel that change the network, and the only values we compute.
_UNET_FIXED: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# The number of ResNet blocks in a mid block
_MID_BLOCKS = {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1}
_ADDED = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
MAX_SKIPS = 128  # skip connections of a U-Net
TIME_IDS = 6  # numbers about the size of an image, for SDXL: original height and width, top and left, target size
# Keys that change nothing here: training-time ones, and `addition_embed_type_num_heads` and `upcast_attention` (softmax
# is f32 anyway).
_UNET_IGNORED = {"dropout", "addition_embed_type_num_heads", "upcast_attention", "sample_size"}
# The same for UNet2DModel
_PIXEL_UNET_FIXED: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
_PIXEL_UNET_IGNORED = {"dropout", "num_train_timesteps", "sample_size"}
_VAE_FIXED: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
}
_STATISTICS = ("latents_mean", "latents_std")
# `force_upcast` asks for float32 instead of float16; bfloat16 has the range of float32.
_VAE_IGNORED = {"force_upcast", "sample_size", "scaling_factor", "shift_factor"}
_TINY_VAE_FIXED: dict[str, tuple] = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
# diffusers uses the magnitude and the shift only to store latents as bytes; it writes the decoder's channels twice.
_TINY_VAE_IGNORED = {"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"}

# Schedulers whose noise schedule these keys describe, with the defaults of diffusers' classes for absent keys.
_PLAIN: dict[str, Any] = dict(beta_start=0.0001,
                              beta_end=0.02,
                              beta_schedule="linear",
                              clip_sample=False,
                              set_alpha_to_one=True)
_CLIPPED = _PLAIN | dict(clip_sample=True)
_SMALL_BETAS = _PLAIN | dict(beta_start=0.00085, beta_end=0.012)
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _CLIPPED,
    "DDIMParallelScheduler": _CLIPPED,
    "DDPMScheduler": _CLIPPED,
    "DDPMParallelScheduler": _CLIPPED,
    "PNDMScheduler": _PLAIN | dict(set_alpha_to_one=False),
    "LMSDiscreteScheduler": _PLAIN,
    "EulerDiscreteScheduler": _PLAIN,
    "EulerAncestralDiscreteScheduler": _PLAIN,
    "DPMSolverMultistepScheduler": _PLAIN | dict(timestep_spacing="linspace"),
    "DPMSolverSinglestepScheduler": _PLAIN,
    "UniPCMultistepScheduler": _PLAIN,
    "DEISMultistepScheduler": _PLAIN,
    "SASolverScheduler": _PLAIN,
    "HeunDiscreteScheduler": _SMALL_BETAS,
    "KDPM2DiscreteScheduler": _SMALL_BETAS,
    "KDPM2AncestralDiscreteScheduler": _SMALL_BETAS,
    "DPMSolverSDEScheduler": _SMALL_BETAS,
    "LCMScheduler": _SMALL_BETAS | dict(beta_schedule="scaled_linear"),
    "TCDScheduler": _SMALL_BETAS | dict(beta_schedule="scaled_linear"),
}
# Samplers that can replace the scheduler of a model; they keep the model's own noise schedule.
SAMPLERS: dict[str, dict[str, Any]] = {
    "lcm": {"_class_name": "LCMScheduler"},
    "tcd": {"_class_name": "TCDScheduler"},
    "euler-trailing": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
    "ddim-trailing": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler"},
}


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    ValueError
        It is not a single JSON object, or it is far too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder in diffusers' format has one")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, which no configuration is")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


class _Reader:
    """Typed access to one configuration; every error names the file and the key."""

    def __init__(self, path: Path, class_names: tuple[str, ...] = ()) -> None:
        self.path = path
        self.content = read_json(path)
        self.used: set[str] = set()
        name = self.content.get("_class_name")
        if class_names and name is not None and name not in class_names:
            raise self.refuse("_class_name",
                              f"is {_shown.repr(name)}, but only {' or '.join(class_names)} can be loaded here")

    def refuse(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {key!r} {problem}")

    def get(self, key: str, default: Any = _ABSENT) -> Any:
        self.used.add(key)
        if key in self.content:
            return self.content[key]
        if default is _ABSENT:
            raise self.refuse(key, "is missing")
        return default

    def typed(self, key: str, check: Callable[[Any], bool], expected: str, default: Any = _ABSENT) -> Any:
        value = self.get(key, default)
        if not check(value):
            raise self.refuse(key, f"has to be {expected}, got {_shown.repr(value)}")
        return value

    def integer(self, key: str, default: Any = _ABSENT) -> int:
        return self.typed(key, _is_positive, _POSITIVE, default)

    def number(self, key: str, default: Any = _ABSENT, null: float | None = None, low: float = -1e9) -> float:
        """A number of at least `low`; `null`, where given, is the value that a null in the file stands for."""
        if null is not None and self.get(key, default) is None:
            return null
        value = float(self.typed(key, _is_number, "a finite number", default))
        if value < low:
            raise self.refuse(key, f"has to be {low:g} or more, got {value:g}")
        return value

    def boolean(self, key: str, default: Any = _ABSENT) -> bool:
        return self.typed(key, lambda v: isinstance(v, bool), "true or false", default)

    def per_level(self, key: str, levels: int, default: Any = _ABSENT) -> list[int]:
        """A list with one entry per level; a single number stands for all levels."""
        value = self.get(key, default)
        values = [value] * levels if _is_positive(value) else value
        if not (isinstance(values, list) and len(values) == levels and all(map(_is_positive, values))):
            raise self.refuse(
                key, f"has to be {_POSITIVE}, or a list of {levels} (one a level), got {_shown.repr(value)}")
        return values

    def depths(self, key: str, value: Any, blocks: list[int], attention: list[bool]) -> list[list[int]]:
        """Numbers of transformer layers for `blocks` ResNet blocks at each level: a number a level, or a list of them.

        The numbers of levels without `attention` are unused and may be 0.
        """
        values = value if isinstance(value, list) else [value] * len(blocks)
        if len(values) != len(blocks):
            raise self.refuse(key, f"has to be {_POSITIVE}, or a list of {len(blocks)} (one a level), "
                              f"got {_shown.repr(value)}")
        result = []
        for level, (count, attends, depth) in enumerate(zip(blocks, attention, values)):
            each = depth if isinstance(depth, list) else [depth] * count
            if not attends:
                each = [1 if number == 0 else number for number in each]
            if len(each) != count or not all(map(_is_positive, each)):
                raise self.refuse(key, f"has at level {level} to be {_POSITIVE}, or a list of {count} "
                                  f"(one a ResNet block), got {_shown.repr(depth)}")
            result.append(each)
        return result

    def channels(self) -> list[int]:
        value = self.get("block_out_channels")
        if not _is_list_of_levels(value):
            raise self.refuse("block_out_channels",
                              f"has to be {_LEVELS}, got {_shown.repr(value)}")
        return value

    def choice(self, key: str, known: tuple[Any, ...], default: Any) -> Any:
        value = self.get(key, default)
        if value not in known:
            raise self.refuse(key, f"is {_shown.repr(value)}, but only "
                              f"{' and '.join('null' if v is None else repr(v) for v in known)} are supported")
        return value

    def block_types(self, key: str, levels: int, known: Mapping[str, int]) -> list[int]:
        value = self.get(key)
        if not (isinstance(value, list) and len(value) == levels):
            raise self.refuse(
                key,
                f"has to be a list of {levels} block types (as many as 'block_out_channels'), got {_shown.repr(value)}")
        for block in value:
            if not isinstance(block, str) or block not in known:
                raise self.refuse(key, f"names {_shown.repr(block)}, but only {' and '.join(known)} are possible")
        return [known[block] for block in value]

    def fixed(self, values: Mapping[str, tuple], ignored: set[str]) -> None:
        """Refuse features that are not implemented, and unknown keys unless they are off."""
        for key, allowed in values.items():
            value = self.get(key, allowed[0])
            if isinstance(value, list) and value and all(v == value[0] for v in value):
                value = value[0]
            if value not in allowed:
                raise self.refuse(key, f"is {_shown.repr(value)}, but only {allowed[0]!r} is supported")
        for key in self.content.keys() - self.used - ignored:
            if not key.startswith("_") and self.content[key] not in (None, False):
                raise self.refuse(
                    _shown.repr(key)[1:-1],
                    f"is unknown (value {_shown.repr(self.content[key])}); this kind of model is not supported")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _is_list_of_levels(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 8 and all(map(_is_positive, value))


def _is_embedding_width(value: Any) -> bool:
    return value is None or _is_positive(value) and value >= 4 and value % 2 == 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def read_unet_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `config.json` of a UNet2DConditionModel or UNet2DModel folder, for `_core.Model("unet", ...)`.

    Parameters
    ----------
    folder : path
        The `unet` folder of a diffusers model: Stable Diffusion 1.x, 2.x or XL shaped, with any number of levels and
        layers, or a model in pixel space.

    Returns
    -------
    dict
        Plain numbers, booleans and lists. There are also ``sample_size``, (height, width) of the latent image,
        ``size_multiple``, of which an image's sides are multiples, and ``center_input_sample``. A UNet2DModel has the
        ``context_dim`` 0.

    Raises
    ------
    FileNotFoundError, ValueError
        The message names the file, the key, and the possible values.
    """
    r = _Reader(Path(folder) / "config.json", ("UNet2DConditionModel", "UNet2DModel"))
    return _read_pixel_unet(r) if r.get("_class_name", None) == "UNet2DModel" else _read_unet(r)


def _read_unet(r: _Reader) -> dict[str, Any]:
    channels = r.channels()
    levels = len(channels)
    layers = _layers(r, levels)
    down = r.block_types("down_block_types", levels, {"CrossAttnDownBlock2D": _CROSS_ATTENTION,
                                                      "DownBlock2D": _NO_ATTENTION})
    up = r.block_types("up_block_types", levels, {"CrossAttnUpBlock2D": _CROSS_ATTENTION, "UpBlock2D": _NO_ATTENTION})
    mid = r.choice("mid_block_type", (*_MID_BLOCKS, None), "UNetMidBlock2DCrossAttn")
    attends = mid == "UNetMidBlock2DCrossAttn"
    depths = r.depths("transformer_layers_per_block", r.get("transformer_layers_per_block", 1), layers,
                      [*map(bool, down[:-1]), bool(down[-1]) or attends])
    # diffusers has always read `attention_head_dim` as the number of heads, unless that is given separately.
    key = "attention_head_dim" if r.get("num_attention_heads", None) is None else "num_attention_heads"
    r.get("attention_head_dim", 8)
    config = _common_unet(r, channels) | dict(
        layers_per_block=layers,
        down_attention=down,
        up_attention=up,
        mid_resnets=_MID_BLOCKS.get(mid, 0),
        mid_attention=_CROSS_ATTENTION if attends else _NO_ATTENTION,
        mid_attention_groups=0,
        transformer_layers=sum(depths, []),
        mid_transformer_layers=depths[-1][0] if attends else 0,
        up_transformer_layers=sum(_up_depths(r, layers[::-1], [bool(kind) for kind in up]), []),
        heads=r.per_level(key, levels, 8),
        context_dim=r.integer("cross_attention_dim"),
        linear_projection=r.boolean("use_linear_projection", False),
        time_cond_proj_dim=r.typed("time_cond_proj_dim", _is_embedding_width, "null or an even number of 4 or more",
                                   None) or 0,
        **_text_time(r),
        sample_size=_sample_size(r, 64),
        size_multiple=1,
    )
    r.fixed(_UNET_FIXED, _UNET_IGNORED)
    for level, (width, heads) in enumerate(zip(channels, config["heads"])):
        if width % heads:
            raise r.refuse(key, f"asks for {heads} heads at level {level}, which do not divide its {width} channels")
    return config


def _up_depths(r: _Reader, layers: list[int], attention: list[bool]) -> list[list[int]]:
    """The numbers of transformer layers on the way up; by default, those of the levels on the way down."""
    key, blocks = "reverse_transformer_layers_per_block", [count + 1 for count in layers]
    if (up := r.get(key, None)) is not None:
        return r.depths(key, up, blocks, attention)
    down = r.get("transformer_layers_per_block", 1)
    if isinstance(down, list) and any(isinstance(depth, list) for depth in down):
        raise r.refuse(key, "is missing, but 'transformer_layers_per_block' has a list for a level, which does not say "
                       "how the way up is made")
    return r.depths("transformer_layers_per_block", down[::-1] if isinstance(down, list) else down, blocks, attention)


def _text_time(r: _Reader) -> dict[str, int]:
    """The widths of SDXL's condition on the pooled text and on six numbers about the size of the image; 0 if none."""
    kind, ids, every = (r.get(key, None) for key in _ADDED)
    if kind not in (None, "text_time"):
        raise r.refuse(_ADDED[0], f"is {_shown.repr(kind)}, but only 'text_time' is supported")
    if kind is None:
        for key, value in zip(_ADDED, (kind, ids, every)):
            if value is not None:
                raise r.refuse(key, f"is {_shown.repr(value)}, but only None is supported without {_ADDED[0]!r}")
        return dict(text_embeds_dim=0, time_ids_dim=0)
    ids, every = r.integer(_ADDED[1]), r.integer(_ADDED[2])
    if every <= TIME_IDS * ids:
        raise r.refuse(_ADDED[2], f"is {every}, but has to be more than {TIME_IDS} x {_ADDED[1]!r} {ids}: it counts "
                       "the pooled text beside them")
    return dict(text_embeds_dim=every - TIME_IDS * ids, time_ids_dim=ids)


def _read_pixel_unet(r: _Reader) -> dict[str, Any]:
    channels = r.channels()
    levels = len(channels)
    mid = r.choice("mid_block_type", ("UNetMidBlock2D", None), "UNetMidBlock2D")
    attends = r.boolean("add_attention", True) and mid is not None
    head = r.typed("attention_head_dim", lambda v: v is None or _is_positive(v), f"null or {_POSITIVE}", 8)
    layers = _layers(r, levels)
    config = _common_unet(r, channels)
    groups = r.typed("attn_norm_num_groups", lambda v: v is None or _is_positive(v), f"null or {_POSITIVE}", None)
    config |= dict(
        layers_per_block=layers,
        down_attention=r.block_types("down_block_types", levels, {"AttnDownBlock2D": _SELF_ATTENTION,
                                                                  "DownBlock2D": _NO_ATTENTION}),
        up_attention=r.block_types("up_block_types", levels, {"AttnUpBlock2D": _SELF_ATTENTION,
                                                              "UpBlock2D": _NO_ATTENTION}),
        mid_resnets=0 if mid is None else 2,
        mid_attention=_SELF_ATTENTION if attends else _NO_ATTENTION,
        mid_attention_groups=groups or (0 if config["scale_shift"] else config["norm_num_groups"]),
        transformer_layers=[1] * sum(layers),
        mid_transformer_layers=0,
        up_transformer_layers=[1] * (sum(layers) + levels),
        heads=[1 if head is None else max(1, width // head) for width in channels],
        context_dim=0,
        linear_projection=False,
        time_cond_proj_dim=0,
        text_embeds_dim=0,
        time_ids_dim=0,
        sample_size=_sample_size(r),
        size_multiple=2 ** (levels - 1),
    )
    r.fixed(_PIXEL_UNET_FIXED, _PIXEL_UNET_IGNORED)
    for level, width in enumerate(channels):
        attention = (config["down_attention"][level], config["up_attention"][levels - 1 - level],
                     config["mid_attention"] if level == levels - 1 else _NO_ATTENTION)
        if head is not None and width % head and any(attention):
            raise r.refuse("attention_head_dim",
                           f"is {head}, which does not divide the {width} channels of level {level}")
    return config


def _layers(r: _Reader, levels: int) -> list[int]:
    layers = r.per_level("layers_per_block", levels, 2)
    if sum(layers) + levels > MAX_SKIPS:
        raise r.refuse("layers_per_block",
                       f"makes {sum(layers) + levels} skip connections, but at most {MAX_SKIPS} are possible")
    return layers


def _common_unet(r: _Reader, channels: list[int]) -> dict[str, Any]:
    kind = r.choice("class_embed_type", (None, "timestep", "identity"), None)
    # diffusers ignores the number of classes where there is a type.
    classes = r.typed("num_class_embeds", lambda v: v is None or _is_positive(v), f"null or {_POSITIVE}", None)
    kind = kind or ("none" if classes is None else "table")
    return dict(
        in_channels=r.integer("in_channels"),
        out_channels=r.integer("out_channels"),
        block_out_channels=channels,
        norm_num_groups=r.integer("norm_num_groups", 32),
        norm_eps=r.number("norm_eps", 1e-5, low=0),
        flip_sin_to_cos=r.boolean("flip_sin_to_cos", True),
        freq_shift=r.number("freq_shift", 0, low=0),
        class_embedding=_CLASS_EMBEDDINGS[kind],
        num_class_embeds=classes if kind == "table" else 0,
        scale_shift=r.choice("resnet_time_scale_shift", ("default", "scale_shift"), "default") == "scale_shift",
        downsample_one_sided=r.choice("downsample_padding", (1, 0), 1) == 0,
        center_input_sample=r.boolean("center_input_sample", False),
    )


def _sample_size(r: _Reader, default: Any = _ABSENT) -> tuple[int, int]:
    value = r.get("sample_size", default)
    size = [value, value] if _is_positive(value) else value
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_positive, size))):
        raise r.refuse("sample_size", f"has to be {_POSITIVE}, or [height, width], got {_shown.repr(value)}")
    return size[0], size[1]


def read_vae_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `config.json` of an AutoencoderKL or AutoencoderTiny folder; see `read_unet_config`.

    The result also has ``family``, ``factor`` (pixels per latent position), ``scaling_factor`` and ``shift_factor``.
    """
    r = _Reader(Path(folder) / "config.json", ("AutoencoderKL", "AutoencoderTiny"))
    config = _read_tiny_vae(r) if r.get("_class_name", None) == "AutoencoderTiny" else _read_vae(r)
    if not config["scaling_factor"] > 0:
        raise r.refuse("scaling_factor", f"has to be above 0, got {config['scaling_factor']}")
    if config["in_channels"] != 3 or config["out_channels"] != 3:
        raise r.refuse("in_channels", "and 'out_channels' have to be 3: images are RGB")
    return config


def _read_vae(r: _Reader) -> dict[str, Any]:
    channels = r.channels()
    levels = len(channels)
    config: dict[str, Any] = dict(
        family="vae",
        factor=2 ** (levels - 1),
        in_channels=r.integer("in_channels", 3),
        out_channels=r.integer("out_channels", 3),
        latent_channels=r.integer("latent_channels", 4),
        block_out_channels=channels,
        layers_per_block=r.integer("layers_per_block", 1),
        norm_num_groups=r.integer("norm_num_groups", 32),
        quant_conv=r.boolean("use_quant_conv", True),
        post_quant_conv=r.boolean("use_post_quant_conv", True),
        mid_attention=r.boolean("mid_block_add_attention", True),
        scaling_factor=r.number("scaling_factor", 0.18215),
        shift_factor=r.number("shift_factor", 0.0, null=0.0),
        **_latents_statistics(r),
    )
    r.block_types("down_block_types", levels, {"DownEncoderBlock2D": False})
    r.block_types("up_block_types", levels, {"UpDecoderBlock2D": False})
    r.fixed(_VAE_FIXED, _VAE_IGNORED)
    return config


def _latents_statistics(r: _Reader) -> dict[str, list[float]]:
    """Mean and standard deviation of each latent channel; empty lists if the latents are not normalized by them."""
    count = r.integer("latent_channels", 4)
    found: dict[str, list[float]] = {}
    for key in _STATISTICS:
        value = r.get(key, None)
        if value is not None and not (isinstance(value, list) and len(value) == count and all(map(_is_number, value))
                                      and (key == "latents_mean" or min(value) > 0)):
            raise r.refuse(key, f"has to be null or a list of {count} numbers (one a latent channel), "
                           f"{'above 0, ' if key == 'latents_std' else ''}got {_shown.repr(value)}")
        found[key] = [float(number) for number in value or []]
    if (there := [key for key, value in found.items() if value]) and len(there) < 2:
        raise r.refuse(there[0], f"is given without {' or '.join(set(_STATISTICS) - set(there))!r}")
    return found


def _read_tiny_vae(r: _Reader) -> dict[str, Any]:
    halves: dict[str, Any] = {}
    for half, blocks in ("encoder", [1, 3, 3, 3]), ("decoder", [3, 3, 3, 1]):
        counts = r.typed(f"num_{half}_blocks", _is_list_of_levels, _LEVELS,
                         blocks)
        channels = r.per_level(f"{half}_block_out_channels", len(counts), 64)
        if len(set(channels)) > 1:
            raise r.refuse(f"{half}_block_out_channels",
                           f"differ ({channels}), but an AutoencoderTiny has the same number at every level")
        halves |= {f"{half}_channels": channels[0], f"{half}_blocks": counts}
    levels = len(halves["encoder_blocks"])
    if len(halves["decoder_blocks"]) != levels:
        raise r.refuse("num_decoder_blocks",
                       f"has {len(halves['decoder_blocks'])} levels, but 'num_encoder_blocks' has {levels}")
    config = dict(
        family="tiny_vae",
        factor=2 ** (levels - 1),
        in_channels=r.integer("in_channels", 3),
        out_channels=r.integer("out_channels", 3),
        latent_channels=r.integer("latent_channels", 4),
        **halves,
        scaling_factor=r.number("scaling_factor", 1.0),
        shift_factor=r.number("shift_factor", 0.0, null=0.0),
        latents_mean=[],
        latents_std=[],
    )
    r.fixed(_TINY_VAE_FIXED, _TINY_VAE_IGNORED)
    return config


def read_text_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `config.json` of a CLIPTextModel folder; see `read_unet_config`."""
    r = _Reader(Path(folder) / "config.json")
    kind = r.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise r.refuse("model_type", f"is {_shown.repr(kind)}, but only 'clip_text_model' can be loaded here")
    if r.get("use_attention_mask", False) not in (False, None):
        raise r.refuse("use_attention_mask",
                       "is on: padding would have to be masked, which is not supported; use another text encoder")
    architectures = r.get("architectures", None)
    projects = isinstance(architectures, list) and "CLIPTextModelWithProjection" in architectures
    config: dict[str, Any] = dict(
        vocab_size=r.integer("vocab_size"),
        hidden_size=r.integer("hidden_size"),
        intermediate_size=r.integer("intermediate_size"),
        num_hidden_layers=r.integer("num_hidden_layers"),
        num_attention_heads=r.integer("num_attention_heads"),
        max_position_embeddings=r.integer("max_position_embeddings", 77),
        projection_dim=r.integer("projection_dim", 512) if projects else 0,
        eos_token_id=r.integer("eos_token_id", 49407) if projects else 0,
        hidden_act=r.typed("hidden_act", lambda v: v in ("quick_gelu", "gelu"), '"quick_gelu" or "gelu"', "quick_gelu"),
        layer_norm_eps=r.number("layer_norm_eps", 1e-5, low=0),
    )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise r.refuse("num_attention_heads",
                       f"{config['num_attention_heads']} does not divide 'hidden_size' {config['hidden_size']}")
    return config


def read_scheduler_config(folder: str | os.PathLike[str], sampler: str | None = None) -> dict[str, Any]:
    """Read the noise schedule of a diffusers scheduler folder, for `dreamda.generation.schedulers.Schedule`.

    The classes in `SCHEDULERS` share these keys; every other class is refused. ``class_name`` is the class that the
    file names (DDIMScheduler if it names none). Absent keys get the defaults of that class in diffusers. `sampler`,
    one of `SAMPLERS`, replaces the class, as with diffusers' ``from_config``.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise ParameterError("scheduler", f"{shown(sampler)} is unknown; use one of {', '.join(SAMPLERS)}")
    r = _Reader(Path(folder) / "scheduler_config.json")
    r.content |= SAMPLERS[sampler] if sampler is not None else {}
    name = r.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise r.refuse(
            "_class_name", f"is {shown(name)}, whose noise schedule is not supported; use a model trained with one of "
            + ", ".join(c.removesuffix("Scheduler") for c in SCHEDULERS))
    defaults = SCHEDULERS[name]
    ddim = name == "DDIMScheduler"
    betas = r.get("trained_betas", None)
    if betas is not None and not (isinstance(betas, list) and betas
                                  and all(_is_number(b) and 0 <= b < 1 for b in betas)):
        raise r.refuse("trained_betas", "has to be null or a list of numbers from 0 to below 1")
    for key in ("thresholding", "use_flow_sigmas"):
        if r.get(key, False) not in (False, None):
            raise r.refuse(key, "is on, which is not supported")
    for key, usual in (("timestep_type", "discrete"), ("sigma_min", None), ("sigma_max", None)):
        if r.get(key, usual) not in (usual, None):
            raise r.refuse(key, f"is {shown(r.get(key))}, but only {usual or 'null'} is supported")
    spacing = r.get("timestep_spacing", None) or defaults.get("timestep_spacing", "leading")
    if spacing not in ("leading", "trailing", "linspace") or spacing == "linspace" and ddim:
        raise r.refuse("timestep_spacing", f"is {shown(spacing)}, but only 'leading' and 'trailing' are supported")
    config: dict[str, Any] = dict(class_name=name,
                                  num_train_timesteps=r.integer("num_train_timesteps", 1000),
                                  beta_start=r.number("beta_start", defaults["beta_start"]),
                                  beta_end=r.number("beta_end", defaults["beta_end"]),
                                  beta_schedule=r.typed("beta_schedule", lambda v: v in
                                                        ("linear", "scaled_linear", "squaredcos_cap_v2"),
                                                        "linear, scaled_linear or squaredcos_cap_v2",
                                                        defaults["beta_schedule"]),
                                  trained_betas=betas,
                                  prediction_type=r.typed("prediction_type", lambda v: v in
                                                          ("epsilon", "sample", "v_prediction"),
                                                          "epsilon, sample or v_prediction", "epsilon"),
                                  steps_offset=r.typed("steps_offset", lambda v: v in (0, 1), "0 or 1", 0),
                                  set_alpha_to_one=r.boolean("set_alpha_to_one", defaults["set_alpha_to_one"]),
                                  clip_sample=r.boolean("clip_sample", defaults["clip_sample"]),
                                  clip_sample_range=r.number("clip_sample_range", 1.0),
                                  timestep_spacing=spacing,
                                  rescale_betas_zero_snr=r.get("rescale_betas_zero_snr", False) not in (False, None),
                                  original_inference_steps=r.integer("original_inference_steps", 50),
                                  timestep_scaling=r.number("timestep_scaling", 10.0, low=0),
                                  solver_order=r.typed("solver_order", lambda v: v in (1, 2, 3), "1, 2 or 3", 2),
                                  final_sigmas_type=r.typed("final_sigmas_type", lambda v: v in ("zero", "sigma_min"),
                                                            "zero or sigma_min", "zero"),
                                  )
    if name == "DPMSolverMultistepScheduler" and config["solver_order"] == 3:
        raise r.refuse("solver_order", "is 3, but DPM-Solver++ is supported in orders 1 and 2")
    if name in ("LCMScheduler", "TCDScheduler") and config["original_inference_steps"] > config["num_train_timesteps"]:
        raise r.refuse("original_inference_steps",
                       f"is {config['original_inference_steps']}, more than 'num_train_timesteps'")
    if not 0 <= config["beta_start"] <= config["beta_end"] < 1:
        raise r.refuse(
            "beta_start",
            f"and 'beta_end' have to rise within [0, 1), got {config['beta_start']} and {config['beta_end']}")
    if not config["clip_sample_range"] > 0:
        raise r.refuse("clip_sample_range", f"has to be above 0, got {config['clip_sample_range']}")
    if config["num_train_timesteps"] > 100_000 or betas is not None and len(betas) > 100_000:
        raise r.refuse("num_train_timesteps", f"is {config['num_train_timesteps']}, but at most 100000 make sense")
    from ..generation.schedulers import Schedule

    try:
        Schedule(config)
    except ValueError as error:
        raise ValueError(f"{r.path}: {error}") from None
    return config
