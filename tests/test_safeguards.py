"""Safeguards for sensitive data: excluded real images, and new images that are too similar to real ones. The engine is
a stand-in that copies its real image where a test wants it to."""
import hashlib
import json
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_cli import fake, run  # noqa: F401  (fixture)
from test_generate import SETTINGS, FakePipeline, lines, make_real, tree
from test_labels import SIZES, WRITERS, write_images

from dreamda.data import ImageFolder
from dreamda.data.images import read_image
from dreamda.options import ParameterError
from dreamda.runs.generate import GenerationOptions, generate_dataset
from dreamda.runs.replay import RecordedRun, replay
from dreamda.runs.safeguards import Comparison, Safeguards, noise_key

FAST = ["--model", "fake", "--variants", "2", "--steps", "3"]


@pytest.fixture
def real(tmp_path):
    return make_real(tmp_path / "real")


# ---- real images that nothing is made from


@pytest.mark.parametrize("text, made", [
    ("coat/01.png\n", 5), ("\ufeffcoat/01.png\r\n\r\n  ankle_boot/02.png  \r\n", 4), ("01.png", 4),
    ("coat/00.png\ncoat/01.png\ncoat/02.png\ncoat/00.png\n", 3)])
def test_nothing_is_made_from_excluded_images(real, tmp_path, fake, text, made):  # noqa: F811
    names = tmp_path / "withdrawn.txt"
    names.write_bytes(text.encode())
    (real.root / "metadata.jsonl").write_text("".join(
        json.dumps({"file_name": image.key, "text": image.key}) + "\n" for image in real.images))
    assert run("generate", real.root, "--out", tmp_path / "out", *FAST, "--exclude-ids", names) == 0
    rows = lines(tmp_path / "out")
    assert len({row["seed_file"] for row in rows}) == made and len(rows) == 2 * made
    assert not any(line.strip() in (row["seed_file"], row["seed_file"].rpartition("/")[2])
                   for row in rows for line in text.lstrip("\ufeff").split("\n") if line.strip())
    assert "withdrawn" not in (tmp_path / "out/run.json").read_text()


def test_a_file_name_of_several_images_is_said(real, tmp_path, fake, capsys):  # noqa: F811
    names = tmp_path / "names.txt"
    names.write_text("01.png\ncoat/00.png\n")
    assert run("generate", real.root, "--out", tmp_path / "out", *FAST, "--exclude-ids", names) == 0
    assert (f"--exclude-ids: 1 file name of {names} means several images, which are all excluded: 01.png "
            "(ankle_boot/01.png, coat/01.png)\n") in capsys.readouterr().err


def test_another_list_is_another_run(real, tmp_path, fake, capsys):  # noqa: F811
    names, out = tmp_path / "names.txt", tmp_path / "out"
    names.write_text("coat/01.png\n00.png\n")
    for part in ("0/2", "1/2"):
        assert run("generate", real.root, "--out", out, *FAST, "--exclude-ids", names, "--shard", part) == 0
    before = tree(out)
    names.write_text("ankle_boot/00.png\ncoat/00.png\n\ncoat/01.png")  # the same images
    assert run("generate", real.root, "--out", out, *FAST, "--exclude-ids", names) == 0 and tree(out) == before
    assert run("replay", out, "--out", tmp_path / "again") == 0 and tree(tmp_path / "again") == before
    capsys.readouterr()
    for given in ([], ["--exclude-ids", names]):
        names.write_text("coat/01.png\n")
        assert run("generate", real.root, "--out", out, *FAST, *given) == 2
        assert "a run with another --exclude-ids list; repeat that" in capsys.readouterr().err
    assert tree(out) == before


@pytest.mark.parametrize("text, message", [
    ("coat/01.png\ncoat/77.png\nhat/0.png\n", "'coat/77.png' is no image of .*real (and 1 more of the list)"),
    ("\n \n", "has no names; write the name of an image on each line"), ("\xff", "is not UTF-8 text"),
    ("00.png\n01.png\n02.png\n", "all images of .*real are excluded"),
    (None, "--exclude-ids: .*names.txt: no such file; give a text file"),
    ("../real/coat/01.png\n", "'../real/coat/01.png' is no image of")])
