"""The commands `dreamda inspect` and `doctor`."""
from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..generation.options import GenerationOptions
from ..text import counted
from . import common
from .common import (Debug, Dtype, Embeddings, Loras, Scheduler, Size, Threads, Vae, accepts_options, add_command,
                     chosen, is_given, on_terminal, printable)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add_command(app, inspect, "dreamda inspect fashion-mini",
                "dreamda inspect stable-diffusion-v1-5 --steps 30 --size 512 --dtype bf16")
    add_command(app, doctor, "dreamda doctor", "dreamda doctor --threads 1")


@accepts_options(GenerationOptions)
def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundled model, a folder in diffusers format, or a hub id.")],
    vae: Vae = "",
    loras: Loras = None,
    scheduler: Scheduler = "",
    embeddings: Embeddings = None,
    size: Size = "",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
    **options: Any,
) -> None:
    """Show the parts of a model, and the time and memory per image on this machine, measured by running a few steps.

    Accepts the options of dreamda generate that affect an image, and shows the cost with them.
    """
    import json

    from ..runs.checks import duration
    from ..runs.inspection import describe_model

    progress = (lambda text: print(f"{text} ...", file=sys.stderr)) if on_terminal() else (lambda text: None)
    chosen(GenerationOptions, options)  # refuses incompatible options before the model is loaded
    given = {name: value for name, value in options.items() if is_given(context, name)}
    changes = common.changes(vae, loras, scheduler, embeddings)
    pipe = common.load(model, dtype, threads, size, **changes)
    if pipe.conditioning != "text":
        pipe.check_given(given)
    about = describe_model(pipe, progress, **given)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    print(printable(about["folder"] + (f", with the VAE of {about['vae_folder']}" if vae else "")))
    for text in about["loras"]:
        print(printable(f"  {text}"))
    for name, part in about["parts"].items():
        print(f"  {name:<14}{part['parameters']:>13,} parameters {part['bytes'] / 2**20:>9,.1f} MiB on disk")
    print(
        f"  images        {about['size'][0]} x {about['size'][1]}, latents {' x '.join(map(str, about['latent']))}, "
        f"predicts {about['prediction']}\n"
        f"  here          {about['dtype']} on {counted(about['threads'], 'thread')}: "
        f"{about['seconds_per_row']:.3g} s a U-Net row, {counted(about['rows_per_image'], 'row')} an image\n"
        f"  time          one image: about {duration(about['seconds_per_image'])}; 1,000 images: about "
        f"{duration(1000 * about['seconds_per_image'])}; at {counted(about['steps_run'], 'step')}\n"
        f"  memory        {(about['peak_memory_bytes'] or 0) / 2**20:,.0f} MiB at the peak")


def doctor(threads: Threads = 0, debug: Debug = False) -> int:
    """Check that this machine computes correctly: libraries, threads, noise, and the bundled model's results."""
    from ..runs.inspection import cpu, self_check

    name, features = cpu()
    used = [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in features]
    print(f"      CPU: {name}; {', '.join(used) or 'no AVX2'}")
    failed = 0
    for check in self_check(threads or None):
        failed += not check.ok
        print(f"{'PASS' if check.ok else 'FAIL'}  {check.name}: {printable(check.found)}", flush=True)
    print(f"{failed} of the checks failed; please report the lines above" if failed else "All is well.")
    return 1 if failed else 0
