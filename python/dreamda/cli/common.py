"""Shared parts of the commands: declaring and listing options, progress, messages, and writing a result."""
from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar, get_args, get_type_hints

import typer
import typer.core

from ..options import Option, Options, ParameterError, defaults_of, options_of, spelled
from ..presets import presets
from ..progress import bar

if TYPE_CHECKING:
    from ..data.annotations import Labels
    from ..data.folders import ImageFolder
    from ..data.prompts import Prompts
    from ..generation.pipeline import Pipeline

F = TypeVar("F", bound=Callable[..., Any])
O = TypeVar("O", bound=Options)

# headings in the help; the last two are listed last
COMMON, MODEL, PROMPTS, LABELS = "Options", "Changes to the model", "Prompts", "Labelled images"
RUNNING, OTHER = "Running", "Other options"
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
NUMBERS = {METAVARS[int]: "a whole number", METAVARS[float]: "a number"}

show_tracebacks = False


class Command(typer.core.TyperCommand):
    """A command whose help lists its options in groups and ends with examples.

    It turns an error about a parameter of the library into one about its option.
    """

    def get_short_help_str(self, limit: int = 45) -> str:
        """The summary in the list of commands: all of the first sentence."""
        return inspect.cleandoc(self.help or "").split("\n\n")[0].replace("\n", " ")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line after the command's name: ``[OPTIONS] REAL [SYNTHETIC]``."""
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        return [self.options_metavar or ""] + [_argument(p) if p.required else f"[{_argument(p)}]" for p in arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], COMMON: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = param.param_type_name == "argument"
                name = "Arguments" if is_argument else OTHER if param.name == "help" else getattr(
                    param, "rich_help_panel", None) or COMMON
                groups.setdefault(name, []).append((_argument(param), record[1]) if is_argument else record)
        for name in sorted(groups, key=lambda name: (RUNNING, OTHER).index(name) if name in (RUNNING, OTHER) else -1):
            if groups[name]:
                with formatter.section(name):
                    formatter.write_dl(groups[name])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, one per line."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a `ParameterError` of the library becomes a ValueError that names the option."""
        with self._naming_options():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; errors about single options name the option, as in `invoke`."""
        with self._naming_options():
            return super().parse_args(ctx, args)

    @contextlib.contextmanager
    def _naming_options(self) -> Iterator[None]:
        try:
            yield
        except ParameterError as error:
            option = self.spell(error.parameter) or error.parameter
            raise ValueError(f"{option}: {spelled(error.reason, self.spell)}") from error
        except typer.BadParameter as error:
            param = error.param
            kind = NUMBERS.get(getattr(param, "metavar", None) or "")
            if type(error) is not typer.BadParameter or param is None or kind is None:  # a missing one has a subclass
                raise
            raise ValueError(f"{self.spell(str(param.name))} must be {kind}") from error

    def spell(self, name: str, value: str | None = None) -> str | None:
        """A parameter (and its value) as written on the command line; None if the command has no such option."""
        for param in self.params:
            if param.name == name:
                if param.param_type_name == "argument":
                    return (param.metavar or name).upper()
                option = max(param.opts, key=len)
                if value in ("True", "False") and getattr(param, "is_flag", False):
                    return option if value == "True" else max(param.secondary_opts, key=len, default=f"{option} off")
                return option if value is None else f"{option} {value}"
        return None


def _argument(param: Any) -> str:
    return (param.metavar or param.name) + ("..." if param.nargs != 1 else "")


def add_command(app: typer.Typer, function: Callable[..., Any], *examples: str, name: str | None = None) -> None:
    """Add a command to the application. Its help uses our own metavars, and ends with the examples."""
    function.__annotations__ = hints = get_type_hints(function, include_extras=True)
    for parameter, hint in hints.items():
        for info in getattr(hint, "__metadata__", ()):
            kind = next((kind for kind in METAVARS if kind in (hint.__origin__, *get_args(hint.__origin__))), None)
            if info.metavar is None and kind is not None:
                info.metavar = parameter.upper() if isinstance(info, typer.models.ArgumentInfo) else METAVARS[kind]
    app.command(name, cls=Command, epilog="\n".join(examples))(function)


def accepts_options(cls: type[Options], *only: str) -> Callable[[F], F]:
    """Give a command that takes ``**options`` an option for each field of the dataclass `cls`, or for some of them.

    The option is in the field's group. `chosen` creates the dataclass from the options. Apply the decorator twice for
    the options of two dataclasses.
    """
    def decorate(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        own = [
            p.replace(annotation=hints.get(p.name, p.annotation))
            for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        added = [_parameter(cls, name) for name in only or options_of(cls)]
        signature = inspect.Signature(own + added, return_annotation=hints.get("return"))
        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in own + added} | {"return": hints.get("return")}
        return function

    return decorate


def _parameter(cls: type[Options], name: str) -> inspect.Parameter:
    """The option of a field, as a parameter that Typer reads from a signature."""
    about, default = options_of(cls)[name], defaults_of(cls)[name]
    option = _option(cls, name)
    names = (f"{option}/--no-{option[2:]}",) if about.kind is bool else (option,)

    def spell(other: str, value: str | None) -> str:
        written = _option(cls, other)
        return f"--no-{written[2:]}" if value == "False" else written if value in (None,
                                                                                   "True") else f"{written} {value}"

    help = spelled(about.help,
                   spell) + (f"  [default: {spelled(about.shown_default, spell)}]" if about.shown_default else "")
    info = typer.Option(*names,
                        help=help,
                        rich_help_panel=about.group,
                        show_default=not about.shown_default and default != "",
                        metavar=_metavar(about))
    if about.count:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=Annotated[str, info])
    kind: Any = Optional[about.kind] if about.optional else about.kind
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _option(cls: type[Options], name: str) -> str:
    fields = options_of(cls)
    return fields[name].spelling if name in fields and fields[name].spelling else "--" + name.replace("_", "-")


def _metavar(about: Option) -> str | None:
    if about.count:
        return "N|HxW" if about.broadcast else ",".join([METAVARS[about.kind]] * about.count)
    return None if about.kind is bool else f"[{'|'.join(map(str, about.choices))}]" if about.choices else METAVARS[
        about.kind]


def chosen(cls: type[O], options: Mapping[str, Any]) -> O:
    """Create the dataclass from those options of a command that are its fields; the others have their defaults."""
    return cls(**{
        name: about.read(name, options[name]) if about.count and isinstance(options[name], str) else options[name]
        for name, about in options_of(cls).items() if name in options
    })


def _set_debug(value: bool) -> None:
    global show_tracebacks
    show_tracebacks = value or show_tracebacks


def not_negative(param: typer.CallbackParam, value: int) -> int:
    """Check that the value of an option is not negative; Typer's ``min`` would add ``x>=0`` to the help."""
    if value < 0:
        raise ParameterError(str(param.name), f"{value} is not possible; use a whole number of 0 or more")
    return value


Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, rich_help_panel=OTHER, help="Show the traceback of an error.")]
Dtype = Annotated[str, typer.Option(metavar="[auto|f32|bf16]", rich_help_panel=RUNNING,
                                    help="Type of the computation; auto is bf16 if the CPU supports it.")]
