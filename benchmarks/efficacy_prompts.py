"""Do prompts help? One template against several, styles and backgrounds drawn for each variant, and negative prompts.

    python benchmarks/efficacy_prompts.py run    --work WORK     # results/efficacy-prompts.json
    python benchmarks/efficacy_prompts.py report                 # the table in EFFICACY.md

Everything else is the same in the rows that are compared: real images, settings of the images, training and seeds.
Fashion-MNIST as in efficacy.py with 10 real images a class and 5 synthetic ones for each, the photographs as in
efficacy_photos.py with 5 and 5, all with the labels of their seeds. The few-step students take the guidance as an input
and therefore no negative prompt; their teachers do. A run that is stopped goes on where it was.
"""
import argparse
import json
from dataclasses import replace
from pathlib import Path

from efficacy import (
    DATA, HERE, IMAGES, RESULTS, DataSet, Record, command_line, fashion_mnist, perform, run_jobs, spread, workers,
)
from efficacy_photos import OURS, SHARED, few, photos

from dreamda.text import counted

ONE = ["a photo of a {}"]
NEGATIVE = "blurry, low quality, distorted"
REGIME = "own-domain"
VARIANTS = 5
SIZES = {"fashion-mnist": 10, REGIME: 5}  # real images a class
# Prompts that the models were trained with (recipes/)
OWN = {
    "fashion-mnist": ["a photo of a {}", "a picture of a {}", "an image of a {}", "a product photo of a {}",
                      "a grayscale photo of a {}", "a studio photo of a {} on a black background"],
    REGIME: ["a photo of a {}", "a picture of a {}", "an image of a {}", "a close-up photo of a {}",
             "a photo of the {}", "a cropped photo of a {}"],
}
STUDENTS = {"fashion-mnist": IMAGES["dreamda"] | dict(model="fashion-mini-lcm", steps=4), REGIME: few()}
TEACHERS = {"fashion-mnist": IMAGES["dreamda"], REGIME: OURS}


def rows(name: str) -> dict[str, dict | None]:
    """The rows of a data set: kinds of synthetic images. A negative prompt is compared with its teacher's first row."""
    student, teacher = STUDENTS[name], TEACHERS[name]
    return {
        "one template": student | dict(templates=ONE),
        "six templates, the model's own": student | dict(templates=OWN[name]),
        "styles, views and backgrounds for each variant": student | dict(fields="natural"),
        "teacher, one template": teacher | dict(templates=ONE),
        "teacher, one template, negative prompt": teacher | dict(templates=ONE, negative_prompt=NEGATIVE),
        "real only": None,
    }


def against(row: str) -> str:
    return "teacher, one template" if row.startswith("teacher") else "one template"


def data_set(name: str, arguments: argparse.Namespace) -> DataSet:
    if name == "fashion-mnist":
        return replace(fashion_mnist(arguments.data), judged=False)
    return photos(name, arguments.photos, arguments.models)


def run(arguments: argparse.Namespace) -> None:
    record = Record(RESULTS / "efficacy-prompts.json")
    with workers(arguments) as pool:
        for draw in range(arguments.draws):  # a run that is cut short should leave whole draws
            for name in arguments.sets:
                wanted = [dict(name=f"{name}: {row}", data=name, method=row, size=SIZES[name], draw=draw, kind=kind,
                               recipe=dict(method="plain" if kind else "real-only")) for row, kind in
                          rows(name).items() if not arguments.rows or row in arguments.rows]
                run_jobs(data_set(name, arguments), str(arguments.work / name), pool, wanted, record, "final", VARIANTS,
                         ("data", "method", "size", "draw"))


def table(records: list[dict]) -> str:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for r in records:
        found.setdefault((r["data"], r["method"]), {})[r["draw"]] = r["accuracy"]
    names = [name for name in STUDENTS if any(data == name for data, _ in found)]
    lines = ["| % right on test images | " + " | ".join(f"{name} | against one template" for name in names) + " |",
             "|---" * (1 + 2 * len(names)) + "|"]
    for row in rows(names[0]):
        cells = []
        for name in names:
            mine, other = found.get((name, row), {}), found.get((name, against(row)), {})
            gains = [value - other[draw] for draw, value in mine.items() if draw in other]
            cells += [f"{spread(list(mine.values()))} ({counted(len(mine), 'draw')})" if mine else "-",
                      spread(gains) if gains and row not in ("one template", "teacher, one template") else ""]
        if set(cells) - {"-", ""}:
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> None:
    from compare import replace_between

    records = json.loads((RESULTS / "efficacy-prompts.json").read_text())["records"]
    replace_between(HERE / "EFFICACY.md", "prompts", table(records) + "\n")


def main() -> None:
    tasks = {"run": run, "report": report}
    parser = command_line(__doc__, tasks)
    parser.add_argument("--data", default=DATA, help="Fashion-MNIST")
    parser.add_argument("--photos", type=Path, default=SHARED / "data" / "photos64")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--sets", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", nargs="+", help="of the table, by name; default: all")
    perform(parser, tasks)


if __name__ == "__main__":
    main()
