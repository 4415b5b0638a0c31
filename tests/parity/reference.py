"""The PyTorch side: makes networks with random weights, saves them as diffusers and transformers do, and runs them.

    TORCH_ENVIRONMENT/bin/python tests/parity/reference.py WORK [CASE ...]

WORK/CASE/model then holds the network and WORK/CASE/reference.npz its outputs: `f32.0.sample` is the output `sample` of
turn 0 computed in float32. A case that is there already is not made again.
"""

import gc
import sys
from pathlib import Path

import numpy as np
import torch
from cases import CASES, inputs
from diffusers import AutoencoderKL, AutoencoderTiny, LatentConsistencyModelPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.utils import logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

torch.set_num_threads(2)
logging.set_verbosity_error()


def make(case: dict, folder: Path) -> torch.nn.Module:
    """A network with random weights, saved; returned as the saved file holds it, in float32."""
    torch.manual_seed(0)
    if case["family"].startswith("clip"):
        kind = CLIPTextModel if case["family"] == "clip" else CLIPTextModelWithProjection
        model = kind(CLIPTextConfig(**case["config"]))
    else:
        model = {"unet": UNet2DConditionModel, "pixel_unet": UNet2DModel, "vae": AutoencoderKL, "tiny_vae":
                 AutoencoderTiny}[case["family"]](**case["config"])
    if case.get("norms"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter += 0.2 * torch.randn(parameter.shape)
    model = model.to(getattr(torch, case.get("file", "float32")))
    shards = dict(max_shard_size="200KB") if case.get("shards") else {}
    variant = dict(variant="fp16") if case.get("file") == "float16" else {}
    model.save_pretrained(folder, safe_serialization=True, **shards, **variant)
    return model.float().eval()


@torch.no_grad()
def run(case: dict, model: torch.nn.Module, given: dict[str, np.ndarray],
        dtype: torch.dtype) -> dict[str, torch.Tensor]:
    x = {name: torch.from_numpy(array) for name, array in given.items()}
    cast = {name: array.to(dtype) if array.is_floating_point() else array for name, array in x.items()}
    if case["family"] == "clip":
        return dict(hidden=model(x["tokens"].long()).last_hidden_state)
    if case["family"] == "clip_projection":
        out = model(x["tokens"].long(), output_hidden_states=True)
        return dict(hidden=out.last_hidden_state, penultimate=out.hidden_states[-2], text_embeds=out.text_embeds)
    if case["family"] == "vae":
        return dict(moments=model.encode(cast["image"]).latent_dist.parameters,
                    image=model.decode(cast["latent"]).sample)
    if case["family"] == "tiny_vae":
        return dict(encoded=model.encode(cast["image"]).latents, image=model.decode(cast["latent"]).sample)
    outputs = {}
    guidance = None
    if "guidance_scale" in x:
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        guidance = embed(None, x["guidance_scale"] - 1, case["config"]["time_cond_proj_dim"]).to(dtype)
    given = dict(encoder_hidden_states=cast["context"],
                 timestep_cond=guidance,
                 added_cond_kwargs={name: cast[name] for name in ("text_embeds", "time_ids") if name in cast}
                 ) if case["family"] == "unet" else {}
    if "class_labels" in x:
        number = x["class_labels"].dtype == torch.int32 or x["class_labels"].ndim == 1
        given["class_labels"] = x["class_labels"] if number else cast["class_labels"]
    if case["config"].get("class_embed_type") == "timestep":  # diffusers leaves these sinusoids in float32
        model.class_embedding.register_forward_pre_hook(lambda module, arguments: (arguments[0].to(dtype), ))
    noise = None

    def bottleneck(module, arguments, output):
        last, *skips = output if isinstance(output, tuple) else (output, )
        outputs.setdefault("bottleneck", last)
        last = last if noise is None else last + noise
        return (last, *skips) if skips else last

    hook = (model.mid_block or model.down_blocks[-1]).register_forward_hook(bottleneck)
    outputs["sample"] = model(cast["sample"], x["timestep"], **given).sample
    noise = cast["noise_scale"][:, None, None, None] * cast["noise"]
    outputs["perturbed"] = model(cast["sample"], x["timestep"], **given).sample
    hook.remove()
    return outputs


def dtypes() -> dict[str, torch.dtype]:
    """bf16 only where the processor computes in it: elsewhere ours has none to compare, and PyTorch's takes minutes."""
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
    return {"f32": torch.float32} | ({"bf16": torch.bfloat16} if "avx512_bf16" in flags else {})


def finished(file: Path) -> bool:
    """Whether it is there, with all that this machine compares."""
    if not file.exists():
        return False
    with np.load(file) as results:
        return all(any(key.startswith(f"{label}.") for key in results) for label in dtypes())


def main(work: Path, names: list[str]) -> None:
    for name in names:
        case, folder = CASES[name], work / name
        if finished(folder / "reference.npz"):
            continue
        print(f"PyTorch {torch.__version__}: {name}", flush=True)
        model = make(case, folder / "model")
        results = {}
        for label, dtype in dtypes().items():
            model.to(dtype)
            if not case["family"].startswith("clip"):
                model.to(memory_format=torch.channels_last)
            for turn in (0, 1):
                for key, value in run(case, model, inputs(case, turn), dtype).items():
                    results[f"{label}.{turn}.{key}"] = value.float().numpy()
        np.savez(folder / "unfinished.npz", **results)
        (folder / "unfinished.npz").rename(folder / "reference.npz")
        del model
        gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
