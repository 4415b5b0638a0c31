"""The command line on the real engine and the bundled model: generate, resume, shards, inspect, doctor."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_generate import lines, tree

import dreamda
from dreamda import cli
from dreamda.cli import train as cli_train
from dreamda.runs import inspection
from dreamda.data import load_bundled
from dreamda.networks.hub import BUNDLED
from dreamda.runs.checks import read_purpose

FAST = ["--model", "fashion-mini", "--variants", "2", "--steps", "3", "--text-share", "0", "--dtype", "f32"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three classes with two seeds each, one class in photographs of another size."""
    bundled, root = load_bundled(), tmp_path_factory.mktemp("data") / "real"
    folder = bundled.folder(root)
    bundled.write(folder)
    for path in root.iterdir():
        if path.name not in ("coat", "ankle_boot", "bag"):
            shutil.rmtree(path)
        else:
            for image in sorted(path.iterdir())[2:]:
                image.unlink()
    for image in (root / "bag").iterdir():
        Image.open(image).resize((80, 60)).save(image)
    return root


@pytest.fixture(scope="module")
def whole(real, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "out"
    assert cli.main(["generate", str(real), "--out", str(out), *FAST]) == 0
    return out


def test_images_are_new_and_of_their_seed(real, whole):
    rows = lines(whole)
    assert len(rows) == 12 and {r["label"] for r in rows} == {"coat", "ankle_boot", "bag"}
    for row in rows:
        seed = np.array(Image.open(real / row["seed_file"]).convert("RGB").resize((32, 32),
                                                                                  Image.Resampling.BICUBIC)).astype(int)
        image = np.array(Image.open(whole / row["file_name"])).astype(int)
        assert image.shape == (32, 32, 3) and image.std() > 10
        assert 1 < np.abs(image - seed).mean() < 60
    first, second = (np.array(Image.open(whole / r["file_name"])) for r in rows[:2])
    assert not np.array_equal(first, second)


def test_shards_equal_one_run(real, whole, tmp_path):
    for part in ("1/2", "0/2"):
        assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST, "--shard", part]) == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_replay_makes_the_same_bytes(real, whole, capsys):
    capsys.readouterr()
    assert cli.main(["replay", str(whole / "run.json"), str(real)]) == 0
    assert "12 of 12 images repeated to the same bytes" in capsys.readouterr().out


def test_the_library_makes_the_same_images(real, whole):
    pipe = dreamda.Pipeline.load("fashion-mini", dtype="f32")
    row = lines(whole)[-1]
    seed = np.array(Image.open(real / row["seed_file"]))[None]
    images = pipe.augment(seed, [row["prompt"]], variants=2, steps=3, keys=[row["seed_file"]])
    assert np.array_equal(images[0, row["variant"]], np.array(Image.open(whole / row["file_name"])))