def test_a_wrong_list_is_one_sentence_and_nothing_is_written(real, tmp_path, fake, capsys, text, message):  # noqa: F811
    names = tmp_path / "names.txt"
    if text is not None:
        names.write_bytes(text.encode("latin-1"))
    assert run("generate", real.root, "--out", tmp_path / "out", *FAST, "--exclude-ids", names) == 2
    error = capsys.readouterr().err
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_excluded_images_of_annotated_folders(tmp_path, kind):
    root, names = write_images(tmp_path / "photos"), tmp_path / "names.txt"
    path = WRITERS[kind](tmp_path)
    names.write_text("deep/a.png\nb.png\n")
    arguments = ["generate", root, "--out", tmp_path / "out", "--model", "fashion-mini", "--variants", "1", "--steps",
                 "2", "--threads", "1", f"--{kind}", path, "--exclude-ids", names]
    assert run(*arguments) == 0
    kept = {row["seed_file"] for row in lines(tmp_path / "out")}
    assert kept == {f"images/{name}" for name in SIZES if name not in ("deep/a.png", "b.png")}
    assert not list((tmp_path / "out").rglob("b-*")) and not list((tmp_path / "out").rglob("deep-a*"))
    names.write_text("a.png\n")
    assert run(*arguments) == 2  # and a.png alone means both images of that name


def test_without_in_python(real):
    less = real.without(["coat/01.png"])
    assert len(less.images) == 5 and [image.key for image in less.excluded] == ["coat/01.png"] and "1 excluded" in repr(
        less)
    assert less.without(["coat/01.png", "02.png"]).excluded[0].key == "ankle_boot/02.png"
    assert real.without([]).images == real.images


# ---- new images that are too similar to real ones


class Copying(FakePipeline):
    """Noise, or the real image itself for some draws.

    ``copies`` maps the key of an image and the number of a variant to the number of draws that are copies.
    """

    size = (16, 16)

    def __init__(self, copies=(), on_call=None, instead=None):
        super().__init__(on_call)
        self.copies, self.draws, self.instead = dict(copies), [], instead

    def _augment(self, images, prompts, keys, options, *, progress=None, first=0, stop=None):
        out = np.empty((len(keys), options.variants - first, *self.size, 3), np.uint8)
        if len(keys):
            self.calls.append(list(keys))
            if self.on_call:
                self.on_call(self)
        for n, (image, prompt, key) in enumerate(zip(images, prompts, keys)):
            name, _, redraw = key.partition("\0")
            for variant in range(first, options.variants):
                self.draws.append((name, variant, int(redraw or 0)))
                together = options.variants if options.diverse else 0
                text = f"{prompt} {key} {variant} {options.seed} {together}"
                noise = np.frombuffer(hashlib.sha256(text.encode()).digest() * 24, np.uint8).reshape(*self.size, 3)
                is_copy = int(redraw or 0) < self.copies.get((name, variant), 0)
                out[n, variant - first] = noise if not is_copy else image if self.instead is None else self.instead
        return out


