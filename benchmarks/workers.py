"""Many machines: what a worker of a Ray cluster makes, and what a large run folder costs; the numbers of
MANY_MACHINES.md.

    python benchmarks/workers.py --work WORK [--rounds 3] [--variants 4] [--rows 20000]

One process and clusters of one and two single-threaded workers take turns on the same 100 seeds, and have to make the
same bytes. Then a run folder of many tiny images from a stand-in for the model: bytes, time and memory of finishing it,
and of looking into it again. Needs the extra `ray`. Writes results/workers.json and the tables of MANY_MACHINES.md.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from compare import FULL, HERE, RESULTS, machine, replace_between

STEPS = 20
MODES = [  # name, threads of a worker, workers; None: no cluster
    ("one process, 1 thread", 1, None),
    ("one process, 2 threads", 2, None),
    ("Ray, 1 worker of 1 thread", 1, 1),
    ("Ray, 2 workers of 1 thread", 1, 2),
]


class StandIn:
    """A pipeline that costs nothing, so that what is measured is the folder."""

    size, dtype, fingerprint, threads_matter = (32, 32), "f32", "0" * 64, False

    def _augment(self, images, prompts, keys, options, *, first=0, **_):
        return np.repeat(images[:, None], options.variants - first, axis=1)


def digest(out: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(out.rglob("*.png")):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def make(real: Path, out: Path, variants: int, threads: int, workers: int | None) -> dict:
    """One `dreamda generate`; its own account of the rate, and the time around it."""
    options, ray = ["--threads", str(threads)], None
    if workers:
        import ray

        ray.init(num_cpus=workers * threads, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        options += ["--engine", "ray", "--address", ray.get_runtime_context().gcs_address]
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    try:
        done = subprocess.run([
            sys.executable, "-m", "dreamda", "generate",
            str(real), "--out",
            str(out), "--model", "fashion-mini", "--variants",
            str(variants), "--steps",
            str(STEPS), *options
        ],
                              check=True,
                              capture_output=True,
                              text=True)
    finally:
        if ray:
            ray.shutdown()
    wall = time.monotonic() - begun
    count, seconds = re.search(r"(\d+) images made in ([\d.]+) s", done.stdout).groups()
    return {"images": int(count), "seconds": float(seconds), "around": wall - float(seconds), "digest": digest(out)}


def rates(work: Path, rounds: int, variants: int) -> list[dict]:
    from dreamda.data import load_bundled

    bundled = load_bundled()
    shutil.rmtree(work / "real", ignore_errors=True)
    bundled.write(bundled.folder(work / "real"))
    runs: dict[str, list[dict]] = {name: [] for name, _, _ in MODES}
    for _ in range(rounds):
        for name, threads, workers in MODES:
            runs[name].append(make(work / "real", work / "out", variants, threads, workers))
            print(name, runs[name][-1], flush=True)
    if len({run["digest"] for some in runs.values() for run in some}) != 1:
        raise SystemExit("the engines did not make the same bytes")
    return [{
        "name": name, "rates": [run["images"] / run["seconds"]
                                for run in some], "around": [run["around"] for run in some]
    } for name, some in runs.items()]


def folder_costs(work: Path, rows: int) -> dict:
    """What a run folder of so many images costs, ten an image of the data set."""
    from PIL import Image

    from dreamda.data import ImageFolder, load_bundled
    from dreamda.runs.generate import GenerationOptions, generate_dataset

    real, out = work / "many", work / "many-out"
    for path in (real, out):
        shutil.rmtree(path, ignore_errors=True)
    (real / "coat").mkdir(parents=True)
    bundled = load_bundled()
    for number in range(rows // 10):
        Image.fromarray(bundled.seeds[number % 100]).save(real / f"coat/{number:07d}.png", compress_level=1)
    folder = ImageFolder.scan(real)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    generate_dataset(folder, out, StandIn(), GenerationOptions(variants=10))
    written = time.monotonic() - begun
    begun = time.monotonic()
    report = generate_dataset(folder, out, StandIn(), GenerationOptions(variants=10))
    if report.made or report.present != rows:
        raise SystemExit(f"the folder is not finished: {report}")
    return {"rows": rows, "write_seconds": written, "look_seconds": time.monotonic() - begun,
            "memory_bytes_a_row": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / rows,
            "metadata_bytes_a_row": (out / "metadata.jsonl").stat().st_size / rows,
            "png_bytes_32px": sum(path.stat().st_size for path in (out / "coat").iterdir()) / rows}


def tables(result: dict) -> str:
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['processors']} processors, {about['date']}; fashion-mini, {result['steps']} steps of "
        "strength 0.8, bf16 where the processor has it, rounds taking turns:\n", "| engine | images/s | spread "
                                                                                 "| starting and ending, s |",
        "|---|---|---|---|"
    ]
    for row in result["rates"]:
        lines.append(
            f"| {row['name']} | {statistics.median(row['rates']):.1f} | {min(row['rates']):.1f} - "
            f"{max(row['rates']):.1f} | {statistics.median(row['around']):.1f} |")
    costs = result["folder"]
    lines += [
        "", f"A run folder, measured with {costs['rows']:,} images of 32 pixels from a stand-in that costs no time:\n",
        "| of an image | |", "|---|---|",
        "| reading its share of the seed, writing, hashing, two fsyncs a seed and one an image | "
        f"{costs['write_seconds'] / costs['rows'] * 1e3:.1f} ms |",
        f"| looking at it again when a run is resumed | {costs['look_seconds'] / costs['rows'] * 1e6:.0f} µs |",
        f"| memory of the process that finishes the folder | {costs['memory_bytes_a_row'] / 1e3:.1f} kB |",
        f"| its line in metadata.jsonl | {costs['metadata_bytes_a_row']:.0f} bytes |",
        f"| its PNG, 32 pixels | {costs['png_bytes_32px']:.0f} bytes |"
    ]
    return "\n".join(lines) + "\n"


IMAGES, HOURS = 10_000_000, 8


def plan(result: dict) -> str:
    """Ten million images from those numbers: of the bundled model, and of Stable Diffusion 1.5 from compare.py's newest
    run."""
    rates = {row["name"]: statistics.median(row["rates"]) for row in result["rates"]}
    costs = {"fashion-mini, 32 px, 16 steps": 1 / rates["one process, 2 threads"]}
    sd15 = RESULTS / "generate-sd15.json"
    if sd15.exists():
        of = next(r for r in json.loads(sd15.read_text())["results"] if r["dtype"] == "bf16")
        each = of["shape"]["images"] * of["shape"]["variants"]
        costs |= {
            f"Stable Diffusion 1.5, 512 px, {FULL} steps, bf16{row['name'].removeprefix('dreamda-c')}":
            row["median"] / each
            for row in of["rows"] if row["name"].startswith("dreamda-c")
        }
    lines = [
        f"| model, on machines like this one | seconds an image | machine-hours for {IMAGES:,} | days on 1,000 "
        f"machines | images in a shard of {HOURS} hours | shards |",
        "|---|---|---|---|---|---|"
    ]
    for name, seconds in costs.items():
        hours, shard = IMAGES * seconds / 3600, max(1, int(HOURS * 3600 / seconds))
        lines.append(
            f"| {name} | {seconds:.3g} | {hours:,.0f} | {hours / 24000:.1f} | {shard:,} | {-(-IMAGES // shard):,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(), "steps": STEPS, "rates": rates(arguments.work, arguments.rounds, arguments.variants),
        "folder": folder_costs(arguments.work, arguments.rows)
    }
    (RESULTS / "workers.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, text in (("workers", tables(result)), ("plan", plan(result))):
        replace_between(HERE / "MANY_MACHINES.md", name, text)
        print(text)


if __name__ == "__main__":
    main()
