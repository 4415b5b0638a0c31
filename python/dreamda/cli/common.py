"""What the commands share: options, progress, messages, and writing a result."""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline

show_tracebacks = False


def _set_debug(value: bool) -> None:
    global show_tracebacks
    show_tracebacks = value or show_tracebacks


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="A bundled model, a folder in diffusers format, or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, f32 or bf16; auto is bf16 where the CPU computes in it.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")]
Size = Annotated[str, typer.Option(help="Image size, N or HEIGHTxWIDTH; default: the model's own.")]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers; ValueError names --shard."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal() and int(index) < int(count)):
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


def load(model: str, dtype: str, threads: int, size: str) -> Pipeline:
    """The pipeline of a model, with the options of the command line."""
    from ..generation.pipeline import Pipeline

    return Pipeline.load(model, dtype=dtype, threads=threads or None, size=parse_size(size))


def complain_of(skipped: list[tuple[str, str]], notes: list[str]) -> None:
    """What was left out and why, the first twenty by name; then what else should be known."""
    for name, reason in skipped[:20]:
        complain(f"skipped {name}: {reason}")
    if len(skipped) > 20:
        complain(f"skipped {len(skipped) - 20} more")
    for note in notes:
        complain(note)


class Progress:
    """A bar on stderr where that is a terminal; takes `generate_dataset`'s progress calls."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: float, total: int) -> None:
        """So many of so many images are done."""
        if self._bar is None:
            from tqdm import tqdm
            self._bar = tqdm(total=total, initial=int(done), unit="image", disable=not sys.stderr.isatty(), dynamic_ncols=True,
                             bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]")
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def check_result(option: str, path: Path) -> None:
    """Whether a command can write its result there, before the work: the folder is made, and ValueError says what is in the way."""
    try:
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError(f"{option} {path} cannot be written (no permission, or a read-only disk); give another place with {option}")
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written ({error.strerror}); give another place with {option}") from None


def write_result(option: str, path: Path, content: bytes) -> None:
    """Write a command's result whole or not at all; OutputError names the option."""
    from ..data.files import write_atomically
    from ..runs.files import OutputError

    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(error.errno, f"{option} {path} cannot be written ({error.strerror}); put that right or give another place") from error


def complain(text: str) -> None:
    """Print a line to stderr, after the program's name."""
    print(printable(f"dreamda: {text}"), file=sys.stderr)


def printable(text: str) -> str:
    """File names are untrusted: no control characters to the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
