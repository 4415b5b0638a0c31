"""Ours against the peers, in one interleaved run: every engine is a process of its own, and they take turns.

    python benchmarks/compare.py unet     --peer-python PEER/bin/python --work WORK [--dtype bf16 f32] [--compile]
    python benchmarks/compare.py generate --peer-python PEER/bin/python --work WORK [--model NAME] [--steps N]
    python benchmarks/compare.py generate --peer-python PEER/bin/python --work WORK --model sd15-lcm [--vae tiny]
    python benchmarks/compare.py unet     --peer-python PEER/bin/python --work WORK --model sdxl
    python benchmarks/compare.py parts    --peer-python PEER/bin/python --work WORK   # attention; the VAE both ways
    python benchmarks/compare.py train    --peer-python PEER/bin/python --work WORK
    python benchmarks/compare.py load     --peer-python PEER/bin/python --work WORK   # the U-Net, to its first result
    python benchmarks/compare.py scale    --work WORK                                      # ours alone: how cost grows
    python benchmarks/compare.py readme        # the newest results into README.md, RESULTS.md and few_steps.md

`--peer-python` is an environment with torch, diffusers, transformers, openvino, onnxruntime and onnxscript; this one
has dreamda-c. Prints a table (median, spread, ratio to ours, peak memory) and writes it as JSON to benchmarks/results/.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Worker:
    """One engine in its own process."""

    def __init__(self, name: str, python: str, script: str, job: dict) -> None:
        self.name, self.seconds, self.steps = name, [], []
        environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": ""}
        self.process = subprocess.Popen([python, str(HERE / script), json.dumps(job)],
                                        stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL if not os.environ.get("VERBOSE") else None,
                                        text=True,
                                        env=environment)
        self.about = self.answer()

    def answer(self) -> dict:
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name}: the worker died (exit {self.process.wait()}); VERBOSE=1 shows why")

    def run(self) -> tuple[float, float | None]:
        """The seconds of a run, and those of one step of it where it has steps."""
        with contextlib.suppress(BrokenPipeError):  # of a dead worker, which the missing answer tells
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"], answer["step"]

    def close(self) -> dict:
        self.process.stdin.close()
        self.about |= self.answer()
        self.process.wait()
        return self.about


def measure(engines: list[tuple[str, str, str, dict]], rounds: int) -> list[dict]:
    """Interleaved: warm-up once each, then `rounds` times one run of each engine in turn. The first engine is ours."""
    workers = [Worker(*engine) for engine in engines]
    for worker in workers:
        worker.about["first_seconds"], _ = worker.run()
    for _ in range(rounds):
        for worker in workers:
            seconds, step = worker.run()
            worker.seconds.append(seconds)
            worker.steps.append(step)
    return [
        summary(worker.name, worker.seconds, workers[0].seconds, **worker.close(), steps=worker.steps)
        for worker in workers
    ]


def measure_loading(engines: list[tuple[str, str, str, dict]], rounds: int) -> list[dict]:
    """Interleaved: loading and the first run, in a process of its own each time. Once before that, so that all files
    have been read."""
    seconds, about = {engine[0]: [] for engine in engines}, {}
    for turn in range(rounds + 1):
        for engine in engines:
            worker = Worker(*engine)
            first, _ = worker.run()
            about[worker.name] = worker.close() | {"first_seconds": first}
            if turn:
                seconds[worker.name].append(worker.about["loaded_seconds"] + first)
    ours = seconds[engines[0][0]]
    return [summary(name, times, ours, **about[name]) for name, times in seconds.items()]


def summary(name: str, seconds: list[float], ours: list[float], **about: object) -> dict:
    ratios = [theirs / our for theirs, our in zip(seconds, ours)]
    return dict(name=name,
                median=statistics.median(seconds),
                minimum=min(seconds),
                maximum=max(seconds),
                ratio=statistics.median(ratios),
                ratio_minimum=min(ratios),
                ratio_maximum=max(ratios),
                seconds=seconds,
                **about)


def at_length(rows: list[dict], timed: int, steps: int) -> list[dict]:
    """The rows for a generation of so many steps, from one of `timed` steps: all that is not a step, and each step's
    own time."""
    whole = [[seconds + (steps - timed) * step for seconds, step in zip(row["seconds"], row["steps"])] for row in rows]
    return [row | summary(row["name"], seconds, whole[0]) for row, seconds in zip(rows, whole)]


def table(heading: str, rows: list[dict], per: float = 1) -> str:
    lines = [
        heading, "| engine | median | spread | ratio to ours | peak GiB | load + first run s |",
        "|---|---|---|---|---|---|"
    ]
    for r in rows:
        lines.append(f"| {r['name']} | {r['median'] / per:.3f} | {r['minimum'] / per:.3f} - {r['maximum'] / per:.3f} "
                     f"| {r['ratio']:.2f} ({r['ratio_minimum']:.2f} - {r['ratio_maximum']:.2f}) "
                     f"| {r['peak_rss_gib']:.2f} | {r['loaded_seconds'] + r['first_seconds']:.1f} |")
    return "\n".join(lines)


def machine() -> dict:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags"))
    features = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f}" in flags]
    return dict(cpu=cpu, features=features, processors=os.cpu_count(), kernel=platform.release(),
                date=datetime.date.today().isoformat(), load=round(os.getloadavg()[0], 1))


def sd15(arguments, lcm: bool = False) -> str:
    return made(arguments, "sd15-lcm", "--lcm") if lcm else made(arguments, "sd15")


def made(arguments, name: str, *more: str) -> str:
    """The folder of a large model, which is made where it is missing."""
    folder = Path(arguments.work) / name
    if not (folder / "model_index.json").exists():
        if not arguments.peer_python:
            raise SystemExit(f"{folder} is not there yet: give --peer-python, whose environment makes it")
        subprocess.run([arguments.peer_python, str(HERE / "make_models.py"), str(folder), *more], check=True)
    return str(folder)


def chosen(arguments, engines: list[tuple[str, str, str, dict]]) -> list[tuple[str, str, str, dict]]:
    """The first engine, which is ours, and those others that `--skip` keeps; the network that one reads is exported
    where it is missing."""
    kept = engines[:1] + [
        engine for engine in engines[1:] if not any(word.lower() in engine[0].lower() for word in arguments.skip)
    ]
    for _, python, _, job in kept:
        if "network" in job and not Path(job["network"]).exists():
            step = ["--step"] if job["task"] == "generate" else []
            subprocess.run([python, str(HERE / "make_models.py"), job["model"], job["network"], *step], check=True)
    return kept


NO_BF16 = ("ONNX Runtime is compared in f32 alone: its CPU provider (1.32.0) has no bf16 kernel for a convolution, "
           "a product or an addition.")


def unet_engines(arguments, model: str, dtype: str) -> list[tuple[str, str, str, dict]]:
    """Those that run the U-Net alone, 2 rows, in either type."""
    job, peer = dict(task="unet", model=model, dtype=dtype, rows=2, threads=arguments.threads), arguments.peer_python
    return [("dreamda-c", sys.executable, "engine_ours.py", job), ("PyTorch eager", peer, "engine_torch.py", job),
            ("OpenVINO", peer, "engine_openvino.py", job | {"network": f"{model}/openvino/unet.xml"})]


def unet(arguments) -> list[dict]:
    model, results = sd15(arguments), []
    for dtype in arguments.dtype:
        engines = unet_engines(arguments, model, dtype)
        _, peer, script, job = engines[1]
        if arguments.compile:
            engines.insert(2, ("PyTorch compiled, freezing", peer, script, job | {"compile": True}))
        if dtype == "f32":
            engines.append(
                ("ONNX Runtime", peer, "engine_onnxruntime.py", job | {"network": f"{model}/onnx/unet.onnx"}))
        ours, *peers = chosen(arguments, engines)
        rows = []
        # two beside ours at a time: all of them in float32 at once do not fit 24 GB
        for pair in range(0, len(peers), 2):
            rows += measure([ours, *peers[pair : pair + 2]], arguments.rounds)[1 if rows else 0 :]
        results.append(dict(task="unet", dtype=dtype, rows=rows, note=NO_BF16 if dtype == "bf16" else None))
        report(results[-1], arguments.threads)
    return results


NO_ROOM = ("OpenVINO is left out: its network is exported from float32, 10 GB of weights that are in memory more than "
           "once, which does not fit 24 GB.")


def unet_sdxl(arguments) -> list[dict]:
    """SDXL's U-Net alone, 1 row at 1024 px, in bf16: in f32 two engines side by side do not fit 24 GB."""
    job = dict(task="unet", model=made(arguments, "sdxl", "--sdxl"), dtype="bf16", rows=1, threads=arguments.threads)
    engines = [("dreamda-c", sys.executable, "engine_ours.py", job),
               ("PyTorch eager", arguments.peer_python, "engine_torch.py", job)]
    rows = measure(chosen(arguments, engines), arguments.rounds)
    results = [dict(task="unet", model="sdxl", dtype="bf16", rows=rows, note=NO_ROOM)]
    report(results[-1], arguments.threads)
    return results


