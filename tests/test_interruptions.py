"""`dreamda generate` and `dreamda train` as a user runs them, on the real engine: killed and interrupted at random
moments, run twice at once.

DREAMDA_LONG=1 kills each of them 50 times instead of 6; DREAMDA_SEED repeats the moments of a run that failed.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_generate import tree

import dreamda
from dreamda import cli
from dreamda.data import load_bundled
from dreamda.runs import files
from dreamda.runs.files import try_lock

# sanitizers look at memory, not at files
STOPS = 50 if os.environ.get("DREAMDA_LONG") else 2 if os.environ.get("DREAMDA_SANITIZED") else 6
# A batch a seed image, so that writes are spread over the whole run.
START = """
import sys
from dreamda.cli import main
from dreamda.runs import generate, trial

generate.SECONDS_A_BATCH = 0
trial.STEPS, trial.EPOCHS, trial.VARIANTS, trial.ROUNDS, trial.FOLDS = (3, ), 3, (1, ), 1, 2
sys.exit(main())
"""
HALTED = """
import os, signal
from dreamda.copies.pictures import Pictures
from dreamda.runs import trial

trial.describe_model = Pictures.read = lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP)
""" + START
GENERATE = [
    "--model", "fashion-mini", "--variants", "3", "--steps", "2", "--strength", "0.5", "--dtype", "f32", "--threads",
    "2"
]
TRAIN = [
    "--width", "8", "--batch-size", "8", "--epochs", "6", "--pretrain-epochs", "2", "--steps-per-epoch", "3",
    "--threshold", "0.3", "--validation", "0.34", "--crop-scale", "0.9,1", "--dtype", "f32", "--threads", "2"
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of real images, an undisturbed run of each command, and what its files hold."""
    root = tmp_path_factory.mktemp("interruptions")
    bundled = load_bundled()
    for part in ("seeds", "test"):
        folder = bundled.folder(root / part, part)
        bundled.write(folder, part)
        for path in (root / part).iterdir():
            if path.name not in ("bag", "trouser"):
                shutil.rmtree(path)
    for path in list((root / "test").glob("*/*"))[::3]:
        path.unlink()
    for name in ("generate", "train"):
        begun = time.monotonic()
        assert cli.main(command(name, root, root / f"whole-{name}")) == 0
        (root / f"seconds-{name}").write_text(str(time.monotonic() - begun))
    return root


def command(name: str, root: Path, out: Path) -> list[str]:
    if name == "generate":
        return ["generate", str(root / "seeds"), "--out", str(out), *GENERATE]
    if name == "try":
        return ["try", str(root / "seeds"), "--out", str(out), "--model", "fashion-mini", "--preset", "fast"]
    if name == "audit":
        return ["audit", str(root / "seeds"), str(root / "whole-generate"), "--out", str(out)]
    if name == "withdraw":
        image = next((root / "seeds/bag").iterdir())
        return ["audit", "--withdraw", str(image), str(root / "whole-generate"), "--out", str(out)]
    return [
        "train",
        str(root / "seeds"),
        str(root / "whole-generate"), "--out",
        str(out), "--test",
        str(root / "test"), *TRAIN
    ]


def content(out: Path) -> dict[str, bytes]:
    """What must be equal, to the byte: all but how many seconds an epoch took, and where REAL lies as seen from OUT."""
    files = tree(out)
    if "run.json" in files:
        run = json.loads(files["run.json"])
        files["run.json"] = json.dumps({k: v for k, v in run.items() if k != "real"}).encode()
    if "log.jsonl" in files:
        events = [json.loads(line) for line in files["log.jsonl"].splitlines()]
        files["log.jsonl"] = json.dumps([{k: v
                                          for k, v in event.items() if k != "seconds"} for event in events]).encode()
    return files


