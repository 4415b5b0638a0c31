"""Configurations: real ones are read, everything that would change the network and is not computed is refused by file
and key."""

import json
import shutil

import pytest

from batteries.unets import REFUSED, UNETS
from dreamda import _core
from dreamda.networks.config import read_scheduler_config, read_text_config, read_unet_config, read_vae_config
from dreamda.networks.models import VAE, UNet
from dreamda.generation.pipeline import BUNDLED

MODEL = BUNDLED / "fashion-mini"
# As published, without the keys that say nothing.
SD15 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280,
                           1280], "center_input_sample": False, "cross_attention_dim": 768, "down_block_types":
    ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
    "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD21 = SD15 | {
    "attention_head_dim": [5, 10, 20, 20
                           ], "cross_attention_dim": 1024, "dual_cross_attention": False, "num_class_embeds": None,
    "only_cross_attention": False, "sample_size": 96, "upcast_attention": True, "use_linear_projection": True,
}
SDXL = SD15 | {
    "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], "use_linear_projection": True,
}
SSD1B = SDXL | {
    "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}


def write(folder, content, name="config.json"):
    (folder / name).write_text(json.dumps(content) if not isinstance(content, str) else content)
    return folder


def test_stable_diffusion_1(tmp_path):
    config = read_unet_config(write(tmp_path, SD15))
    assert config["heads"] == [8] * 4 and config["layers_per_block"] == [2] * 4
    assert config["transformer_layers"] == [1] * 8 and config["up_transformer_layers"] == [1] * 12
    assert config["down_attention"] == [True, True, True, False] and config["up_attention"] == [False, True, True, True]
    assert config["sample_size"] == (64, 64) and config["linear_projection"] is False
    parameters = _core.Model("unet", config).parameters()
    assert len(parameters) == 686
    assert sum(_count(shape) for _, shape in parameters) == 859_520_964


def test_stable_diffusion_2(tmp_path):
    config = read_unet_config(write(tmp_path, SD21))
    assert config["heads"] == [5, 10, 20, 20] and config["linear_projection"] is True
    assert sum(_count(shape) for _, shape in _core.Model("unet", config).parameters()) == 865_910_724


def test_stable_diffusion_xl(tmp_path):
    config = read_unet_config(write(tmp_path, SDXL))
    assert config["transformer_layers"] == [1, 1, 2, 2, 10, 10] and config["mid_transformer_layers"] == 10
    assert config["up_transformer_layers"] == [10, 10, 10, 2, 2, 2, 1, 1, 1]
    assert config["text_embeds_dim"] == 1280 and config["time_ids_dim"] == 256 and config["sample_size"] == (128, 128)
    parameters = dict(_core.Model("unet", config).parameters())
    assert parameters["add_embedding.linear_1.weight"] == (1280, 2816)
    assert sum(map(_count, parameters.values())) == 2_567_463_684


def test_a_cut_stable_diffusion_xl(tmp_path):
    config = read_unet_config(write(tmp_path, SSD1B))
    assert config["transformer_layers"] == [1, 1, 2, 2, 4, 4] and config["mid_transformer_layers"] == 0
    assert config["up_transformer_layers"] == [4, 4, 10, 2, 1, 1, 1, 1, 1]
    names = [name for name, _ in _core.Model("unet", config).parameters()]
    assert not any(name.startswith(("mid_block.attentions", "mid_block.resnets.1")) for name in names)
    assert "up_blocks.0.attentions.2.transformer_blocks.9.norm1.weight" in names


def test_sdxls_second_text_encoder(tmp_path):
    config = read_text_config(
        write(
            tmp_path, dict(architectures=["CLIPTextModelWithProjection"],
                           eos_token_id=2,
                           hidden_act="gelu",
                           hidden_size=1280,
                           intermediate_size=5120,
                           max_position_embeddings=77,
                           model_type="clip_text_model",
                           num_attention_heads=20,
                           num_hidden_layers=32,
                           projection_dim=1280,
                           vocab_size=49408)))
    assert config["projection_dim"] == 1280
    assert sum(_count(shape) for _, shape in _core.Model("clip_text", config).parameters()) == 694_659_840


def test_a_latent_consistency_model(tmp_path):
    config = read_unet_config(write(tmp_path, SD15 | {"time_cond_proj_dim": 256}))
    parameters = dict(_core.Model("unet", config).parameters())
    assert parameters["time_embedding.cond_proj.weight"] == (320,
                                                             256) and "time_embedding.cond_proj.bias" not in parameters
    assert sum(map(_count, parameters.values())) == 859_520_964 + 320 * 256


def _count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def test_heads_are_called_attention_head_dim_unless_given(tmp_path):
    assert read_unet_config(write(tmp_path, SD15 | {"num_attention_heads": None}))["heads"] == [8] * 4
    assert read_unet_config(write(tmp_path,
                                  SD15 | {"num_attention_heads": [5, 10, 20, 20]}))["heads"] == [5, 10, 20, 20]


def test_the_bundled_model():
    assert read_unet_config(MODEL / "unet")["heads"] == [4, 4, 4]
    assert read_vae_config(MODEL / "vae")["scaling_factor"] == pytest.approx(0.4752215)
    assert read_text_config(MODEL / "text_encoder")["max_position_embeddings"] == 16
    assert read_scheduler_config(MODEL / "scheduler")["steps_offset"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "UNet1DModel"}, "'_class_name' is 'UNet1DModel'"),
        ({"block_out_channels": []}, "'block_out_channels' has to be a list of 1 to 8"),
        ({"block_out_channels": [320, -1]}, "'block_out_channels'"),
        ({"down_block_types": ["DownBlock2D"]}, "'down_block_types' has to be a list of 4"),
        ({"up_block_types": ["UpBlock2D"] * 3 + ["AttnUpBlock2D"]}, "'up_block_types' names 'AttnUpBlock2D'"),
        ({"attention_head_dim": [8, 8]}, "has to be a whole number from 1 to 1048576, or a list of 4"),
        ({"attention_head_dim": 7}, "'attention_head_dim' asks for 7 heads at level 0"),
        ({"in_channels": "4"}, "'in_channels' has to be a whole number"),
        ({"in_channels": 1 << 21}, "'in_channels' has to be a whole number from 1 to 1048576, got 2097152"),
        ({"in_channels": True}, "'in_channels' has to be a whole number"),
        ({"norm_eps": None}, "'norm_eps' has to be a finite number"),
        ({"sample_size": [64, 64, 64]}, "'sample_size'"),
        ({"act_fn": "gelu"}, "'act_fn' is 'gelu', but only 'silu' is supported"),
        ({"only_cross_attention": [True, True, True, False]}, "'only_cross_attention'"),
        ({"resnet_time_scale_shift": "ada_group"}, "'resnet_time_scale_shift' is 'ada_group'"),
        ({"center_input_sample": "yes"}, "'center_input_sample' has to be true or false"),
        ({"brand_new_feature": 3}, "'brand_new_feature' is unknown"),
        ({"time_cond_proj_dim": 255}, "'time_cond_proj_dim' has to be null or an even number of 4 or more"),
        ({"time_cond_proj_dim": "256"}, "'time_cond_proj_dim' has to be null or an even number of 4 or more"),
        ({"addition_embed_type": "image"}, "'addition_embed_type' is 'image', but only 'text_time' is supported"),
        ({"addition_time_embed_dim": 256}, "'addition_time_embed_dim' is 256, but only None is supported"),
        (SDXL | {"addition_time_embed_dim": None}, "'addition_time_embed_dim' has to be a whole number"),
        (SDXL | {"projection_class_embeddings_input_dim": 1536}, "is 1536, but has to be more than 6 x"),
        (SDXL | {"transformer_layers_per_block": [1, 2]}, "has to be a whole number from 1 to 1048576, or a list of 3"),
        (SDXL | {"transformer_layers_per_block": [1, 2, 0]}, "has at level 2 to be a whole number from 1 to"),
        (SDXL | {"transformer_layers_per_block": [1, 2, [3]]}, "has at level 2 to be a whole number from"),
        (SDXL | {"transformer_layers_per_block": [1, [2, 2], 3]}, "'reverse_transformer_layers_per_block' is missing"),
        (SSD1B | {"reverse_transformer_layers_per_block": [[4, 4], [2, 1, 1], 1]}, "has at level 0 to be"),
        (SSD1B | {"reverse_transformer_layers_per_block": 1 << 30}, "has at level 0 to be a whole number"),
        ({"layers_per_block": 100_000}, "'layers_per_block' makes 400004 skip connections, but at most 128"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError) as caught:
        read_unet_config(write(tmp_path, SD15 | change))
    assert message in str(caught.value) and str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("part, load", [("unet", UNet.load), ("vae", VAE.load)])
