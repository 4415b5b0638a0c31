"""Trajectories of inpainting that both sides run, from pixels to the last latents. Standard library only.

`channels` are those of the U-Net's input: 9 see the mask and the masked image. `blended`: known latents replace the
kept ones after every step, as `Pipeline.augment` does; diffusers does it with 4 channels, and in a callback with 9.
"""

PROMPT = "a photo of an ankle boot"
COMMON = dict(method="sdedit", steps=10, strength=0.8, eta=1.0, noise_scale=0.0, share_start=True, seed=12345)
DISC, WHOLE = "disc", "whole"  # what is made anew

CASES: dict[str, dict] = {
    "9": dict(channels=9, blended=False, mask=DISC, guidance_scale=4.0),
    "9-blended": dict(channels=9, blended=True, mask=DISC, guidance_scale=4.0),
    "9-whole": dict(channels=9, blended=False, mask=WHOLE, guidance_scale=2.0),
    "9-velocity": dict(channels=9, blended=True, mask=DISC, guidance_scale=2.0,
                       scheduler=dict(prediction_type="v_prediction")),
    "9-lcm": dict(channels=9, blended=True, mask=DISC, guidance_scale=1.0, steps=4, kind="LCMScheduler"),
    "4-blended": dict(channels=4, blended=True, mask=DISC, guidance_scale=4.0),
}
