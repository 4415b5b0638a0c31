"""`dreamda train | evaluate | predict`: files, resume to the same bytes, signals, errors that write nothing. The
backbone is a stand-in."""
import dataclasses
import inspect
import json
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from batteries.labels import FOLDERS, REAL
from standin import FoldedStandIn, StandIn, pictures
from test_generate import disk  # noqa: F401  (a fixture)

import dreamda
from dreamda import cli
from dreamda.options import defaults_of, options_of
from dreamda.training import saved, setup
from dreamda.training.holdout import split
from dreamda.training.recipe import Recipe
from dreamda.runs import train as train_run
from dreamda.runs import labelled
from dreamda.runs.labelled import FolderImages

NAMES = ("bag", "coat", "shirt")
FAST = [
    "--epochs", "4", "--batch-size", "16", "--learning-rate", "0.1", "--warmup-epochs", "1", "--steps-per-epoch", "12",
    "--threshold", "0.6", "--crop-scale", "0.9,1", "--threads", "1", "--pretrain-epochs", "1", "--hint", "ignore",
    "--consistency-on", "rest", "--relabel", "0"
]


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    made = []

    def create(name, *, size, batch, slots, **_):
        made.append(StandIn(batch=batch, height=size[0], width=size[1], slots=slots))
        return made[-1]

    monkeypatch.setattr(setup, "create_backbone", create)
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)
    return made


def write(root: Path, images, labels, names=NAMES) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / names[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "real", *pictures(30))
    write(tmp_path / "synthetic", *pictures(45, seed=1))
    write(tmp_path / "test", *pictures(60, seed=2))
    return tmp_path


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def train(data, out="out", *options, synthetic="synthetic"):
    return run("train", data / "real", *([data / synthetic] if synthetic else []), "--out", data / out, *FAST, *options)


def content(folder: Path, *names: str) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes()
        for name in names or ("checkpoint.safetensors", "model.safetensors", "run.json")
    }