def load(arguments) -> list[dict]:
    """Stable Diffusion 1.5's U-Net, from its files to the first result."""
    model, results = sd15(arguments), []
    for dtype in arguments.dtype:
        engines = chosen(arguments, unet_engines(arguments, model, dtype))
        results.append(dict(task="load", dtype=dtype, rows=measure_loading(engines, arguments.rounds)))
        report(results[-1], arguments.threads)
    return results


FULL = 80  # steps of the authors' settings: 100 at strength 0.8


def generate(arguments) -> list[dict]:
    results = []
    small = arguments.model == "fashion-mini"
    model = str(HERE.parent / "python/dreamda/bundled/fashion-mini") if small else sd15(arguments)
    ir = Path(arguments.work) / f"openvino-{arguments.model}-step" / "unet.xml"
    for dtype in arguments.dtype:
        # At full size three steps are timed, and the eighty of the authors' settings follow from them: an image would
        # take minutes.
        shape = dict(images=1, variants=2, steps=3, strength=1.0, time_steps=True)
        if small:
            shape = dict(images=2, variants=10, steps=20, strength=0.8)
        shape |= {name: value for name in ("variants", "steps") if (value := getattr(arguments, name))}
        job = dict(task="generate", model=model, dtype=dtype, threads=arguments.threads, share_source=False, **shape)
        engines = [("dreamda-c", sys.executable, "engine_ours.py", job),
                   ("dreamda-c, share_source", sys.executable, "engine_ours.py", job | {"share_source": True}),
                   ("authors' pipeline", arguments.peer_python, "engine_torch.py", job),
                   ("authors' pipeline, U-Net in OpenVINO", arguments.peer_python, "engine_openvino.py",
                    job | {"network": str(ir)})]
        rows = measure(chosen(arguments, engines), arguments.rounds)
        if not small:
            rows = at_length(rows, shape["steps"], FULL)
        results.append(dict(task="generate", model=arguments.model, dtype=dtype, shape=shape, rows=rows))
        report(results[-1], arguments.threads)
    return results


