"""A long run under faults: `dreamda generate` of many small images, with broken and vanishing files, a slow disk,
kills, signals and resumes.

    python benchmarks/soak.py --work WORK [--images 20000] [--variants 2] [--stops 12] [--minutes M] [--out
    results/soak.json]

After M minutes the run is ended early, and what is there is judged.
What must hold at the end: every image is there, with the recorded hash, and equals what the library makes alone; the
CPU time an image takes (other load on the machine does not count) is the same at the start and at the end; the memory
does not grow. Exit 1 if it does not.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEADY = 0.10        # the last tenth's CPU time an image may differ by from the first
FLAT = 0.10          # the memory may grow by within one process
TICK = os.sysconf("SC_CLK_TCK")
BROKEN = (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40))
WORKER = """
import os, random, sys, time
fsync, chance = os.fsync, random.Random(os.getpid())
def slow(fd):
    if chance.random() < 0.01:
        time.sleep(chance.uniform(0.02, 0.2))
    fsync(fd)
os.fsync = slow
from dreamda.cli import main
sys.exit(main())
"""


def make_real(root: Path, seeds: int) -> list[str]:
    """`seeds` images in ten classes, every hundredth of them broken; returns the keys of those."""
    from dreamda.data import load_bundled

    bundled, broken = load_bundled(), []
    for number in range(seeds):
        base = number % len(bundled.seeds)
        path = root / bundled.class_names[bundled.seed_labels[base]].replace(" ", "_") / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 100 == 57:
            broken.append(f"{path.parent.name}/{path.name}")
            path.write_bytes(BROKEN[number // 100 % 3])
        else:
            Image.fromarray(np.roll(bundled.seeds[base], number // 100 % 7 - 3, axis=1)).save(path, compress_level=1)
    return broken


class Leg:
    """One process of the run, and samples of it: (images written by it, CPU seconds, resident MiB)."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.journal = out / ".dreamda/0-of-1.jsonl"
        self.before = self._size()
        self.lines = 0
        self.samples: list[tuple[int, float, float]] = []
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, *command],
                                        stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT,
                                        text=True)

    def _size(self) -> int:
        try:
            return self.journal.stat().st_size
        except FileNotFoundError:
            return 0

    def sample(self) -> int:
        """Look once; the images written so far."""
        try:
            with open(self.journal, "rb") as file:
                file.seek(self.before)
                new = file.read()
            self.before, self.lines = self.before + len(new), self.lines + new.count(b"\n")
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            self.samples.append((self.lines, (int(fields[11]) + int(fields[12])) / TICK,
                                 int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20))
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass  # it has just ended
        return self.lines

    def windows(self, images: int) -> list[tuple[int, float]]:
        """(images, CPU seconds) of the stretches of at least so many images, after the first stretch, in which the
        plans are made."""
        found, last = [], None
        for lines, cpu, _ in self.samples:
            if last is None or lines - last[0] >= images:
                if last is not None and last[0] > 0:
                    found.append((lines - last[0], cpu - last[1]))
                last = lines, cpu
        return found

    def memory(self, images: int) -> tuple[float, float] | None:
        """Resident MiB after the first so many images, and at the end; None for a process that was too short."""
        there = [mib for lines, _, mib in self.samples if lines >= images]
        return (statistics.median(there[:5]), statistics.median(there[-5:])) if len(there) >= 20 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--variants", type=int, default=2)
    parser.add_argument("--stops", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chance = random.Random(0)
    real, out, seeds = options.work / "real", options.work / "out", options.images // options.variants
    broken = make_real(real, seeds)
    parameters: dict[str, Any] = dict(variants=options.variants, steps=2, strength=0.5)
    command = ["generate", str(real), "--out", str(out), "--model", "fashion-mini", "--dtype", options.dtype]
    command += [f"--{name}={value}" for name, value in parameters.items()]

    keys = sorted(f"{p.parent.name}/{p.name}" for p in real.glob("*/*"))
    lost = [key for key in keys[-200:] if key not in broken][::20]  # they vanish while the run is under way
    stops = sorted(chance.sample(range(options.images // 50, options.images * 9 // 10), options.stops))
    legs, codes, done, begun = [], [], 0, time.monotonic()
    while True:
        leg = Leg(command, out)
        legs.append(leg)
        while leg.process.poll() is None:
            time.sleep(0.25)
            lines = leg.sample()
            if time.monotonic() - begun > options.minutes * 60:
                leg.process.send_signal(signal.SIGTERM)
                break
            if stops and lines and done + lines >= stops[0]:
                number = chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
                leg.process.send_signal(number)
                stops.pop(0)
                if lost:
                    (real / lost[0]).unlink(missing_ok=True)
                break
        text, _ = leg.process.communicate()
        done = sum(path.read_bytes().count(b"\n") for path in (out / "metadata.jsonl", leg.journal) if path.is_file())
        codes.append(leg.process.returncode)
        print(f"leg {len(legs)}: exit {codes[-1]}, {leg.lines} images, {done} in all, {time.monotonic() - begun:.0f} s",
              flush=True)
        if codes[-1] not in (-9, 130, 143) or time.monotonic() - begun > options.minutes * 60:
            break
        for key in lost[:1]:
            lost.pop(0)
            broken.append(key)

    complete = codes[-1] != 143
    problems = [] if codes[-1] in (1, 143) else [f"the last process ended with {codes[-1]}: {text[-500:]}"]
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    expected = [(key, variant) for key in keys if key not in broken for variant in range(options.variants)]
    if [(row["seed_file"], row["variant"]) for row in rows] != (expected if complete else expected[: len(rows)]):
        problems.append(f"metadata.jsonl has {len(rows)} lines, not the {len(expected)} that it should have")
    if any(hashlib.sha256((out / row["file_name"]).read_bytes()).hexdigest() != row["sha256"] for row in rows):
        problems.append("an image is not what was recorded")
    files = [p for p in out.rglob("*") if p.is_file()]
    if len(files) != len(rows) + 2 or (out / ".dreamda").exists():
        problems.append(f"{len(files)} files for {len(rows)} images: something was left behind")
    problems += compare(real, out, chance.sample(rows, min(20, len(rows))), rows[0]["dtype"], parameters)

    tenth = max(200, options.images // 10)
    windows = [window for leg in legs for window in leg.windows(max(50, options.images // 100))]
    first, last = per_image(windows, tenth), per_image(windows[::-1], tenth)
    if abs(last / first - 1) > STEADY:
        problems.append(f"an image took {first * 1000:.2f} ms of CPU time at first, {last * 1000:.2f} at last")
    memory = [m for leg in legs if (m := leg.memory(max(200, options.images // 100)))]
    grown = max((after / before - 1 for before, after in memory), default=0)
    if grown > FLAT:
        problems.append(f"the memory of a process grew by {grown:.0%}")
    result = {
        "complete": complete, "images": len(rows), "left_out": len(broken) * options.variants, "processes": len(legs),
        "exit_codes": codes, "cpu_ms_an_image_first_tenth": round(first * 1000, 3), "cpu_ms_an_image_last_tenth":
        round(last * 1000, 3), "resident_mib_early_and_late": [[round(a, 1), round(b, 1)] for a, b in memory], "dtype":
        rows[0]["dtype"], **parameters, "seconds": round(time.monotonic() - begun), "problems": problems
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


def per_image(windows: list[tuple[int, float]], images: int) -> float:
    """CPU seconds an image over the first windows that hold so many images."""
    count = seconds = 0.0
    for made, cpu in windows:
        if count >= images:
            break
        count, seconds = count + made, seconds + cpu
    return seconds / count


def compare(real: Path, out: Path, rows: list[dict[str, Any]], dtype: str, parameters: dict[str, Any]) -> list[str]:
    """Some of the images against the library's, each made alone."""
    import dreamda

    pipe = dreamda.Pipeline.load("fashion-mini", dtype=dtype)
    for row in rows:
        made = pipe.augment(np.array(Image.open(real / row["seed_file"]).convert("RGB"))[None], [row["prompt"]],
                            keys=[row["seed_file"]],
                            **parameters)
        if not np.array_equal(made[0, row["variant"]], np.array(Image.open(out / row["file_name"]))):
            return [f"{row['file_name']} is not what the library makes of {row['seed_file']}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