def test_the_whole_run(data, capsys):
    assert train(data, "out", "--test", data / "test") == 0
    captured = capsys.readouterr()
    assert "accuracy" in captured.out and "out/model.safetensors" in captured.out
    assert "labelling 45 synthetic images:" in captured.err
    assert {p.name for p in (data / "out").iterdir()} >= {*train_run.FILES} - {"confusion.png", "curves.png"}
    log = [json.loads(line) for line in (data / "out/log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in log] == ["stage", "epoch", "stage", "labelling", "epoch", "epoch", "epoch"
                                         ] and log[3]["agree_with_seed"] > 0.7
    metrics = json.loads((data / "out/metrics.json").read_text())
    assert metrics["images"] == 60 and metrics["accuracy"] > 0.75 and metrics["per_class"][0]["class"] == "bag"
    before = content(data / "out")
    assert train(data, "out", "--test", data / "test") == 0          # nothing left to do
    assert content(data / "out") == before

    assert run("evaluate", data / "out", data / "test", "--out", data / "evaluation") == 0
    assert json.loads((data / "evaluation/metrics.json").read_text()) == metrics
    capsys.readouterr()
    assert run("predict", data / "out/model.safetensors", data / "test/coat", data / "real/bag/000.png") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 21 and rows[-1]["file_name"].endswith("bag/000.png") and set(
        rows[0]["probabilities"]) == {*NAMES}
    assert np.mean([r["label"] == "coat" for r in rows[:20]]) > 0.5 and rows[0]["probability"] == pytest.approx(
        max(rows[0]["probabilities"].values()), abs=1e-6)


@pytest.mark.parametrize("options",
                         [[], ["--method", "plain", "--mix", "cutmix"], ["--validation", "0.2", "--relabel", "1"]])
def test_two_runs_and_an_interrupted_one_write_the_same_bytes(data, capsys, standin, options, monkeypatch):
    assert train(data, "one", *options) == 0
    assert train(data, "two", *options, "--workers", "0") == 0
    assert content(data / "one") == content(data / "two")
    # within the first epoch, then the twentieth step from there
    for at in (4, 20):
        steps = StandIn.step
        count = iter(range(1, 1000))

        def step(self, *args, at=at, count=count, steps=steps, **kwargs):
            steps(self, *args, **kwargs)
            if next(count) == at:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(StandIn, "step", step)
            assert train(data, "part", *options) == 130
        assert "run the same command again to resume" in capsys.readouterr().err
        assert run("evaluate", data / "part", data / "test") == 0    # the model is what was learned until then
        assert "this training was stopped in epoch" in capsys.readouterr().err or "--validation" in options
    assert train(data, "part", *options) == 0
    assert "resuming from" in capsys.readouterr().err
    assert content(data / "one") == content(data / "part")
    without_times = [[{**json.loads(line), "seconds": 0}
                      for line in (data / f"{name}/log.jsonl").read_text().splitlines()] for name in ("one", "part")]
    assert without_times[0] == without_times[1]


def test_a_killed_run_goes_on_from_its_last_epoch(data, monkeypatch):
    assert train(data, "one") == 0
    save = train_run.save_arrays
    count = iter(range(1, 10))

    def killed(path, *args):
        if next(count) == 3:
            raise SystemExit("killed")
        save(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "save_arrays", killed)
        with pytest.raises(SystemExit):
            train(data, "two")
    assert train(data, "two") == 0
    assert content(data / "one") == content(data / "two")


def test_best_epoch_is_the_model(data):
    assert train(data, "out", "--validation", "0.3", "--method", "real-only", synthetic=None) == 0
    log = [json.loads(line) for line in (data / "out/log.jsonl").read_text().splitlines()]
    accuracies = {e["epoch"]: e["validation_accuracy"] for e in log}
    assert saved.TrainedModel.load(data / "out/model.safetensors").about["epoch"] == max(accuracies, key=accuracies.get)


def test_labels_come_from_metadata_not_from_names(data, capsys):
    """As dreamda generate writes it; a field "truth" gives the precision of the pseudo-labels."""
    rows = [{"file_name": f"{NAMES[i % 3]}/{i:03d}.png", "label": NAMES[(i + (i < 9)) % 3], "truth": NAMES[i % 3]}
            for i in range(45)]
    (data / "synthetic/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert train(data) == 0
    labelling = json.loads((data / "out/log.jsonl").read_text().splitlines()[3])
    assert labelling["precision"] > labelling["agree_with_seed"] > 0.5


def test_nothing_accepted_is_said_when_labelling_ends_and_training_goes_on(data, capsys):
    assert train(data, "out", "--threshold", "1") == 0
    err = capsys.readouterr().err
    assert "0 confident at threshold 1, 45 without a label" in err
    assert "Lower --threshold, raise --pretrain-epochs, or use --hint keep" in err
    assert err.index("0 confident at threshold 1") < err.index(
        "epoch   2 (train)") and "no synthetic image ever got a label at --threshold 1" in err
    capsys.readouterr()
    assert train(data, "kept", "--threshold", "1", "--hint", "keep") == 0
    assert "0 confident at threshold 1, 45 kept with their source label" in capsys.readouterr().err


def test_divergence_names_the_step_and_the_checkpoint(data, capsys, monkeypatch):
    forward = StandIn.forward

    def poisoned(self, images, slot=0):
        return forward(self, images, slot) * np.float32(np.nan if self.steps == 20 else 1)

    monkeypatch.setattr(StandIn, "forward", poisoned)
    assert train(data) == 1
    err = capsys.readouterr().err
    assert "diverged in stage train, step 21" in err and "checkpoint.safetensors, of epoch 1" in err
    assert np.isfinite(
        saved.load_arrays(data / "out/checkpoint.safetensors", "checkpoint")[0]["backbone.conv1.weight"]).all()


def tree(folder: Path) -> list[tuple[str, float]]:
    return sorted((str(p), p.stat().st_mtime) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "arguments, message",
    [(["{real}", "{synthetic}"], "--out is missing"),
     (["{real}", "--out", "{out}"], "SYNTHETIC: is missing: --method amst needs the output of dreamda generate"),
     (["{none}", "{synthetic}", "--out", "{out}"], "no such folder"),
     (["{real}", "{none}", "--out", "{out}"], "no such folder"),
     (["{one}", "{synthetic}", "--out", "{out}"], "1 class ('bag'); a classifier needs 2 or more"),
     (["{empty}", "{synthetic}", "--out", "{out}"], "class 'hat' has no real image"),
     (["{real}", "{more}", "--out", "{out}"], "SYNTHETIC {more} has class 'hat' that the others lack"),
     (["{real}", "{synthetic}", "--out", "{out}", "--test", "{more}"], "TEST {more} has class 'hat'"),
     (["{real}", "{real}", "--out", "{real}/x"], "lies in the data set"),
     (["{real}", "{synthetic}", "--out", "{real}"], "lies in the data set"),
     (["{real}", "{synthetic}", "--out", "{other}"], "no run.json"),
     (["{real}", "{synthetic}", "--out", "{out}", "--size", "7"], "too small for the small stem"),
     (["{real}", "{synthetic}", "--out", "{out}", "--stem", "imagenet"], "too small for the imagenet stem"),
     (["{real}", "{synthetic}", "--out", "{out}", "--method", "x"], "--method"),
     (["{real}", "{synthetic}", "--out", "{out}", "--learning-rate", "nan"], "--learning-rate"),
     (["{real}", "{synthetic}", "--out", "{out}", "--mean", "1,2"], "--mean"),
     (["{real}", "{synthetic}", "--out", "{out}", "--validation", "1"], "--validation"),
     (["{real}", "{synthetic}", "--out", "{out}", "--validation", "0.001"], "--validation: 0.001 holds back no image"),
     (["{real}", "{synthetic}", "--out", "{out}", "--learning-rate", "1e7"
       ], "--learning-rate: 10000000.0 is not possible; use a number above 0, at most 1000000"),
     (["{real}", "{synthetic}", "--out", "{out}", "--std", "0,0,0"], "std"),
     (["{real}", "{synthetic}", "--out", "{out}", "--epochs", "1"], "--epochs"),
     (["{real}", "{synthetic}", "--out", "{out}", "--pretrained", "{none}"], "No such file"),
     (["{real}", "{synthetic}", "--out", "{out}", "--pretrained", "{weights}"], "another architecture"),
     (["{real}", "{synthetic}", "--out", "{out}", "--width", "2"], "--width"),
     (["{real}", "{synthetic}", "--out", "{out}", "--dtype", "f8"], "dtype")])
def test_bad_input_is_one_sentence_exit_2_nothing_written(data, capsys, arguments, message):
    (data / "one/bag").mkdir(parents=True)
    Image.fromarray(pictures(1)[0][0]).save(data / "one/bag/a.png")
    write(data / "more", *pictures(4), ("hat", "coat", "bag"))
    write(data / "empty", *pictures(4))
    (data / "empty/hat").mkdir()
    write(data / "broken", *pictures(4))
    (data / "broken/bag/x.png").write_bytes(b"x")
    (data / "other").mkdir()
    (data / "other/file").write_text("mine")
    saved.save_arrays(data / "weights", {"conv1.weight": np.zeros((2, 2), np.float32)}, {})
    places = {
        name: str(data / name)
        for name in ("real", "synthetic", "none", "one", "empty", "more", "broken", "other", "out", "weights")
    }
    before = tree(data)
    assert run("train", *(a.format(**places) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dreamda: ") and captured.err.count("\n") == 1 and message.format(
        **places) in captured.err and captured.out == ""
    assert tree(data) == before


def test_another_run_in_out_is_refused(data, capsys):
    assert train(data) == 0
    for options, message in ((["--learning-rate", "0.2"], "another --learning-rate: 0.1, now 0.2"),
                             (["--seed", "1"], "another --seed"), (["--no-flip"], "another --flip")):
        assert train(data, "out", *options) == 2
        assert message in capsys.readouterr().err
    Image.fromarray(pictures(1, seed=9)[0][0]).save(data / "synthetic/bag/000.png")
    assert train(data) == 2
    assert "another data set SYNTHETIC; repeat that one" in capsys.readouterr().err
    write(data / "real", *pictures(3), ("hat", "hat", "hat"))
    assert train(data) == 2
    assert "another list of classes" in capsys.readouterr().err


def test_a_full_disk_exits_1_and_goes_on_later(data, capsys, monkeypatch):
    assert train(data, "one") == 0
    fsync, count = os.fsync, iter(range(1000))

    def full(fd):
        if next(count) > 12:
            raise OSError(28, "No space left on device")
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert train(data, "two") == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "run the same command again to resume from the last checkpoint" in err and not list(
        (data / "two").glob(".*"))
    assert train(data, "two") == 0
    assert content(data / "one") == content(data / "two")


def short(data, out, *options):
    return train(data, out, "--epochs", "3", "--steps-per-epoch", "4", "--batch-size", "6", "--threshold", "0.3",
                 *options)


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_removed(data):
    """Also where nothing but the unfinished run.json is there."""
    assert short(data, "one") == 0
    (data / "two").mkdir()
    (data / "two/.run.json.tmp").write_text('{"form')
    assert short(data, "two") == 0
    assert tree_of(data / "one") == tree_of(data / "two")
    for name in train_run.FILES:
        (data / "two" / f".{name}.tmp").write_bytes(b"half")
    (data / "two/.mine.tmp").write_text("not ours")
    assert short(data, "two") == 0
    assert [p.name for p in (data / "two").glob(".*")] == [".mine.tmp"]


def tree_of(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "log.jsonl"}


def test_another_number_of_threads_is_refused_by_name(data, capsys):
    assert short(data, "out", "--threads", "2") == 0
    before = content(data / "out")
    capsys.readouterr()
    assert short(data, "out", "--threads", "1") == 2
    assert "begun with 2 threads, now there are 1" in (
        err := capsys.readouterr().err) and "--threads 2" in err and err.count("\n") == 1
    assert content(data / "out") == before
    run = json.loads(before["run.json"])
    assert (run["threads"], run["dtype"],
            run["environment"]["kernels_isa"]) == (2, *(dreamda.networks.models.resolve_dtype("auto"),
                                                        dreamda.info()["kernels_isa"]))
    del run["threads"], run["environment"]                          # as older versions wrote it
    (data / "out/run.json").write_text(json.dumps(run))
    assert short(data, "out", "--threads", "1") == 0


def test_another_instruction_set_is_mentioned(data, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StandIn,
                      "step",
                      lambda self, *_, step=StandIn.step, **__:
                      (step(self, *_, **__), os.kill(os.getpid(), signal.SIGINT)))
        assert short(data, "out") == 130
    path = data / "out/run.json"
    path.write_text(path.read_text().replace(f'"kernels_isa": "{dreamda.info()["kernels_isa"]}"',
                                             '"kernels_isa": "avx9"'))
    capsys.readouterr()
    assert short(data, "out") == 0
    assert "begun with kernels_isa avx9 (now " in capsys.readouterr().err


@pytest.mark.parametrize("how", ["vanished", "changed"])
def test_an_image_lost_during_the_run_is_named_and_the_run_goes_on_when_it_is_back(data, capsys, monkeypatch, how):
    monkeypatch.setattr(labelled, "CACHE_BYTES", 0)                # every image is read whenever it is drawn
    assert short(data, "one") == 0
    lost, kept = data / "real/coat/001.png", (data / "real/coat/001.png").read_bytes()
    step, count = StandIn.step, iter(range(1000))

    def losing(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(count) == 6:                                        # in the second epoch
            lost.unlink() if how == "vanished" else lost.write_bytes((data / "real/bag/000.png").read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(StandIn, "step", losing)
        capsys.readouterr()
        assert short(data, "two") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"{lost}: " in message
    assert "put it back as it was, then run the same command again to resume from the last checkpoint" in message
    assert short(data, "two") == 2                                  # another data set REAL
    lost.write_bytes(kept)
    assert short(data, "two") == 0
    assert content(data / "one") == content(data / "two")


def test_a_jump_of_the_clock_leaves_no_trace(data, monkeypatch):
    import random
    import time

    assert short(data, "one") == 0
    jumps = random.Random(0)
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: jumps.uniform(-1e9, 1e10))
    assert short(data, "two", "--workers", "0") == 0
    assert tree_of(data / "one") == tree_of(data / "two")


def test_a_file_size_limit_is_one_sentence_and_the_run_goes_on_without_it(data, capsys):
    """The kernel's own refusal in the middle of a write, not a stand-in's."""
    assert short(data, "one") == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))    # run.json fits, no checkpoint does
    try:
        code = short(data, "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1 and "cannot be written (File too large)" in capsys.readouterr().err.splitlines()[-1]
    assert {p.name for p in (data / "two").iterdir()} - {"model.safetensors"} == {"run.json", "log.jsonl"}
    assert short(data, "two") == 0
    assert tree_of(data / "one") == tree_of(data / "two")


def test_a_read_only_disk_is_one_sentence(data, capsys, disk):  # noqa: F811
    place, mount = disk
    assert mount("-o", "remount,ro").returncode == 0
    for out in ("", "new"):
        assert short(data, place / out) == 1
        assert "cannot be written (Read-only file system); fix that" in capsys.readouterr().err
    assert mount("-o", "remount,rw,size=4m").returncode == 0
    assert short(data, place / "new") == 0 and not list((place / "new").glob(".*"))


def test_another_run_that_began_and_ended_meanwhile_is_noticed(data, capsys, monkeypatch):
    """Both find a new folder; the one that comes second must not go on from the other's checkpoint."""
    create = setup.create_backbone

    def slowly(*args, **kwargs):
        monkeypatch.setattr(setup, "create_backbone", create)
        assert short(data, "out", "--learning-rate", "0.2") == 0
        return create(*args, **kwargs)

    monkeypatch.setattr(setup, "create_backbone", slowly)
    assert short(data, "out") == 2
    assert "another --learning-rate: 0.2, now 0.1" in capsys.readouterr().err


def test_a_run_in_use_is_refused(data, capsys):
    import fcntl

    (data / "out").mkdir()
    fd = os.open(data / "out", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert train(data) == 2
    os.close(fd)
    assert "being written by another process" in capsys.readouterr().err and not list((data / "out").iterdir())


def test_evaluate_and_predict_errors(data, capsys):
    assert train(data) == 0
    write(data / "more", *pictures(4), ("hat", "coat", "bag"))
    (data / "nothing").mkdir()
    capsys.readouterr()
    for arguments, message in ((["evaluate", data / "out", data / "more"], "class 'hat' that the others lack"), ([
            "evaluate", data / "none", data / "test"
    ], "no such file"), (["evaluate", data / "real",
                          data / "test"], "no such file"), (["predict", data / "out", data / "none"], "no such file"),
                               (["predict", data / "out/log.jsonl", data / "test"], "not a whole safetensors file"),
                               (["evaluate", data / "out/checkpoint.safetensors",
                                 data / "test"], "not written by dreamda train as a model"),
                               (["predict", data / "out", data / "nothing"], "holds no images")):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    (data / "file").write_text("mine")
    for command in (["predict", data / "out", data / "test"], ["evaluate", data / "out", data / "test"]):
        assert run(*command, "--out", data / "file/below") == 2
        message = capsys.readouterr()
        assert f"--out {data / 'file/below'}" in message.err and "cannot be written" in message.err and not message.out
    assert run("predict", data / "out", data / "test", "--out", data / "nothing") == 2
    assert f"--out {data / 'nothing'} is a folder; name a file" in capsys.readouterr().err
    (data / "test/bag/x.png").write_bytes(b"x")
    assert run("predict", data / "out", data / "test", "--out", data / "p.jsonl") == 1
    assert "skipped" in capsys.readouterr().err and len((data / "p.jsonl").read_text().splitlines()) == 60


def test_every_command_reads_the_same_files_and_names_the_rest(data, capsys):
    """GIFs, deeper folders and other endings are read; what is not read is named, and the exit code is 1."""
    for part in ("real", "synthetic", "test"):
        first = data / part / "bag" / sorted(os.listdir(data / part / "bag"))[0]
        (data / part / "bag/deeper").mkdir()
        Image.open(first).save(data / part / "bag/deeper/x.gif")
        (data / part / "bag/without_ending").write_bytes(first.read_bytes())
    assert train(data, "out", "--test", data / "test") == 0
    assert json.loads((data / "out/metrics.json").read_text())["images"] == 62
    assert run("predict", data / "out", data / "test", "--out", data / "p.jsonl") == 0
    names = [json.loads(line)["file_name"] for line in (data / "p.jsonl").read_text().splitlines()]
    assert len(names) == 62 and {str(data / "test/bag/deeper/x.gif"),
                                 str(data / "test/bag/without_ending")} < set(names)
    capsys.readouterr()
    for part in ("real", "synthetic", "test"):
        (data / part / "bag/deeper/y.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for arguments, parts in ((["evaluate", data / "out",
                               data / "test"], ["test"]), (["predict", data / "out", data / "test"], ["test"])):
        assert run(*arguments) == 1
        err = capsys.readouterr().err
        assert all(f"skipped {data / part / 'bag/deeper/y.heic'}: HEIC images are not read" in err for part in parts)
    assert train(data, "other", "--test", data / "test") == 1
    assert capsys.readouterr().err.count("deeper/y.heic: HEIC images are not read; convert it to PNG or JPEG") == 3


def test_an_unreadable_image_is_skipped_and_named_by_every_command(data, capsys):
    """The model is that of the other images, and the exit code is 1."""
    assert short(data, "without", "--test", data / "test", "--validation", "0.3") == 0
    for part in ("real", "synthetic", "test"):
        (data / part / "bag/!broken.png").write_bytes(b"x")
    (data / "real/coat/!cut.png").write_bytes((data / "real/bag/000.png").read_bytes()[:60])
    assert short(data, "with", "--test", data / "test", "--validation", "0.3") == 1
    err = capsys.readouterr().err
    assert err.count("bag/!broken.png: not an image, or damaged") == 3 and "coat/!cut.png: cannot be decoded" in err
    assert "skipped 4 in all" in err and "skipped: 4 files, named at the end" in err
    assert content(data / "without") == content(data / "with")
    metrics = [(data / out / "metrics.json").read_bytes() for out in ("without", "with")]
    assert metrics[0] == metrics[1]
    assert short(data, "with", "--test", data / "test", "--validation", "0.3") == 1  # nothing left to do
    capsys.readouterr()
    assert run("evaluate", data / "with", data / "test", "--out", data / "evaluation") == 1
    assert f"skipped {data / 'test/bag/!broken.png'}: not an image" in capsys.readouterr().err
    assert (data / "evaluation/metrics.json").read_bytes() == metrics[0]


def test_a_class_without_a_readable_image_is_refused(data, capsys):
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"x")
    assert train(data, "out", "--test", data / "test") == 2
    message = f"{data / 'test'}: none of the images can be read; the first, {data / 'test/bag/'}"
    assert message in capsys.readouterr().err
    for path in (data / "real/coat").iterdir():
        path.write_bytes(b"x")
    assert train(data) == 2
    assert "REAL: " in (err := capsys.readouterr().err) and "no image of class 'coat' can be read" in err
    assert not (data / "out").exists()


def labels_in(root: Path, files: dict[str, list[str]]) -> Path:
    write(root, pictures(4)[0], [0, 0, 1, 1])
    for name, lines in files.items():
        rows = [dict(zip(("file_name", "label"), line.split())) | {"text": "a, b"} for line in lines]
        if name.endswith(".jsonl"):
            (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            (root / name).write_text("file_name,label,text\n" + "".join(f'{row["file_name"]},{row["label"]},"a, b"\n'
                                                                        for row in rows))
    return root


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case["what"])
def test_where_labels_come_from(tmp_path, case):
    files, labels = case["files"], case["labels"]
    names = ["bag/000.png", "bag/001.png", "coat/002.png", "coat/003.png"]
    found = labelled.scan_labelled(labels_in(tmp_path, files), NAMES, "TEST")
    assert {n: NAMES[i] for n, i in zip(found.names, found.labels)} == {
        n: label for n, label in zip(names, labels) if label is not None}
    assert [Path(path).relative_to(tmp_path).as_posix() for path, _ in found.ignored] == [
        n for n, label in zip(names, labels) if label is None]
    assert all("has no line for it" in reason for _, reason in found.ignored)


@pytest.mark.parametrize("case", REAL, ids=lambda case: case["what"])
def test_labels_of_real_images_that_contradict_their_folders_are_refused(tmp_path, case):
    root = labels_in(tmp_path, {"metadata.csv": case["lines"]})
    if (message := case.get("refused")) is None:
        assert labelled.scan_real(root).labels.tolist() == [0, 0, 1, 1]
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        labelled.scan_real(root)


def wide(data):
    """The images of the data sets, half as high."""
    for path in [path for part in ("real", "synthetic", "test") for path in (data / part).rglob("*.png")]:
        Image.fromarray(np.asarray(Image.open(path))[4:12]).save(path)
    return data


def test_the_fit_is_said_recorded_and_followed_by_evaluate_and_predict(data, capsys):
    told = {}
    for fit, word in (("crop", "cropped"), ("pad", "padded"), ("squash", "squashed")):
        place = wide(data) if fit == "crop" else data
        assert short(place, fit, "--test", data / "test", "--size", "16", "--fit", fit) == 0
        assert f"aspect ratio: 30 real images of another, {word} (--fit {fit})" in capsys.readouterr().err
        assert json.loads((data / fit / "run.json").read_text())["image_fit"] == fit
        assert saved.TrainedModel.load(data / fit / "model.safetensors").fit == fit
        assert run("evaluate", data / fit, data / "test", "--out", data / f"{fit}-again") == 0
        assert (data / f"{fit}-again/metrics.json").read_bytes() == (data / fit / "metrics.json").read_bytes()
        capsys.readouterr()
        model = saved.TrainedModel.load(data / fit / "model.safetensors")
        path = data / "test/bag" / sorted(os.listdir(data / "test/bag"))[0]
        assert run("predict", data / fit, path) == 0
        told[fit] = list(json.loads(capsys.readouterr().out)["probabilities"].values())
        image = np.asarray(Image.open(path))
        np.testing.assert_allclose(told[fit], model.predict_proba([image])[0], atol=1e-6)
        box = (4, 0, 12, 8) if fit == "crop" else (0, 0, 16, 8)
        shown = (np.pad(image, ((4, 4), (0, 0), (0, 0)), "symmetric") if fit == "pad" else
                 np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR, box=box)))
        np.testing.assert_allclose(told[fit], model.predict_proba([shown])[0], atol=1e-5)
    assert short(data, "crop", "--size", "16", "--fit", "pad", "--test", data / "test") == 2
    assert "another --fit: 'crop', now 'pad'" in capsys.readouterr().err


