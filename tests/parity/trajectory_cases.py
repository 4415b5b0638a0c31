"""Whole trajectories on the bundled model that both sides run: 80 of 100 steps, two variants of one image. Standard
library only."""

PROMPTS = ["a photo of an ankle boot"]
VARIANTS = 2
COMMON = dict(steps=100,
              strength=0.8,
              eta=1.0,
              guidance_scale=7.5,
              noise_scale=3.0,
              source_prompt="",
              source_guidance_scale=1.5,
              share_source=False,
              share_start=True,
              seed=12345)

# name -> what differs from COMMON; `scheduler` changes the scheduler's configuration.
VELOCITY = dict(prediction_type="v_prediction")
TRAJECTORIES: dict[str, dict] = {
    "cycle":
    dict(method="cycle"),
    "cycle-share-source":
    dict(method="cycle", share_source=True),
    "cycle-own-start":
    dict(method="cycle", share_start=False),
    "cycle-own-start-share-source":
    dict(method="cycle", share_start=False, share_source=True),
    "cycle-source-prompt":
    dict(method="cycle", source_prompt="a picture of a bag", eta=0.6),
    "cycle-velocity":
    dict(method="cycle", scheduler=VELOCITY, guidance_scale=2.0),
    "cycle-clipped":
    dict(method="cycle", scheduler=dict(clip_sample=True, clip_sample_range=2.0), guidance_scale=3.0),
    "asymmetric":
    dict(method="asymmetric", guidance_scale=3.0),
    "asymmetric-velocity":
    dict(method="asymmetric", scheduler=VELOCITY, guidance_scale=1.0, eta=0.0),
    "sdedit":
    dict(method="sdedit", noise_scale=0.0),
    "sdedit-perturbed":
    dict(method="sdedit", share_start=False),
    # Few steps: the scheduler is another class, on the same noise schedule.
    "lcm-sdedit":
    dict(method="sdedit", kind="LCMScheduler", steps=4, noise_scale=0.0, guidance_scale=1.0),
    "lcm-cycle":
    dict(method="cycle", kind="LCMScheduler", steps=4, guidance_scale=2.0),
    "tcd-sdedit":
    dict(method="sdedit", kind="TCDScheduler", steps=4, guidance_scale=1.5, eta=0.3),
    "euler-sdedit":
    dict(method="sdedit",
         kind="EulerDiscreteScheduler",
         scheduler=dict(timestep_spacing="trailing"),
         steps=5,
         eta=0.0,
         guidance_scale=0.0),
    "dpm-sdedit":
    dict(method="sdedit", kind="DPMSolverMultistepScheduler", steps=20, eta=0.0, noise_scale=0.0, guidance_scale=3.0),
    "sdedit-velocity":
    dict(method="sdedit", scheduler=VELOCITY, noise_scale=0.0, guidance_scale=2.0),
}
