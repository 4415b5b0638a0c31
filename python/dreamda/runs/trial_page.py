"""The page of `dreamda try`: the verdict, a table of the rows, and pictures of every preset."""
from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..text import counted
from .checks import duration
from .pictures import contact_sheet_of_run
from .report import STYLE, embedded

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
        Time per synthetic image of each preset.
    seconds : float
        Time of the trial.
    """
    plan, verdict = trial.plan, trial.verdict
    assert verdict is not None
    used = sum(min(count, plan.per_class) for count in counts)
    gains = {c.preset: c for c in trial.comparisons}
    rows = []
    for row, accuracy in trial.accuracy.items():
        gain = gains.get(row)
        whole = sum(counts) * 10 * image_seconds[row] if gain else 0
        cells = [
            row if gain is None else f"preset {row}", f"{accuracy:.1%}",
            f"{100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain else "",
            duration(image_seconds[row]) if gain else "",
            duration(whole) if gain else ""
        ]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{cell}</th>" for cell in ("trained on", "right", "gain in points (90 % confidence)",
                                                   "an image", "10 for each real image"))
    command = (f"dreamda generate {shlex.quote(str(real))} --out synthetic --model {shlex.quote(model)} "
               f"--preset {verdict.best.preset}")
    cut = "" if used == sum(counts) else (
        f" Of {sum(counts):,} real images {used:,} were used, {plan.per_class} of a class at most, to keep to the "
        "time: with all of them the gain is most likely smaller.")
    sheets = "".join(
        f'<h2>Preset {html.escape(preset)}</h2><div class="wide"><img class="sheet" alt="Real images of each class '
        f'beside what preset {html.escape(preset)} made of them" src="'
        f'{embedded(contact_sheet_of_run(out / f"synthetic-{preset}", real, per_class=2, max_classes=12))}"></div>'
        for preset in plan.presets)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trial: {html.escape(real.name)}</title><style>{STYLE}</style></head><body>
<h1>Do synthetic images help on {html.escape(real.name)}?</h1>
<p class="faint">Model {html.escape(model)}; {duration(seconds)} of work.</p>
<h2>Verdict</h2>
<p>{html.escape(verdict.sentence)}</p>
{f'<p>To make them: <code>{html.escape(command)}</code></p>' if verdict.word == "helps" else ""}
<h2>Accuracy</h2>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p>{counted(used, "real image")} of {counted(len(classes), "class")} in {plan.folds} folds; every image is tested
{"once" if trial.rounds == 1 else f"{trial.rounds} times"}, by a classifier that has seen neither it nor what was
made from it. Every row is a ResNet-18 trained from scratch for {plan.steps:,} steps at {size[0]} x {size[1]} pixels;
{plan.variants} synthetic images for each real one. The interval is of the preset minus the better of the two rows
without synthetic images.{cut}</p>
<p>This is a small experiment: a larger or pretrained network, and longer trainings, can change the picture.</p>
{sheets}
</body></html>
"""