def test_models_and_runs_from_before_there_was_a_fit(data, capsys):
    """Small images were squashed for testing, large ones cropped."""
    assert short(data, "out") == 0
    arrays, about = saved.load_arrays(data / "out/model.safetensors", "model")
    for size, fit in ((16, "squash"), (96, "crop")):
        old = {k: v for k, v in about.items() if k != "fit"} | {"size": [size, size]}
        saved.save_arrays(data / "old.safetensors", arrays, old)
        assert saved.TrainedModel.load(data / "old.safetensors").fit == fit
    saved.save_arrays(data / "old.safetensors", arrays, about | {"fit": "stretch"})
    with pytest.raises(ValueError, match="its 'fit' is missing or not possible"):
        saved.TrainedModel.load(data / "old.safetensors")
    for size, code in (("16", 2), ("96", 0)):
        assert short(data, size, "--size", size) == 0
        path = data / size / "run.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "image_fit"}))
        capsys.readouterr()
        assert short(data, size, "--size", size) == code
        assert ("squashed small images for testing" in capsys.readouterr().err) == (code == 2)


def test_the_words_of_classes_json_are_shown_and_saved(data, capsys):
    (data / "real/classes.json").write_text('{"bag": "leather bag"}')
    assert short(data, "out", "--test", data / "test") == 0
    assert "leather bag " in capsys.readouterr().out
    model = saved.TrainedModel.load(data / "out/model.safetensors")
    assert model.classes == list(NAMES) and model.words == {"bag": "leather bag", "coat": "coat", "shirt": "shirt"}
    rows = json.loads((data / "out/metrics.json").read_text())["per_class"]
    found = [(row["class"], row.get("name")) for row in rows]
    assert found == [("bag", "leather bag"), ("coat", None), ("shirt", None)]
    assert run("evaluate", data / "out", data / "test") == 0
    assert "leather bag " in capsys.readouterr().out
    assert run("predict", data / "out", data / "test/bag") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(row["label"], row["name"]) for row in rows}
    assert found <= {("bag", "leather bag"), ("coat", "coat"), ("shirt", "shirt")}
    (data / "real/classes.json").write_text('{"bag": "handbag"}')
    assert short(data, "out", "--test", data / "test") == 2
    assert "another classes.json in REAL: " in capsys.readouterr().err
    (data / "real/classes.json").write_text('{"hat": "bonnet"}')
    assert short(data, "new") == 2
    assert "names 'hat', which is no class folder" in capsys.readouterr().err


