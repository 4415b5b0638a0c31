"""The command line: exit codes, one-sentence errors, and that bad input writes nothing. The engine is a stand-in."""
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from standin import FoldedStandIn, StandIn
from test_generate import FakePipeline, lines, make_real, tree

import dreamda
from dreamda import cli
from dreamda.cli import train as cli_train
from dreamda.runs import train as train_run
from dreamda.training import saved, setup
from dreamda.data import load_bundled
from dreamda.runs.pictures import contact_sheet

FAST = ["--model", "fake", "--variants", "2", "--steps", "3"]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    pipe = FakePipeline()
    pipe.threads, pipe.folder = 1, tmp_path / "model"

    def load(model, dtype, threads, size, **changes):
        if model != "fake":
            raise ValueError(f"--model {model}: no such model; give a folder")
        return pipe

    monkeypatch.setattr(cli.common, "load", load)
    return pipe


@pytest.fixture
def real(tmp_path):
    return make_real(tmp_path / "real").root


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def test_the_output_may_be_named_without_out(fake, real, tmp_path, capsys):
    assert run("generate", real, tmp_path / "out", *FAST) == 0
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0
    assert "0 images made, 12 were there already" in capsys.readouterr().out


def test_generate_then_again(fake, real, tmp_path, capsys):
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0
    first = capsys.readouterr()
    assert "12 images made" in first.out and first.err == ""
    assert [r["prompt"] for r in lines(tmp_path / "out")][::6] == ["a photo of an ankle boot", "a photo of a coat"]
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0
    assert "0 images made, 12 were there already" in capsys.readouterr().out


def test_shards_equal_one_run(fake, real, tmp_path):
    assert run("generate", real, "--out", tmp_path / "one", *FAST) == 0
    for part in ("0/2", "1/2"):
        assert run("generate", real, "--out", tmp_path / "two", *FAST, "--shard", part) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_prompts_from_own_metadata_file_template(fake, real, tmp_path):
    rows = [{"file_name": f"{c}/{i:02d}.png", "text": f"{c} number {i}"} for c in ("coat", "ankle_boot")
            for i in range(3)]
    (real / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("generate", real, "--out", tmp_path / "a", *FAST) == 0
    assert lines(tmp_path / "a")[0]["prompt"] == "ankle_boot number 0"
    assert run("generate", real, "--out", tmp_path / "b", *FAST, "--template", "{}!") == 0
    assert lines(tmp_path / "b")[0]["prompt"] == "ankle boot!"
    (real / "metadata.jsonl").rename(tmp_path / "p.jsonl")
    assert run("generate", real, "--out", tmp_path / "c", *FAST, "--prompts", tmp_path / "p.jsonl") == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_skipped_images_are_listed_and_exit_1(fake, real, tmp_path, capsys):
    (real / "coat/\x1b[31m.png").write_bytes(b"x")
    (real / "coat/01.png").write_bytes(b"x")
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 1
    err = capsys.readouterr().err
    assert "skipped coat/01.png: not an image" in err and "coat/\\x1b[31m.png" in err and "\x1b" not in err


@pytest.mark.parametrize(
    "arguments, message",
    [(["{real}", "--out", "{tmp}/out", *FAST, "--method", "sdedit", "--share-source"], "--share-source"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--method", "sdedit", "--source-prompt", "a bag"], "--source-prompt"),
     (["{tmp}/none", "--out", "{tmp}/out", *FAST], "no such folder"),
     (["{tmp}", "--out", "{tmp}/../out", *FAST], "holds one folder, real, which holds folders"),
     (["{real}", "--out", "{real}/out", *FAST], "lies in the data set"),
     (["{real}", "--out", "{tmp}/out", "--model", "other"], "--model other"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--shard", "2/2"], "--shard"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--shard", "x"], "--shard"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--strength", "0"], "--strength"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--strength", "nan"], "--strength"),
     (["{real}", "--out", "{tmp}/out", "--model", "fake", "--variants", "0"], "--variants"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--method", "x"], "--method"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--steps", "ten"], "--steps must be a whole number\n"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--tile-size", "x"], "--tile-size must be a whole number\n"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--preview", "1.5"], "--preview must be a whole number\n"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--strength", "x"], "--strength must be a number\n"),
     (["{real}", "--out", "{tmp}/out"], "--model"), ([], "REAL"),
     (["{real}", *FAST], "--out is missing; name a folder"),
     (["{real}", "{tmp}/a", "--out", "{tmp}/b", *FAST], "is named twice"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--template", "x"], "--template"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--prompts", "{tmp}/p"], "no such file"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--prompts", "{tmp}/p", "--template", "{}"], "exclude each other"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--threads", "-1"], "--threads: -1 is not possible"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--preview", "-1"], "--preview: -1 is not possible"),
     (["{real}", "--out", "{tmp}/out", *FAST, "--frobnicate"], "--frobnicate")])