Threads = Annotated[
    int,
    typer.Option(callback=not_negative, rich_help_panel=RUNNING, help="Threads; 0: as many as this process may use.")]
Vae = Annotated[
    str,
    typer.Option(metavar="FOLDER", rich_help_panel=MODEL,
                 help="A VAE to use instead of the model's own, in diffusers format: TAESD's is small and fast.")]
Loras = Annotated[
    Optional[list[str]],
    typer.Option("--lora", metavar="FILE[:SCALE]", rich_help_panel=MODEL,
                 help="A LoRA to add to the model, times SCALE; repeat the option to add more.")]
Embeddings = Annotated[
    Optional[list[str]],
    typer.Option("--embedding", metavar="FILE[:NAME]", rich_help_panel=MODEL,
                 help="A learned word (textual inversion) for use in prompts, by its own name or NAME; repeat the "
                 "option to add more.")]
Scheduler = Annotated[
    str,
    typer.Option(metavar="[lcm|tcd|euler-trailing|ddim-trailing|dpm]", rich_help_panel=MODEL,
                 help="A sampler to use instead of the model's own: lcm with an LCM-LoRA.")]
Size = Annotated[str, typer.Option(metavar="N|HxW", rich_help_panel=RUNNING,
                                   help="Image size in pixels, N or HEIGHTxWIDTH.  [default: the model's own]")]


