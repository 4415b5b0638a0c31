"""Images that both sides make with models in pixel space. Standard library only."""

UNET = dict(sample_size=16,
            block_out_channels=[32, 64],
            layers_per_block=1,
            down_block_types=["DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D"],
            attention_head_dim=8,
            norm_num_groups=8,
            num_class_embeds=5)
CLASSES = [1, 4]
OPTIONS = dict(steps=50, strength=0.8, seed=77, variants=1)

# name -> the scheduler, its configuration, and options of `augment_latents`
DDPM, DDIM = "DDPMScheduler", "DDIMScheduler"
CASES: dict[str, tuple[str, dict, dict]] = {
    "ddpm": (DDPM, {}, dict(method="sdedit", noise_scale=1.0)),
    "ddpm-no-clip": (DDPM, dict(clip_sample=False), dict(method="sdedit")),
    "ddpm-cosine": (DDPM, dict(beta_schedule="squaredcos_cap_v2"), dict(method="sdedit")),
    "ddpm-sample": (DDPM, dict(prediction_type="sample"), dict(method="sdedit", noise_scale=1.0)),
    "ddpm-velocity": (DDPM, dict(prediction_type="v_prediction"), dict(method="sdedit")),
    # Few steps: of a network with random weights, DDIM without noise enlarges any difference between clipped images.
    "ddim": (DDIM, {}, dict(method="sdedit", steps=10, eta=0.0, noise_scale=1.0)),
    "ddim-noise": (DDIM, dict(clip_sample=False), dict(method="sdedit", eta=0.7)),
    "ddim-sample": (DDIM, dict(prediction_type="sample"), dict(method="sdedit", eta=0.5)),
    "lcm": ("LCMScheduler", {}, dict(method="sdedit", steps=4)),
    "lcm-sample": ("LCMScheduler", dict(prediction_type="sample"), dict(method="sdedit", steps=4, noise_scale=1.0)),
    "cycle": (DDIM, dict(clip_sample=False), dict(method="cycle", noise_scale=1.0)),
    "cycle-sample": (DDIM, dict(prediction_type="sample"), dict(method="cycle", noise_scale=1.0)),
}
