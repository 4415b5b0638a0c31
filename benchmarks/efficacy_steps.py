"""Accuracy against CPU minutes: images of the bundled model in 5 to 20 steps, and of its few-step student in 1 to 8.

    python benchmarks/efficacy_steps.py sweep  --work WORK    # settings of the student, on validation images
    python benchmarks/efficacy_steps.py run    --work WORK    # the table, on the official test images
    python benchmarks/efficacy_steps.py report                # table and sweep into EFFICACY.md, and the plot

The data, the classifier and its training are efficacy.py's: 10 real images a class, 10 synthetic ones for each (5 in
the sweep), with the labels of their seeds. CPU time is that of one thread, images and training apart: it does not count
the time that other processes took.
"""
import json
import statistics
from dataclasses import replace
from pathlib import Path

from efficacy import (
    DATA, HERE, IMAGES, RESULTS, VARIANTS, Record, command_line, fashion_mnist, perform, run_jobs, save_plot, spread,
    workers,
)

from dreamda.presets import load_preset

SIZE, DRAWS, SWEEP_DRAWS = 10, 5, 2
PLAIN = dict(method="plain")


def teacher(steps: int) -> dict:
    return IMAGES["dreamda"] | dict(steps=steps)


def student(steps: int, **changed) -> dict:
    return IMAGES["dreamda"] | dict(model="fashion-mini-lcm", steps=steps) | changed


# curve -> steps -> kind of synthetic images
CURVES = {
    "fashion-mini": {steps: teacher(steps) for steps in (10, 5, 20)},
    "fashion-mini-lcm": {steps: student(steps) for steps in (4, 2, 1, 8)},
}
REFERENCES = {"real only": dict(method="real-only"),
              "real + RandAugment": dict(method="real-only", view="randaugment")}
SWEEP = [
    *(student(4, noise_scale=scale) for scale in (0.0, 1.0, 3.0, 6.0)),
    *(student(4, guidance_scale=scale) for scale in (1.0, 2.5)),
    *(student(2, noise_scale=scale) for scale in (1.0, 3.0)),
    load_preset("fast").generate | dict(model="fashion-mini-lcm"),
]


def name_of(curve: str, steps: int) -> str:
    return f"{curve}, {steps} step{'s' if steps > 1 else ''}"


def run(arguments) -> None:
    wanted = [dict(name=name, method=name, kind=None, recipe=recipe) for name, recipe in REFERENCES.items()]
    wanted += [dict(name=name_of(curve, steps), method=name_of(curve, steps), curve=curve, steps=steps, kind=kind,
                    recipe=PLAIN) for curve, kinds in CURVES.items() for steps, kind in kinds.items()]
    wanted = [w | dict(size=SIZE, draw=draw) for w in wanted for draw in range(arguments.draws or DRAWS)
              if not arguments.methods or w["name"] in arguments.methods]
    with workers(arguments) as pool:
        run_jobs(data_set(arguments), str(arguments.work), pool, wanted, Record(RESULTS / "efficacy-steps.json"),
                 "final", VARIANTS, ("method", "size", "draw"))


def sweep(arguments) -> None:
    wanted = [dict(name=json.dumps(kind), kind=kind, recipe=PLAIN, size=SIZE, draw=100 + draw) for kind in SWEEP
              for draw in range(arguments.draws or SWEEP_DRAWS)]
    with workers(arguments) as pool:
        run_jobs(data_set(arguments), str(arguments.work), pool, wanted, Record(RESULTS / "efficacy-steps-sweep.json"),
                 "sweep", 5, ("kind", "size", "draw"))


def data_set(arguments):
    """Without the judge, whose opinion of the labels is not asked for."""
    return replace(fashion_mnist(arguments.data), judged=False)


def by_name(records: list[dict]) -> dict[str, dict[int, dict]]:
    """name -> draw -> record, in the order of REFERENCES and CURVES."""
    names = [*REFERENCES, *(name_of(curve, steps) for curve, kinds in CURVES.items() for steps in sorted(kinds))]
    return {name: rows for name in names if (rows := {r["draw"]: r for r in records if r["method"] == name})}