Templates = Annotated[
    Optional[list[str]],
    typer.Option("--template", metavar="TEXT", rich_help_panel=PROMPTS,
                 help="Prompt of a class, {} being its name. It may have fields, as in 'a {style} of a {}, {view}', "
                 "{caption}, and {red|blue}; repeat the option for more prompts, from which an image's variants are "
                 'made in turn.  [default: "a photo of a {}"]')]
FieldsOption = Annotated[
    Optional[str],
    typer.Option("--fields", metavar="SET|FILE|FOLDER", rich_help_panel=PROMPTS,
                 help="Values for the fields: a JSON or YAML file with a list for each, a folder of wildcards "
                 "(style.txt with a value on each line), or one of the sets fine-grained, medical, natural and "
                 "satellite. The variants of an image get the values evenly.")]
PromptFile = Annotated[
    Optional[Path],
    typer.Option("--prompts", metavar="FILE", rich_help_panel=PROMPTS,
                 help="JSON Lines or CSV with file_name and text for every image; or .json, an object with a prompt or "
                 "a list of prompts for each class.  [default: the captions in REAL, where there are any]")]
Coco = Annotated[Optional[Path],
                 typer.Option("--coco", metavar="FILE", rich_help_panel=LABELS,
                              help="REAL is a folder of images, FILE has their COCO instances (JSON).")]
Yolo = Annotated[Optional[Path],
                 typer.Option("--yolo", metavar="FILE", rich_help_panel=LABELS,
                              help="The same with an Ultralytics data.yaml and its text files.")]
Voc = Annotated[Optional[Path],
                typer.Option("--voc", metavar="FOLDER", rich_help_panel=LABELS,
                             help="The same with Pascal VOC's XML files.")]
Masks = Annotated[Optional[Path],
                  typer.Option("--masks", metavar="FOLDER", rich_help_panel=LABELS,
                               help="The same with a PNG per image, of the same name, whose values are classes or "
                               "objects; 0 is the background, and in 8 bits 255 is ignored.")]
LabelsPath = Annotated[
    Optional[Path],
    typer.Option("--labels",
                 metavar="PATH",
                 help="Where the annotations of the real images are now, if there are any.  [default: where they were, "
                 "if that was beside or in REAL, or recorded by --record-names paths]")]
Preset = Annotated[
    str,
    typer.Option("--preset",
                 metavar=f"[{'|'.join(presets())}]",
                 help="; ".join(f"{name}: {preset.about}" for name, preset in presets().items())
                 + ". Options given beside it take precedence.")]


def out_option(help: str, metavar: str = "FOLDER") -> Any:
    """The option ``--out``, by which every command names its output; apart from `OutArgument`, arguments are inputs."""
    return typer.Option("--out", "-o", metavar=metavar, help=help)


OutArgument = Annotated[Optional[Path],
                        typer.Argument(metavar="OUT", help="The output may also be named here, without --out.")]


def only_out(argument: Path | None, option: Path | None) -> Path:
    """The output of a command that takes it as ``--out`` or as its last argument; ValueError unless given once."""
    if argument is not None and option is not None:
        raise ValueError(f"the output is named twice, {argument} and --out {option}; leave one of them off")
    out = option if argument is None else argument
    if out is None:
        raise ValueError("--out is missing; name a folder for the images")
    return out


