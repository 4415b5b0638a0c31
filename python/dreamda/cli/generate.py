"""The commands `dreamda generate`, `try`, `replay` and `demo`."""
from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..data.annotations.compose import Composition
from ..generation.options import GenerationOptions, is_from_text
from ..options import ParameterError
from ..presets import BALANCED, load_preset, presets
from ..runs.safeguards import SENSITIVE, Safeguards
from ..text import counted
from . import common, train
from .common import (LABELS, PROMPTS, RUNNING, Coco, Debug, Dtype, Embeddings, FieldsOption, LabelsPath, Loras, Masks,
                     OutArgument, Preset, Progress, PromptFile, Scheduler, Size, Templates, Threads, Vae, Voc, Yolo,
                     accepts_options, add_command, chosen, complain, complain_of, is_given, not_negative, only_out,
                     out_option, parse_shard, parse_size, printable, read_labels, with_preset)

if TYPE_CHECKING:
    from ..data.annotations import AnnotatedFolder, Labels
    from ..data.folders import ImageFolder
    from ..data.prompts import Prompts
    from ..distributed import RayWorkers
    from ..generation.pipeline import Pipeline
    from ..runs.generate import Report
    from ..runs.verify import Verifier


LAYOUT_STRENGTH = 0.5  # for labelled images with --keep none: objects stay about where they are
# The demo's model, and the options with which it was measured (benchmarks/EFFICACY.md)
DEMO_MODEL = "fashion-mini-lcm"
DEMO_OPTIONS: dict[str, Any] = {"method": "sdedit", "strength": 1.0, "guidance_scale": 1.5, "noise_scale": 1.0}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add_command(app, generate, "dreamda generate photos --out synthetic --model stable-diffusion-v1-5",
                "dreamda generate photos -o synthetic -m fashion-mini --variants 4 --steps 20")
    add_command(app, replay, "dreamda replay synthetic/run.json",
                "dreamda replay synthetic/run.json moved-photos --out again")
    add_command(app, try_, "dreamda try photos --out trial --model stable-diffusion-v1-5 --minutes 60",
                "dreamda try photos -o trial -m fashion-mini --preset fast", name="try")
    add_command(app, demo, "dreamda demo", "dreamda demo --out my-demo --variants 2")


Model = Annotated[str,
                  typer.Option("--model", "-m", help="A bundled model, a folder in diffusers format, or a hub id.")]