def pattern(rng):
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return coarse.resize((16, 16), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Real images of coarse patterns: the same picture scores 1, another one or noise less than 0.8."""
    rng = np.random.default_rng(3)
    for label in ("bag", "coat"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            pattern(rng).save(tmp_path / "photos" / label / f"{number}.png")
    return ImageFolder.scan(tmp_path / "photos")


COPIES = {("bag/0.png", 0): 1, ("bag/0.png", 2): 2, ("coat/1.png", 1): 99, ("coat/2.png", 0): 3, ("coat/2.png", 1): 99}
LEFT_OUT = [("coat/1.png", 1), ("coat/2.png", 0), ("coat/2.png", 1)]
GUARD = Safeguards(max_similarity=0.95, redraw=2)


def make(photos, out, pipe=None, settings=SETTINGS, **arguments):
    return generate_dataset(photos, out, pipe or Copying(COPIES), settings, safeguards=GUARD, model="fake", **arguments)


def make_fast(photos, out, *arguments, **more):
    """`make` with a comparison that knows equal pixels only, for tests of what is done with its results."""
    known = [read_image(photos.path(image)).pixels for image in photos.images]
    judge = Comparison(GUARD, lambda pixels: float(any(np.array_equal(pixels, each) for each in known)))
    return make(photos, out, *arguments, judge=judge, **more)


def left_out(out):
    return [(row["seed_file"], row["variant"])
            for row in map(json.loads, (out / "left_out.jsonl").read_text().splitlines())]


@pytest.fixture
def undisturbed(photos, tmp_path):
    make_fast(photos, tmp_path / "undisturbed")
    return tree(tmp_path / "undisturbed")


def test_variants_that_are_too_similar_are_made_again_or_left_out(photos, tmp_path):
    pipe, out = Copying(COPIES), tmp_path / "out"
    report = make(photos, out, pipe)
    assert (report.made, report.left_out, report.total, report.present) == (15, 3, 18, 0)
    assert "15 of 18 images made, 3 left out" in repr(report)
    rows = {(row["seed_file"], row["variant"]): row for row in lines(out)}
    redraws = {key: row["redraws"] for key, row in rows.items() if row["redraws"]}
    assert redraws == {("bag/0.png", 0): 1, ("bag/0.png", 2): 2}
    assert all(0 < row["similarity"] <= 0.95 for row in rows.values()) and left_out(out) == LEFT_OUT
    assert all(row["similarity"] > 0.95 for row in map(json.loads, (out / "left_out.jsonl").open()))
    assert not rows.keys() & set(LEFT_OUT) and len(list(out.rglob("*.png"))) == 15
    assert max(draw for *_, draw in pipe.draws) == 2 and len(pipe.draws) == 18 + 1 + 2 + 3 * 2
    # a redraw depends on the real image, the variant and its number alone
    row = rows["bag/0.png", 2]
    alone = Copying()._augment(np.zeros((1, 16, 16, 3), np.uint8), [row["prompt"]], [noise_key("bag/0.png", 2)],
                               replace(SETTINGS, variants=3), first=2)[0, 0]
    assert np.array_equal(read_image(out / row["file_name"]).pixels, alone)
    before, again = tree(out), Copying(COPIES)
    report = make(photos, out, again)
    assert (report.made, report.left_out, report.present) == (0, 3, 15) and not again.calls and tree(out) == before


def test_without_the_option_nothing_changes(photos, tmp_path):
    generate_dataset(photos, tmp_path / "out", Copying(COPIES), SETTINGS)
    rows = lines(tmp_path / "out")
    assert len(rows) == 18 and not {"similarity", "redraws", "max_similarity", "redraw", "record_names"} & set(rows[0])
    assert not (tmp_path / "out/left_out.jsonl").exists()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shards_together_equal_one_run(photos, tmp_path, undisturbed, count):
    for index in reversed(range(count)):
        make_fast(photos, tmp_path / "out", shard=(index, count))
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("most", [1, 4, 17])
def test_a_preview_is_part_of_the_run(photos, tmp_path, undisturbed, most):
    report = make_fast(photos, tmp_path / "out", most=most)
    assert report.made + report.left_out == most == report.total
    make_fast(photos, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_an_interruption_at_any_call_changes_nothing(photos, tmp_path, undisturbed, how):
    calls = Copying(COPIES)
    make_fast(photos, tmp_path / "whole", calls)
    assert len(calls.calls) > 5
    for number in range(1, len(calls.calls) + 1):
        def at_that_call(pipe):
            if len(pipe.calls) == number and how == "stopped":
                signal.raise_signal(signal.SIGTERM)
            elif len(pipe.calls) == number:
                raise RuntimeError("the power fails")

        out = tmp_path / f"out{number}"
        try:
            report = make_fast(photos, out, Copying(COPIES, at_that_call))
            assert report.signal == signal.SIGTERM or number == len(calls.calls)
        except RuntimeError:
            pass
        make_fast(photos, out)
        assert tree(out) == undisturbed, number


def test_workers_that_finish_in_another_order_change_nothing(photos, tmp_path, undisturbed):
    """As on a cluster: several pieces are in hand, and the last one comes back first."""
    def stream(take, settings, stop, within):
        pipe, busy = Copying(COPIES), []
        while True:
            while len(busy) < 3 and (piece := take(2)):
                busy.append(piece)
            if not busy:
                return
            piece = busy.pop()
            yield piece, pipe._augment(piece.images, piece.prompts, piece.keys, piece.options(settings),
                                       first=piece.first)

    make_fast(photos, tmp_path / "out", engine=stream)
    assert tree(tmp_path / "out") == undisturbed


def test_starts_that_are_chosen_together(photos, tmp_path):
    settings = replace(SETTINGS, diverse=True)
    report = make_fast(photos, tmp_path / "whole", settings=settings)
    assert (report.made, report.left_out) == (15, 3)
    for index in (1, 0):
        make_fast(photos, tmp_path / "parts", settings=settings, shard=(index, 2))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    row = next(row for row in lines(tmp_path / "whole") if row["redraws"] == 2)
    alone = Copying()._augment(np.zeros((1, 16, 16, 3), np.uint8), [row["prompt"]], [noise_key("bag/0.png", 2)],
                               settings)[0, 2]
    assert np.array_equal(read_image(tmp_path / "whole" / row["file_name"]).pixels, alone)


@pytest.mark.parametrize("names", ["names", "hash"])
def test_replay_makes_the_same_images(photos, tmp_path, names):
    out = tmp_path / "out"
    generate_dataset(photos, out, Copying(COPIES), SETTINGS, safeguards=replace(GUARD, record_names=names), model="x")
    (photos.root / "bag/new.png").write_bytes((photos.root / "bag/2.png").read_bytes())  # it is not asked about
    report = replay(RecordedRun.read(out), Copying(COPIES), tmp_path / "again", real=photos.root)
    assert (report.same, report.total, report.differing, report.changed) == (15, 15, [], [])
    assert tree(tmp_path / "again") == tree(out)
    (out / "metadata.jsonl").write_text((out / "metadata.jsonl").read_text().replace('"redraws": 2', '"redraws": "2"'))
    with pytest.raises(ValueError, match="lacks the similarity or the redraws"):
        RecordedRun.read(out)


def test_a_real_image_that_changes_begins_again(photos, tmp_path):
    """What was left out is made, and what was made is left out, if the real image is another one."""
    out, rng = tmp_path / "out", np.random.default_rng(9)
    make(photos, out)
    for name in ("coat/1.png", "bag/1.png"):
        pattern(rng).save(photos.root / name)
    now = {key: draws for key, draws in COPIES.items() if key[0] != "coat/1.png"} | {("bag/1.png", 1): 99}
    report = make(photos, out, Copying(now))
    assert report.left_out == 3 and left_out(out) == [("bag/1.png", 1), *LEFT_OUT[1:]]
    rows = {(row["seed_file"], row["variant"]) for row in lines(out)}
    assert ("coat/1.png", 1) in rows and ("bag/1.png", 1) not in rows and len(list(out.rglob("*.png"))) == 15
    make(photos, tmp_path / "new", Copying(now))
    decided = [[(row["file_name"], row["redraws"]) for row in lines(place)] for place in (tmp_path / "new", out)]
    assert decided[0] == decided[1] and left_out(tmp_path / "new") == left_out(out)


def test_excluded_images_are_compared_with_too(photos, tmp_path):
    withdrawn = read_image(photos.root / "coat/0.png").pixels[:, ::-1]  # mirrored
    report = make(photos.without(["coat/0.png"]), tmp_path / "out", Copying({("bag/1.png", 0): 1}, instead=withdrawn))
    assert (report.made, report.left_out) == (15, 0)
    assert [row["seed_file"] for row in lines(tmp_path / "out") if row["redraws"]] == ["bag/1.png"]


def test_the_command(photos, tmp_path, monkeypatch, capsys, fake):  # noqa: F811
    pipe = Copying(COPIES)
    pipe.threads, pipe.folder = 1, tmp_path / "model"
    monkeypatch.setattr("dreamda.cli.common.load", lambda *_, **__: pipe)
    arguments = ["generate", photos.root, "--out", tmp_path / "out", "--model", "fake", "--variants", "3", "--steps",
                 "40"]
    guard = ["--max-similarity", "0.95", "--redraw", "2"]
    assert run(*arguments, *guard) == 1
    assert "15 images made" in (said := capsys.readouterr().out) and "3 left out as too similar to real images" in said
    assert run(*arguments, *guard) == 1
    assert "0 images made, 15 were there already, 3 left out" in capsys.readouterr().out
    assert run(*arguments, *guard[:2]) == 2 and "another --redraw 2 (now 3)" in capsys.readouterr().err
    assert run(*arguments, "--max-similarity", "0.9", "--redraw", "2") == 2
    assert "another --max-similarity 0.95 (now 0.9)" in capsys.readouterr().err
    assert run(*arguments) == 2 and "--max-similarity 0.95 (now not given)" in capsys.readouterr().err
    assert run("replay", tmp_path / "out") == 0
    assert "15 of 15 images repeated to the same bytes" in capsys.readouterr().out


@pytest.mark.parametrize("given, message", [
    ({"max_similarity": 1.5}, "max_similarity: 1.5 is not possible"), ({"max_similarity": 0.0}, "max_similarity: 0.0"),
    ({"redraw": 2}, "redraw: has no effect without max_similarity"), ({"record_names": "none"}, "record_names: 'none'"),
    ({"max_similarity": 0.9, "redraw": -1}, "redraw: -1 is not possible")])
def test_wrong_safeguards(given, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        Safeguards(**given)


def test_annotated_images(tmp_path, capsys):
    """With a bound that nothing keeps, nothing is written but the records of what was left out."""
    root = write_images(tmp_path / "photos")
    arguments = ["generate", root, "--out", tmp_path / "out", "--model", "fashion-mini", "--variants", "1", "--steps",
                 "2", "--threads", "1", "--coco", WRITERS["coco"](tmp_path), "--max-similarity", "0.01", "--redraw",
                 "1"]
    assert run(*arguments) == 1
    assert "0 images made, 4 left out" in capsys.readouterr().out and len(left_out(tmp_path / "out")) == 4
    assert run(*arguments) == 1 and not list((tmp_path / "out").rglob("*.png"))
