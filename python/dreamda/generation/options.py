"""The options of generation, all defined in `GenerationOptions`.

The API, the command line, recipes, run.json and replay use it.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypedDict

from ..options import Options, ParameterError, documented, option

COMMON, METHOD, GUIDANCE, NOISE = "Options", "Method", "Guidance", "Noise"
MOST_VARIANTS = 1_000_000
TEXT_ALONE: dict[str, Any] = dict(method="sdedit", strength=1.0, noise_scale=0.0, source_prompt="", share_source=False,
                                  share_start=False, diverse=False)  # of variants that know nothing of the real image


@documented
@dataclass(frozen=True)
class GenerationOptions(Options):
    """Everything that a synthetic image depends on, besides the model, the real image, the prompt and the key.

    The defaults follow benchmarks/EFFICACY.md; the authors' settings are the preset `paper`. Raises
    `dreamda.options.ParameterError` (a ValueError) that names the parameter.
    """

    variants: int = option(10, "Number of new images per real image.", group=COMMON, low=1, high=MOST_VARIANTS)
    steps: int = option(
        20,
        "Diffusion steps; steps x strength are run (20 x 0.8 = 16). The authors take 100. Few-step models take 1 to 8; "
        "LCM and TCD models run all of them.",
        group=COMMON,
        low=1)
    strength: float = option(
        0.8,
        "How much of the noise schedule is run: near 0 keeps the real image, 1 starts from pure noise.",
        group=COMMON,
        above=0,
        high=1)
    eta: float = option(1.0,
                        "Share of fresh noise in every step: 0 (deterministic DDIM) to 1.",
                        group=NOISE,
                        low=0,
                        high=1)
    guidance_scale: float = option(
        2.0, "Classifier-free guidance: the weight of the prompt. More makes images that are more typical and more "
        "alike; the authors take 7.5. 0 or 1 turns it off, which saves one U-Net row per step; models that take it as "
        "an input never need that row.",
        group=GUIDANCE,
        low=0)
    noise_scale: float | None = option(
        None,
        "Standard deviation of the noise at the U-Net's bottleneck, fresh at every step. The authors take 3.",
        group=NOISE,
        low=0,
        shown_default="1, and 0 for `method=sdedit`")
    negative_prompt: str = option("",
                                  "Content that the new images should not show. It replaces the empty prompt that the "
                                  "guidance leads away from, for all images.",
                                  group=GUIDANCE)
    prompt_syntax: Literal["a1111", "plain"] = option(
        "a1111",
        "a1111: (word), (word:1.3) and [word] in prompts are weights, and prompts of any length are read in chunks; "
        "plain: prompts are read as they are, and cut after one chunk.",
        group=GUIDANCE)
    source_prompt: str = option("",
                                "Prompt of the real image's own trajectory; an empty one saves a quarter of the work.",
                                group=METHOD)
    source_guidance_scale: float = option(1.5, "Weight of `source_prompt`.", group=METHOD, low=0)
    method: Literal["cycle", "asymmetric", "sdedit"] = option(
        "cycle", "cycle (the authors' code), asymmetric (the paper's figure) or sdedit (plain img2img).", group=COMMON)
    text_share: float = option(
        0.0, "Share of the variants that are made from the prompt and noise alone, in all `steps`, and know nothing of "
        "the real image; 0.5: every second one of each real image. `method`, `strength` and `noise_scale` are for the "
        "others. The presets balanced and fast take 0.5 for class folders.",
        group=COMMON,
        low=0,
        high=1)
    share_source: bool = option(
        False, "One source trajectory for all variants of an image: up to a third faster (`method=cycle`). The authors "
        "draw one per variant.",
        group=METHOD)
    share_start: bool | None = option(
        None,
        "All variants of an image start from the same noise, as in the authors' code; otherwise each has its own, "
        "which gives more variety at no cost.",
        group=NOISE,
        shown_default="off, and on with `share_source`")
    diverse: bool = option(
        False,
        "Choose dissimilar starts for the variants of an image, from four times as many; needs `share_start=False`.",
        group=NOISE)
    seed: int = option(
        0,
        "Random seed of all noise. The same seed makes the same images, whatever the batches, order or interruptions.",
        group=COMMON,
        low=0,
        high=(1 << 64) - 1)
    guidance_low: float = option(0.0,
                                 "Guide only from this share of the model's timesteps on: 0 (clean) to 1 (noise).",
                                 group=GUIDANCE,
                                 low=0,
                                 high=1)
    guidance_high: float = option(
        1.0,
        "Guide only below this share of the model's timesteps; 0.3 to 0.7 saves up to 0.3 of the work.",
        group=GUIDANCE,
        low=0,
        high=1)
    fit: Literal["crop", "pad", "squash"] = option(
        "crop",
        "Real images of another aspect ratio than the model's: crop (keep the centre), pad (keep all, and mirror it "
        "at the edges), or squash (change the aspect ratio, as the authors do).",
        group=COMMON)
    tile_size: int = option(
        0,
        "Side in pixels of the overlapping tiles in which large images are made. 0: images of at most four times the "
        "area of the model's own are made whole, and larger ones in tiles of the model's own size.",
        group=METHOD,
        low=0,
        high=8192)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_scale is None:
            object.__setattr__(self, "noise_scale", 0.0 if self.method == "sdedit" else 1.0)
        if self.share_start is None:  # a shared source trajectory has one start
            object.__setattr__(self, "share_start", self.share_source)
        if not self.guidance_low < self.guidance_high:
            raise ParameterError("guidance_low",
                                 f"{self.guidance_low} is not below `guidance_high`, which is {self.guidance_high}")
        if self.diverse and (self.share_start or self.method == "asymmetric"):
            raise ParameterError(
                "diverse",
                "chooses among noisy starts, so it needs `share_start=False`, and `method=cycle` or `method=sdedit`")
        if self.share_source and self.method != "cycle":
            raise ParameterError("share_source", f"`method={self.method}` has no source trajectory; leave it off")
        if self.negative_prompt and self.guidance_scale in (0, 1):
            raise ParameterError(
                "negative_prompt",
                f"has no effect without guidance, and `guidance_scale` is {self.guidance_scale:g}; leave it empty")
        if self.source_prompt and self.method == "sdedit":
            raise ParameterError("source_prompt", "`method=sdedit` has no source; leave it empty")
        if self.source_prompt and self.text_share == 1:
            raise ParameterError("source_prompt", "`text_share=1` leaves no source; leave it empty")

    @property
    def perturbation(self) -> float:
        """`noise_scale` as a number."""
        assert self.noise_scale is not None  # resolved on creation
        return self.noise_scale

    @property
    def of_text(self) -> GenerationOptions:
        """The options with which variants are made from the text alone, from latents that are 0."""
        return replace(self, text_share=0.0, **TEXT_ALONE)


def is_from_text(text_share: float, variant: int) -> bool:
    """Whether a variant is one of those that know nothing of the real image.

    This depends on no other option, so that the number of variants can grow.
    """
    share = Fraction(text_share).limit_denominator(MOST_VARIANTS)  # 0.1 is a tenth, which no binary number is
    return math.floor((variant + 1) * share) > math.floor(variant * share)


class OptionKeywords(TypedDict, total=False):
    """`GenerationOptions` as keywords, for type checkers and editors. A test compares the two."""

    variants: int
    steps: int
    strength: float
    eta: float
    guidance_scale: float
    noise_scale: float | None
    negative_prompt: str
    prompt_syntax: Literal["a1111", "plain"]
    source_prompt: str
    source_guidance_scale: float
    method: Literal["cycle", "asymmetric", "sdedit"]
    text_share: float
    share_source: bool
    share_start: bool | None
    diverse: bool
    seed: int
    guidance_low: float
    guidance_high: float
    fit: Literal["crop", "pad", "squash"]
    tile_size: int


OLD_NAMES = {"step": "method"}  # in run.json and recipes written before the field was renamed


def with_todays_names(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a run (run.json, a line of metadata.jsonl) or a recipe, with the current names of its fields."""
    return {OLD_NAMES.get(name, name): value for name, value in record.items()}


def with_todays_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run.json with the current names. Missing options get the value that corresponds to the former behaviour.

    Images were squashed, there was no negative prompt, prompts had no syntax, few images were large enough for tiles,
    and none was made from the text alone.
    """
    missing = {"fit": "squash", "negative_prompt": "", "prompt_syntax": "plain", "tile_size": 0, "text_share": 0.0}
    return missing | with_todays_names(dict(run))