SHARED = 10  # variants of an image that share its source


def generate_few(arguments) -> list[dict]:
    """Images of a latent consistency model of Stable Diffusion 1.5's size: seconds an image. The peers make a plain
    img2img image, and the authors' pipeline one of its 80 steps, from one that is timed."""
    model, results = sd15(arguments, lcm=True), []
    tiny = {"vae": f"{model}/taesd"} if arguments.vae == "tiny" else {}
    network = Path(arguments.work) / "openvino-sd15-lcm" / "unet.xml"
    shape = dict(images=1, variants=1, steps=arguments.steps or 4, strength=0.8)
    for dtype in arguments.dtype:
        job = dict(task="generate", model=model, dtype=dtype, threads=arguments.threads, **shape, **tiny)
        peer = job | dict(img2img=True)
        shared = job | dict(variants=SHARED, method="cycle", share_source=True)
        authors = {name: value for name, value in job.items() if name != "vae"} | dict(steps=1, strength=1.0)
        engines = [("dreamda-c, sdedit", sys.executable, "engine_ours.py", job | dict(method="sdedit")),
                   ("dreamda-c, sdedit, keep objects", sys.executable, "engine_ours.py",
                    job | dict(method="sdedit", keep="objects")),
                   (f"dreamda-c, cycle, share_source, K {SHARED}", sys.executable, "engine_ours.py", shared),
                   ("diffusers' img2img", arguments.peer_python, "engine_torch.py", peer),
                   ("diffusers' img2img, U-Net in OpenVINO", arguments.peer_python, "engine_openvino.py",
                    peer | {"network": str(network)}),
                   (f"authors' pipeline, {FULL} steps", arguments.peer_python, "engine_torch.py", authors)]
        engines = chosen(arguments, engines)
        rows = measure(engines, arguments.rounds)
        for row, (_, _, _, job) in zip(rows, engines):
            missing = FULL - job["steps"] if row["name"].startswith("authors") else 0
            row["seconds"] = [(each + missing * (step or 0)) / job["variants"]
                              for each, step in zip(row["seconds"], row["steps"])]
        rows = [row | summary(row["name"], row["seconds"], rows[0]["seconds"]) for row in rows]
        results.append(dict(task="generate", model=arguments.model, vae=arguments.vae, dtype=dtype, shape=shape,
                            rows=rows))
        report(results[-1], arguments.threads)
    return results