def test_kill_and_interrupt_then_go_on(real, whole, tmp_path):
    """SIGKILL in the middle, SIGINT later, then to the end: the same bytes as one undisturbed run."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-c",
        "import dreamda.runs.generate as g, sys; g.SECONDS_A_BATCH = 0; from dreamda.cli import main; sys.exit(main())",
        "generate",
        str(real), "--out",
        str(out), *FAST
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}

    def run(stop_after: int, number: int) -> subprocess.Popen:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline, wanted = time.monotonic() + 60, len(list(out.glob("*/*.png"))) + stop_after
        while len(list(out.glob("*/*.png"))) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        process.wait(60)
        return process

    assert run(3, signal.SIGKILL).returncode in (-signal.SIGKILL, 0)
    stopped = run(2, signal.SIGINT)
    assert stopped.returncode in (130, 0)
    if stopped.returncode:
        assert "run the same command again to resume" in stopped.stderr.read()
    assert cli.main(["generate", str(real), "--out", str(out), *FAST]) == 0
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("arguments, message", [(["--dtype", "f16"], "f16"), (["--size", "33"], "33"),
                                                (["--size", "axb"], "--size"),
                                                (["--steps", "1000", "--strength", "1"], "steps"),
                                                (["--model", "nowhere"], "nowhere"),
                                                (["--model", "{tmp}/weights.ckpt"], "weights.ckpt")])
def test_what_only_the_model_can_refuse_writes_nothing(real, tmp_path, capsys, arguments, message):
    (tmp_path / "weights.ckpt").write_bytes(b"\x80\x02")
    filled = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST, *filled]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_truncated_model_is_refused(real, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(Path(dreamda.__file__).parent / "bundled/fashion-mini", model)
    with open(model / "unet/diffusion_pytorch_model.safetensors", "r+b") as file:
        file.truncate(1_000_000)
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST, "--model", str(model)]) == 2
    err = capsys.readouterr().err
    assert "diffusion_pytorch_model.safetensors" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def student_run(real, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "out"
    assert cli.main([
        "generate",
        str(real), "--out",
        str(out), "--model", "fashion-mini-lcm", "--variants", "2", "--steps", "2",
        "--guidance-scale", "1.5", "--method",
        "sdedit"
    ]) == 0
    return out


def test_the_bundled_student_generates_and_replays(real, student_run, capsys):
    rows = lines(student_run)
    first, second = (np.array(Image.open(student_run / r["file_name"])) for r in rows[:2])
    assert len(rows) == 12 and first.std() > 10 and not np.array_equal(first, second)
    capsys.readouterr()
    assert cli.main(["replay", str(student_run / "run.json"), str(real)]) == 0
    assert "12 of 12 images repeated to the same bytes" in capsys.readouterr().out


def test_the_bundled_student_adds_a_unet_alone():
    """No second copy of the VAE, the text encoder and the tokenizer, and at most 12 MB."""
    folder = BUNDLED / "fashion-mini-lcm"
    assert {path.name for path in folder.iterdir()} == {"dreamda.json", "model_index.json", "scheduler", "unet"}
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 12_000_000
    pipe, teacher = (dreamda.Pipeline.load(name, threads=1) for name in ("fashion-mini-lcm", "fashion-mini"))
    assert pipe.unet.takes_guidance and pipe.schedule.few_steps and pipe.fingerprint != teacher.fingerprint
    assert pipe.vae.files == teacher.vae.files and pipe.text_encoder.files == teacher.text_encoder.files
    assert read_purpose(folder) == read_purpose(teacher.folder) | {"parts_from": "fashion-mini"}


@pytest.mark.parametrize("steps", [2, 4])
def test_the_bundled_student_makes_images_of_their_class(steps):
    """By the nearest mean of the real images, which is right on two in three of those (untrained weights: on one in
    ten)."""
    bundled = load_bundled()
    means = np.stack([bundled.test[bundled.test_labels == label].mean(axis=(0, 3)) for label in range(10)])
    prompts = [f"a photo of a {bundled.class_names[label]}" for label in bundled.seed_labels[::2]]
    made = dreamda.Pipeline.load("fashion-mini-lcm").augment(bundled.seeds[::2],
                                                             prompts,
                                                             variants=1,
                                                             method="sdedit",
                                                             steps=steps,
                                                             strength=1.0,
                                                             guidance_scale=1.5)[:, 0].mean(axis=-1)
    found = ((made[:, None] - means) ** 2).sum(axis=(2, 3)).argmin(axis=1)
    assert (found == bundled.seed_labels[::2]).mean() >= 0.7


def test_demo(tmp_path, capsys, monkeypatch):
    # .ci/run does all of it
    monkeypatch.setattr(cli_train, "DEMO_RECIPE", {**cli_train.DEMO_RECIPE, "epochs": 2, "pretrain_epochs": 1})
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--variants", "1", "--steps", "3"]) == 0
    assert len(lines(tmp_path / "demo/synthetic")) == 100 and "contact-sheet.png" in capsys.readouterr().out
    assert np.array(Image.open(tmp_path / "demo/contact-sheet.png")).std() > 50
    monkeypatch.chdir(tmp_path)  # where a report goes by default
    assert cli.main(["report", str(tmp_path / "demo/real"), str(tmp_path / "demo/synthetic")]) == 0
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--variants", "1", "--steps", "3"]) == 0


def test_inspect(capsys):
    assert cli.main(["inspect", "fashion-mini", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["parts"]["unet"]["parameters"] == 4_731_364 and about["latent"] == [
        4, 16, 16
    ] and about["rows_per_image"] == 16 * 3
    assert 0 < about["seconds_per_image"] < 1000 and about["peak_memory_bytes"] > 10_000_000
    assert cli.main(["inspect", "fashion-mini"]) == 0
    assert "4,731,364 parameters" in capsys.readouterr().out


def test_inspect_takes_the_options_of_generate(capsys):
    options = ["--steps", "10", "--strength", "1", "--method", "sdedit", "--guidance-scale", "1"]
    assert cli.main(["inspect", "fashion-mini", "--json", *options]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["steps_run"], about["rows_per_image"]) == (10, 10)
    assert cli.main(["inspect", "fashion-mini", "--steps", "0"]) == 2
    assert "--steps: 0 is not possible" in capsys.readouterr().err


def test_generate_says_how_long_it_takes_and_until_when(real, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.common, "SECONDS_TO_FORETELL", 0.0)
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST]) == 0
    said = capsys.readouterr()
    assert "12 images: 2 of each of 6" in said.out and "less than 1 MiB on disk" in said.out.splitlines()[0]
    told = [line for line in said.err.splitlines() if " images to make: about " in line]
    assert len(told) == 1 and " an image, " in told[0] and " in all (until " in told[0]


def test_doctor(capsys, monkeypatch):
    # In a process of its own: other tests may have loaded a second OpenMP into this one, which doctor rightly complains
    # of.
    environment = {**os.environ, "PYTHONPATH": str(Path(dreamda.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "dreamda", "doctor"],
                          env=environment,
                          capture_output=True,
                          text=True,
                          timeout=300)
    found = done.stdout
    assert done.returncode == 0, found + done.stderr
    assert "FAIL" not in found and "known answer" in found and found.count("PASS") >= 8
    monkeypatch.setattr(inspection, "KNOWN_ANSWER", (0, 0, 0, 0))
    assert cli.main(["doctor"]) == 1
    assert "FAIL  known answer" in capsys.readouterr().out


def test_dry_run_says_what_it_costs_and_writes_nothing(real, tmp_path, capsys):
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert ('12 images: 2 of each of 6 in 3 classes; prompts: "a photo of an ankle boot", "a photo of a bag", '
            '"a photo of a coat"') in out
    assert "12 images of 32 x 32 on" in out and " an image, " in out and "; less than 1 MiB on disk" in out and not (
        tmp_path / "out").exists()


def test_a_preview_is_a_part_of_the_run(real, whole, tmp_path, capsys):
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST, "--preview", "3"]) == 0
    assert [row["label"] for row in lines(tmp_path / "out")] == ["ankle_boot", "bag", "coat"]
    assert np.array(Image.open(
        tmp_path / "out-preview.png")).std() > 10 and "out-preview.png" in capsys.readouterr().out
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST]) == 0
    assert "9 images made" in capsys.readouterr().out and tree(tmp_path / "out") == tree(whole)


@pytest.mark.parametrize(
    "template, code, message",
    [("a photo of a {}, " + "very " * 90 + "sharp", 0,
      "3 of 3 prompts are longer than the 14 tokens that the model reads; of the prompt of ankle_boot/"),
     ("a " + "very " * 90 + "sharp photo of a {}", 2,
      "the class 'ankle boot' is in the part that is cut off; put it first, or shorten the prompt")])
def test_a_prompt_that_is_cut(real, tmp_path, capsys, template, code, message):
    assert cli.main(
        ["generate",
         str(real), "--out",
         str(tmp_path / "out"), *FAST, "--preview", "1", "--template", template, "--prompt-syntax", "plain"]) == code
    assert message in capsys.readouterr().err and (tmp_path / "out").exists() == (code == 0)


def test_a_negative_prompt_that_is_cut(real, tmp_path, capsys):
    arguments = ["generate", str(real), "--out", str(tmp_path / "out"), *FAST, "--preview", "1"]
    assert cli.main([*arguments, "--negative-prompt", "bad " * 90 + "blur", "--prompt-syntax", "plain"]) == 0
    assert "of the negative prompt it does not read 'd bad bad" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/run.json").read_text())["negative_prompt"].endswith("blur")
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "b"), *FAST, "--negative-prompt", "blur",
                     "--guidance-scale", "1"]) == 2
    assert "--negative-prompt: has no effect without guidance, and --guidance-scale is 1" in capsys.readouterr().err


def test_without_a_terminal_there_is_a_line_a_minute(real, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.common, "SECONDS_A_LINE", 0.0)
    assert cli.main(["generate", str(real), "--out", str(tmp_path / "out"), *FAST]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if " of 12 images, " in line]
    assert told and all(
        line.startswith("dreamda: ") and "each, about" in line and line.endswith(" left") for line in told)
