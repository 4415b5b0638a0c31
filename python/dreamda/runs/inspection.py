"""`dreamda inspect` measures the cost of a model; `dreamda doctor` checks that this machine computes correctly."""
from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..generation.options import GenerationOptions

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline


# Four values of the bundled U-Net's output for a fixed input, as diffusers computes them from the same files (f32).
KNOWN_ANSWER = (-0.1799, 1.4195, 1.0117, -0.0039)


class Check(NamedTuple):
    """One line of `self_check`: the name of the check, whether it passed, and the value found."""

    name: str
    ok: bool
    found: str


def cpu() -> tuple[str, set[str]]:
    """The CPU's name and its features, as Linux reports them."""
    about: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        about.setdefault(key.strip(), value.strip())
    return about.get("model name", "unknown"), set(about.get("flags", "").split())


# fields of `environment`; differences in them can change the last digits of all results
BITS = ("onednn_version", "onednn_isa", "kernels_isa")


def environment() -> dict[str, Any]:
    """The machine, as JSON values for run.json: libraries, instruction sets and versions.

    Some of them can change the pixels.
    """
    import platform
    from importlib.metadata import version

    from .. import info

    about = {k: v for k, v in info().items() if k not in ("live_bytes", "threads")}
    return {**about, "cpu": cpu()[0], "python": platform.python_version(),
            **{package.lower(): version(package) for package in ("numpy", "Pillow", "tokenizers")}}


def differences(then: Mapping[str, Any] | None, now: Mapping[str, Any], names: Iterable[str]) -> str:
    """The differences of two environments, ``"kernels_isa avx2 (now avx512)"``.

    The text is empty if there are none, or if the first environment is unknown.
    """
    then = then if isinstance(then, Mapping) else {}
    return ", ".join(f"{name} {then[name]} (now {now[name]})" for name in names
                     if name in then and name in now and then[name] != now[name])


def self_check(threads: int | None = None) -> Iterator[Check]:
    """Yield the checks of `dreamda doctor` one by one. They take about five seconds in all.

    Parameters
    ----------
    threads : int, optional
        Default: the number that `dreamda.networks.threads.thread_limits` leave.
    """
    for name, check in (("imports", _imports), ("oneDNN", _onednn), ("OpenMP", _openmp),
                        ("threads", lambda: _threads(threads)), ("noise", _noise), ("models",
                                                                                    lambda: _models(threads))):
        try:
            yield from check()
        except Exception as error:  # report any failure, also an unexpected one
            yield Check(name, False, f"{type(error).__name__}: {error}")


def _imports() -> Iterator[Check]:
    from importlib.metadata import version

    import PIL.Image
    import safetensors
    import tokenizers
    import tqdm

    modules = {"numpy": np, "Pillow": PIL, "safetensors": safetensors, "tokenizers": tokenizers, "tqdm": tqdm}
    yield Check("imports", True, ", ".join(f"{name} {version(name)}" for name in modules))


def _onednn() -> Iterator[Check]:
    from .. import info

    about = info()
    yield Check(
        "oneDNN", about["onednn_version"].startswith("3."), f"{about['onednn_version']} on {about['onednn_runtime']}, "
        f"uses {about['onednn_isa']}; own kernels use {about['kernels_isa']}")


def _openmp() -> Iterator[Check]:
    loaded = sorted({
        os.path.basename(path)
        for path in re.findall(r"/\S*/lib(?:gomp|iomp5|omp)[-.\w]*",
                               Path("/proc/self/maps").read_text())
    })
    yield Check("OpenMP", len(loaded) == 1, f"{', '.join(loaded) or 'none'} loaded"
                + ("" if len(loaded) == 1 else "; two thread pools in one process slow each other down or hang"))


def _threads(threads: int | None) -> Iterator[Check]:
    from ..networks.threads import explain_threads, thread_limits

    used, reason = explain_threads(threads)
    limits = "; ".join(limit.reason for limit in thread_limits())
    yield Check("threads", True, f"{used} will compute ({reason}); limits: {limits}")