def test_bad_input_is_one_sentence_exit_2_nothing_written(fake, real, tmp_path, capsys, arguments, message):
    filled = [a.replace("{tmp}", str(tmp_path)).replace("{real}", str(real)) for a in arguments]
    before = tree(tmp_path)
    assert run("generate", *filled) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dreamda: ") and captured.err.count(
        "\n") == 1 and message in captured.err and captured.out == ""
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["real"]


def test_a_prompt_file_that_names_absent_images(fake, real, tmp_path, capsys):
    (tmp_path / "p").write_text('{"file_name": "coat/77.png", "text": "x"}')
    assert run("generate", real, "--out", tmp_path / "out", *FAST, "--prompts", tmp_path / "p") == 2
    assert "line 1 names 'coat/77.png'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_parameters_on_an_existing_out(fake, real, tmp_path, capsys):
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0
    before = tree(tmp_path)
    assert run("generate", real, "--out", tmp_path / "out", *FAST, "--noise-scale", "3") == 2
    assert "another --noise-scale 1.0 (now 3.0);" in capsys.readouterr().err and tree(tmp_path) == before


def test_signals(fake, real, tmp_path, capsys):
    fake.on_call = lambda pipe: os.kill(os.getpid(), signal.SIGTERM)
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 128 + signal.SIGTERM
    assert "SIGTERM" in (err := capsys.readouterr().err) and "run the same command again to resume" in err
    fake.on_call = lambda pipe: os.kill(os.getpid(), signal.SIGINT)
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 130
    fake.on_call = None
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0 and len(lines(tmp_path / "out")) == 12