def test_images_that_metadata_does_not_list_are_named(data, capsys):
    assert train(data) == 0
    names = sorted(str(path.relative_to(data / "test")) for path in (data / "test").rglob("*.png"))
    (data / "test/metadata.jsonl").write_text("".join(
        json.dumps({"file_name": n, "label": n.split("/")[0]}) + "\n" for n in names[1:]))
    capsys.readouterr()
    assert run("evaluate", data / "out", data / "test") == 1
    assert f"skipped {data / 'test' / names[0]}: metadata.jsonl has no line for it" in capsys.readouterr().err


def test_large_photos_are_reduced_and_cached(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    write(tmp_path,
          [rng.integers(0, 256, (100, 150, 3), dtype=np.uint8),
           rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)], [0, 1])
    images = FolderImages(sorted(tmp_path.rglob("*.png")), (16, 16))
    images.read_all()
    assert [images[i].shape for i in (0, 1)] == [(32, 48, 3), (20, 30, 3)] and images[0] is images[0]
    monkeypatch.setattr(labelled, "CACHE_BYTES", 0)
    again = FolderImages(images.paths, (16, 16))
    again.read_all()
    np.testing.assert_array_equal(images[0], again[0])
    assert images.hashes == again.hashes and again[0] is not again[0]


def seeded(data, rows=45):
    """metadata.jsonl as dreamda generate writes it: image i was made from the real image i % 30 of its class."""
    lines = [{
        "file_name": f"{NAMES[i % 3]}/{i:03d}.png", "label": NAMES[i % 3], "seed_file":
        f"{NAMES[i % 3]}/{i % 30:03d}.png"
    } for i in range(rows)]
    (data / "synthetic/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return lines


def test_children_of_held_back_images_are_left_out_counted_and_said(data, capsys):
    lines = seeded(data)
    assert train(data, "one", "--validation", "0.3") == 0
    err = capsys.readouterr().err
    found = train_run.scan_real(data / "real")
    held = {found.names[i] for i in split(found.labels, 0.3, 0)[1]}
    children = [line["file_name"] for line in lines if line["seed_file"] in held]
    assert len(
        held
    ) == 9
    assert (f"synthetic images: 45, {len(children)} of them left out: they were made from images that are held back"
            ) in err
    assert "30 of 3 classes, 9 of them held back for validation" in err
    for name in children:                                          # so their pixels decide nothing
        Image.new("RGB", (16, 16)).save(data / "synthetic" / name)
    assert train(data, "two", "--validation", "0.3") == 0
    models = [saved.TrainedModel.load(data / out / "model.safetensors").weights for out in ("one", "two")]
    assert all(np.array_equal(models[0][k], models[1][k]) for k in models[0])
    assert json.loads((data / "one/run.json").read_text())["validation_fraction"] == 0.3


def test_children_of_test_images_are_left_out(data, capsys):
    import hashlib

    lines = seeded(data)
    path = data / "test/bag" / sorted(os.listdir(data / "test/bag"))[0]
    lines[0]["seed_sha256"], lines[0]["seed_file"] = hashlib.sha256(path.read_bytes()).hexdigest(), "bag/elsewhere.png"
    (data / "synthetic/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert train(data, "out", "--test", data / "test") == 0
    assert "synthetic images: 45, 1 of them left out" in capsys.readouterr().err


def test_a_synthetic_folder_that_does_not_name_its_seeds_is_mentioned(data, capsys):
    assert train(data, "out", "--validation", "0.3") == 0
    assert "SYNTHETIC does not say which real image each image was made from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [(["{synthetic}", "--method", "real-only"
       ], "SYNTHETIC: {synthetic} would not be used, as --method real-only leaves synthetic images out"),
     (["--flip", "false", "--method", "real-only"], "SYNTHETIC: false would not be used"),
     (["--flip", "false"], "false: no such folder"), (["{synthetic}", "--flip", "false"], "unexpected extra argument"),
     (["{synthetic}", "--batch", "4"], "--batch")])