def _noise() -> Iterator[Check]:
    from .. import normals

    drawn = normals(1, 2, 3, 4, 5, 6, (4, 64, 64))
    same = np.array_equal(drawn, normals(
        1, 2, 3, 4, 5, 6, (4, 64, 64))) and not np.array_equal(drawn, normals(1, 2, 3, 4, 5, 7, (4, 64, 64)))
    mean, deviation = float(drawn.mean(dtype=np.float64)), float(drawn.std(dtype=np.float64))
    yield Check("noise", same and abs(mean) < 0.04 and abs(deviation - 1) < 0.03,
                f"repeatable, mean {mean:+.4f}, deviation {deviation:.4f}")


def _models(threads: int | None) -> Iterator[Check]:
    from .. import normals
    from ..data.bundled import load_bundled
    from ..networks.models import resolve_dtype
    from ..generation.pipeline import Pipeline

    begun = time.monotonic()
    pipe = Pipeline.load("fashion-mini", "f32", threads)
    yield Check("bundled model", True, f"loads in {time.monotonic() - begun:.2f} s")
    seeds, prompt = load_bundled().seeds[:1], "a photo of a t-shirt"
    context, sample = pipe.context(prompt)[None], normals(0, 0, 0, 0, 0, 0, (1, 4, 16, 16))
    exact = pipe.unet(sample, 500, context)
    off = float(np.abs(exact.ravel()[::256] - KNOWN_ANSWER).max())
    yield Check("known answer", off < 5e-4, f"the U-Net's output is diffusers' to {off:.1e}")
    z0 = pipe.encode(seeds)
    same = pipe.augment_latents(z0, [prompt],
                                variants=2,
                                steps=5,
                                noise_scale=0,
                                guidance_scale=1,
                                source_prompt=prompt,
                                source_guidance_scale=1)
    error = float(np.abs(same - z0[:, None]).max() / np.abs(z0).max())
    yield Check("zero noise", error < 1e-4, f"returns the seed's latent to {error:.1e}")
    made = pipe.augment(seeds, [prompt], variants=2, steps=5).astype(int)
    change, spread = float(np.abs(made - seeds).mean()), float(np.abs(made[0, 0] - made[0, 1]).mean())
    yield Check("perturbation", 1 < change < 100 and spread > 0.1,
                f"changes pixels by {change:.1f} of 255, tells variants apart by {spread:.1f}")
    if resolve_dtype("auto") != "bf16":
        yield Check("bf16", True, "this CPU does not compute in it; dtype auto is f32")
        return
    half = Pipeline.load("fashion-mini", "bf16", threads)
    nmse = float(((half.unet(sample, 500, context) - exact) ** 2).sum() / (exact ** 2).sum())
    yield Check("bf16", nmse < 1e-3, f"agrees with f32 to a relative error of {nmse ** 0.5:.1e}")


FEW_STEPS = 4  # default for models that were distilled for few steps


