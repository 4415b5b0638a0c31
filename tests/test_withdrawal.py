"""`dreamda audit --withdraw`: what was made from a real image, or looks like it."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_cli import run
from test_generate import SETTINGS
from test_safeguards import Copying, pattern

import dreamda
from dreamda.data import ImageFolder
from dreamda.options import ParameterError
from dreamda.runs.generate import generate_dataset
from dreamda.runs.safeguards import Safeguards
from dreamda.runs.withdrawal import ALIKE, MADE, SAME_NAME, trace


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(5)
    for name in ("bag/0.png", "bag/1.png", "coat/0.png", "coat/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pattern(rng).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def made(photos, tmp_path):
    """A run with a near copy of one real image among what was made from another."""
    copy = np.asarray(ImageOps.mirror(Image.open(photos / "bag/1.png")))
    pipe = Copying({("coat/0.png", 1): 1}, instead=copy)
    generate_dataset(ImageFolder.scan(photos), tmp_path / "made", pipe, SETTINGS, model="fake")
    return tmp_path / "made"


def found(image, *folders, **arguments):
    return {(each.file, each.reason) for each in trace(image, folders, threads=1, **arguments).traces}


OWN = {(f"bag/1-00{variant}.png", MADE) for variant in range(3)}
COPY = {("coat/0-001.png", ALIKE)}


def test_what_was_made_from_it_and_what_looks_like_it(photos, made, tmp_path):
    assert found(photos / "bag/1.png", made) == OWN | COPY
    assert found(photos / "coat/1.png", made) == {(f"coat/1-00{variant}.png", MADE) for variant in range(3)}
    scores = {each.file: each.score for each in trace(photos / "bag/1.png", [made]).traces}
    assert scores["coat/0-001.png"] > 0.98 and all(scores[name] < 0.9 for name, _ in OWN)
    assert len(found(photos / "bag/1.png", made, max_similarity=0.05)) == 12
    # under another name: the content counts; two folders; a folder without records
    shutil.copy(photos / "bag/1.png", tmp_path / "elsewhere.png")
    shutil.copytree(made, tmp_path / "plain", ignore=shutil.ignore_patterns("*.json*"))
    result = trace(tmp_path / "elsewhere.png", [made, tmp_path / "plain"])
    assert {(each.file, each.reason) for each in result.traces if each.folder == str(made)} == OWN | COPY
    assert {(each.file, each.reason) for each in result.traces if each.folder != str(made)} == COPY
    assert result.images == 24 and len(result.notes) == 1 and (
        "plain has no metadata that names real images, so what its images were made from is unknown" in result.notes[0])


def test_an_image_that_changed_or_is_gone(photos, made):
    pattern(np.random.default_rng(77)).save(photos / "bag/1.png")
    assert found(photos / "bag/1.png", made) == {(name, SAME_NAME) for name, _ in OWN}
    (photos / "bag/1.png").unlink()
    for name in ("bag/1.png", photos / "bag/1.png"):
        assert found(name, made) == OWN
    assert found("1.png", made) == OWN | {(f"coat/1-00{variant}.png", MADE) for variant in range(3)}
    assert trace("1.png", [made]).notes == ["1.png is the name of 2 real images: bag/1.png, coat/1.png; give one of "
                                            "these names for that image alone"]
    for name in ("bag/2.png", "g/1.png2"):
        with pytest.raises(FileNotFoundError, match="no such file, and no synthetic image is recorded"):
            trace(name, [made])


def test_runs_that_record_hashes(photos, tmp_path):
    out = tmp_path / "out"
    generate_dataset(ImageFolder.scan(photos), out, Copying(), SETTINGS, safeguards=Safeguards(record_names="hash"))
    result = trace(photos / "bag/1.png", [out])
    assert len(result.traces) == 3 and {each.reason for each in result.traces} == {MADE} and not result.notes
    assert dreamda.audit(photos, out).measures["own_seed"]["images"] == 12  # an audit knows the real images, too
    with pytest.raises(FileNotFoundError, match="out records hashes instead of names; give the file of the image"):
        trace("bag/1.png", [out])


def test_what_the_records_lack_is_said(photos, made):
    (made / "run.json").unlink()  # the images' origins are in metadata.jsonl
    result = trace(photos / "bag/1.png", [made])
    assert not result.notes and len(result.traces) == 4
    rows = (made / "metadata.jsonl").read_text().splitlines()
    (made / "metadata.jsonl").write_text("\n".join(rows[2:]))
    assert trace(photos / "bag/1.png", [made]).notes == [
        f"{made} has no record of what 2 of its 12 images were made from"]


def test_the_command(photos, made, tmp_path, capsys):
    assert run("audit", "--withdraw", photos / "bag/1.png", made, "--out", tmp_path / "report") == 1
    shown = capsys.readouterr().out
    assert f"{made}/bag/1-000.png" in shown and "made from it" in shown and "4 of 12 images" in shown
    result = json.loads((tmp_path / "report/withdrawal.json").read_text())
    assert result["images"] == 12 and [each["reason"] for each in result["traces"]] == [MADE] * 3 + [ALIKE]
    pattern(np.random.default_rng(8)).save(tmp_path / "stranger.png")
    assert run("audit", made, made, "--withdraw", tmp_path / "stranger.png") == 0
    assert "0 of 24 images" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--withdraw", "nobody.png", "{made}"], "nobody.png: no such file, and no synthetic image"),
    (["--withdraw", "{real}/bag/1.png", "nowhere"], "nowhere: no such folder"),
    (["--withdraw", "{made}/run.json", "{made}"], "run.json: not an image"),
    (["--withdraw", "{real}/bag/1.png", "{made}", "--reference", "{real}"], "--withdraw and --reference exclude"),
    (["--withdraw", "{real}/bag/1.png", "{made}", "--max-similarity", "2"], "--max-similarity: 2.0 is not possible"),
    (["--withdraw", "{real}/bag/1.png"], "--withdraw needs a folder of synthetic images to search"),
    (["--withdraw", "{real}/bag/1.png", "{made}", "--out", "{made}/run.json"], "--out: {made}/run.json lies in the"),
    (["--withdraw", "{real}/bag/1.png", "{made}", "--out", "{real}/bag/1.png"], "--out: {real}/bag/1.png is no folder"),
    (["--out", "{real}/../report"], "an audit needs two folders, REAL and SYNTHETIC; none are given"),
    (["{real}", "--out", "{real}/../report"], "an audit needs two folders, REAL and SYNTHETIC; 1 is given"),
    (["{real}", "{made}", "{made}", "--out", "{real}/../report"], "REAL and SYNTHETIC; 3 are given"),
    (["{real}", "{real}/../photos", "--out", "{real}/../report"], "{real}/../photos is given twice"),
    (["{real}", "{made}", "--out", "{real}/../report", "--max-similarity", "0"],
     "--max-similarity: 0.0 is not possible; use a number above 0, at most 1"),
    (["{real}", "{made}"], "--out is missing")])
def test_wrong_use_is_one_sentence_and_nothing_is_written(photos, made, tmp_path, capsys, arguments, message):
    assert run("audit", *(each.format(real=photos, made=made) for each in arguments)) == 2
    error = capsys.readouterr().err
    assert message.format(real=photos, made=made) in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_wrong_arguments(photos, made):
    with pytest.raises(ParameterError, match="max_similarity: 1.5 is not possible; use a number above 0, at most 1"):
        trace(photos / "bag/1.png", [made], max_similarity=1.5)
