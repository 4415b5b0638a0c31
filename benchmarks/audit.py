"""How well `dreamda audit` finds copies: recall by transformation and false alarms, with confidence intervals.

    python benchmarks/audit.py recall --photos FOLDER... --out audit.json    # photographs, and X-ray-like images
    python benchmarks/audit.py withdraw --images 20 --others 500             # one X-ray-like image among others
    python benchmarks/audit.py speed --real 20000 --synthetic 2000           # pairs a second; 100,000 x 100,000
    python benchmarks/audit.py table audit.json                              # into AUDIT.md
    python benchmarks/audit.py images WORK                                   # folders for the tests of generators

Without --photos the natural images are procedural, as the X-ray-like ones always are. No photograph is copied anywhere.
"""
from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

DRAWS = 3       # of real images and others, for limits and false alarms; copies are planted in the first

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from audit_images import CHANGES, natural, xray  # noqa: E402

from dreamda.copies.calibration import calibrated, share  # noqa: E402
from dreamda.copies.index import SAME_RATIO, CopyIndex  # noqa: E402
from dreamda.copies.thumbnails import thumbnail, views  # noqa: E402
from dreamda.data import load_bundled  # noqa: E402
from dreamda.runs.withdrawal import MAX_SIMILARITY  # noqa: E402


