"""`dreamda replay`: the same bytes from the records alone; what differs is named. The engine is a stand-in."""
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import FAST, fake, real, run  # noqa: F401  (fixtures)
from test_generate import FakePipeline, lines, tree

from dreamda import __version__
from dreamda.generation.options import GenerationOptions
from dreamda.runs.manifest import encode_png
from dreamda.runs.replay import RecordedRun


@pytest.fixture
def made(fake, real, tmp_path):  # noqa: F811
    """A run whose prompts come from a file that is gone afterwards, with a seed that could not be read."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"file_name": f"{c}/{i:02d}.png", "text": f"{c} number {i}"} for c in ("coat", "ankle_boot")
            for i in range(3)]
    (real / "coat/00.jpg").write_bytes(b"broken, but it has a say in the names")
    prompts.write_text("\n".join(map(json.dumps, [*rows, {"file_name": "coat/00.jpg", "text": "x"}])))
    assert run("generate", real, "--out", tmp_path / "out", *FAST, "--prompts", prompts, "--seed", "7", "--noise-scale",
               "1", "--no-share-start", "--diverse", "--guidance-high", "0.6", "--record-names", "paths") == 1
    assert "coat/00.png-000.png" in [r["file_name"] for r in lines(tmp_path / "out")]
    prompts.unlink()
    (real / "coat/00.jpg").unlink()
    return tmp_path / "out"


def test_it_repeats_a_run_from_its_records(made, real, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir("/")
    before = tree(tmp_path)
    capsys.readouterr()
    assert run("replay", made / "run.json") == 0
    assert capsys.readouterr().out == f"{made / 'run.json'}: 12 of 12 images repeated to the same bytes\n"
    assert tree(tmp_path) == before
    assert run("replay", made, "--out", tmp_path / "again") == 0
    assert tree(tmp_path / "again") == tree(made)
    real.rename(tmp_path / "moved")
    assert run("replay", made) == 2
    assert "the real images of the run are not there" in capsys.readouterr().err
    assert run("replay", made, tmp_path / "moved", "--out", tmp_path / "third") == 0
    assert {k: v
            for k, v in tree(tmp_path / "third").items()
            if k != "run.json"} == {k: v
                                    for k, v in tree(made).items() if k != "run.json"}


def test_images_from_the_text_alone_are_repeated(fake, real, tmp_path, capsys):  # noqa: F811
    assert run("generate", real, "-o", tmp_path / "out", "-m", "fake", "--variants", "3", "--text-share", "0.5") == 0
    assert run("replay", tmp_path / "out", "--out", tmp_path / "again") == 0, capsys.readouterr().err
    assert "18 of 18 images repeated" in capsys.readouterr().out
    assert sum(row.get("from_text", False) for row in lines(tmp_path / "again")) == 6


def test_the_first_image_that_differs_is_named(made, capsys, monkeypatch):
    augment = FakePipeline._augment

    def off_by_one(self, images, prompts, keys, options, **parameters):
        out = augment(self, images, prompts, keys, options, **parameters)
        for n, key in enumerate(keys):
            if key.startswith("coat"):
                out[n, 1, 0, 0, 0] ^= 1
        return out

    monkeypatch.setattr(FakePipeline, "_augment", off_by_one)
    path = made / "run.json"
    about = json.loads(path.read_text())
    about["environment"]["kernels_isa"] = "avx9"
    path.write_text(json.dumps(about))
    capsys.readouterr()
    assert run("replay", path) == 1
    captured = capsys.readouterr()
    assert ("coat/00.png-001.png differs from the recorded image: its pixels differ by up to 1 of 255, by 0.005 on "
            "average; 2 more differ; the run was made with") in captured.err
    assert "made with kernels_isa avx9 (now " in captured.err and "9 of 12 images" in captured.out


def test_real_images_that_changed_are_named_and_the_others_repeated(made, real, capsys):  # noqa: F811
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(real / "coat/01.png")
    (real / "ankle_boot/02.png").unlink()
    capsys.readouterr()
    assert run("replay", made) == 1
    captured = capsys.readouterr()
    assert "the real image coat/01.png is not the file that the run was made from" in captured.err
    assert "the real image ankle_boot/02.png cannot be read (No such file or directory)" in captured.err
    assert "8 of 12 images repeated" in captured.out and "differs" not in captured.err
    shutil.rmtree(real / "coat"), shutil.rmtree(real / "ankle_boot")
    assert run("replay", made) == 1
    assert "0 of 12 images repeated" in capsys.readouterr().out


def test_an_altered_image_of_the_run_is_named_and_a_deleted_one_is_not_missed(made, capsys):
    (made / "coat/01-000.png").write_bytes((made / "coat/02-000.png").read_bytes())
    (made / "coat/02-001.png").unlink()
    capsys.readouterr()
    assert run("replay", made) == 1
    captured = capsys.readouterr()
    assert "1 image in" in captured.err and "the first is coat/01-000.png" in captured.err
    assert "12 of 12" in captured.out


def test_a_signal_stops_it_and_it_goes_on(made, fake, tmp_path, capsys):  # noqa: F811
    fake.on_call = lambda pipe: os.kill(os.getpid(), signal.SIGINT)
    capsys.readouterr()
    assert run("replay", made) == 130 and "name a folder with --out to be able to resume" in capsys.readouterr().err
    assert run("replay", made, "--out",
               tmp_path / "again") == 130 and "run the same command again to resume" in capsys.readouterr().err
    fake.on_call = None
    assert run("replay", made, "--out", tmp_path / "again") == 0 and tree(tmp_path / "again") == tree(made)


def test_threads_model_size_and_dtype_are_the_recorded_ones(made, monkeypatch, capsys):
    from dreamda import cli

    load, asked = cli.common.load, []
    monkeypatch.setattr(cli.common, "load", lambda *arguments: asked.append(arguments) or load("fake", *arguments[1:]))
    assert run("replay", made) == 0
    assert run("replay", made, "--model", "elsewhere", "--threads", "5") == 0
    assert asked == [("fake", "f32", 1, "8x8"), ("elsewhere", "f32", 5, "8x8")]
    monkeypatch.setattr(FakePipeline, "fingerprint", "e" * 64)
    assert run("replay", made) == 2
    assert "another model: its files differ; give --model" in capsys.readouterr().err


def test_the_model_is_looked_for_where_it_was(made, tmp_path):
    assert RecordedRun.read(made).model == "fake"
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text("{}")
    assert RecordedRun.read(made / "run.json").model == str(tmp_path / "model")


def test_a_run_without_a_machine_in_it_is_repeated_too(made, fake):  # noqa: F811
    path = made / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "environment"}))
    assert run("replay", path) == 0


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **fields}.items() if v is not None}))


@pytest.mark.parametrize(
    "break_it, message",
    [(lambda out: (out / "run.json").unlink(), "no such file"),
     (lambda out: (out / "metadata.jsonl").unlink(), "resume the run until it ends"),
     (lambda out: changed(out / "run.json", dreamda="9.9"), "made by dreamda 9.9"),
     (lambda out: changed(out / "run.json", seed=None), "does not say 'seed'"),
     (lambda out: changed(out / "run.json", steps=0), "is damaged: steps: 0 is not possible"),
     (lambda out: changed(out / "run.json", size=[8, "x"]), "is damaged"),
     (lambda out: changed(out / "run.json", steps="x"), "is damaged"),
     (lambda out: (out / "run.json").write_text("[" * 9999), "is not a run"),
     (lambda out: (out / "metadata.jsonl").write_text('{"file_name": "x"}'), "line 1 is not a line"),
     (lambda out: (out / "metadata.jsonl").write_text(
         (out / "metadata.jsonl").read_text().replace('"seed_file": "coat/', '"seed_file": "coat/../../')),
      "is not a line of dreamda generate"),
     (lambda out: (out / "metadata.jsonl").write_text(
         (out / "metadata.jsonl").read_text().replace('coat', '..')), "is not a line of dreamda generate")])
def test_damaged_records_are_one_sentence_exit_2(made, tmp_path, capsys, break_it, message):
    break_it(made)
    before = tree(tmp_path)
    capsys.readouterr()
    assert run("replay", made / "run.json", "--out", tmp_path / "again") == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == "" and tree(tmp_path) == before


@pytest.mark.parametrize("option", ["--steps", "--seed", "--diverse"])
def test_nothing_else_can_be_asked_for(made, capsys, option):
    assert run("replay", made, option, "3") == 2
    assert f"No such option: {option}" in capsys.readouterr().err


def test_the_run_itself_is_no_place_for_its_repetition(made, capsys):
    assert run("replay", made, "--out", made) == 2
    assert "is the run that is to be repeated" in capsys.readouterr().err


OLD_RUN = {
    "format": 1, "dreamda": __version__, "template": "a photo of a {}", "prompts_sha256": None, "variants": 2, "steps":
    3, "strength": 0.8, "eta": 1.0, "guidance_scale": 2.0, "noise_scale": 0.0, "source_prompt": "",
    "source_guidance_scale": 1.5, "step": "sdedit", "share_source": False, "share_start": True, "diverse": False,
    "seed": 0, "guidance_low": 0.0, "guidance_high": 1.0, "dtype": "f32", "size": [8, 8], "model_sha256": "f" * 64,
    "model": "fake"
}


@pytest.fixture
def old(fake, real, tmp_path):  # noqa: F811
    """A run as it was recorded while `method` was called `step`: a seed's two images, and none yet of the others."""
    out, seed = tmp_path / "out", "coat/00.png"
    (out / "coat").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({**OLD_RUN, "real": str(real), "environment": {}}, indent=1) + "\n")
    pixels = np.asarray(Image.open(real / seed))
    made = fake._augment(pixels[None], ["a photo of a coat"], [seed],
                         GenerationOptions(variants=2, steps=3, method="sdedit", fit="squash", share_start=True,
                                           prompt_syntax="plain"))
    rows = []
    for variant in range(2):
        row = {
            "file_name": f"coat/00-{variant:03d}.png", "label": "coat", "seed_file": seed, "seed_sha256":
            hashlib.sha256((real / seed).read_bytes()).hexdigest(), "variant": variant, "prompt": "a photo of a coat",
            **{k: v
               for k, v in OLD_RUN.items() if k not in ("format", "template", "prompts_sha256")}
        }
        png = encode_png(made[0, variant], row)
        (out / row["file_name"]).write_bytes(png)
        rows.append(json.dumps({**row, "sha256": hashlib.sha256(png).hexdigest()}))
    (out / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return out


def test_a_run_recorded_with_an_old_name_is_replayed(old, tmp_path, capsys):
    assert run("replay", old, "--out", tmp_path / "again") == 0, capsys.readouterr().err
    assert "2 of 2 images repeated to the same bytes" in capsys.readouterr().out
    assert {k: v
            for k, v in tree(tmp_path / "again").items()
            if k != "run.json"} == {k: v
                                    for k, v in tree(old).items() if k != "run.json"}


def test_a_run_recorded_with_an_old_name_goes_on(old, real, capsys):  # noqa: F811
    before = tree(old)
    assert run("generate", real, "--out", old, "--model", "fake", "--variants", "2", "--steps", "3") == 2
    err = capsys.readouterr().err
    assert "another --fit 'squash' (now 'crop'), --prompt-syntax 'plain' (now 'a1111'), --text-share 0.0 (now" in err
    assert "--noise-scale 0.0 (now" in err and "--share-start True (now False)" in err and tree(old) == before
    assert run("generate", real, "--out", old, "--model", "fake", "--variants", "2", "--steps", "3", "--method",
               "sdedit", "--fit", "squash", "--share-start", "--prompt-syntax", "plain") == 0
    assert "10 images made" in (out := capsys.readouterr().out) and "2 were there already" in out
    assert tree(old)["run.json"] == before["run.json"] and {row["step"]
                                                            for row in lines(old)} == {"sdedit"} and len(
                                                                lines(old)) == 12
