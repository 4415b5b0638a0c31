"""The ``dreamda`` command: one function a command; what is heavy is imported inside.

Exit codes: 0 done; 1 ran, but some inputs were skipped or lost, or OUT could not be written any more; 2 wrong use or bad input,
nothing written; 128 + n ended by signal n. An error is one sentence on stderr; ``--debug`` shows where it comes from.
"""
from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .data import ImageFolder
    from .distributed import RayWorkers
    from .generate import Report, Settings
    from .pipeline import Pipeline

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Generative data augmentation on the CPU: real images in, labelled synthetic training images out.")
_debug = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : list of str, optional
        Default: ``sys.argv[1:]``.
    """
    global _debug
    _debug = False
    from .data import LostImageError
    from .generate import EngineError, OutputError

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = typer.main.get_command(app).main(args=arguments or ["--help"], prog_name="dreamda", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        print("dreamda: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; the interpreter must not complain about it either
        return 1
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's own errors, wherever this typer keeps click
        if not usage and not isinstance(error, (ValueError, OSError, MemoryError, ImportError, typer.Abort)):
            from . import Error
            if not isinstance(error, Error):
                raise  # a fault of ours: the traceback is the message
        if _debug:
            traceback.print_exc()
        if usage:
            text = usage()
        elif isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif isinstance(error, MemoryError):
            text = "not enough memory; take a smaller --size, or --dtype bf16 where the CPU has it"
        else:
            text = str(error)
        _complain(text)
        return 1 if isinstance(error, (OutputError, LostImageError, EngineError, MemoryError)) else 2


def _set_debug(value: bool) -> None:
    global _debug
    _debug = value or _debug


def _show_version(value: bool) -> None:
    if value:
        from . import __version__
        print(f"dreamda {__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="A bundled model, a folder in diffusers format, or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, f32 or bf16; auto is bf16 where the CPU computes in it.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")]
Size = Annotated[str, typer.Option(help="Image size, N or HEIGHTxWIDTH; default: the model's own.")]


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
          debug: Debug = False) -> None:
    pass


@app.command()
def generate(
    context: typer.Context,
    real: Annotated[Path | None, typer.Argument(help="The data set: REAL/<class>/*.png|jpg|webp|bmp|tif.")] = None,
    out: Annotated[Path | None, typer.Argument(help="New or empty, or the folder of the same run, which then goes on.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A bundled model, a folder in diffusers format, or a hub id.  [required]")] = "",
    recipe: Annotated[str | None, typer.Option(help="Settings for a kind of data: caltech101, stanford-cars, oxford-pets, shenzhen-tb, or a JSON file. "
                                                    "Options given beside it win.")] = None,
    variants: Annotated[int, typer.Option(help="Synthetic images for each real one.")] = 10,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule; strength times as many are run.")] = 100,
    strength: Annotated[float, typer.Option(help="How far to go back into the noise, above 0 to 1.")] = 0.8,
    guidance_scale: Annotated[float, typer.Option(help="Weight of the prompt.")] = 7.5,
    noise_scale: Annotated[float | None, typer.Option(help="Perturbation of the U-Net's bottleneck. [default: 3, sdedit: 0]")] = None,
    step: Annotated[str, typer.Option(help="cycle (the authors' code), asymmetric (the paper's figure) or sdedit (plain img2img).")] = "cycle",
    template: Annotated[str | None, typer.Option(help='Prompt of a class. [default: "a photo of a {}"]')] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON Lines with file_name and text for every image. "
                                                      "[default: REAL/metadata.jsonl, if it has texts]")] = None,
    eta: Annotated[float, typer.Option(help="Fresh noise in every step: 0 none (DDIM) to 1.")] = 1.0,
    source_prompt: Annotated[str, typer.Option(help="Prompt of the real image's own trajectory; empty saves a quarter of the work.")] = "",
    source_guidance_scale: Annotated[float, typer.Option(help="Weight of the source prompt.")] = 1.5,
    share_source: Annotated[bool, typer.Option(help="One source trajectory for all variants of an image: up to a third faster.")] = False,
    share_start: Annotated[bool, typer.Option(help="All variants of an image start from the same noise.")] = True,
    diverse: Annotated[bool, typer.Option("--diverse", help="Choose dissimilar starts for the variants of an image; needs --no-share-start.")] = False,
    guidance_low: Annotated[float, typer.Option(help="Guide only at timesteps from this share of the model's on, 0 (clean) to 1 (noise).")] = 0.0,
    guidance_high: Annotated[float, typer.Option(help="Guide only below this share; 0.3 to 0.7 saves up to 0.3 of the work.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of all noise.")] = 0,
    shard: Annotated[str, typer.Option(help="i/n: do the i-th (from 0) of n parts. Parts may share one OUT.")] = "0/1",
    size: Size = "",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    engine: Annotated[str, typer.Option(help="local, or ray: the workers of a Ray cluster compute, this process reads and writes "
                                             "(extra: ray). --threads is then for each worker; 0: all of the smallest node's.")] = "local",
    address: Annotated[str, typer.Option(help="Of the Ray cluster. [default: RAY_ADDRESS, else one of its own on this machine]")] = "",
    replay: Annotated[Path | None, typer.Option(help="A run.json: repeat that run, into OUT or a temporary folder, and compare every image's "
                                                     "SHA-256 with the recorded one. Beside it only [REAL] OUT, --model and --threads.")] = None,
    debug: Debug = False,
) -> int:
    """Make a synthetic data set from a real one.

    The same command again goes on where the last one stopped. OUT/metadata.jsonl lists every image with its label. Prompts come from
    --template or --prompts, else from REAL/metadata.jsonl, else from the recipe.
    """
    if replay is not None:
        others = [name for name in context.params if name not in ("real", "out", "model", "threads", "replay", "debug")
                  and _is_given(context, name)]
        if others:
            raise ValueError(f"--{others[0].replace('_', '-')}: --replay repeats what run.json says; leave it off")
        return _replay(replay, real if out is not None else None, out or real, model, threads)
    if real is None or out is None or not model:
        missing = "REAL" if real is None else "OUT" if out is None else "--model"
        raise ValueError(f"{missing} is missing; the command is: dreamda generate REAL OUT --model MODEL")
    import hashlib

    from .data import DEFAULT_TEMPLATE, ImageFolder, own_prompt_file, prompts_from_file, prompts_from_template
    from .generate import SETTING_NAMES, Settings, check_out, run_identity
    from .recipes import load_recipe

    values = {name: context.params[name] for name in SETTING_NAMES}
    taken, words = load_recipe(recipe) if recipe is not None else ({}, None)
    taken = {name: value for name, value in taken.items() if not _is_given(context, name)}
    if _is_given(context, "step"):
        taken.pop("noise_scale", None)  # it was meant for the recipe's own step
    settings = Settings(**values | taken)
    part = _parse_shard(shard)
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine must be local or ray; it is {engine!r}")
    if address and engine != "ray":
        raise ValueError("--address is for --engine ray; add that")
    folder = ImageFolder.scan(real)
    if template is not None and prompts is not None:
        raise ValueError("--template and --prompts exclude each other; give one of them")
    if template is None:
        prompts = prompts or own_prompt_file(folder)
        template = words if prompts is None else None
    if prompts is not None:
        texts = prompts_from_file(folder, prompts)
        source = {"prompts_sha256": hashlib.sha256(prompts.read_bytes()).hexdigest()}
    else:
        source = {"template": DEFAULT_TEMPLATE if template is None else template}
        texts = prompts_from_template(folder, source["template"])
    check_out(out, folder, run_identity(settings, source))
    if engine == "ray":
        from .distributed import RayWorkers

        with RayWorkers(model, address=address or None, threads=threads or None, dtype=dtype, size=_parse_size(size)) as workers:
            return _generate(folder, out, workers, model, settings, texts, source, part)
    return _generate(folder, out, _load(model, dtype, threads, size), model, settings, texts, source, part)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("dreamda-demo"),
    variants: Annotated[int, typer.Option(help="Synthetic images for each of the 100 real ones.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = 20,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """The whole job on the bundled model and images, in two minutes: generate, train on the result and on the real images alone, compare."""
    from .data import DEFAULT_TEMPLATE, load_bundled, prompts_from_template
    from .generate import Settings, check_out, run_identity
    from .pictures import contact_sheet_of_run

    settings, source = Settings(variants=variants, steps=steps), {"template": DEFAULT_TEMPLATE}
    if out.is_dir() and (others := {p.name for p in out.iterdir() if p.name[0] != "."} - {"real", "test", "synthetic", "contact-sheet.png", "real-only", "amst"}):
        raise ValueError(f"--out {out} holds {min(others)!r}, which is nothing of the demo's; give a new or an empty folder")
    bundled = load_bundled()
    folder, test = bundled.folder(out / "real"), bundled.folder(out / "test", "test")
    check_out(out / "synthetic", folder, run_identity(settings, source))
    pipe = _load("fashion-mini", dtype, threads, "")
    bundled.write(folder)
    code = _generate(folder, out / "synthetic", pipe, "fashion-mini", settings, prompts_from_template(folder), source, (0, 1))
    if code == 0:
        sheet = out / "contact-sheet.png"
        contact_sheet_of_run(out / "synthetic", folder.root, title="fashion-mini: real images and what was made of them").save(sheet)
        print(f"Real images:      {folder.root}\nSynthetic images: {out / 'synthetic'} (labels in metadata.jsonl)\nLook at:          {sheet}")
        bundled.write(test, "test")
        code = cli_train.compare(out, dtype, threads)
    return code


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder in diffusers format, or a hub id.")],
    size: Size = "",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """What a model consists of, and what an image of it costs here: time and memory, measured by running two steps."""
    import json

    from .inspection import describe_model

    progress = (lambda text: print(f"{text} ...", file=sys.stderr)) if sys.stderr.isatty() else (lambda text: None)
    about = describe_model(_load(model, dtype, threads, size), progress)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    print(_printable(about["folder"]))
    for name, part in about["parts"].items():
        print(f"  {name:<13} {part['parameters']:>13,} parameters {part['bytes'] / 2**20:>9,.1f} MiB on disk")
    print(f"  images        {about['size'][0]} x {about['size'][1]}, latents {' x '.join(map(str, about['latent']))}, predicts {about['prediction']}\n"
          f"  here          {about['dtype']} on {about['threads']} threads: {about['seconds_per_row']:.3g} s a U-Net row, "
          f"{about['rows_per_image']} rows an image\n"
          f"  an image      about {about['seconds_per_image']:.3g} s at the default settings\n"
          f"  memory        {(about['peak_memory_bytes'] or 0) / 2**20:,.0f} MiB at the peak")


@app.command()
def doctor(threads: Threads = 0, debug: Debug = False) -> int:
    """Check that this machine computes right: libraries, threads, noise, and the bundled model against what it must return."""
    from .inspection import cpu, self_check

    name, features = cpu()
    used = [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in features]
    print(f"      CPU: {name}; {', '.join(used) or 'no AVX2'}")
    failed = 0
    for check in self_check(threads or None):
        failed += not check.ok
        print(f"{'PASS' if check.ok else 'FAIL'}  {check.name}: {_printable(check.found)}", flush=True)
    print(f"{failed} of the checks failed; please report the lines above" if failed else "All is well.")
    return 1 if failed else 0


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard {text!r} must be i/n with 0 <= i < n, such as 0/4")
    return int(index), int(count)


def _parse_size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(n.isascii() and n.isdecimal() and len(n) < 6 for n in numbers):
        raise ValueError(f"--size {text!r} must be a number of pixels, or HEIGHTxWIDTH")
    return int(numbers[0]), int(numbers[-1])


def _load(model: str, dtype: str, threads: int, size: str) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline.load(model, dtype=dtype, threads=threads or None, size=_parse_size(size))


def _generate(folder: ImageFolder, out: Path, pipe: Pipeline | RayWorkers, model: str, settings: Settings, prompts: dict[str, str],
              source: dict[str, str], part: tuple[int, int]) -> int:
    from .distributed import RayWorkers
    from .generate import generate_dataset
    from .inspection import environment

    workers = pipe if isinstance(pipe, RayWorkers) else None
    about = {**(workers.environment if workers else environment()), "threads": pipe.threads, "model_folder": str(pipe.folder.resolve())}
    with _Progress() as progress:
        report = generate_dataset(folder, out, pipe, settings, prompts=prompts, prompt_source=source, model=model, shard=part,
                                  environment=about, progress=progress, engine=workers.stream if workers else None)
    report.notes += workers.notes if workers else []
    return _summarise(report, out)


def _replay(path: Path, real: Path | None, out: Path | None, model: str, threads: int) -> int:
    import tempfile

    from .inspection import environment
    from .replay import RecordedRun, replay

    run = RecordedRun.read(path)
    if not (model or run.model):
        raise ValueError(f"{path} does not name the model; give it with --model")
    recorded_threads = run.environment.get("threads")
    pipe = _load(model or run.model, run.run["dtype"], threads or (recorded_threads if type(recorded_threads) is int else 0),
                 "{}x{}".format(*run.run["size"]))
    about = {**environment(), "threads": pipe.threads, "model_folder": str(pipe.folder.resolve())}
    with _Progress() as progress, tempfile.TemporaryDirectory(prefix="dreamda-replay-") as temporary:
        report = replay(run, pipe, out or temporary, real=real, environment=about, progress=progress)
    if report.signal:
        how = "the same command goes on from here" if out else "give an OUT to be able to go on"
        _complain(f"stopped by {signal.Signals(report.signal).name}; {how}")
        return 128 + report.signal
    for name, reason in report.changed[:20]:
        _complain(f"the real image {name} {reason}, so what was made of it is not repeated")
    if len(report.changed) > 20:
        _complain(f"and {len(report.changed) - 20} more real images")
    if report.altered:
        _complain(f"{len(report.altered)} images in {run.out} are not what was recorded any more; the first is {report.altered[0]}")
    if report.differing:
        _complain(f"{report.differing[0]} differs from the recorded image: {report.first}; so do {len(report.differing) - 1} others"
                  + (f"; the run was made with {report.environment}" if report.environment else ""))
    print(_printable(f"{path}: {report.same} of {report.total} images repeated to the same bytes" + (f", in {out}" if out else "")))
    return 1 if report.changed or report.altered or report.differing else 0


def _complain_of(skipped: list[tuple[str, str]], notes: list[str]) -> None:
    """What was left out and why, the first twenty by name; then what else should be known."""
    for name, reason in skipped[:20]:
        _complain(f"skipped {name}: {reason}")
    if len(skipped) > 20:
        _complain(f"skipped {len(skipped) - 20} more")
    for note in notes:
        _complain(note)


def _summarise(report: Report, out: Path) -> int:
    _complain_of(report.skipped, report.notes)
    rate = f" in {report.seconds:.1f} s ({report.made / report.seconds:.2f} images/s)" if report.made and report.seconds else ""
    there = f", {report.present} were there already" if report.present else ""
    print(_printable(f"{out}: {report.made} images made{rate}{there}"))
    if report.signal:
        left = report.total - report.made - report.present
        _complain(f"stopped by {signal.Signals(report.signal).name} with up to {left} images to go; the same command goes on from here")
        return 128 + report.signal
    return 1 if report.skipped else 0


class _Progress:
    """A bar on stderr where that is a terminal; takes `generate_dataset`'s progress calls."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: float, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm
            self._bar = tqdm(total=total, initial=int(done), unit="image", disable=not sys.stderr.isatty(), dynamic_ncols=True,
                             bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]")
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _check_result(option: str, path: Path) -> None:
    """Whether a command can write its result there, before the work: the folder is made, and ValueError says what is in the way."""
    try:
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError(f"{option} {path} cannot be written (no permission, or a read-only disk); give another place with {option}")
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written ({error.strerror}); give another place with {option}") from None


def _write_result(option: str, path: Path, content: bytes) -> None:
    from .generate import OutputError
    from .trained import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(error.errno, f"{option} {path} cannot be written ({error.strerror}); put that right or give another place") from error


def _complain(text: str) -> None:
    print(_printable(f"dreamda: {text}"), file=sys.stderr)


def _printable(text: str) -> str:
    """File names are untrusted: no control characters to the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


from . import cli_data, cli_train  # noqa: E402  (their commands take the options above)

cli_train.register(app)
cli_data.register(app)
