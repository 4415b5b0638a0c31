"""Scheduler folders as people have them, and those that are refused: a line each. Add a line to add a test.

For every folder of SCHEDULERS, `dreamda.generation.schedulers.Schedule` has the noise levels of the class in diffusers
(golden/schedulers.json). Every folder of REFUSED is refused with a message that says `says`.

    name    what the folder stands for
    config  its scheduler_config.json
    run_as  what is run on the noise schedule
"""

from typing import Any

DDIM = "DDIM"
SD = dict(beta_start=0.00085,
          beta_end=0.012,
          beta_schedule="scaled_linear",
          num_train_timesteps=1000,
          clip_sample=False,
          set_alpha_to_one=False,
          steps_offset=1,
          trained_betas=None)


def _entry(name: str, kind: str | None, run_as: str = DDIM, **config: Any) -> dict[str, Any]:
    return dict(name=name, config=({} if kind is None else {"_class_name": kind}) | config, run_as=run_as)


SCHEDULERS: list[dict[str, Any]] = [
    # Nothing but the class: every class has its own defaults.
    _entry("DDIM, defaults", "DDIMScheduler"),
    _entry("DDIM parallel, defaults", "DDIMParallelScheduler"),
    _entry("DDPM, defaults: clips", "DDPMScheduler"),
    _entry("DDPM parallel, defaults", "DDPMParallelScheduler"),
    _entry("DDPM, predicts the image", "DDPMScheduler", prediction_type="sample"),
    _entry("PNDM, defaults: its last alpha is not one", "PNDMScheduler"),
    _entry("LMS, defaults", "LMSDiscreteScheduler"),
    _entry("Euler, defaults", "EulerDiscreteScheduler"),
    _entry("Euler ancestral, defaults", "EulerAncestralDiscreteScheduler"),
    _entry("DPM-Solver++ multistep, defaults", "DPMSolverMultistepScheduler"),
    _entry("DPM-Solver++ singlestep, defaults", "DPMSolverSinglestepScheduler"),
    _entry("UniPC, defaults", "UniPCMultistepScheduler"),
    _entry("DEIS, defaults", "DEISMultistepScheduler"),
    _entry("SA-Solver, defaults", "SASolverScheduler"),
    _entry("Heun, defaults: betas of its own", "HeunDiscreteScheduler"),
    _entry("KDPM2, defaults: betas of its own", "KDPM2DiscreteScheduler"),
    _entry("KDPM2 ancestral, defaults", "KDPM2AncestralDiscreteScheduler"),
    _entry("LCM, defaults: scaled betas", "LCMScheduler"),
    _entry("TCD, defaults: scaled betas", "TCDScheduler"),
    # As published.
    _entry("SD 1.5", "PNDMScheduler", **SD, skip_prk_steps=True),
    _entry("SD 2.1", "DDIMScheduler", **SD, prediction_type="v_prediction", skip_prk_steps=True),
    _entry("SDXL",
           "EulerDiscreteScheduler",
           **SD,
           interpolation_type="linear",
           prediction_type="epsilon",
           sample_max_value=1.0,
           timestep_spacing="leading",
           use_karras_sigmas=False,
           timestep_type="discrete",
           sigma_min=None),
    _entry("DreamShaper", "DEISMultistepScheduler", **SD, algorithm_type="deis", solver_order=2,
           lower_order_final=True),
    _entry("Realistic Vision",
           "DPMSolverMultistepScheduler",
           **SD,
           algorithm_type="dpmsolver++",
           use_karras_sigmas=True,
           use_flow_sigmas=False,
           flow_shift=1.0,
           final_sigmas_type="zero"),
    _entry("a DDPM trained on pixels", "DDPMScheduler", beta_schedule="squaredcos_cap_v2", variance_type="fixed_small"),
    _entry("a DDPM that does not clip", "DDPMScheduler", clip_sample=False, beta_end=0.015),
    _entry("clipped to another range", "DDIMScheduler", clip_sample_range=2.0),
    _entry("betas in a list", "DDPMScheduler", trained_betas=[0.01, 0.02, 0.03, 0.04, 0.05]),
    _entry("no class: DDIM", None, beta_end=0.015),
]

