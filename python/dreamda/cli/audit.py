"""The command `dreamda audit`; `dreamda.cli` registers it."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import Debug, Progress, Threads, add_command, complain_of, out_option, printable


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, audit, "dreamda audit photos synthetic --out report",
                "dreamda audit photos synthetic --reference held-out --out report --max-similarity 0.9")


def audit(
    real: Annotated[Path, typer.Argument(help="The real images that must not be copied.")],
    synthetic: Annotated[Path, typer.Argument(help="The synthetic images.")],
    out: Annotated[Path, out_option("New, or the folder of an interrupted audit; gets audit.json and audit.html.")],
    reference: Annotated[
        Optional[Path],
        typer.Option(metavar="FOLDER", help="Real images that the generator has never seen, for tests of distances and "
                     "of membership.")] = None,
    max_similarity: Annotated[
        Optional[float],
        typer.Option(help="Images more similar to a real one than this are copies; 1 is the same picture.  [default: "
                     "what 1 % of the real images exceed among themselves]")] = None,
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Find synthetic images that are near copies of real ones.

    Every synthetic image is compared with every real one, whatever was done to it: JPEG, blur, small crops and shifts,
    flips, brightness, contrast, inversion, rescaling, borders, text. Exit code 0: no copy was found; 1: copies were
    found, or images could not be read; 2: bad input. That no copy is found does not show that the synthetic images
    reveal nothing about the real ones.
    """
    from ..runs.audit import audit as compare

    with _Phases() as progress:
        result = compare(real, synthetic, reference, out=out, max_similarity=max_similarity, threads=threads or None,
                         progress=progress)
    complain_of(result.skipped, result.notes)
    for line in result.table().splitlines():
        print(printable(line))
    print(printable(f"Look at: {out / 'audit.html'}"))
    return 1 if result.copies or result.skipped else 0


class _Phases:
    """A progress bar for each phase of the work."""

    def __init__(self) -> None:
        self._phase, self._bar = "", Progress("image")

    def __enter__(self) -> _Phases:
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self.__exit__()
            self._phase, self._bar = phase, Progress("image")
        self._bar(done, total)

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()