def test_channels_that_the_groups_do_not_divide_are_refused_by_file(tmp_path, part, load):
    shutil.copytree(MODEL / part, tmp_path / part)
    content = json.loads((MODEL / part / "config.json").read_text())
    place = write(tmp_path / part, content | {"norm_num_groups": 7})
    with pytest.raises(ValueError, match="norm_num_groups 7 does not divide") as caught:
        load(place)
    assert str(caught.value).startswith(f"{tmp_path / part / 'config.json'}: ")


@pytest.mark.parametrize("entry", UNETS, ids=lambda entry: entry["name"])
def test_unets_that_are_read(tmp_path, entry):
    parameters = _core.Model("unet", read_unet_config(write(tmp_path, entry["config"]))).parameters()
    assert sum(_count(shape) for _, shape in parameters) == entry["parameters"]


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry["name"])
def test_unets_that_are_refused(tmp_path, entry):
    with pytest.raises(ValueError) as caught:
        read_unet_config(write(tmp_path, entry["config"]))
    assert entry["says"] in str(caught.value) and str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("key", ["in_channels", "block_out_channels", "cross_attention_dim", "down_block_types"])
def test_missing_keys(tmp_path, key):
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        read_unet_config(write(tmp_path, {k: v for k, v in SD15.items() if k != key}))


