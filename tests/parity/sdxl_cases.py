"""SDXL's whole img2img: the models and the options of both sides. NumPy and the standard library only."""

from cases import _SDXL

SIZE, STEPS, STRENGTH, SEED = 64, 10, 0.7, 77
PROMPT = "a photo of a coat"
# name -> the U-Net's configuration
MODELS: dict[str, dict] = {
    "base": _SDXL | dict(sample_size=SIZE // 4),
    "ssd1b": _SDXL | dict(sample_size=SIZE // 4,
                          mid_block_type="UNetMidBlock2D",
                          transformer_layers_per_block=[1, [2, 2], [4, 4]],
                          reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1]),
    "lcm": _SDXL | dict(sample_size=SIZE // 4, time_cond_proj_dim=32),
}
# name -> model, scheduler's class and what differs from SCHEDULER, and the options that both sides name alike
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
CASES: dict[str, dict] = {
    "base": dict(model="base", kind="DDIMScheduler", guidance_scale=5.0, eta=1.0),
    "negative-prompt": dict(model="base", kind="DDIMScheduler", guidance_scale=5.0, eta=0.0, negative_prompt="a bag"),
    "encoded-empty-prompt": dict(model="ssd1b", kind="DDIMScheduler", guidance_scale=3.0, eta=1.0),
    "one-row": dict(model="base", kind="DDIMScheduler", guidance_scale=1.0, eta=1.0),
    "turbo": dict(model="base",
                  kind="EulerAncestralDiscreteScheduler",
                  scheduler=dict(timestep_spacing="trailing"),
                  steps=4,
                  guidance_scale=0.0,
                  eta=1.0),
    # All timesteps: with less strength, diffusers' pipeline gives an LCM timesteps that it was not made for.
    "lcm": dict(model="lcm", kind="LCMScheduler", steps=4, strength=1.0, guidance_scale=4.0, eta=1.0),
}
CASES["lora"] = CASES["base"] | dict(lora=0.7)
# The layers of a LoRA as kohya's scripts name them, and (out, in); the U-Net's are of the model "base".
LORA = "kohya.safetensors"
LORA_LAYERS: dict[str, tuple[int, int]] = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (128, 128),
    "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": (2048, 256),
    "lora_unet_middle_block_1_transformer_blocks_3_attn2_to_k": (256, 112),
    "lora_unet_output_blocks_0_1_proj_in": (256, 256),
    "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0": (128, 128),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (48, 48),
    "lora_te1_text_model_encoder_layers_1_self_attn_out_proj": (48, 48),  # without one, diffusers takes no text layers
    "lora_te2_text_model_encoder_layers_0_self_attn_out_proj": (64, 64),
    "lora_te2_text_model_encoder_layers_0_self_attn_v_proj": (64, 64),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": (96, 64),
}
# The model whose model_index.json says that an empty negative prompt is encoded.
ENCODES_EMPTY = "ssd1b"