def test_a_full_disk_exits_1(fake, real, tmp_path, capsys, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    fake.on_call = lambda pipe: monkeypatch.setattr(os, "fsync", full)
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 1
    assert "No space left on device" in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_debug_shows_the_traceback(fake, tmp_path, capsys):
    for arguments in (["--debug", "generate", tmp_path / "no", "--out", "o",
                       *FAST], ["generate", tmp_path / "no", "--out", "o", *FAST, "--debug"]):
        assert run(*arguments) == 2
        assert "Traceback" in capsys.readouterr().err
    assert run("generate", tmp_path / "no", "--out", "o", *FAST) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_diverse_needs_starts_of_its_own(fake, real, tmp_path, capsys):
    assert run("generate", real, "--out", tmp_path / "out", *FAST, "--diverse", "--share-start") == 2
    assert "--no-share-start" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run("generate", real, "--out", tmp_path / "out", *FAST, "--diverse") == 0


def test_the_noise_scale_of_plain_img2img_is_0(fake, real, tmp_path):
    assert run("generate", real, "--out", tmp_path / "a", *FAST, "--method", "sdedit") == 0
    assert run("generate", real, "--out", tmp_path / "b", *FAST) == 0
    assert [lines(tmp_path / n)[0]["noise_scale"] for n in "ab"] == [0.0, 1.0]


def test_demo_writes_everything_and_repeats(monkeypatch, fake, tmp_path, capsys):
    monkeypatch.setattr(cli.common, "load", lambda *_: fake)
    monkeypatch.setattr(fake, "size", (32, 32))
    monkeypatch.setattr(
        FakePipeline, "_augment",
        lambda self, images, prompts, keys, options, **_: np.repeat(images[:, None], options.variants, 1) // 2)
    monkeypatch.setattr(setup, "create_backbone",
                        lambda name, *, size, batch, slots, **_: StandIn(batch=batch, height=32, width=32, slots=slots))
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)
    monkeypatch.setattr(cli_train, "DEMO_RECIPE",
                        {**cli_train.DEMO_RECIPE, "epochs": 2, "pretrain_epochs": 1, "steps_per_epoch": 3})
    assert run("demo", "--out", tmp_path / "demo", "--variants", "2", "--steps", "3") == 0
    out = capsys.readouterr().out
    assert "contact-sheet.png" in out and "6 steps each, tested on 1000 images" in out and "DreamDA + AMST" in out
    assert (tmp_path / "demo/amst/metrics.json").is_file() and (tmp_path / "demo/real-only/model.safetensors").is_file()
    assert len(list((tmp_path / "demo/real").rglob("*.png"))) == 100 and len(lines(tmp_path / "demo/synthetic")) == 200
    assert lines(tmp_path / "demo/synthetic")[0]["prompt"] == "a photo of an ankle boot"
    assert Image.open(tmp_path / "demo/contact-sheet.png").width > 500
    before = tree(tmp_path)
    assert run("demo", "--out", tmp_path / "demo", "--variants", "2", "--steps", "3") == 0
    assert tree(tmp_path) == before
    (tmp_path / "data/coat").mkdir(parents=True)
    assert run("demo", "--out", tmp_path / "data") == 2
    assert "holds 'coat', which is nothing of the demo's" in capsys.readouterr().err and os.listdir(
        tmp_path / "data") == ["coat"]
    (tmp_path / "other/real/mine").mkdir(parents=True)
    assert run("demo", "--out", tmp_path / "other") == 2
    assert "give another folder" in capsys.readouterr().err and os.listdir(tmp_path / "other") == ["real"]


def test_bundled_seeds_survive_the_way_through_files(tmp_path):
    bundled = load_bundled()
    folder = bundled.folder(tmp_path / "real")
    bundled.write(folder)
    for image in folder.images[::7]:
        assert np.array_equal(np.array(Image.open(folder.path(image))), bundled.seeds[int(Path(image.name).stem)])
        assert image.label == bundled.class_names[bundled.seed_labels[int(Path(image.name).stem)]].replace(" ", "_")


def test_contact_sheet_layout():
    seeds = np.full((3, 8, 8, 3), 200, np.uint8)
    variants = np.zeros((3, 2, 8, 8, 3), np.uint8)
    one, two = (contact_sheet(seeds, variants, ["a", "a", "b"], per_row=n, title="t") for n in (1, 2))
    assert two.width > one.width and two.height < one.height
    for sheet in (one, two):  # every seed is there, enlarged to 96 x 96 but for its frame; and every variant
        assert (np.array(sheet) == 200).all(axis=2).sum() >= 3 * 94 * 94 and (np.array(sheet)
                                                                              == 0).all(axis=2).sum() >= 6 * 96 * 96
    with pytest.raises(ValueError, match="contact_sheet"):
        contact_sheet(seeds, variants[:2], ["a", "a", "b"])
    with pytest.raises(ValueError, match="label"):
        contact_sheet(seeds, variants, ["a"])


def test_as_a_module_and_version():
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "dreamda", "--version"],
                          capture_output=True,
                          text=True,
                          env=environment)
    assert (done.returncode, done.stdout) == (0, f"dreamda {dreamda.__version__}\n"), done.stderr
    done = subprocess.run([sys.executable, "-m", "dreamda"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "generate" in done.stdout


# ---- the modules and the standard streams


@pytest.mark.parametrize("module", ["common", "data", "generate", "inspect", "train"])
def test_each_module_can_be_imported_alone(module):
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", f"import dreamda.cli.{module}"],
                          capture_output=True,
                          text=True,
                          env=environment)
    assert done.returncode == 0, done.stderr


class NoTerminal:
    """What a launcher may put in the place of a stream: it takes text, and knows nothing else."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"none": lambda: None, "closed": closed, "no terminal": NoTerminal}
COMMANDS = {
    "generate": lambda tmp: ["generate", tmp / "real", "--out", tmp / "out", *FAST], "replay":
    lambda tmp: ["replay", tmp / "made"], "inspect": lambda tmp: ["inspect", "fake"], "an error":
    lambda tmp: ["generate", tmp / "no", "--out", tmp / "out", *FAST]
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("command", COMMANDS)
def test_standard_streams_that_are_gone_or_replaced(fake, real, tmp_path, monkeypatch, command, name, stream):
    from dreamda.runs import inspection

    monkeypatch.setattr(
        inspection, "describe_model", lambda pipe, progress, **given: progress("measuring") or {
            "folder": "f", "parts": {}, "size": [8, 8], "latent": [1, 1, 1], "prediction": "epsilon", "dtype": "f32",
            "loras": [], "threads": 1, "seconds_per_row": 0.1, "rows_per_image": 240, "seconds_per_image": 0.4,
            "steps_run": 80, "peak_memory_bytes": None
        })
    assert run("generate", real, "--out", tmp_path / "made", *FAST) == 0
    put = STREAMS[stream]()
    monkeypatch.setattr(sys, name, put)
    assert run(*COMMANDS[command](tmp_path)) == (2 if command == "an error" else 0)
    assert getattr(sys, name) is put
    if stream == "no terminal" and (name == "stderr") == (command == "an error"):
        assert put.written


def test_predictions_are_not_lost_where_there_is_no_standard_output(tmp_path, capsys, monkeypatch):
    # monkeypatch comes after capsys, so that it is undone first: the other way round it would put back a closed stream.
    monkeypatch.setattr(sys, "stdout", None)
    assert run("predict", tmp_path, tmp_path) == 2
    assert "there is no standard output to write to; name a file with --out" in capsys.readouterr().err


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_shell_that_closes_standard_streams(real, tmp_path, redirections):
    """Nor does anything that is said to stderr land in a file which was opened after it was closed."""
    program = "import sys; from dreamda.cli import main; sys.exit(main())"
    job = [
        sys.executable, "-c", program, "generate", real, "--out", tmp_path / "out", "--model", "fashion-mini",
        "--variants", "1", "--steps", "2"
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", f'"$@" {redirections}', "sh", *map(str, job)],
                          capture_output=True,
                          text=True,
                          env=environment)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "out")) == 6 and {row["label"]
                                                  for row in lines(tmp_path / "out")} == {"coat", "ankle_boot"}


def test_only_one_place_asks_whether_there_is_a_terminal():
    asking = [path.name for path in Path(cli.__file__).parents[1].rglob("*.py") if "isatty" in path.read_text()]
    assert asking == ["common.py"]


# ---- help


@pytest.mark.parametrize("command", typer.main.get_command(cli.app).commands)
def test_the_help_of_a_command(command, capsys):
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    examples = shown.split("Examples:\n")[1].strip().splitlines()
    assert len(examples) == 2 and all(line.strip().startswith(f"dreamda {command}") for line in examples)
    assert not re.search(r"<(int|str|float|path|list)|range>|INTEGER|FLOAT|\bx[<>]", shown)
    assert "--page" not in shown and "--replay" not in shown
    if "--out" in shown:
        assert "-o, --out F" in shown


def test_the_options_of_generate_are_in_groups(capsys):
    assert run("generate", "--help") == 0
    shown = capsys.readouterr().out
    headings = re.findall(r"^(\w[\w ]*):$", shown, re.M)
    assert headings == [
        "Arguments", "Options", "Changes to the model", "Prompts", "Labelled images", "Sensitive data", "Noise",
        "Guidance", "Method", "Running", "Other options", "Examples"
    ]
    first = shown.split("Options:\n")[1].split("Changes to the model:")[0]
    listed = re.findall(r"^  (?:-\w, )?--([a-z-]+)", first, re.M)
    assert listed[:2] == ["out", "model"] and {"variants", "steps", "strength", "method", "seed"
                                               } <= set(listed) and len(listed) <= 12


def test_summaries_are_whole_sentences(capsys):
    assert run("--help") == 0
    shown = " ".join(capsys.readouterr().out.split("Commands:")[1].split())
    for name, command in typer.main.get_command(cli.app).commands.items():
        assert f"{name} {' '.join(inspect.cleandoc(command.help).split(chr(10) * 2)[0].split())}" in shown
