"""Tiny networks with random weights, for tests of the engine: made from a seed, so that nothing has to be stored."""

import numpy as np

from random_weights import weight

from dreamda import _core

UNET = dict(
    in_channels=4,
    out_channels=4,
    block_out_channels=[16, 32],
    layers_per_block=[1, 1],
    down_attention=[True, False],
    up_attention=[False, True],
    transformer_layers=[1, 1],
    heads=[2, 4],
    context_dim=24,
    norm_num_groups=8,
    norm_eps=1e-5,
    linear_projection=False,
    flip_sin_to_cos=True,
    freq_shift=0.0,
    time_cond_proj_dim=0,
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
