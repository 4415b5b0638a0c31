"""Makes a Stable Diffusion 1.5-sized model folder with random weights, for the peers' environment (torch, diffusers, transformers).

    PEER/bin/python benchmarks/make_models.py OUT
    PEER/bin/python benchmarks/make_models.py MODEL IR      # only the U-Net of MODEL as an IR for a whole DreamDA step: 4 rows, noise

OUT becomes a whole diffusers folder: U-Net of 860 M parameters, VAE, CLIP ViT-L text encoder; the tokenizer is fashion-mini's,
padded to 77 tokens (speed does not depend on its words). OUT/openvino holds the same U-Net as an OpenVINO IR with a static shape.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

BUNDLED = Path(__file__).parents[1] / "python/dreamda/bundled/fashion-mini"
UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
    attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512, scaling_factor=0.18215,
)
ROWS, TOKENS = 2, 77


def main(out: Path) -> None:
    if (out / "model_index.json").exists():
        return
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    unet = UNet2DConditionModel(**UNET).eval()
    unet.save_pretrained(out / "unet")
    AutoencoderKL(**VAE).save_pretrained(out / "vae")
    CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)).save_pretrained(out / "text_encoder")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                  steps_offset=1).save_pretrained(out / "scheduler")
    shutil.copytree(BUNDLED / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    config = json.loads((out / "tokenizer/tokenizer_config.json").read_text()) | {"model_max_length": TOKENS}
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    try:
        import openvino
    except ImportError:
        print("openvino is not installed in this environment: no IR is made", file=sys.stderr)
    else:
        export(openvino, unet, out / "openvino" / "unet.xml", ROWS, TOKENS)
    shutil.copy(BUNDLED / "model_index.json", out / "model_index.json")


def export(openvino, unet: torch.nn.Module, file: Path, rows: int, tokens: int, perturbed: bool = False) -> None:
    """The U-Net at its static shape; `perturbed` makes noise for the mid block's output one more input."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet, self.noise = unet, None

        def forward(self, sample, timestep, context, noise=None):
            self.noise = noise
            return self.unet(sample, timestep, context, return_dict=False)[0]

    plain, config = Plain(), unet.config
    size, levels = config.sample_size, len(config.block_out_channels)
    example = [torch.randn(rows, config.in_channels, size, size), torch.tensor(500), torch.randn(rows, tokens, config.cross_attention_dim)]
    if perturbed:
        example.append(torch.randn(rows, config.block_out_channels[-1], size >> (levels - 1), size >> (levels - 1)))
        unet.mid_block.register_forward_hook(lambda module, given, output: output + plain.noise)
    with torch.no_grad():
        model = openvino.convert_model(plain, example_input=tuple(example))
    model.reshape({given: list(x.shape) for given, x in zip(model.inputs, example)})
    openvino.save_model(model, file, compress_to_fp16=False)


def export_step(folder: Path, file: Path) -> None:
    import openvino

    unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
    tokens = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())["model_max_length"]
    export(openvino, unet, file, 4, tokens, perturbed=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        export_step(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