def without_text(context: typer.Context, folder: ImageFolder, model: str) -> Prompts | None:
    """What stands in place of prompts for a model that reads none; then also refuses options for prompts.

    None if the model reads prompts, or is not found, which `load` reports.
    """
    from ..generation.pipeline import OF_TEXT
    from ..networks.hub import find_model
    from ..runs.checks import conditions_without_text

    try:
        place = find_model(model)
    except (FileNotFoundError, ValueError):
        return None
    found = conditions_without_text(folder, place)
    for name in ("template", "prompts", "fields", *OF_TEXT) if found else ():
        if is_given(context, name):
            raise ParameterError(name, f"has no effect: {model} reads no prompts; leave it out")
    return found


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def with_preset(context: typer.Context, options: Mapping[str, Any], preset: Mapping[str, Any],
                recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A command's options, with those of a recipe or else of a preset unless they are given on the command line."""
    ours = {name: value for name, value in {**preset, **recipe}.items() if not is_given(context, name)}
    if is_given(context, "method"):  # these belong to the preset's method
        ours.pop("noise_scale", None)
        if options["method"] != preset.get("method"):
            ours.pop("share_source", None)
    if "text_share" not in recipe and any(name in recipe or is_given(context, name) for name in ("method", "strength")):
        ours.pop("text_share", None)  # these two say how to change real images, so all variants are changed ones
    return {**options, **ours}


def read_labels(real: Path, **given: Path | None) -> Labels | None:
    """The annotations of an option --coco, --yolo, --voc or --masks; None if there is none."""
    from ..data.annotations import READERS

    paths = {name: path for name, path in given.items() if path is not None}
    if len(paths) > 1:
        raise ValueError(" and ".join(f"--{name}" for name in paths) + " exclude each other; give one of them")
    for name, path in paths.items():
        labels = READERS[name](path, real)
        complain_of([], labels.notes)
        return labels
    return None


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers; ValueError names --shard."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal()
            and int(index) < int(count)):
        raise ValueError(f"--shard {text!r} must be i/n with 0 <= i < n, such as 0/4")
    return int(index), int(count)


def parse_size(text: str) -> tuple[int, int] | None:
    """``N`` or ``HEIGHTxWIDTH`` as two numbers, None for the default; ValueError names --size."""
    if not text:
        return None
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(n.isascii() and n.isdecimal() and len(n) < 6 for n in numbers):
        raise ValueError(f"--size {text!r} must be a number of pixels, or HEIGHTxWIDTH")
    return int(numbers[0]), int(numbers[-1])


def parse_lora(text: str) -> tuple[str, float]:
    """``FILE:SCALE`` as a pair; the scale is 1 if none is given."""
    file, _, scale = text.rpartition(":")
    if not file or os.path.exists(text):
        return text, 1.0
    try:
        return file, float(scale)
    except ValueError:
        return text, 1.0


def parse_embedding(text: str) -> tuple[str, str | None]:
    """``FILE:NAME`` as a pair; the name is None if the file names the token."""
    file, _, name = text.rpartition(":")
    return (file, name) if file and name and not os.path.exists(text) else (text, None)


def changes(vae: str, loras: list[str] | None, scheduler: str, embeddings: list[str] | None) -> dict[str, Any]:
    """The keywords of `Pipeline.load` for the changes to a model on the command line."""
    given = {"vae": vae, "loras": [parse_lora(text) for text in loras or ()], "scheduler": scheduler,
             "embeddings": [parse_embedding(text) for text in embeddings or ()]}
    return {name: value for name, value in given.items() if value}


def load(model: str, dtype: str, threads: int, size: str, **changes: Any) -> Pipeline:
    """Load the pipeline of a model with the options of the command line; see `changes`."""
    from ..generation.pipeline import Pipeline

    return Pipeline.load(model, dtype=dtype, threads=threads or None, size=parse_size(size), **changes)