REFUSED: list[dict[str, Any]] = [
    entry | {"says": says} for entry, says in (
        (_entry("Stable Diffusion 3, Flux", "FlowMatchEulerDiscreteScheduler", shift=3.0),
         "'_class_name' is 'FlowMatchEulerDiscreteScheduler'"),
        (_entry("flow matching, Heun", "FlowMatchHeunDiscreteScheduler"),
         "'_class_name' is 'FlowMatchHeunDiscreteScheduler'"),
        (_entry("Playground 2.5", "EDMDPMSolverMultistepScheduler", sigma_max=80.0),
         "'_class_name' is 'EDMDPMSolverMultistepScheduler'"), (_entry("EDM, Euler", "EDMEulerScheduler"),
                                                                "'_class_name' is 'EDMEulerScheduler'"),
        (_entry("consistency models", "CMStochasticIterativeScheduler"),
         "'_class_name' is 'CMStochasticIterativeScheduler'"), (_entry("variance exploding", "ScoreSdeVeScheduler"),
                                                                "'_class_name' is 'ScoreSdeVeScheduler'"),
        (_entry("Sana", "SCMScheduler", prediction_type="trigflow"), "'_class_name' is 'SCMScheduler'"),
        (_entry("no betas in the file", "IPNDMScheduler"),
         "'_class_name' is 'IPNDMScheduler'"), (_entry("two spaces of images", "UnCLIPScheduler"),
                                                "'_class_name' is 'UnCLIPScheduler'"),
        (_entry("CogVideoX shifts its betas", "CogVideoXDDIMScheduler", snr_shift_scale=3.0),
         "'_class_name' is 'CogVideoXDDIMScheduler'"), (_entry("a class of one's own", "MyScheduler"),
                                                        "'_class_name' is 'MyScheduler'"),
        (dict(name="a class that is no text", config={"_class_name": ["DDIMScheduler"]}),
         "'_class_name' is ['DDIMScheduler']"),
        (_entry("DPM-Solver++ for flow models", "DPMSolverMultistepScheduler", use_flow_sigmas=True),
         "'use_flow_sigmas' is on"),
        (_entry("UniPC for flow models", "UniPCMultistepScheduler", prediction_type="flow_prediction"),
         "'prediction_type' has to be"),
        (_entry("video: continuous timesteps", "EulerDiscreteScheduler", timestep_type="continuous"),
         "'timestep_type' is 'continuous'"), (_entry("sigmas of its own", "EulerDiscreteScheduler", sigma_max=700.0),
                                              "'sigma_max' is 700.0"),
        (_entry("unknown betas", "DDIMScheduler", beta_schedule="sigmoid"),
         "'beta_schedule' has to be"),
        (_entry("thresholding", "DDIMScheduler", thresholding=True), "'thresholding' is on"),
        (_entry("an offset of 5", "DDIMScheduler", steps_offset=5),
         "'steps_offset' has to be 0 or 1"), (_entry("falling betas", "DDIMScheduler", beta_start=0.5, beta_end=0.1),
                                              "'beta_start' and 'beta_end' have to rise"),
        (_entry("no betas in a list", "DDIMScheduler", trained_betas=[]),
         "'trained_betas'"), (_entry("all noise", "DDIMScheduler", trained_betas=[0.1, 1.0]),
                              "'trained_betas'"), (_entry("an empty range", "DDIMScheduler", clip_sample_range=0),
                                                   "'clip_sample_range' has to be above 0"),
        (_entry("a million timesteps", "DDIMScheduler", num_train_timesteps=1_000_000), "'num_train_timesteps'"),
    )
]