@accepts_options(Safeguards)
@accepts_options(Composition)
@accepts_options(GenerationOptions)
def generate(
    context: typer.Context,
    real: Annotated[
        Path,
        typer.Argument(help="The data set: a folder for each class, with its images; with --coco, --yolo, --voc or "
                       "--masks a folder of images.")],
    *,
    out_argument: OutArgument = None,
    out: Annotated[
        Path | None,
        out_option("New or empty, or the folder of the same run, which is then resumed.  [required]")] = None,
    model: Model,
    vae: Vae = "",
    loras: Loras = None,
    scheduler: Scheduler = "",
    embeddings: Embeddings = None,
    recipe: Annotated[
        str | None,
        typer.Option(rich_help_panel=PROMPTS,
                     help="Template and options for a kind of data: caltech101, stanford-cars, oxford-pets, "
                     "shenzhen-tb, or a JSON file. Options given beside it take precedence.")] = None,
    preset: Preset = BALANCED,
    template: Templates = None,
    fields: FieldsOption = None,
    prompts: PromptFile = None,
    coco: Coco = None,
    yolo: Yolo = None,
    voc: Voc = None,
    masks: Masks = None,
    keep: Annotated[
        str,
        typer.Option(rich_help_panel=LABELS,
                     metavar="[objects|background|none]",
                     help="The part of labelled images to keep: objects (the background is regenerated), background "
                     "(the objects are regenerated), or none (everything is, by default with --strength 0.5).  "
                     "[default: objects]")] = "",
    verify: Annotated[
        Path | None,
        typer.Option(rich_help_panel=LABELS,
                     metavar="MODEL",
                     help="A classifier of dreamda train on dreamda crops, which judges the objects in the new images: "
                     "an object is lost if it was recognised in the real image and no longer is.")] = None,
    verify_action: Annotated[
        str,
        typer.Option(rich_help_panel=LABELS,
                     metavar="[drop|flag]",
                     help="Leave the annotations of lost objects out, or only name them in metadata.jsonl.")] = "drop",
    exclude_ids: Annotated[
        Path | None,
        typer.Option(rich_help_panel=SENSITIVE,
                     metavar="FILE",
                     help="Real images to make nothing from, such as those whose owners have withdrawn their consent: "
                     "a line for each, its path in REAL or its file name.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run",
                     help="Generate and write nothing: show the number of images, the prompts, and the estimated time "
                     "on this machine, measured by a few steps.")] = False,
    preview: Annotated[
        int,
        typer.Option(callback=not_negative,
                     metavar="N",
                     help="Generate only the first N images, of all classes in turn, and a contact sheet of them "
                     "beside OUT. They remain part of the run.")] = 0,
    size: Size = "",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    shard: Annotated[
        str,
        typer.
        Option(rich_help_panel=RUNNING, metavar="I/N", help="Do the i-th (from 0) of n parts. Parts may share one OUT."
               )] = "0/1",
    engine: Annotated[
        str,
        typer.Option(
            rich_help_panel=RUNNING,
            metavar="[local|ray]",
            help="ray: the workers of a Ray cluster compute, this process reads and writes (extra: ray). --threads "
            "then applies to each worker; 0: all CPUs of the smallest node.")] = "local",
    address: Annotated[str,
                       typer.Option(rich_help_panel=RUNNING,
                                    help="Address of the Ray cluster.  [default: RAY_ADDRESS, else a new cluster on "
                                    "this machine]")] = "",
    debug: Debug = False,
    **options: Any,
) -> int:
    """Make a synthetic data set from a real one.

    Run the same command again to resume. OUT/metadata.jsonl lists every image with its label. Prompts come from
    --template or --prompts, else from the captions in metadata.jsonl or metadata.csv in REAL, else from the recipe,
    else from the class names: the folder names, or the words for them in REAL/classes.json. dreamda prompts shows them.

    A class-conditional model in pixel space takes the numbers of classes instead: those of the names in the list
    "classes" of MODEL/dreamda.json, else those of the sorted folder names.

    With --coco, --yolo, --voc or --masks, OUT is a data set in the same format: the images have the sizes of the real
    ones, and their annotations remain valid.

    Exit code 1: some real images were skipped, or new images left out as too similar to real ones (--max-similarity).
    """
    from ..data.folders import ImageFolder
    from ..data.prompts import choose_prompts
    from ..runs.generate import check_options
    from ..runs.output import check_out, run_identity
    from ..runs.verify import Verifier
    from ..generation.recipes import load_recipe

    place = only_out(out_argument, out)
    taken, words = load_recipe(recipe) if recipe is not None else ({}, None)
    if keep == "none":
        taken["strength"] = LAYOUT_STRENGTH
    settings = chosen(GenerationOptions, with_preset(context, options, load_preset(preset).generate, taken))
    safeguards = chosen(Safeguards, options)
    part = parse_shard(shard)
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine must be local or ray; it is {engine!r}")
    if address and engine != "ray":
        raise ValueError("--address is for --engine ray; add that")
    for option, needed, value in (("min_visibility", "--compose", options["compose"]),
                                  ("verify_action", "--verify", verify)):
        if is_given(context, option) and not value:
            raise ParameterError(option, f"has no effect without {needed}; add that")
    labels = read_labels(real, coco=coco, yolo=yolo, voc=voc, masks=masks)
    folder = _labelled(labels, keep, chosen(Composition, options), verify) or ImageFolder.scan(real)
    if exclude_ids is not None:
        folder = _without(folder, exclude_ids)
    complain_of([], folder.notes)
    classes = common.without_text(context, folder, model)
    if not (common.is_given(context, "text_share") or "text_share" in taken) and (
            folder.annotations is not None or classes is not None and not classes.source):
        settings = replace(settings, text_share=0.0)  # not for annotations or models without prompts
    check_options(folder, settings)
    for name in ("method", "strength", "noise_scale") if settings.text_share == 1 else ():
        if common.is_given(context, name):
            raise ParameterError(name, "has no effect: `text_share=1` makes all images from the text; leave it out")
    chosen_prompts = classes or choose_prompts(folder, template, prompts, words, settings.prompt_syntax, fields,
                                               settings.seed)
    complain_of([], list(chosen_prompts.notes))
    verifier = Verifier(verify, folder, settings.seed, verify_action) if verify is not None else None
    check_out(place, folder, run_identity(folder, settings, chosen_prompts.source, safeguards) | folder.identity()
              | dict(verifier.identity if verifier is not None else {}))
    changes = common.changes(vae, loras, scheduler, embeddings)
    if dry_run:
        if engine == "ray":
            raise ValueError("--dry-run measures on this machine; leave --engine ray off")
        return _estimate(folder, common.load(model, dtype, threads, size, **changes), settings, chosen_prompts, part)
    if engine == "ray":
        from ..distributed import RayWorkers

        with RayWorkers(model, address=address or None, threads=threads or None, dtype=dtype,
                        size=parse_size(size), **changes) as workers:
            return _generate(folder, place, workers, model, settings, chosen_prompts, part, preview, changes, preset,
                             safeguards, verifier)
    return _generate(folder, place, common.load(model, dtype, threads, size, **changes), model, settings,
                     chosen_prompts, part, preview, changes, preset, safeguards, verifier)