def start(name: str, root: Path, out: Path, program: str = START) -> subprocess.Popen:
    """The command in a process of its own, from the moment on that it works on `out`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", program, *command(name, root, out)],
                               env=environment,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,
                               text=True)
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic(
    ) < deadline and not is_locked(out / ".dreamda/0-of-1.lock" if name == "generate" else out):
        time.sleep(0.002)
    return process


def is_locked(path: Path) -> bool:
    """Looked up, not tried: to try is to be in the way for a moment."""
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:  # not there yet, or no longer: a run that is through takes its lock away
        return False
    return any(line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("name", ["generate", "train"])
def test_stopped_at_random_moments_and_resumed_it_writes_the_same_bytes(data, tmp_path, name):
    """SIGKILL, SIGINT and SIGTERM at random moments, again and again on one folder until the run is through, then on a
    new one."""
    seed = int(os.environ.get("DREAMDA_SEED") or time.time_ns() % 1_000_000)
    print(f"DREAMDA_SEED={seed}")
    chance = random.Random(seed)
    whole = content(data / f"whole-{name}")
    stops, finished, out = 0, 0, tmp_path / "0"
    longest = float((data / f"seconds-{name}").read_text())  # of work before the signal
    while stops < STOPS or out.exists():
        process = start(name, data, out)
        number = chance.choice([signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGTERM]) if stops < STOPS else None
        wait = chance.uniform(0, longest)
        if number:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        output, errors = process.communicate(timeout=600)
        late = process.returncode in (
            -(number or 0), 128 +
            (number or 0)) and number != signal.SIGKILL and "run the same command again to resume" not in errors
        # it was through before the signal came (late: the process was just ending), or was not sent any
        if process.returncode == 0 or late:
            assert content(out) == whole, (seed, stops)
            assert not [p for p in out.rglob("*") if p.name.startswith(".") or p.name.endswith(".tmp")]
            finished, out = finished + 1, tmp_path / str(finished + 1)
            if number:
                longest *= 0.8  # so that most processes meet a signal
            continue
        stops += 1
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, errors
        else:
            assert process.returncode == 128 + number and "run the same command again to resume" in errors, (
                process.returncode, errors, seed)
            assert "Traceback" not in errors
    assert finished >= 1 and stops >= STOPS
    print(f"{name}: {stops} stops, {finished} runs ended with the same bytes")


@pytest.mark.parametrize("name", ["generate", "train"])
def test_a_second_process_on_the_same_folder_is_refused(data, tmp_path, name):
    out = tmp_path / "out"
    first = start(name, data, out)
    while name == "generate" and first.poll() is None and not list(out.glob("*/*.png")):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle, however fast it is
    try:
        second = start(name, data, out)
        _, errors = second.communicate(timeout=600)
        assert second.returncode == 2 and "is being written by another process" in errors and errors.count(
            "\n") == 1, errors
    finally:
        first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    assert content(out) == content(data / f"whole-{name}")


@pytest.mark.parametrize("name, result", [("try", "trial.html"), ("audit", "audit.json"),
                                          ("withdraw", "withdrawal.json")])
def test_a_second_process_writes_nothing_and_a_killed_one_leaves_no_lock(data, tmp_path, name, result):
    out = tmp_path / "out"
    first = start(name, data, out, HALTED)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        there = tree(out)
        second = start(name, data, out)
        _, errors = second.communicate(timeout=600)
        assert (second.returncode, errors) == (
            2, f"dreamda: --out: {out} is being written by another process; wait for it, or give another folder\n")
        assert tree(out) == there
    finally:
        first.kill()
        first.communicate(timeout=600)
    third = start(name, data, out)
    _, errors = third.communicate(timeout=600)
    assert third.returncode in (0, 1) and result in tree(out), errors


def test_a_folder_that_is_removed_while_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Another process ends in it between the two steps; empty new folders are removed at the end."""
    out, calls = tmp_path / "new/out", []

    def late(fd):
        calls.append(fd)
        if len(calls) == 1:
            out.rmdir()
        return try_lock(fd)

    monkeypatch.setattr(files, "try_lock", late)
    with files.locked_folder(out):
        assert len(calls) == 2 and is_locked(out)
    assert not list(tmp_path.iterdir())


def test_a_lost_lock_of_tqdm_does_not_block_our_bars():
    """tqdm's own lock is taken for ever here, as by a process that was killed while it held it."""
    program = ("import threading\n"
               "from tqdm import tqdm\n"
               "from dreamda.progress import bar\n"
               "tqdm.get_lock().acquire()  # by the main thread, which does not release it\n"
               "ours = threading.Thread(target=lambda: bar(3, 'image', hidden=True).close(), daemon=True)\n"
               "ours.start()\n"
               "ours.join(30)\n"
               "print(ours.is_alive())\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", program],
                           env=environment,
                           capture_output=True,
                           text=True,
                           timeout=120)
    assert ended.returncode == 0 and ended.stdout == "False\n", ended.stderr