def parts(arguments) -> list[dict]:
    """One self-attention of the U-Net's finest level, and Stable Diffusion's VAE on one image of 512 x 512."""
    model, results = sd15(arguments), []
    jobs = [dict(task="attention", rows=2, heads=8, tokens=4096, width=40)]
    jobs += [dict(task="vae", direction=direction, model=model) for direction in ("encode", "decode")]
    for job in jobs:
        for dtype in arguments.dtype:
            whole = job | dict(dtype=dtype, threads=arguments.threads)
            engines = [("dreamda-c", sys.executable, "engine_ours.py", whole),
                       ("PyTorch", arguments.peer_python, "engine_torch.py", whole)]
            rows = measure(chosen(arguments, engines), arguments.rounds)
            results.append(dict(task=job["task"], direction=job.get("direction"), dtype=dtype, rows=rows))
            report(results[-1], arguments.threads)
    return results


def scale(arguments) -> list[dict]:
    """Ours alone: time and peak memory over variants, images, threads and, at full size, resolution; one setting
    changed at a time."""
    small = dict(model=str(HERE.parent / "python/dreamda/bundled/fashion-mini"),
                 images=2,
                 variants=10,
                 steps=20,
                 strength=0.8)
    large = dict(model=sd15(arguments), images=1, variants=1, steps=1, strength=1.0)
    settings = [("fashion-mini", small | dict(variants=k)) for k in (1, 3, 10, 30)]
    settings += [("fashion-mini", small | dict(images=n)) for n in (1, 8, 32)]
    settings += [("fashion-mini", small | dict(threads=1)), ("sd15", large | dict(threads=1))]
    settings += [("sd15", large | dict(size=size)) for size in (256, 384, 512, 640, 768)]
    settings += [("sd15", large | dict(variants=2)), ("sd15", large | dict(images=2))]
    rows = []
    for name, setting in settings:
        job = dict(task="generate", dtype=arguments.dtype[0], threads=arguments.threads, share_source=False) | setting
        shown = f"{name}, {job['images']} images, K {job['variants']}, {int(job['steps'] * job['strength'])} steps, " \
                f"{job.get('size') or ('32' if name == 'fashion-mini' else '512')} px, {job['threads']} threads"
        row = measure([(shown, sys.executable, "engine_ours.py", job)], max(2, arguments.rounds // 2))[0]
        row["each"] = row["median"] / (job["images"] * job["variants"] * int(job["steps"] * job["strength"]))
        rows.append(row)
        print(
            f"{shown}: {row['median']:.2f} s, {row['each'] * 1e3:.1f} ms an image and step, "
            f"{row['peak_rss_gib']:.2f} GiB",
            flush=True)
    return [dict(task="scale", dtype=arguments.dtype[0], rows=rows)]


TRAINING = [  # depth, stem, batch, size, steps a run
    (50, "imagenet", 16, 224, 1),
    (18, "imagenet", 16, 224, 1),
    (18, "imagenet", 64, 32, 5),
    (18, "small", 64, 32, 1),
]
LABELLING = [(50, "imagenet", 16, 224, 1), (18, "imagenet", 64, 32, 5)]


def train(arguments) -> list[dict]:
    """Optimiser steps, then the labelling pass of AMST's four heads."""
    results = []
    for label, shapes in ((False, TRAINING), (True, LABELLING)):
        for (depth, stem, batch, size, steps), dtype in itertools.product(shapes, arguments.dtype):
            shape = dict(depth=depth, stem=stem, batch=batch, size=size, steps=steps, label=label)
            job = dict(dtype=dtype, threads=arguments.threads, **shape)
            engines = [("dreamda-c", sys.executable, "train_ours.py", job),
                       ("PyTorch", arguments.peer_python, "train_torch.py", job)]
            rows = measure(chosen(arguments, engines), arguments.rounds)
            results.append(dict(task="train", dtype=dtype, shape=shape, rows=rows))
            report(results[-1], arguments.threads)
    return results


def title(result: dict, threads: int) -> str:
    if result["task"] == "attention":
        return f"attention of 4096 tokens, 8 heads of 40, 2 rows, {result['dtype']}, {threads} threads: seconds"
    if result["task"] == "vae":
        return f"SD's VAE, {result['direction']} 512 px, {result['dtype']}, {threads} threads: seconds"
    if result["task"] == "scale":
        return f"how cost grows ({result['dtype']}): ours alone"
    if result["task"] == "load":
        return (f"SD 1.5 U-Net, loading and the first evaluation of 2 rows, {result['dtype']}, {threads} threads: "
                "seconds")
    if result["task"] == "train":
        shape = result["shape"]
        what, each = ("labelling by four heads", "batch") if shape.get("label") else ("training", "step")
        return (
            f"ResNet-{shape['depth']} {what} ({shape['stem']} stem), {shape['size']} px, batch {shape['batch']}, "
            f"{result['dtype']}, {threads} threads: seconds a {each}")
    if result["task"] == "unet" and result.get("model") == "sdxl":
        return f"SDXL's U-Net, 1 row, 128 x 128 latents, {result['dtype']}, {threads} threads: seconds"
    if result["task"] == "unet":
        return f"SD 1.5 U-Net, 2 rows, 64 x 64 latents, {result['dtype']}, {threads} threads: seconds"
    shape = result["shape"]
    if "vae" in result:
        vae = "tiny VAE" if result["vae"] == "tiny" else "its own VAE"
        return (f"{result['model']}, an image of {shape['steps']} steps, {vae}, {result['dtype']}, "
                f"{threads} threads: seconds")
    steps = f"{FULL} steps ({shape['steps']} timed)" if shape.get(
        "time_steps") else f"{int(shape['steps'] * shape['strength'])} steps"
    return (f"{result['model']}, a DreamDA image of {steps}, K {shape['variants']}, {result['dtype']}, "
            f"{threads} threads: seconds")


def scale_table(heading: str, rows: list[dict]) -> str:
    lines = [heading, "| job | s | ms an image and step | peak GiB |", "|---|---|---|---|"]
    return "\n".join(
        lines
        + [f"| {r['name']} | {r['median']:.2f} | {r['each'] * 1e3:.1f} | {r['peak_rss_gib']:.2f} |" for r in rows])


def images(result: dict) -> int:
    if result["task"] == "train":
        return result["shape"]["steps"]
    return result["shape"]["images"] * result["shape"]["variants"] if result["task"] == "generate" else 1


def section(result: dict, heading: str) -> str:
    shown = scale_table(heading, result["rows"]) if result["task"] == "scale" else table(
        heading, result["rows"], per=images(result))
    return f"{shown}\n\n{result['note']}" if result.get("note") else shown


def report(result: dict, threads: int) -> None:
    print(section(result, f"\n{title(result, threads)}"), flush=True)


def measured() -> Iterator[tuple[str, dict]]:
    """Name and content of this program's result files."""
    for file in sorted(RESULTS.rglob("*.json"), key=lambda file: (file.parent != RESULTS, file.parent, file.stem)):
        run = json.loads(file.read_text())
        if "results" in run:
            yield file.relative_to(RESULTS).with_suffix("").as_posix(), run


# The README shows these alone: the machine's features contain the first word, the row begins with the second.
HIGHLIGHTS = (
    ("avx512_bf16", "sd15, a DreamDA image of 80 steps (1 timed), K 10, bf16, 2 threads"),
    ("amx_bf16", "sd15-lcm, an image of 4 steps, tiny VAE, bf16, 2 threads"),
    ("avx512_bf16", "SD 1.5 U-Net, 2 rows, 64 x 64 latents, bf16"),
    ("avx512_bf16", "SD's VAE, decode 512 px, bf16"),
    ("avx512_bf16", "fashion-mini, a DreamDA image of 16 steps, K 10, bf16, 2 threads"),
    ("avx512_bf16", "ResNet-50 training (imagenet stem), 224 px, batch 16, bf16"),
    ("avx2", "SD 1.5 U-Net, 2 rows, 64 x 64 latents, f32"),
    ("avx2", "SD's VAE, decode 512 px, f32"),
    ("avx2", "ResNet-50 training (imagenet stem), 224 px, batch 16, f32"),
)
HEADING = [
    "| an image, a step, a batch or a call | ours, s | times as long | peak GiB, ours | theirs |",
    "|---|---|---|---|---|"
]


def summaries() -> dict[tuple[str, tuple[str, ...], int], tuple[str, dict[str, str]]]:
    """Of each machine the newest date and a row of every work of ours: its name, and the cells after it."""
    machines: dict = {}
    for _, run in measured():
        machine = run["machine"]["cpu"], tuple(run["machine"]["features"]), run["machine"]["processors"]
        date, rows = machines.get(machine, ("", {}))
        machines[machine] = max(run["machine"]["date"], date), rows
        for result in run["results"]:
            ours = [row for row in result["rows"] if row["name"].startswith("dreamda-c")]
            peers = [row for row in result["rows"] if row not in ours]
            # No peer keeps objects: that row is compared with our plain images alone.
            for row in (row for row in ours if peers and not row["name"].endswith("keep objects")):
                name = title(result, run["threads"]).partition(": seconds")[0] + row["name"].removeprefix("dreamda-c")
                times = ", ".join(f"{peer['name']} {peer['ratio'] / row['ratio']:.2f}" for peer in peers)
                memory = ", ".join(f"{peer['peak_rss_gib']:.2f}" for peer in peers)
                rows[name] = f"{row['median'] / images(result):.3g} | {times} | {row['peak_rss_gib']:.2f} | {memory} |"
    return machines


def highlights_table() -> str:
    """README.md's table: the rows of HIGHLIGHTS, with the machine they were measured on."""
    lines = ["| on | " + HEADING[0][2:], "|---" + HEADING[1]]
    for feature, wanted in HIGHLIGHTS:
        found = [(machine, date, name, cells) for machine, (date, rows) in summaries().items()
                 for name, cells in rows.items() if machine[1][-1] == feature and name.startswith(wanted)]
        if not found:
            raise SystemExit(f"no result of {wanted!r} on a machine with {feature}")
        for machine, _, name, cells in found:
            lines.append(f"| {machine[0]}, {feature} | {name} | {cells}")
    return "\n".join([*lines, ""])


def summary_table() -> str:
    """The tables at the head of RESULTS.md, one a machine: a line for each work of ours, with every peer's median ratio
    to it."""
    parts = [f"On {cpu} ({', '.join(features)}), {processors} processors, {date}:\n\n"
             + "\n".join([*HEADING, *(f"| {name} | {cells}" for name, cells in rows.items())]) + "\n"
             for (cpu, features, processors), (date, rows) in summaries().items() if rows]
    return "\n".join(parts)


def all_tables() -> str:
    """RESULTS.md's tables, from results/*.json."""
    parts = []
    for name, run in measured():
        about = run["machine"]
        engines = dict.fromkeys(row["engine"].split(",")[0] for result in run["results"] for row in result["rows"])
        parts.append(
            f"## `{name}`\n\nOn {about['cpu']} ({', '.join(about['features'])}), {about['processors']} processors, "
            f"{about['date']}, load {about['load']} at the start; {', '.join(engines)}.\n")
        parts += [section(result, f"**{title(result, run['threads'])}**\n") + "\n" for result in run["results"]]
    return "\n".join(parts)


def few_tables() -> str:
    """few_steps.md's tables: images of few steps."""
    return "".join(section(result, f"**{title(result, run['threads'])}**\n") + "\n\n" for _, run in measured()
                   for result in run["results"] if "vae" in result)


def replace_between(file: Path, name: str, text: str) -> None:
    """Put `text` between the file's lines ``<!-- measured: NAME -->`` and ``<!-- end of NAME -->``; SystemExit where it
    has none."""
    before, opening, rest = file.read_text().partition(f"<!-- measured: {name} -->\n")
    _, closing, after = rest.partition(f"<!-- end of {name} -->")
    if not (opening and closing):
        raise SystemExit(
            f"{file} has no place for the table {name!r}: add the lines <!-- measured: "
            f"{name} --> and <!-- end of {name} -->"
        )
    file.write_text(f"{before}{opening}{text}{closing}{after}")


def main() -> None:
    if sys.argv[1:] == ["readme"]:
        replace_between(HERE.parent / "README.md", "speed", highlights_table())
        replace_between(HERE / "RESULTS.md", "summary", summary_table())
        replace_between(HERE / "RESULTS.md", "results", all_tables())
        replace_between(HERE.parent / "python/docs/few_steps.md", "few", few_tables())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["unet", "generate", "parts", "train", "load", "scale"])
    parser.add_argument("--peer-python", help="not needed by scale")
    parser.add_argument("--work", required=True, help="where large models are made and kept")
    parser.add_argument("--dtype", nargs="+", default=["bf16", "f32"], choices=["bf16", "f32"])
    parser.add_argument("--model", default="fashion-mini", choices=["fashion-mini", "sd15", "sd15-lcm", "sdxl"])
    parser.add_argument("--vae", default="own", choices=["own", "tiny"],
                        help="of generate with sd15-lcm: tiny has TAESD's shape")
    parser.add_argument("--variants",
                        type=int,
                        help="of generate: K images of one (fashion-mini 10, sd15 2); names the result file too")
    parser.add_argument("--steps",
                        type=int,
                        help="of generate: steps of fashion-mini (20) and sd15-lcm (4), timed steps of sd15 (3)")
    parser.add_argument("--skip",
                        nargs="+",
                        default=[],
                        metavar="WORD",
                        help="leave out the engines with such a word in their name")
    parser.add_argument("--add",
                        action="store_true",
                        help="keep the rows of the result file; add those of the engines that it lacks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results",
                        metavar="NAME",
                        default=".",
                        help="a folder of benchmarks/results for another machine's runs")
    parser.add_argument("--compile",
                        action="store_true",
                        help="also torch.compile with freezing (minutes of compilation)")
    arguments = parser.parse_args()
    if not arguments.peer_python and arguments.task != "scale":
        parser.error("--peer-python is missing; name the interpreter of the peers' environment")
    if arguments.model == "sdxl" and arguments.task != "unet":
        parser.error("--model sdxl is for the task unet")
    about = machine()  # before the load is our own
    tasks = {
        "unet": unet_sdxl if arguments.model == "sdxl" else unet,
        "generate": generate_few if arguments.model == "sd15-lcm" else generate,
        "parts": parts,
        "train": train,
        "load": load,
        "scale": scale,
    }
    results = tasks[arguments.task](arguments)
    (RESULTS / arguments.results).mkdir(parents=True, exist_ok=True)
    name = arguments.task
    if name == "generate":
        name += f"-{arguments.model}" + (f"-k{arguments.variants}" if arguments.variants else "")
        name += "-tiny" if arguments.vae == "tiny" else ""
    if name == "unet" and arguments.model == "sdxl":
        name += "-sdxl"
    file = RESULTS / arguments.results / f"{name}.json"
    run = dict(machine=about, threads=arguments.threads, results=results)
    if arguments.add and file.is_file():
        run = added(json.loads(file.read_text()), results)
    file.write_text(json.dumps(run, indent=1) + "\n")


def added(run: dict, results: list[dict]) -> dict:
    """A result file with the rows of those engines that it lacks; their ratios are to ours as it ran beside them."""
    for there, more in zip(run["results"], results, strict=True):
        if title(there, 0) != title(more, 0):
            raise SystemExit(f"the result file holds {title(there, 0)!r}, not {title(more, 0)!r}; leave --add off")
        known = {row["name"] for row in there["rows"]}
        there["rows"] += [row for row in more["rows"] if row["name"] not in known]
    return run


if __name__ == "__main__":
    main()