def complain_of(skipped: list[tuple[str, str]], notes: list[str]) -> None:
    """Print the first twenty skipped inputs with their reasons, the number of all, and the notes."""
    for name, reason in skipped[:20]:
        complain(f"skipped {name}: {reason}")
    if len(skipped) > 1:
        complain(f"skipped {len(skipped):,} in all")
    for note in notes:
        complain(note)


class _Nowhere(io.TextIOBase):
    """A replacement for a missing standard stream."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make sure that the standard streams can be written to.

    Services and schedulers start programs with closed streams, and print would then write errors to standard output.
    The file descriptors are also occupied, otherwise the next opened files would get them, and with them everything
    written to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    with contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                stack.enter_context(redirect(_Nowhere()))
        yield


def needs_stdout(instead: str) -> None:
    """Raise ValueError if a result would be lost because there is no standard output."""
    if isinstance(sys.stdout, _Nowhere):
        raise ValueError(f"there is no standard output to write to; {instead}")


def on_terminal() -> bool:
    """Whether stderr is a terminal; a replacement stream may not support the question."""
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, OSError, ValueError):
        return False


SECONDS_A_LINE = 60.0  # between two progress lines if stderr is not a terminal
SECONDS_TO_FORETELL = 5.0  # of work, before the remaining time is estimated


class Progress:
    """A progress bar on stderr if that is a terminal, else one line per minute.

    It accepts the progress calls of the library, and lines to print above the bar.

    Parameters
    ----------
    unit : {"image", "step", "training"}
        The unit that is counted; images may be fractions.
    spell : callable
        Writes the names of parameters in those lines; see `dreamda.options.spelled`.
    foretell : bool
        Print the estimated time for all of the work, and when it will end, after its first seconds.
    """

    def __init__(self,
                 unit: str = "image",
                 spell: Callable[[str, str | None], str | None] = lambda name, value: None,
                 foretell: bool = False) -> None:
        self._unit, self._spell, self._foretell = unit, spell, foretell
        self._bar: Any = None
        self._begun = self._told = (0.0, 0.0)  # time, and what was done then

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: float, total: int) -> None:
        """Show that `done` of `total` units are done."""
        if self._bar is None:
            before = int(done) if self._unit == "image" else int(done) - 1
            self._bar = bar(total, self._unit, initial=before, hidden=not on_terminal())
            self._begun = self._told = time.monotonic(), done
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._foretell and now - self._begun[0] >= SECONDS_TO_FORETELL and done > self._begun[1]:
            from ..runs.checks import forecast

            self._foretell = False
            self.tell(f"{total - int(done):,} images to make: "
                      + forecast(total - done, (now - self._begun[0]) / (done - self._begun[1])))
        if self._bar.disable and now - self._told[0] >= SECONDS_A_LINE and done > self._begun[1]:
            from ..runs.checks import duration

            self._told = now, done
            rate = (done - self._begun[1]) / (now - self._begun[0])
            complain(
                f"{int(done):,} of {total:,} {self._unit}s, {duration(1 / rate)} each, about "
                f"{duration((total - done) / rate)} left")

    def tell(self, text: str) -> None:
        """Print a line on stderr, above the bar."""
        line = printable(spelled(text, self._spell))
        if self._bar is not None and not self._bar.disable:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def check_result(option: str, path: Path) -> None:
    """Check, before the work, that a command can write its result to a path.

    The folder is created; ValueError names the problem.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError(
                f"{option} {path} cannot be written (no permission, or a read-only disk); "
                f"give another place with {option}")
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written ({error.strerror}); give another place with {option}") from None


def write_result(option: str, path: Path, content: bytes) -> None:
    """Write a command's result atomically; OutputError names the option."""
    from ..data.files import write_atomically
    from ..runs.files import OutputError

    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(
            error.errno,
            f"{option} {path} cannot be written ({error.strerror}); fix that, or give another place") from error


def complain(text: str) -> None:
    """Print a line to stderr, preceded by the program's name."""
    print(printable(f"dreamda: {text}"), file=sys.stderr)


def printable(text: str) -> str:
    """Escape control characters for the terminal, since file names are untrusted."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
