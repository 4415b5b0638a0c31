"""Makes networks.npz: what diffusers and transformers compute for tiny networks whose weights follow from their names
alone.

    TORCH_ENVIRONMENT/bin/python tests/golden/make_networks.py

Together they hold every kind of layer that the engine knows; `CASES` says which. Weights are those of
tests/random_weights.py, so that only inputs and outputs have to be stored. The file also says with which versions it
was made.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def unet(channels, plain, **options):
    kinds = [PLAIN if level in plain else CROSS for level in range(len(channels))]
    return dict(in_channels=4,
                out_channels=4,
                block_out_channels=list(channels),
                down_block_types=[k[0] for k in kinds],
                up_block_types=[k[1] for k in reversed(kinds)],
                norm_num_groups=8,
                sample_size=8) | options


def pixel_unet(channels, attention, **options):
    levels = range(len(channels))
    return dict(_class_name="UNet2DModel",
                block_out_channels=list(channels),
                down_block_types=["AttnDownBlock2D" if level in attention else "DownBlock2D" for level in levels],
                up_block_types=["AttnUpBlock2D" if level in attention else "UpBlock2D" for level in reversed(levels)],
                in_channels=3,
                out_channels=3,
                norm_num_groups=8,
                sample_size=8) | options


def vae(channels, **options):
    levels = len(channels)
    return dict(block_out_channels=list(channels),
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
                latent_channels=4,
                norm_num_groups=8,
                layers_per_block=1) | options


def clip(act):
    return dict(vocab_size=60,
                hidden_size=32,
                intermediate_size=80,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=12,
                hidden_act=act,
                bos_token_id=58,
                eos_token_id=59,
                pad_token_id=59)


CASES = {
    # resnet blocks with and without shortcut, timestep embedding, transformer with convolutions, self- and
    # cross-attention, GEGLU, down- and upsampling by 2, mid block
    "sd1": ("unet", unet((16, 32), (1, ), layers_per_block=1, cross_attention_dim=24,
                         attention_head_dim=4), (2, 8, 8, 7)),
    # linear projections, heads a level, several transformer layers, sizes that do not halve evenly, cosine first
    "sd2": ("unet",
            unet((16, 24, 32), (0, ),
                 layers_per_block=[1, 2, 1],
                 cross_attention_dim=40,
                 attention_head_dim=[2, 3, 4],
                 use_linear_projection=True,
                 transformer_layers_per_block=[1, 2, 1],
                 flip_sin_to_cos=False,
                 freq_shift=1), (3, 9, 7, 5)),
    # the guidance scale as an input, sine first
    "lcm": ("unet",
            unet((16, 32), (1, ),
                 layers_per_block=1,
                 cross_attention_dim=24,
                 attention_head_dim=4,
                 time_cond_proj_dim=32), (3, 8, 8, 7)),
    # SDXL: the pooled text and the size of the image as conditions, several transformer layers
    "sdxl": ("unet",
             unet((16, 24, 32), (0, ),
                  layers_per_block=2,
                  cross_attention_dim=40,
                  attention_head_dim=[2, 3, 4],
                  use_linear_projection=True,
                  transformer_layers_per_block=[1, 2, 3],
                  addition_embed_type="text_time",
                  addition_time_embed_dim=8,
                  projection_class_embeddings_input_dim=20 + 6 * 8), (2, 8, 12, 5)),
    # SSD-1B: other numbers of transformer layers for each ResNet block, a mid block of one ResNet block
    "ssd": ("unet",
            unet((16, 24, 32), (0, ),
                 layers_per_block=[1, 2, 1],
                 cross_attention_dim=40,
                 attention_head_dim=[2, 3, 4],
                 use_linear_projection=True,
                 mid_block_type="UNetMidBlock2D",
                 transformer_layers_per_block=[0, [2, 1], [3]],
                 reverse_transformer_layers_per_block=[[1, 3], [2, 1, 2], 1],
                 addition_embed_type="text_time",
                 addition_time_embed_dim=6,
                 projection_class_embeddings_input_dim=16 + 6 * 6,
                 flip_sin_to_cos=False,
                 freq_shift=1), (3, 9, 7, 5)),
    # without a mid block, as in BK-SDM-tiny
    "cut": ("unet", unet((16, 32), (), layers_per_block=1, cross_attention_dim=24, attention_head_dim=4,
                         mid_block_type=None), (2, 8, 8, 7)),
    # classes from a table, norms that the timestep scales, a mid block of one ResNet block
    "classes": ("unet", unet((16, 32), (1, ), layers_per_block=1, cross_attention_dim=24, attention_head_dim=4,
                             num_class_embeds=5, resnet_time_scale_shift="scale_shift",
                             mid_block_type="UNetMidBlock2D"), (2, 8, 8, 7)),
    # a model in pixel space, as google/ddpm-cifar10-32: attention over positions, padding at one side
    "pixel": ("unet", pixel_unet((16, 24, 32), (1, ), layers_per_block=1, attention_head_dim=None,
                                 downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6), (2, 12, 8)),
    # several heads, classes as timesteps, norms that the timestep scales, so attention in the mid block without a norm
    "pixel-classes": ("unet", pixel_unet((16, 32), (0, 1), layers_per_block=2, attention_head_dim=8,
                                         class_embed_type="timestep", center_input_sample=True,
                                         resnet_time_scale_shift="scale_shift"), (3, 4, 8)),
    "pixel-cut": ("unet", pixel_unet((16, 32), (), layers_per_block=1, class_embed_type="identity",
                                     mid_block_type=None), (2, 8, 8)),
    # spatial attention, padding at one side, quantisation convolutions
    "vae": ("vae", vae((16, 32)), (2, 12, 8)),
    "vae-plain":
    ("vae", vae((16, 24, 32), use_quant_conv=False, use_post_quant_conv=False,
                mid_block_add_attention=False), (1, 8, 16)),
    # ReLU after a sum, several levels; without weights' names in common with the other VAEs
    "tiny-vae": ("tiny_vae",
                 dict(_class_name="AutoencoderTiny",
                      encoder_block_out_channels=[24] * 3,
                      decoder_block_out_channels=[32] * 3,
                      num_encoder_blocks=[1, 2, 1],
                      num_decoder_blocks=[2, 1, 1]), (2, 12, 8)),
    # causal attention, both activations
    "clip-quick-gelu": ("clip", clip("quick_gelu"), (2, 12)),
    "clip-gelu": ("clip", clip("gelu"), (3, 5)),
    # SDXL's second: the input of the last layer, and the projection of the end token, wherever that stands
    "clip-projection": ("clip_projection",
                        clip("gelu") | dict(architectures=["CLIPTextModelWithProjection"],
                                            projection_dim=24), (4, 12)),
    "clip-old-projection": ("clip_projection",
                            clip("gelu") | dict(architectures=["CLIPTextModelWithProjection"],
                                                projection_dim=24,
                                                eos_token_id=2), (4, 12)),
}


def inputs(name, turn):
    """Two different turns, so that a test can run them alternately."""
    kind, config, shape = CASES[name]
    rng = np.random.RandomState(turn)
    normals = lambda *s: rng.standard_normal(s).astype(np.float32)  # noqa: E731
    if kind == "clip":
        return dict(tokens=rng.randint(0, config["vocab_size"], shape).astype(np.int32))
    if kind == "clip_projection":
        tokens = rng.randint(0, config["vocab_size"] - 1, shape).astype(np.int32)
        tokens[np.arange(len(tokens)), rng.randint(0, shape[1], len(tokens))] = config["vocab_size"] - 1
        return dict(tokens=tokens)
    if kind in ("vae", "tiny_vae"):
        factor = 2 ** (len(config["block_out_channels" if kind == "vae" else "num_encoder_blocks"]) - 1)
        rows, h, w = shape
        return dict(image=rng.uniform(-1, 1, (rows, 3, h, w)).astype(np.float32),
                    latent=normals(rows, 4, h // factor, w // factor))
    rows, h, w, *tokens = shape
    bottom = [h, w]
    for _ in config["block_out_channels"][1:]:
        bottom = [(s + 1) // 2 for s in bottom]
    more = {"guidance_scale": rng.uniform(1, 8, rows).astype(np.float32)} if config.get("time_cond_proj_dim") else {}
    if config.get("addition_embed_type"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        more = dict(text_embeds=normals(rows, pooled), time_ids=rng.randint(0, 1200, (rows, 6)).astype(np.float32))
    more |= dict(sample=normals(rows, config["in_channels"], h, w),
                 timestep=rng.randint(0, 1000, rows).astype(np.float32))
    if tokens:
        more["context"] = normals(rows, *tokens, config["cross_attention_dim"])
    more["noise"] = normals(rows, config["block_out_channels"][-1], *bottom)
    return more | class_labels(config, rows, rng)


def class_labels(config, rows, rng):
    kind, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind == "identity":
        return dict(class_labels=rng.standard_normal((rows, 4 * config["block_out_channels"][0])).astype(np.float32))
    if kind == "timestep":
        return dict(class_labels=rng.randint(0, 9, rows).astype(np.float32))
    return dict(class_labels=rng.randint(0, classes, rows).astype(np.int32)) if classes else {}


def main():
    import diffusers
    import torch
    import transformers

    sys.path.insert(0, str(HERE.parent))
    from random_weights import weight

    torch.set_grad_enabled(False)
    out = {
        "versions":
        np.array([
            f"torch {torch.__version__}", f"diffusers {diffusers.__version__}",
            f"transformers {transformers.__version__}"
        ])
    }
    for name, (kind, config, _) in CASES.items():
        if kind.startswith("clip"):
            architecture = getattr(transformers, config.get("architectures", ["CLIPTextModel"])[0])
            model = architecture(transformers.CLIPTextConfig(**config))
        else:
            kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "tiny_vae": "AutoencoderTiny"}
            model = getattr(diffusers, config.get("_class_name", kinds[kind])).from_config(config)
        model.eval()
        for parameter_name, parameter in model.named_parameters():
            named = not kind.startswith("clip") or parameter_name.startswith(("text_model.", "text_projection."))
            canonical = parameter_name if named else f"text_model.{parameter_name}"
            parameter.copy_(torch.from_numpy(weight(canonical, tuple(parameter.shape))))
        for turn in (0, 1):
            x = {k: torch.from_numpy(v) for k, v in inputs(name, turn).items()}
            if kind == "clip":
                results = dict(hidden=model(x["tokens"].long()).last_hidden_state)
            elif kind == "clip_projection":
                encoded = model(x["tokens"].long(), output_hidden_states=True)
                results = dict(hidden=encoded.last_hidden_state, penultimate=encoded.hidden_states[-2],
                               text_embeds=encoded.text_embeds)
            elif kind == "vae":
                results = dict(moments=model.encode(x["image"]).latent_dist.parameters,
                               image=model.decode(x["latent"]).sample)
            elif kind == "tiny_vae":
                results = dict(encoded=model.encode(x["image"]).latents, image=model.decode(x["latent"]).sample)
            else:
                embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
                guidance = embed(None, x["guidance_scale"]
                                 - 1, config["time_cond_proj_dim"]) if "guidance_scale" in x else None
                given = {"class_labels": x["class_labels"]} if "class_labels" in x else {}
                if "context" in x:
                    added = {key: x[key] for key in ("text_embeds", "time_ids") if key in x}
                    given |= {"encoder_hidden_states": x["context"], "timestep_cond": guidance,
                              "added_cond_kwargs": added}
                seen, noise = [], None

                def bottleneck(module, arguments, output):
                    last, skips = output if isinstance(output, tuple) else (output, None)
                    seen.append(last)
                    last = last if noise is None else last + noise
                    return last if skips is None else (last, skips)

                hook = (model.mid_block or model.down_blocks[-1]).register_forward_hook(bottleneck)
                results = dict(sample=model(x["sample"], x["timestep"], **given).sample, bottleneck=seen[0])
                noise = x["noise"]
                results["perturbed"] = model(x["sample"], x["timestep"], **given).sample
                hook.remove()
            out |= {f"{name}.{turn}.{k}": v.numpy() for k, v in results.items()}
    np.savez_compressed(HERE / "networks.npz", **out)


if __name__ == "__main__":
    main()
