"""The page of `dreamda try`: the verdict, a table of the rows, and pictures of every kind of synthetic images."""
from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import duration
from .page import render
from .pictures import contact_sheet_of_run
from .records import shown_path

if TYPE_CHECKING:
    from .trial import Trial


def trial_page(trial: Trial, real: Path, out: Path, model: str, classes: Sequence[str], counts: Sequence[int],
               size: tuple[int, int], image_seconds: Mapping[str, float], seconds: float) -> str:
    """The page as HTML, with its pictures inside.

    Parameters
    ----------
    trial : Trial
        With a verdict.
    real, out : path
        The data set, and the folder of the trial.
    model : str
    classes : sequence of str
    counts : sequence of int
        Number of readable real images of each class.
    size : (height, width)
        Size of the images for the classifiers.
    image_seconds : mapping of str to float
        Time per synthetic image of each row that has them.
    seconds : float
        Time of the trial.
    """
    plan, verdict = trial.plan, trial.verdict
    assert verdict is not None
    gains = {c.kind.name: c for c in trial.comparisons}
    rows = []
    for row, accuracy in trial.accuracy.items():
        gain = gains.get(row)
        rows.append([row, f"{accuracy:.1%}", "", "", ""] if gain is None else [
            row, f"{accuracy:.1%}",
            f"{100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
            duration(image_seconds[row]),
            duration(sum(counts) * 10 * image_seconds[row])
        ])
    model = shown_path(model)
    command = (f"dreamda generate {shlex.quote(shown_path(real))} --out synthetic --model {shlex.quote(model)} "
               f"{verdict.best.kind.command}")
    return render("trial",
                  name=real.name,
                  model=model,
                  seconds=seconds,
                  verdict=verdict.sentence,
                  command=command if verdict.word == "helps" else "",
                  rows=rows,
                  used=sum(min(count, plan.per_class) for count in counts),
                  real=sum(counts),
                  per_class=plan.per_class,
                  classes=len(classes),
                  folds=plan.folds,
                  rounds=trial.rounds,
                  steps=plan.steps,
                  size=size,
                  variants=plan.variants,
                  text=plan.text,
                  sheets=[(kind.name, contact_sheet_of_run(out / kind.folder, real, per_class=2, max_classes=12))
                          for kind in plan.made])