def photographs(folders: list[str], count: int) -> list[Path]:
    """A random choice of image files, the same at every call."""
    files = sorted(path for folder in folders for path in Path(folder).rglob("*")
                   if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < count:
        raise SystemExit(f"{', '.join(folders)} hold {len(files)} images; {count} are needed")
    return [files[i] for i in np.random.default_rng(0).permutation(len(files))[:count]]


def measure(kind: str, open_image, count: int, copied: int, threads: int) -> dict:
    """Recall of every transformation, of `copied` of `count` real images, and false alarms among as many others."""
    def thumbnails(images) -> np.ndarray:
        return np.stack([thumbnail(np.asarray(image)) for image in images])

    begun = time.monotonic()
    every = thumbnails(open_image(i) for i in range(2 * count))
    draws = []
    for draw in range(DRAWS):
        order = np.arange(2 * count) if draw == 0 else np.random.default_rng(draw).permutation(2 * count)
        real = CopyIndex(every[order[:count]])
        among = real.among_themselves(count, threads=threads)
        limit = calibrated(among.matches.score).value
        others = real.nearest(every[order[count:]], threads=threads)
        # as for the calibration, images that are in the source twice are no false alarms
        same = 1 - others.score < SAME_RATIO * (1 - others.next_score)
        alarms = share(int((others.score > limit)[~same].sum()), int((~same).sum()))
        draws.append({"limit": limit, "others": int((~same).sum()), "duplicates": among.duplicates,
                      "same": int(same.sum()), "false_alarms": alarms._asdict()})
        print(f"{kind}: limit {limit:.4f}, {among.duplicates} duplicates, false alarms {alarms.value:.2%} "
              f"({alarms.low:.2%} to {alarms.high:.2%})", flush=True)
        if draw == 0:
            index = real
    limit = sorted(draw["limit"] for draw in draws)[DRAWS // 2]
    found = {"kind": kind, "real": count, "copied": copied, "limit": limit, "draws": draws, "recall": {}}
    chosen = np.arange(copied) * count // copied
    for name, change in CHANGES.items():
        rng = np.random.default_rng(0)
        matches = index.nearest(thumbnails(change(open_image(int(i)), rng) for i in chosen), threads=threads)
        recall = share(int((matches.score > limit).sum()), copied)
        found["recall"][name] = recall._asdict() | {"right_image": float((matches.image == chosen).mean())}
        found["recall"][name]["scores"] = sorted(np.round(matches.score.astype(float), 4).tolist())
        print(f"  {name}: {recall.value:.2%} ({recall.low:.2%} to {recall.high:.2%})", flush=True)
    found["seconds"] = time.monotonic() - begun
    return found


def recall(arguments: argparse.Namespace) -> None:
    """The command `recall`."""
    if arguments.photos:
        files = photographs(arguments.photos, 2 * arguments.natural)
        results = [measure("photographs", lambda i: Image.open(files[i]).convert("RGB"), arguments.natural,
                           min(arguments.copied, arguments.natural), arguments.threads)]
    else:
        results = [measure("procedural natural", cache(natural), arguments.natural,
                           min(arguments.copied, arguments.natural), arguments.threads)]
    results.append(measure("X-ray-like", cache(xray), arguments.xray, min(arguments.copied, arguments.xray),
                           arguments.threads))
    Path(arguments.out).write_text(json.dumps(results, indent=1))


def withdraw(arguments: argparse.Namespace) -> None:
    """The command `withdraw`: what looks like an X-ray-like image, of its copies and of other images, at two limits."""
    others = np.stack([thumbnail(np.asarray(xray(i))) for i in range(arguments.images + arguments.others)])
    among = CopyIndex(others).among_themselves(len(others), threads=arguments.threads)
    limits = {"default": MAX_SIMILARITY, "of an audit": calibrated(among.matches.score).value}
    copies, alike = [], []
    for i in range(arguments.images):
        image, rng = xray(i), np.random.default_rng(0)
        known = np.stack(views(np.asarray(image)))
        index = CopyIndex(known, np.zeros(len(known), np.int64))
        changed = np.stack([thumbnail(np.asarray(change(image, rng))) for change in CHANGES.values()])
        copies.append(index.nearest(changed, threads=arguments.threads).score)
        alike.append(index.nearest(np.delete(others, i, axis=0), threads=arguments.threads).score)
    found, missed = np.stack(copies), {}
    for name, limit in limits.items():
        listed = [int((scores > limit).sum()) for scores in alike]
        missed[name] = {"limit": round(limit, 4), "copies_found": int((found > limit).sum()), "copies": found.size,
                        "missed_by_kind": {kind: int((found[:, k] <= limit).sum())
                                           for k, kind in enumerate(CHANGES) if (found[:, k] <= limit).any()},
                        "others": len(alike[0]), "others_listed": {"mean": float(np.mean(listed)), "most": max(listed)}}
    print(json.dumps(missed, indent=1))


def speed(arguments: argparse.Namespace) -> None:
    """The command `speed`."""
    rng = np.random.default_rng(0)

    def thumbnails(count: int) -> np.ndarray:
        noise = rng.normal(size=(count, 8, 8)).astype(np.float32).repeat(4, axis=1).repeat(4, axis=2)
        return np.clip(128 + 40 * noise + rng.normal(size=(count, 32, 32)) * 10, 0, 255).astype(np.uint8)

    def timed(work) -> tuple[float, float]:
        begun, cpu = time.monotonic(), time.process_time()
        work()
        return time.monotonic() - begun, time.process_time() - cpu

    real, queries = thumbnails(arguments.real), thumbnails(arguments.synthetic)
    built = timed(lambda: CopyIndex(real))
    index, few = CopyIndex(real), CopyIndex(real[:64])
    each = timed(lambda: few.nearest(queries, threads=arguments.threads))  # hardly more than scoring the candidates
    found = timed(lambda: index.nearest(queries, threads=arguments.threads))
    report = {"real": len(real), "synthetic": len(queries), "threads": arguments.threads,
              "peak_memory_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    for clock, name in enumerate(("wall", "cpu")):
        pair = (found[clock] - each[clock]) / len(queries) / (len(real) - 64)
        whole = built[clock] / len(real) * 1e5 + each[clock] / len(queries) * 1e5 + pair * 1e10
        report[name] = {"search_seconds": round(found[clock], 2), "microseconds_a_pair": round(1e6 * pair, 4),
                        "milliseconds_a_query": round(1e3 * each[clock] / len(queries), 3),
                        "minutes_for_100000_x_100000": round(whole / 60, 1)}
    print(json.dumps(report, indent=1))


def table(arguments: argparse.Namespace) -> None:
    """The command `table`."""
    results = json.loads(Path(arguments.file).read_text())
    percent = lambda value: f"{100 * value:.1f}"  # noqa: E731
    cell = lambda s: f"{percent(s['value'])} ({percent(s['low'])} to {percent(s['high'])})"  # noqa: E731
    lines = ["| what was done | " + " | ".join(r["kind"] for r in results) + " |", "|---|" + "---|" * len(results)]
    lines += [f"| {name} | " + " | ".join(cell(r["recall"][name]) for r in results) + " |" for name in CHANGES]
    lines += [f"| **false alarms**, draw {i + 1} | " + " | ".join(cell(r["draws"][i]["false_alarms"]) for r in results)
              + " |" for i in range(DRAWS)]
    page = HERE / "AUDIT.md"
    text = page.read_text()
    start, end = "<!-- recall: made by audit.py table -->\n", "<!-- end of recall -->"
    before, after = text.split(start)[0], text.split(end)[1]
    about = "; ".join(
        f"{r['kind']}: {r['copied']:,} copies of each kind, at the middle one of the three limits, among {r['real']:,} "
        "real images, and as many others; limits "
        + ", ".join(f"{d['limit']:.4f}" for d in r["draws"]) + "; pictures that the source holds twice, left out of "
        "calibration and false alarms: " + ", ".join(f"{d['duplicates']} real and {d['same']} others"
                                                     for d in r["draws"]) for r in results)
    page.write_text(before + start + "\n".join(lines) + f"\n\n{about}.\n" + end + after)


def images(arguments: argparse.Namespace) -> None:
    """The command `images`: of the bundled test images, 20 to memorise, 400 held out and 400 others, and the seeds."""
    bundled, work = load_bundled(), Path(arguments.work)
    for label, name in enumerate(bundled.class_names):
        members = np.flatnonzero(bundled.test_labels == label)
        for part, chosen in (("members", members[:2]), ("held-out", members[2:42]), ("unseen", members[42:82])):
            folder = work / part / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for i in chosen:
                Image.fromarray(bundled.test[i]).save(folder / f"{i:04d}.png")
    bundled.write(bundled.folder(work / "seeds"), "seeds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("recall")
    command.add_argument("--photos", nargs="+", default=[])
    command.add_argument("--natural", type=int, default=2000)
    command.add_argument("--xray", type=int, default=500)
    command.add_argument("--copied", type=int, default=2000)
    command.add_argument("--out", default="audit.json")
    command.set_defaults(run=recall)
    command = commands.add_parser("withdraw")
    command.add_argument("--images", type=int, default=20)
    command.add_argument("--others", type=int, default=500)
    command.set_defaults(run=withdraw)
    command = commands.add_parser("speed")
    command.add_argument("--real", type=int, default=20000)
    command.add_argument("--synthetic", type=int, default=2000)
    command.set_defaults(run=speed)
    for each in commands.choices.values():
        each.add_argument("--threads", type=int, default=2)
    command = commands.add_parser("images")
    command.add_argument("work")
    command.set_defaults(run=images)
    command = commands.add_parser("table")
    command.add_argument("file")
    command.set_defaults(run=table)
    chosen = parser.parse_args()
    chosen.run(chosen)