def test_arguments_that_would_not_be_used_are_refused(data, capsys, arguments, message):
    before = tree(data)
    places = {"synthetic": str(data / "synthetic")}
    assert run("train", data / "real", "--out", data / "out", *(a.format(**places) for a in arguments)) == 2
    assert message.format(**places) in capsys.readouterr().err and tree(data) == before


def test_one_odd_image_does_not_decide_the_size(data, capsys):
    Image.new("RGB", (40, 48)).save(data / "real/bag/!thumbnail.png")
    assert train(data) == 0
    assert "image size: 16 x 16 (the median of images from 16 x 16 to 48 x 40)" in capsys.readouterr().err
    assert json.loads((data / "out/run.json").read_text())["image_size"] == [16, 16]


def test_predict_sees_large_photographs_as_evaluate_does(data, capsys, monkeypatch):
    """And holds no more of them in memory than there are workers."""
    import threading

    assert train(data, "out", "--epochs", "2") == 0
    rng = np.random.default_rng(0)
    large = data / "large/bag"
    large.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)).save(large / f"{i:02d}.png")
    decode, lock, now, most = labelled.decode_image, threading.Lock(), [0], [0]

    def counting(content):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            return decode(content)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(labelled, "decode_image", counting)
    capsys.readouterr()
    assert run("predict", data / "out", data / "large", "--workers", "2") == 0
    told = np.array([list(json.loads(line)["probabilities"].values()) for line in capsys.readouterr().out.splitlines()])
    model = saved.TrainedModel.load(data / "out/model.safetensors")
    images = FolderImages(sorted(large.glob("*.png")), model.size)
    images.read_all()
    np.testing.assert_allclose(told, model.predict_proba(images), atol=1e-6)
    np.testing.assert_array_equal(model.predict_proba(images),
                                  model.predict_proba([decode(path.read_bytes()) for path in images.paths]))
    assert 1 <= most[0] <= 2


