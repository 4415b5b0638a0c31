"""The ``dreamda`` command: one module per group of commands; heavy modules are imported inside functions.

Exit codes: 0 done; 1 ran, but some inputs were skipped or lost, or OUT could no longer be written; 2 wrong usage or bad
input, nothing written; 128 + n ended by signal n. An error is one sentence on stderr; ``--debug`` shows its traceback.
"""
from __future__ import annotations

import signal
import sys
import traceback
import warnings
from typing import Annotated

import typer

from . import audit, common, data, generate, inspect, prompts, train
from .common import Debug, complain

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Generative data augmentation on the CPU: real images in, labelled synthetic training images out.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : list of str, optional
        Default: ``sys.argv[1:]``.
    """
    with common.usable_streams():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    common.show_tracebacks = False
    from ..data.files import LostImageError
    from ..runs.files import OutputError
    from ..runs.generate import EngineError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: complain(str(message))
            code = typer.main.get_command(app).main(args=arguments or ["--help"],
                                                    prog_name="dreamda",
                                                    standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; the interpreter must not complain about it either
        return 1
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's own errors, wherever this version of typer keeps click
        if not usage and not isinstance(error, (ValueError, OSError, MemoryError, ImportError, typer.Abort)):
            from .. import Error
            if not isinstance(error, Error):
                raise  # a bug: the traceback is the message
        if common.show_tracebacks:
            traceback.print_exc()
        if usage:
            text = usage()
        elif isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif isinstance(error, MemoryError):
            text = "not enough memory; take a smaller --size, or --dtype bf16 where the CPU has it"
        else:
            text = str(error)
        complain(text)
        return 1 if isinstance(error, (OutputError, LostImageError, EngineError, MemoryError)) else 2


def _show_version(value: bool) -> None:
    if value:
        from .. import __version__
        print(f"dreamda {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
          debug: Debug = False) -> None:
    pass


for group in (generate, prompts, inspect, train, audit, data):
    group.register(app)