def _labelled(labels: Labels | None, keep: str, composition: Composition,
              verify: Path | None) -> AnnotatedFolder | None:
    """The data set of these annotations; None if there are none."""
    from ..generation.regions import KEEPS

    if keep not in ("", *KEEPS):
        raise ValueError(f"--keep must be objects, background or none; it is {keep!r}")
    if labels is None:
        given = {"--keep": keep, "--compose": composition.compose, "--verify": verify}
        if option := next((option for option, value in given.items() if value), None):
            raise ValueError(f"{option} is for labelled images; add --coco, --yolo, --voc or --masks")
        return None
    return labels.folder(keep or "objects", composition)


def demo(
    out: Annotated[Path, out_option("For all files of the demo.")] = Path("dreamda-demo"),
    variants: Annotated[int, typer.Option(help="New images per real image; there are 100 real ones.")] = 4,
    steps: Annotated[int, typer.Option(help="Diffusion steps.")] = 4,
    dtype: Dtype = "auto",
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Run all steps on the bundled few-step model and images, in a minute: generate, train, compare.

    One classifier is trained on real and synthetic images, and one on the real images alone.
    """
    from ..data.bundled import load_bundled
    from ..data.prompts import DEFAULT_TEMPLATE, choose_prompts
    from ..runs.generate import check_out, run_identity
    from ..runs.pictures import contact_sheet_of_run

    settings = GenerationOptions(variants=variants, steps=steps, **DEMO_OPTIONS)
    if out.is_dir() and (
            others := {p.name
                       for p in out.iterdir() if p.name[0] != "."}
            - {"real", "test", "synthetic", "contact-sheet.png", "real-only", "amst", "synthetic-report.html"}):
        raise ValueError(
            f"--out {out} holds {min(others)!r}, which is nothing of the demo's; give a new or an empty folder")
    bundled = load_bundled()
    folder, test = bundled.folder(out / "real"), bundled.folder(out / "test", "test")
    prompts = choose_prompts(folder, DEFAULT_TEMPLATE)
    check_out(out / "synthetic", folder, run_identity(folder, settings, prompts.source))
    pipe = common.load(DEMO_MODEL, dtype, threads, "")
    bundled.write(folder)
    code = _generate(folder, out / "synthetic", pipe, DEMO_MODEL, settings, prompts, (0, 1))
    if code == 0:
        sheet = out / "contact-sheet.png"
        contact_sheet_of_run(out / "synthetic",
                             folder.root,
                             title=f"{DEMO_MODEL}: real images and what was made of them").save(sheet)
        print(
            f"Real images:      {folder.root}\n"
            f"Synthetic images: {out / 'synthetic'} (labels in metadata.jsonl)\n"
            f"Look at:          {sheet}")
        bundled.write(test, "test")
        code = train.compare(out, dtype, threads)
    return code


def _generate(folder: ImageFolder,
              out: Path,
              pipe: Pipeline | RayWorkers,
              model: str,
              settings: GenerationOptions,
              prompts: Prompts,
              part: tuple[int, int],
              preview: int = 0,
              changes: Mapping[str, Any] | None = None,
              preset: str = BALANCED,
              safeguards: Safeguards = Safeguards(),
              verify: Verifier | None = None) -> int:
    from ..distributed import RayWorkers
    from ..runs.checks import disk_space
    from ..runs.generate import generate_dataset
    from ..runs.inspection import environment

    texts = prompts.distinct(settings.variants)
    complain_of([], _notes(folder, texts, pipe, settings))
    space = disk_space(_images(folder, settings, part, preview), _size_made(folder, pipe))
    outline = f"{_outline(folder, prompts, texts, settings)}; {space}"
    print("\n".join(map(printable, [*(lora.describe() for lora in pipe.loras), outline])))
    workers = pipe if isinstance(pipe, RayWorkers) else None
    changes = dict(changes or {})
    about = _environment(pipe, workers.environment if workers else environment(), changes) | {"preset": preset}
    if "loras" in changes:
        changes["loras"] = [{"file": file, "scale": scale, "sha256": lora.sha256}
                            for (file, scale), lora in zip(changes["loras"], pipe.loras, strict=True)]
    if "embeddings" in changes:
        changes["embeddings"] = [{"file": file, "token": each.token, "sha256": each.sha256}
                                 for (file, _), each in zip(changes["embeddings"], pipe.embeddings, strict=True)]
    with Progress(foretell=True) as progress:
        report = generate_dataset(folder,
                                  out,
                                  pipe,
                                  settings,
                                  safeguards=safeguards,
                                  verify=verify,
                                  prompts=prompts,
                                  model=model,
                                  changes=changes,
                                  shard=part,
                                  environment=about,
                                  most=preview or None,
                                  progress=progress,
                                  engine=workers.stream if workers else None)
    report.notes += workers.notes if workers else []
    if preview and report.made + report.present:
        from ..runs.manifest import read_manifest
        from ..runs.pictures import sheet_of_run
        from ..runs.records import names_of, with_real_names

        rows = with_real_names(read_manifest(out), names_of(asdict(safeguards), folder))
        sheet = out.absolute().with_name(f"{out.absolute().name}-preview.png")
        sheet_of_run(out, folder, rows, title=f"{model}: real images and what was made of them").save(sheet)
        print(printable(f"Look at: {sheet}"))
    return _summarise(report, out)


def _environment(pipe: Pipeline | RayWorkers, machine: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The machine as recorded in run.json, with the paths of the model and of its changes."""
    about = {**machine, "threads": pipe.threads, "model_folder": str(pipe.folder.resolve())}
    if "vae" in changes and pipe.vae_folder is not None:
        about["vae_folder"] = str(pipe.vae_folder.resolve())
    if "loras" in changes:
        about["lora_files"] = [str(lora.path) for lora in pipe.loras]
    if "embeddings" in changes:
        about["embedding_files"] = [str(embedding.path) for embedding in pipe.embeddings]
    return about


def _images(folder: ImageFolder, settings: GenerationOptions, part: tuple[int, int], preview: int = 0) -> int:
    """The approximate number of images that this call has to make, if there are none yet."""
    images = len(folder.images) * settings.variants // part[1]
    return min(preview, images) if preview else images


def _outline(folder: ImageFolder, prompts: Prompts, texts: Mapping[str, str], settings: GenerationOptions) -> str:
    """One line about the images to be made: their number, their source, and some of the prompts, which are `texts`."""
    shown = list(texts)
    some = [shown[i * len(shown) // 3] for i in range(3)] if len(shown) > 3 else shown
    more = f" and {len(shown) - len(some)} more" if len(shown) > len(some) else ""
    made = (f"{counted(len(folder.images) * settings.variants, 'image')}: {settings.variants} of each of "
            f"{len(folder.images):,}{folder.describe()}; ")
    if "class_labels" in prompts.source:
        return made + "classes of the model: " + ", ".join(
            f"{label} is {number}" for label, number in prompts.source["class_labels"].items()) + _of_text(settings)
    if shown == [""]:
        return f"{made}the model takes no prompts"
    prompted = ", ".join(f'"{text[:100]}"' for text in some)
    return f"{made}prompts: {prompted}{more}{_of_text(settings)}"


def _of_text(settings: GenerationOptions) -> str:
    """How many variants of each image come from the text alone; empty if that is not asked for."""
    if not settings.text_share:
        return ""
    of_text = sum(is_from_text(settings.text_share, k) for k in range(settings.variants))
    return f"; {of_text} of {counted(settings.variants, 'variant')} from the text alone"


def _size_made(folder: ImageFolder, pipe: Pipeline | RayWorkers) -> tuple[int, int]:
    """The size of the generated images; for labelled ones, a single row with the mean number of pixels."""
    sizes = folder.sizes
    return pipe.size if sizes is None else (1, round(sum(map(math.prod, sizes)) / len(sizes)))


def _notes(folder: ImageFolder, texts: Mapping[str, str], pipe: Pipeline | RayWorkers,
           settings: GenerationOptions) -> list[str]:
    """What is to be said of the prompts `texts` (each with the key of an image), and of the images and the model."""
    from ..generation.pipeline import Pipeline
    from ..generation.schedulers import MOST_OF_FEW_STEPS
    from ..networks.hub import part_folder
    from ..networks.tokenizer import Tokenizer
    from ..runs.checks import check_model, check_prompts, other_classes

    notes, place = [], part_folder(pipe.folder, "tokenizer")
    if place.is_dir():
        tokenizer = Tokenizer(place)
        for embedding in pipe.embeddings:
            tokenizer.add(embedding.tokens)
        notes += check_prompts(folder, texts, tokenizer, settings.negative_prompt, settings.prompt_syntax)
        notes += other_classes(folder, texts, settings.negative_prompt, settings.prompt_syntax)
    if isinstance(pipe, Pipeline) and pipe.schedule.few_steps and (
            MOST_OF_FEW_STEPS < settings.steps <= pipe.schedule.most_steps):
        notes.append(f"this model is made for about 1 to {MOST_OF_FEW_STEPS} steps, and will run {settings.steps}: "
                     f"--preset fast takes {load_preset('fast').generate['steps']}")
    return notes + check_model(folder, texts, pipe.folder, pipe.size, settings.tile_size)


def _estimate(folder: ImageFolder, pipe: Pipeline, settings: GenerationOptions, prompts: Prompts,
              part: tuple[int, int]) -> int:
    """Print the estimated cost of the run on this machine."""
    from ..generation.pipeline import options_of_seams
    from ..runs.checks import disk_space, forecast
    from ..runs.inspection import describe_model

    texts = prompts.distinct(settings.variants)
    complain_of(list(folder.ignored), _notes(folder, texts, pipe, settings))
    outline = _outline(folder, prompts, texts, settings)
    print("\n".join(map(printable, [*(lora.describe() for lora in pipe.loras), outline])))
    images = _images(folder, settings, part)
    seconds = describe_model(pipe, **asdict(settings))["seconds_per_image"]
    if folder.apart:
        seconds += describe_model(pipe, **asdict(options_of_seams(settings)))["seconds_per_image"]
    size = "{} x {}".format(*pipe.size)
    if folder.sizes is not None:
        areas = [math.prod(pipe._canvas(image).size) for image in folder.sizes]
        seconds *= sum(areas) / len(areas) / math.prod(pipe.size)
        size = "their own sizes"
    print(f"{counted(images, 'image')} of {size} on {counted(pipe.threads, 'thread')} in {pipe.dtype}: "
          f"{forecast(images, seconds)}; {disk_space(images, _size_made(folder, pipe))}")
    return 1 if folder.ignored else 0


def try_(
    real: Annotated[Path, typer.Argument(help="The data set: a folder for each class, with its images.")],
    out: Annotated[Path, out_option("New or empty, or the folder of the same trial, which is then resumed.")],
    model: Model,
    minutes: Annotated[float,
                       typer.Option(help="Time limit for all calls together. More minutes give more rounds and a "
                                         "narrower confidence interval.")] = 30.0,
    preset: Annotated[
        list[str] | None,
        typer.Option(metavar=f"[{'|'.join(presets())}]",
                     help="Presets to try; repeat the option for each.  [default: fast for models distilled for few "
                          "steps, else balanced and paper]")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of images, folds and trainings.")] = 0,
    size: Size = "",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Measure on your own images, before days of generation, whether synthetic images help, and with which options.

    This is a small cross-validated experiment: classifiers with and without synthetic images are tested on real images
    that they have not seen. Where the time allows, it compares changed real images, images from the text alone, and
    half of each (--text-share of dreamda generate). The result includes its uncertainty, and is also written to
    OUT/trial.html. Run the same command again to resume; more --minutes make the result more certain. OUT is locked: a
    second process that writes there is refused.
    """
    from ..runs.files import locked_folder
    from ..runs.inspection import environment
    from ..runs.trial import try_dataset

    with locked_folder(out):  # try_dataset locks it again; this one refuses before the model is loaded
        pass
    pipe = common.load(model, dtype, threads, size)
    about = _environment(pipe, environment(), {})
    trial = try_dataset(real, out, pipe, model=model, minutes=minutes, presets=preset or (), seed=seed,
                        threads=threads or None, environment=about, watch=Progress, tell=complain)
    complain_of(trial.skipped, [])
    if trial.verdict is not None:
        print(f"{'':30} right   gain (90 % confidence)")
        gains = {c.kind.name: c for c in trial.comparisons}
        for row, accuracy in trial.accuracy.items():
            gain = gains.get(row)
            shown = f"  {100 * gain.gain:+5.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain else ""
            print(printable(f"{row:30} {accuracy:5.1%}{shown}"))
        print(printable(trial.verdict.sentence))
        print(printable(f"Look at: {trial.page}"))
    if trial.signal:
        complain(f"stopped by {signal.Signals(trial.signal).name}; run the same command again to resume")
        return 128 + trial.signal
    return 1 if trial.skipped else 0


def replay(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN.json", help="The run.json of an output of dreamda generate, or its folder.")],
    real: Annotated[Path | None,
                    typer.Argument(help="Where the real images are now.  [default: where they were, if that was "
                                        "beside OUT or recorded by --record-names paths]")] = None,
    out: Annotated[Path | None,
                   out_option("New or empty, or the folder of the same replay, which is then resumed.  "
                              "[default: a temporary folder]")] = None,
    labels: LabelsPath = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Where the model is now.  [default: as recorded]")] = "",
    vae: Annotated[str,
                   typer.Option(metavar="FOLDER", help="Where the VAE of --vae is now.  [default: as recorded]")] = "",
    loras: Annotated[
        Optional[list[str]],
        typer.Option("--lora", metavar="FILE", help="Where the files of --lora are now, in their order, at the run's "
                     "own scales.  [default: as recorded]")] = None,
    embeddings: Annotated[
        Optional[list[str]],
        typer.Option("--embedding", metavar="FILE", help="Where the files of --embedding are now, in their order.  "
                     "[default: as recorded]")] = None,
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Repeat a run from its records, and compare the SHA-256 of every image file with the recorded one."""
    import tempfile

    from ..runs.inspection import environment
    from ..runs.replay import RecordedRun
    from ..runs.replay import replay as repeat

    run = RecordedRun.read(path)
    if not (model or run.model):
        raise ValueError(f"{path} does not name the model; give it with --model")
    changes = run.changes | ({"vae": vae} if vae else {})
    for name, option, moved in (("loras", "--lora", loras), ("embeddings", "--embedding", embeddings)):
        if moved and len(moved) != (there := len(changes.get(name, ()))):
            raise ValueError(f"{option}: the run has {there}, and {len(moved)} are given")
        if moved:
            changes[name] = [(file, kept) for file, (_, kept) in zip(moved, changes[name])]
    recorded_threads = run.environment.get("threads")
    pipe = common.load(model or run.model, run.run["dtype"], threads
                       or (recorded_threads if type(recorded_threads) is int else 0), "{}x{}".format(*run.run["size"]),
                       **changes)
    about = _environment(pipe, environment(), changes)
    about |= {name: value for name, value in run.environment.items() if name == "preset"}
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="dreamda-replay-") as temporary:
        report = repeat(run, pipe, out or temporary, real=real, labels=labels, environment=about, progress=progress)
    if report.signal:
        how = "run the same command again to resume" if out else "name a folder with --out to be able to resume"
        complain(f"stopped by {signal.Signals(report.signal).name}; {how}")
        return 128 + report.signal
    for name, reason in report.changed[:20]:
        complain(f"the real image {name} {reason}, so what was made of it is not repeated")
    if len(report.changed) > 20:
        complain(f"and {counted(len(report.changed) - 20, 'more real image')}")
    if report.altered:
        complain(f"{counted(len(report.altered), 'image')} in {run.out} changed since they were recorded; "
                 f"the first is {report.altered[0]}")
    if report.differing:
        complain(f"{report.differing[0]} differs from the recorded image: {report.first}"
                 + (f"; {len(report.differing) - 1} more differ" if len(report.differing) > 1 else "")
                 + (f"; the run was made with {report.environment}" if report.environment else ""))
    print(
        printable(f"{path}: {report.same} of {counted(report.total, 'image')} repeated to the same bytes"
                  + (f", in {out}" if out else "")))
    return 1 if report.changed or report.altered or report.differing else 0


def _without(folder: ImageFolder, exclude_ids: Path) -> ImageFolder:
    """The data set without the images of a list; a note says which names mean several images."""
    from ..data.folders import read_names

    if not exclude_ids.is_file():
        raise FileNotFoundError(f"--exclude-ids: {exclude_ids}: no such file; give a text file with the name of an "
                                "image on each line")
    names = read_names(exclude_ids)
    several = [f"{name} ({', '.join(str(folder.path(image).relative_to(folder.root)) for image in images[:5])}"
               f"{', ...' if len(images) > 5 else ''})" for name, images in folder.named(names).items()
               if len(images) > 1]
    less = folder.without(names)
    if several:
        complain(f"--exclude-ids: {counted(len(several), 'file name')} of {exclude_ids} "
                 f"{'means' if len(several) == 1 else 'mean'} several images, which are all excluded: "
                 f"{', '.join(several[:5])}{', ...' if len(several) > 5 else ''}")
    return less


def _summarise(report: Report, out: Path) -> int:
    complain_of(report.skipped, report.notes)
    rate = (f" in {report.seconds:.1f} s ({report.made / report.seconds:.2f} images/s)"
            if report.made and report.seconds else "")
    there = f", {report.present} were there already" if report.present else ""
    without = f", {report.left_out} left out as too similar to real images" if report.left_out else ""
    lost = f", {counted(report.lost, 'object')} no longer recognised" if report.lost else ""
    print(printable(f"{out}: {counted(report.made, 'image')} made{rate}{there}{without}{lost}"))
    if report.signal:
        left = report.total - report.made - report.present - report.left_out
        complain(f"stopped by {signal.Signals(report.signal).name} with up to {counted(left, 'image')} to go; "
                 "run the same command again to resume")
        return 128 + report.signal
    return 1 if report.skipped or report.left_out else 0