def test_the_header_says_what_is_trained(data, capsys):
    assert train(data, "out", "--test", data / "test") == 0
    err = capsys.readouterr().err
    for part in ("real images: 30 of 3 classes\n", "synthetic images: 45\n", "test images: 60\n",
                 "image size: 16 x 16 (the images are 16 x 16)\n", "network: resnet18, width 16, small stem: ",
                 "weights: random, seed 0\n", "training: method amst, 4 epochs of 12 steps of 16 images: 48 steps\n",
                 "Stage 1 (pretrain), 1 epoch:", "Stage 2 (train), 3 epochs:"):
        assert part in err


def test_help_is_grouped_and_needs_no_decoding(capsys):
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    groups = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] not in " -"]
    assert groups == [
        "Arguments", "Options", "Synthetic images", "Optimiser", "Images", "Network", "Running", "Other options",
        "Examples"
    ]
    assert "<int" not in text and "Batch size" in text and "Run the same command again to resume" in " ".join(
        text.split())
    assert text.split("Examples:")[1].count("dreamda train") == 2 and all(
        len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_every_field_of_the_recipe_is_a_parameter_an_option_and_in_run_json(name):
    about = options_of(Recipe)[name]
    parameter = inspect.signature(dreamda.AMSTClassifier).parameters[name]
    assert parameter.default == defaults_of(Recipe)[name] and f"\n{name} : " in inspect.cleandoc(
        dreamda.AMSTClassifier.__doc__)
    option = {p.name: p for p in typer.main.get_command(cli.app).commands["train"].params}[name]
    assert option.rich_help_panel == about.group and option.opts == [about.spelling or f"--{name.replace('_', '-')}"]


def test_run_json_holds_the_recipe(data):
    assert short(data, "out", "--size", "16x20") == 0
    recorded = json.loads((data / "out/run.json").read_text())
    assert {field.name
            for field in dataclasses.fields(Recipe)
            } <= recorded.keys() and recorded["image_size"] == [16, 20] and recorded["hint"] == "ignore"


def test_a_training_leaves_busy_processors_alone_and_resumes_with_its_own_number(data, monkeypatch, capsys):
    """The default number of threads is what is free when the run begins; the same command resumes with that, whatever
    is free then."""
    monkeypatch.setattr("dreamda.networks.threads.free_threads", lambda:
                        (1, "other programs use the rest of 2 processors"))
    monkeypatch.setattr("dreamda.networks.threads.resolve_threads", lambda threads: threads or 2)
    where = FAST.index("--threads")
    command = ["train", data / "real", "--out", data / "out", "--method", "real-only", *FAST[:where], *FAST[where + 2:]]
    assert run(*command) == 0
    assert "1 thread (other programs use the rest of 2 processors; --threads overrides this)" in capsys.readouterr(
    ).err
    assert json.loads((data / "out/run.json").read_text())["threads"] == 1
    monkeypatch.setattr("dreamda.networks.threads.free_threads", lambda: (2, ""))
    assert run(*command) == 0
    assert "other programs" not in capsys.readouterr().err