def test_features_that_are_off_may_be_named(tmp_path):
    read_unet_config(
        write(tmp_path, SD15 | {"brand_new_feature": None, "another": False, "only_cross_attention": [False] * 4}))


@pytest.mark.parametrize("text, message", [("", "not valid JSON"), ("[]", "expected a JSON object"),
                                           ("[" * 100_000, "not valid JSON"), ('{"a": NaN', "not valid JSON")])
def test_files_that_are_no_configuration(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_unet_config(write(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_unet_config(tmp_path)


def test_missing_files(tmp_path):
    for read in (read_unet_config, read_vae_config, read_text_config, read_scheduler_config):
        with pytest.raises(FileNotFoundError, match="config.json: no such file"):
            read(tmp_path / "absent")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "VQModel"}, "'_class_name' is 'VQModel', but only AutoencoderKL or AutoencoderTiny"),
        ({"scaling_factor": 0}, "'scaling_factor' has to be above 0"),
        ({"shift_factor": "a"}, "'shift_factor' has to be a finite number"),
        ({"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "'latents_mean'"),
        ({"in_channels": 1}, "images are RGB"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "'down_block_types' names 'AttnDownEncoderBlock2D'"),
    ],
)
def test_vae(tmp_path, change, message):
    content = json.loads((MODEL / "vae" / "config.json").read_text())
    with pytest.raises(ValueError) as caught:
        read_vae_config(write(tmp_path, content | change))
    assert message in str(caught.value)
    assert read_vae_config(write(tmp_path, content | {"shift_factor": None}))["shift_factor"] == 0
    assert read_vae_config(write(tmp_path, content | {"shift_factor": 0.1}))["shift_factor"] == 0.1


TAESD = {
    "_class_name": "AutoencoderTiny", "act_fn": "relu", "decoder_block_out_channels": [64] * 4,
    "encoder_block_out_channels": [64] * 4, "force_upcast": False, "in_channels": 3, "latent_channels": 4,
    "latent_magnitude": 3, "latent_shift": 0.5, "num_decoder_blocks": [3, 3, 3, 1], "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3, "scaling_factor": 1.0, "upsampling_scaling_factor": 2
}


def test_a_tiny_vae(tmp_path):
    config = read_vae_config(write(tmp_path, TAESD))
    assert config["factor"] == 8 and config["scaling_factor"] == 1 and config["shift_factor"] == 0
    counts = [
        sum(_count(shape) for _, shape in _core.Model(f"tiny_vae_{half}", config).parameters())
        for half in ("encoder", "decoder")
    ]
    assert counts == [1_222_532, 1_222_531]  # as published
    assert read_vae_config(write(tmp_path, {"_class_name": "AutoencoderTiny"})) == config


@pytest.mark.parametrize("change, message", [
    ({"act_fn": "gelu"}, "'act_fn' is 'gelu', but only 'relu' is supported"),
    ({"upsample_fn": "bilinear"}, "'upsample_fn' is 'bilinear'"),
    ({"upsampling_scaling_factor": 4}, "'upsampling_scaling_factor' is 4"),
    ({"encoder_block_out_channels": [64, 64, 64, 32]}, "'encoder_block_out_channels' differ ([64, 64, 64, 32])"),
    ({"decoder_block_out_channels": [64, 64]},
     "'decoder_block_out_channels' has to be a whole number from 1 to 1048576, or a list of 4"),
    ({"num_decoder_blocks": [3, 1], "decoder_block_out_channels": [64, 64]
      }, "'num_decoder_blocks' has 2 levels, but 'num_encoder_blocks' has 4"),
    ({"num_encoder_blocks": [1, 3, 0, 3]}, "'num_encoder_blocks' has to be a list of 1 to 8"),
    ({"scaling_factor": 0}, "'scaling_factor' has to be above 0"), ({"out_channels": 4}, "images are RGB"),
    ({"block_in_channels": 3}, "'block_in_channels' is unknown"),
],
                         )
def test_tiny_vaes_that_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError) as caught:
        read_vae_config(write(tmp_path, TAESD | change))
    assert message in str(caught.value) and str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "t5"}, "'model_type' is 't5'"),
        ({"use_attention_mask": True}, "'use_attention_mask' is on"),
        ({"hidden_act": "relu"}, "'hidden_act' has to be"),
        ({"num_attention_heads": 7}, "does not divide 'hidden_size'"),
    ],
)
def test_text_encoder(tmp_path, change, message):
    content = json.loads((MODEL / "text_encoder" / "config.json").read_text())
    with pytest.raises(ValueError) as caught:
        read_text_config(write(tmp_path, content | change))
    assert message in str(caught.value)
    assert read_text_config(write(tmp_path,
                                  content | {"use_attention_mask": False})) == read_text_config(MODEL / "text_encoder")


@pytest.mark.parametrize("change, message", [
    ({"rescale_betas_zero_snr": True}, "needs 'prediction_type' v_prediction"),
    ({"timestep_spacing": "linspace"}, "'timestep_spacing' is 'linspace'"),
])
def test_schedules_that_are_not_run(tmp_path, change, message):
    content = json.loads((MODEL / "scheduler" / "scheduler_config.json").read_text())
    with pytest.raises(ValueError) as caught:
        read_scheduler_config(write(tmp_path, content | change, "scheduler_config.json"))
    assert message in str(caught.value)
