"""A model says what it was made for: other images and words are named before the run."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import FAST, fake, real, run  # noqa: F401  (fixtures)
from test_generate import make_real

from dreamda import Pipeline
from dreamda.data import ImageFolder, choose_prompts, load_bundled, yolo
from dreamda.networks.hub import BUNDLED
from dreamda.runs.checks import check_model, disk_space

MODEL = BUNDLED / "fashion-mini"


def colour(root, size=(32, 32)):
    rng = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)


def daisies(root):
    (root / "coat").rename(root / "daisy")


@pytest.mark.parametrize("change, warnings", [
    (lambda root: None, []), (colour, ["in colour"]), (daisies, ['never seen the word "daisy" (class daisy)']),
    (lambda root: colour(root, (400, 300)), ["in colour", "the shorter side of these is 300"])])
def test_a_model_for_something_else_is_named(tmp_path, change, warnings):
    bundled = load_bundled()
    bundled.write(bundled.folder(tmp_path))
    change(tmp_path)
    folder = ImageFolder.scan(tmp_path)
    found = check_model(folder, choose_prompts(folder).distinct(1), MODEL, (32, 32))
    assert len(found) == len(warnings) and all(text in note for text, note in zip(warnings, found))


def test_a_size_that_the_model_was_not_made_for(tmp_path):
    folder = make_real(tmp_path / "real", labels=("coat",))
    prompts = choose_prompts(folder).distinct(1)
    for side, tile_size, said in ((16, 0, True), (64, 0, True), (128, 128, True), (128, 0, False), (64, 32, False)):
        notes = check_model(folder, prompts, MODEL, (side, side), tile_size)
        assert any(f"asked for {side} x {side}; leave --size out" in note for note in notes) == said, side
    # a model that does not say
    assert check_model(folder, prompts, tmp_path, (128, 128)) == []


def test_labelled_images_keep_their_sizes(tmp_path):
    folder = make_real(tmp_path / "real", labels=("coat",))
    colour(folder.root, (400, 300))
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [coat]")
    for image in folder.images:
        (tmp_path / "labels" / Path(image.name).with_suffix(".txt")).write_text("0 0.5 0.5 0.5 0.5")
    labelled = yolo(tmp_path / "data.yaml", folder.root / "coat").folder()
    for side in (32, 64, 128):
        note, = (note for note in check_model(labelled, {}, MODEL, (side, side)) if "32 x 32" in note)
        assert note.endswith("the shorter side of these is 300: they are resized for it, and back")


@pytest.mark.parametrize("about, message", [('{"training_size": 3}', "'training_size'"),
                                            ('{"words": "coat"}', "'words'"), ('{"greyscale": 1}', "'greyscale'"),
                                            ("[", "dreamda.json")])
def test_a_damaged_purpose_is_refused(tmp_path, about, message):
    folder = make_real(tmp_path / "real", labels=("coat",))
    (tmp_path / "dreamda.json").write_text(about)
    with pytest.raises(ValueError, match=message):
        check_model(folder, choose_prompts(folder).distinct(1), tmp_path, (32, 32))


@pytest.mark.parametrize("images, said", [
    (0, "less than 1 MiB on disk"), (341, "less than 1 MiB on disk"), (342, "at most 1 MiB on disk"),
    (400_000, "at most 1,172 MiB on disk")])
def test_disk_space(images, said):
    assert disk_space(images, (32, 32)) == said


def test_the_warnings_come_before_the_run_and_do_not_stop_it(fake, real, tmp_path, capsys):  # noqa: F811
    fake.folder = tmp_path / "model"
    fake.folder.mkdir()
    (fake.folder / "dreamda.json").write_text(json.dumps({"words": ["a", "photo", "of", "coat"]}))
    assert run("generate", real, "--out", tmp_path / "out", *FAST) == 0
    captured = capsys.readouterr()
    assert ('never seen the words "an" (class ankle_boot), "ankle" (class ankle_boot), "boot" (class ankle_boot)'
            ) in captured.err
    assert "12 images made" in captured.out


def test_the_purpose_is_no_part_of_the_model(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model/dreamda.json").unlink()
    assert Pipeline.load(tmp_path / "model").fingerprint == Pipeline.load(MODEL).fingerprint