def describe_model(pipe: Pipeline,
                   progress: Callable[[str], None] = lambda text: None,
                   **given: Any) -> dict[str, Any]:
    """The parts of a model, and the cost per image on this machine, measured by running a few steps.

    Parameters
    ----------
    pipe : dreamda.Pipeline
    progress : callable, optional
        Called with a description of the current work.
    **given
        Fields of `GenerationOptions`. Default: its defaults, with 4 steps for a model that was distilled for few.

    Returns
    -------
    dict
        ``folder, vae_folder, loras, scheduler, size, latent, dtype, threads, prediction, model_sha256``; ``parts`` (of
        each ``parameters`` and ``bytes`` on disk); ``steps_run``, ``rows_per_image`` (U-Net rows with these options),
        ``seconds_per_row``,
        ``seconds_per_image``, ``peak_memory_bytes`` (of this process, now).
    """
    from ..generation.lanes import group_size, is_small
    from .generate import variants_a_visit

    options = GenerationOptions(**({"steps": FEW_STEPS} if pipe.schedule.few_steps else {}) | given)
    all_from_text = options.text_share == 1
    h, w = (side // pipe.vae.factor for side in pipe.size)
    parts = {}
    for name, part in pipe.networks.items():
        parts[name] = {"parameters": part.parameters, "bytes": sum(file.stat().st_size for file in part.files)}
    about: dict[str, Any] = {
        "folder": str(pipe.folder), "vae_folder": str(pipe.vae_folder) if pipe.vae_folder else None,
        "loras": [lora.describe() for lora in pipe.loras], "scheduler": pipe.scheduler, "size": list(pipe.size),
        "latent": [pipe.vae.config["latent_channels"], h, w],
        "dtype": pipe.dtype,
        "threads": pipe.threads,
        "prediction": pipe.schedule.prediction_type,
        "conditioning": pipe.conditioning,
        "model_sha256": pipe.fingerprint,
        "parts": parts,
    }

    shared = (options.share_source or options.method == "asymmetric") and not all_from_text
    visit = variants_a_visit(options)  # variants that share the work done once per real image
    small = is_small(h, w)
    images = group_size(1, h, w) * pipe.threads if small else 1  # enough to keep all threads busy
    pixels = np.random.default_rng(0).integers(0, 256, (images, *pipe.size, 3), np.uint8)
    few, many = 1, min(16 if small else 2, pipe.schedule.most_steps)
    text = {"text": "a photo", "class": "0", "none": ""}[pipe.conditioning]

    def rows(of: GenerationOptions) -> tuple[int, int]:
        """The number of U-Net rows that the variants of an image share, and the number that each needs."""
        of = of.of_text if all_from_text else of
        steps = pipe.schedule.steps(of.steps, of.strength, of.eta)
        asks = pipe.guided_by_rows  # whether guidance other than 0 and 1 needs a row without the prompt
        guided = sum(asks and of.guidance_scale not in (0, 1) and of.guidance_low <= s.t /
                     pipe.schedule.num_train_timesteps < of.guidance_high for s in steps)
        source = {"cycle": 1 + (asks and of.source_prompt != "" and of.source_guidance_scale not in (0, 1)),
                  "asymmetric": 1, "sdedit": 0}[of.method] * len(steps)
        return (source, len(steps) + guided) if shared else (0, source + len(steps) + guided)

    def seconds(steps: int, variants: int) -> tuple[float, int]:
        """The seconds of a call per image, and its number of U-Net rows."""
        given = replace(options, variants=variants, steps=steps, strength=1.0, text_share=float(all_from_text))
        begun = time.monotonic()
        pipe._augment(pixels, [text] * images, list(range(images)), given)
        once, each = rows(given)
        return (time.monotonic() - begun) / images, once + variants * each

    times: dict[tuple[int, int], tuple[float, int]] = {}
    turns = ((few, 1), (many, 1), (few, 2), (few, 1), (many, 1))
    for number, (steps, variants) in enumerate(turns, 1):  # twice, as the first calls in a process are the slowest
        progress(f"preparing the model, and measuring: {number} of {len(turns)}")
        times[steps, variants] = min(seconds(steps, variants), times.get((steps, variants), (math.inf, 0)))
    (short, short_rows), (long, long_rows), (two, two_rows) = (times[turn] for turn in turns[:3])
    row = max(long - short, 1e-9) / max(long_rows - short_rows, 1)
    decoding = min(max(two - short - (two_rows - short_rows) * row, 0.0), max(short - short_rows * row, 0.0))
    once_an_image = max(short - short_rows * row - decoding, 0.0)
    once, each = rows(options)
    mean = each + options.text_share * (sum(rows(options.of_text)) - each)
    memory = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return about | {
        "steps_run": len(pipe.schedule.steps(options.steps, 1.0 if all_from_text else options.strength, options.eta)),
        "rows_per_image": round(mean + once / visit),
        "seconds_per_row": row,
        "seconds_per_image": (once_an_image + once * row) / visit + mean * row + decoding,
        "peak_memory_bytes": int(memory[1]) * 1024 if memory else None
    }
