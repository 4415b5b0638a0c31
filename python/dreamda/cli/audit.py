"""The command `dreamda audit`; `dreamda.cli` registers it."""
from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..text import counted
from .common import Debug, Progress, Threads, add_command, complain, complain_of, out_option, printable


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, audit, "dreamda audit photos synthetic --reference held-out --out report",
                "dreamda audit --withdraw photos/coat/7.jpg synthetic other-synthetic")


def audit(
    real: Annotated[
        Optional[Path],
        typer.Argument(help="The real images that must not be copied; with --withdraw, a folder of synthetic "
                       "images.")] = None,
    synthetic: Annotated[
        Optional[list[Path]],
        typer.Argument(help="The synthetic images; with --withdraw, more folders of them.")] = None,
    out: Annotated[Optional[Path], out_option("New, or the folder of an interrupted audit; gets audit.json and "
                                              "audit.html. With --withdraw it may be left off, and gets "
                                              "withdrawal.json.")] = None,
    reference: Annotated[
        Optional[Path],
        typer.Option(metavar="FOLDER", help="Real images that the generator has never seen, for tests of distances and "
                     "of membership.")] = None,
    max_similarity: Annotated[
        Optional[float],
        typer.Option(help="Images more similar to a real one than this are copies; 1 is the same picture.  [default: "
                     "what 1 % of the real images exceed among themselves; with --withdraw 0.9]")] = None,
    withdraw: Annotated[
        Optional[Path],
        typer.Option(metavar="IMAGE", help="List what was made from this real image or looks like it, instead of an "
                     "audit. If the file is gone, its name in the data set.")] = None,
    features: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Weights of a ResNet from timm or torchvision (safetensors), such as "
                     "ImageNet's, for one more view of similarity.")] = None,
    threads: Threads = 0,
    debug: Debug = False,
) -> int:
    """Find synthetic images that are near copies of real ones.

    Every synthetic image is compared with every real one, whatever was done to it: JPEG, blur, small crops and shifts,
    flips, brightness, contrast, inversion, rescaling, borders, text. Exit code 0: no copy was found; 1: copies were
    found, or images could not be read; 2: bad input. That no copy is found does not show that the synthetic images
    reveal nothing about the real ones.

    With --withdraw it lists what has to do with one real image, such as one whose owner has withdrawn the consent: what
    was made from it, by metadata.jsonl, and what looks like it. Exit code 1: there is such an image.
    """
    folders = [*([] if real is None else [real]), *(synthetic or ())]
    if withdraw is not None:
        for option, value in (("--reference", reference), ("--features", features)):
            if value is not None:
                raise ValueError(f"--withdraw and {option} exclude each other; give one of them")
        if not folders:
            raise ValueError("--withdraw needs a folder of synthetic images to search; name one or more")
        return _trace(withdraw, folders, out, max_similarity, threads)
    if len(folders) != 2:
        raise ValueError(f"an audit needs two folders, REAL and SYNTHETIC; {len(folders) or 'none'} "
                         f"{'is' if len(folders) == 1 else 'are'} given")
    if out is None:
        raise ValueError("--out is missing; name a folder for the report")
    return _audit(folders[0], folders[1], out, reference, max_similarity, features, threads)


def _trace(image: Path, folders: list[Path], out: Path | None, max_similarity: float | None, threads: int) -> int:
    from ..runs.files import check_report, locked_folder
    from ..runs.withdrawal import trace

    if out is not None:
        check_report(out, *folders)
    with contextlib.nullcontext() if out is None else locked_folder(out):
        found = trace(image, folders, max_similarity=max_similarity, threads=threads or None)
        if out is not None:
            found.write(out)
    complain_of(found.skipped, found.notes)
    for each in found.traces:
        score = "" if each.score is None else f"  {each.score:6.3f}"
        print(printable(f"{Path(each.folder) / each.file}{score}  {each.reason}"))
    print(printable(f"{len(found.traces):,} of {counted(found.images, 'image')} made from {image} or like it"))
    return 1 if found.traces or found.skipped else 0


def _audit(real: Path, synthetic: Path, out: Path, reference: Path | None, max_similarity: float | None,
           features: Path | None, threads: int) -> int:
    from ..runs.audit import audit as compare
    from ..runs.files import BLOCKS

    if reference is not None and not reference.exists():
        raise FileNotFoundError(f"--reference: {reference}: no such folder; give a folder of real images that the "
                                "generator has not seen")
    if features is not None and not features.exists():
        raise FileNotFoundError(f"--features: {features}: no such file; give the weights of a ResNet (safetensors)")
    try:
        with _Phases() as progress:
            result = compare(real, synthetic, reference, out=out, max_similarity=max_similarity, features=features,
                             threads=threads or None, progress=progress)
    except KeyboardInterrupt:
        kept = out / BLOCKS
        complain("interrupted; run the same command again to resume"
                 + (f"; {kept} holds thumbnails of the images, real ones too, until then" if kept.is_dir() else ""))
        return 128 + signal.SIGINT
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