def minutes(rows: dict[int, dict]) -> tuple[float, float]:
    """Mean CPU minutes of the images and of the training."""
    return (statistics.mean((r.get("image_cpu_seconds") or 0.0) / 60 for r in rows.values()),
            statistics.mean(r["cpu_seconds"] / 60 for r in rows.values()))


def table(records: list[dict], against: str = name_of("fashion-mini", 10)) -> str:
    found = by_name(records)
    lines = [
        "| images | draws | CPU minutes: images | training | % right on test images | against "
        f"{against}, draw by draw |",
        "|---|---|---|---|---|---|"
    ]
    for name, rows in found.items():
        images, training = minutes(rows)
        both = [draw for draw in rows if draw in found.get(against, {})]
        ahead = spread([rows[draw]["accuracy"] - found[against][draw]["accuracy"] for draw in both]) if both else "-"
        lines.append(f"| {name} | {len(rows)} | {f'{images:.2f}' if images else '-'} | {training:.2f} | "
                     f"{spread([r['accuracy'] for r in rows.values()])} | {'' if name == against else ahead} |")
    return "\n".join(lines)


def sweep_table(records: list[dict]) -> str:
    groups: dict[str, list[dict]] = {}
    for r in records:
        groups.setdefault(json.dumps(r["kind"]), []).append(r)
    lines = ["| steps | method | strength | guidance_scale | noise_scale | draws | % right on validation images |",
             "|---|---|---|---|---|---|---|"]
    for kind, rows in groups.items():
        k = json.loads(kind)
        lines.append(f"| {k['steps']} | {k['method']} | {k['strength']} | {k['guidance_scale']} | {k['noise_scale']} | "
                     f"{len(rows)} | "
                     f"{spread([r['accuracy'] for r in rows])} |")
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = by_name(records)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
    for curve, kinds in CURVES.items():
        points = [(steps, found[name_of(curve, steps)]) for steps in sorted(kinds) if name_of(curve, steps) in found]
        if not points:
            continue
        x = [minutes(rows)[0] for _, rows in points]
        y = [[100 * r["accuracy"] for r in rows.values()] for _, rows in points]
        axes.errorbar(x, [statistics.mean(v) for v in y],
                      [statistics.stdev(v) / len(v)**0.5 if len(v) > 1 else 0 for v in y],
                      label=curve,
                      capsize=2,
                      marker="o",
                      markersize=4)
        for at, value, (steps, _) in zip(x, y, points, strict=True):
            axes.annotate(str(steps), (at, statistics.mean(value)), textcoords="offset points", xytext=(4, 5))
    for name, style in zip(REFERENCES, ("--", ":"), strict=True):
        if name in found:
            axes.axhline(statistics.mean(100 * r["accuracy"] for r in found[name].values()),
                         color="grey",
                         linestyle=style,
                         linewidth=1,
                         label=f"{name} (no images to make)")
    axes.set_xscale("log")
    axes.set_xlabel("CPU minutes for 1,000 images, one thread (numbers: steps)")
    axes.set_ylabel("% right on 10,000 test images")
    save_plot(figure, axes, path)


def report(arguments) -> None:
    from compare import replace_between

    records = json.loads((RESULTS / "efficacy-steps.json").read_text())["records"]
    plot(records, HERE / "pictures" / "efficacy-steps.png")
    replace_between(HERE / "EFFICACY.md", "steps", table(records) + "\n")
    sweep = RESULTS / "efficacy-steps-sweep.json"
    if sweep.exists():
        replace_between(HERE / "EFFICACY.md", "steps sweep",
                        sweep_table(json.loads(sweep.read_text())["records"]) + "\n")


def main() -> None:
    tasks = {"sweep": sweep, "run": run, "report": report}
    parser = command_line(__doc__, tasks)
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--draws", type=int, help=f"default: {DRAWS}, and {SWEEP_DRAWS} of the sweep")
    parser.add_argument("--methods", nargs="+", help="of the table, by name; default: all")
    perform(parser, tasks)


if __name__ == "__main__":
    main()
