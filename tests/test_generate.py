"""The run folder: resume, shards, locks, signals, hostile names. The pipeline is a stand-in whose images depend on keys
and parameters."""
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamda.runs import generate, output
from dreamda.data import ImageFolder, fit as fitted, prompts_from_template
from dreamda.runs.generate import (GenerationOptions, OutputError, WorkList, check_out, generate_dataset, in_turn,
                                   variants_a_visit)
from dreamda.runs.manifest import read_manifest
from dreamda.runs.output import MAX_SHARDS, Part, output_stems


class FakePipeline:
    """Images that are a function of all that a real pipeline's images depend on, and of nothing else."""

    size = (8, 8)
    dtype = "f32"
    fingerprint = "f" * 64
    threads_matter = False
    loras = embeddings = ()
    conditioning = "text"

    def __init__(self, on_call=None, variant_by_variant=False):
        self.calls, self.variants, self.on_call, self.variant_by_variant = [], set(), on_call, variant_by_variant

    def _augment(self, images, prompts, keys, options, *, progress=None, first=0, stop=None):
        variants, parameters = options.variants, {k: v for k, v in asdict(options).items() if k != "variants"}
        assert images.shape == (len(keys), *self.size, 3) and images.dtype == np.uint8 and len(prompts) == len(keys)
        if not len(keys):  # asked whether it takes the parameters
            return np.empty((0, variants, *self.size, 3), np.uint8)
        self.calls.append(list(keys))
        self.variants.add(variants)
        if self.on_call:
            self.on_call(self)
        out = np.empty((len(keys), variants - first, *self.size, 3), np.uint8)
        for n, (image, prompt, key) in enumerate(zip(images, prompts, keys)):
            for k in range(first, variants):
                if self.variant_by_variant and stop and k > first and stop():
                    return out[:, : k - first]
                own = prompt if isinstance(prompt, str) else prompt[k]
                text = f"{image.tobytes()!r} {own} {key} {k} {sorted(parameters.items())}"
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
                out[n, k - first] = np.frombuffer(digest * 6, np.uint8).reshape(*self.size, 3)
            if progress:
                progress(n + 1, len(keys))
        return out


SETTINGS = GenerationOptions(variants=3, steps=40)  # a variant a visit


def make_real(root: Path, per_class: int = 3, labels=("coat", "ankle_boot")) -> ImageFolder:
    rng = np.random.default_rng(0)
    for label in labels:
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / label / f"{i:02d}.png")
    return ImageFolder.scan(root)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def without_run(files: dict[str, bytes]) -> dict[str, bytes]:
    """A tree without run.json, which says where the real images are if that is beside it."""
    return {name: content for name, content in files.items() if name != "run.json"}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def real(tmp_path):
    return make_real(tmp_path / "real")


@pytest.fixture
def undisturbed(real, tmp_path):
    generate_dataset(real, tmp_path / "undisturbed", FakePipeline(), SETTINGS)
    return tree(tmp_path / "undisturbed")


def test_a_run_writes_every_variant_and_describes_it(real, tmp_path):
    seen = []
    report = generate_dataset(real,
                              tmp_path / "out",
                              FakePipeline(),
                              SETTINGS,
                              model="fake",
                              progress=lambda a, b: seen.append((a, b)))
    assert (report.made, report.present, report.total, report.skipped, report.signal) == (18, 0, 18, [], None)
    assert seen[-1] == (18, 18) and seen == sorted(seen)
    rows = lines(tmp_path / "out")
    assert [(r["seed_file"], r["variant"]) for r in rows] == [(i.key, v) for i in real.images for v in range(3)]
    assert rows[0]["prompt"] == "a photo of an ankle boot" and rows[0]["label"] == "ankle_boot"
    for row in rows:
        data = (tmp_path / "out" / row["file_name"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["seed_sha256"] == hashlib.sha256((real.root / row["seed_file"]).read_bytes()).hexdigest()
        about = json.loads(Image.open(tmp_path / "out" / row["file_name"]).text["dreamda"])
        assert about == {k: v for k, v in row.items() if k != "sha256"}
        assert (row["steps"], row["strength"], row["model"], row["model_sha256"], row["dtype"]) == (40, 0.8, "fake",
                                                                                                    "f" * 64, "f32")
    assert sorted(os.listdir(tmp_path / "out")) == ["ankle_boot", "coat", "metadata.jsonl", "run.json"]


def test_the_same_call_again_does_nothing(real, tmp_path, undisturbed):
    pipe = FakePipeline()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()}
    report = generate_dataset(real, tmp_path / "undisturbed", pipe, SETTINGS)
    assert (report.made, report.present, pipe.calls) == (0, 18, [])
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()}


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_shards_together_equal_one_run(real, tmp_path, undisturbed, count):
    for index in reversed(range(count)):
        generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS, shard=(index, count))
    assert tree(tmp_path / "out") == undisturbed


def test_shards_at_the_same_time_on_one_folder(real, tmp_path, undisturbed):
    barrier = threading.Barrier(3)
    pipes = [FakePipeline(lambda pipe: len(pipe.calls) == 1 and barrier.wait(30)) for _ in range(3)]
    work = [
        threading.Thread(target=generate_dataset,
                         args=(real, tmp_path / "out", pipe, SETTINGS),
                         kwargs={"shard": (i, 3)}) for i, pipe in enumerate(pipes)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert tree(tmp_path / "out") == undisturbed


def test_a_shard_that_begins_between_two_looks_at_the_folder_is_no_stranger(real, tmp_path, undisturbed, monkeypatch):
    generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS, shard=(0, 2))
    read, looks = output._read_run, iter([None])
    monkeypatch.setattr(output, "_read_run", lambda out: next(looks, read(out)))  # the first look came too early
    generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS, shard=(1, 2))
    assert tree(tmp_path / "out") == undisturbed


def test_overlapping_work_on_one_folder_is_refused(real, tmp_path):
    out = tmp_path / "out"

    def second(_):
        for shard in [(0, 1), (0, 2), (1, 3)]:
            with pytest.raises(ValueError, match="being written by another"):
                generate_dataset(real, out, FakePipeline(), SETTINGS, shard=shard)

    generate_dataset(real, out, FakePipeline(second), SETTINGS, shard=(0, 2))


def test_parts_cover_a_list_and_overlap_only_where_they_say_so():
    for n in (1, 5, 100):
        for count in (1, 2, 3, 7, 64):
            assert sum((list(Part(i, count).of(range(n))) for i in range(count)), []) == list(range(n))
    every = [Part(i, count) for count in (1, 2, 3, 4, 7) for i in range(count)]
    for a in every:
        for b in every:
            assert a.overlaps(b) == bool(set(a.of(range(840))) & set(b.of(range(840)))), (a, b)
    assert Part.parse(str(Part(3, MAX_SHARDS))) == Part(
        3, MAX_SHARDS) and Part.parse("3-of-3") is Part.parse("lock") is None


@pytest.mark.parametrize("changed", [
    dict(variants=2),
    dict(steps=5),
    dict(strength=0.7),
    dict(seed=1),
    dict(method="sdedit"),
    dict(share_start=True),
    dict(source_prompt="a thing"),
    dict(negative_prompt="a blur")
])
def test_other_parameters_are_refused_by_name(real, tmp_path, undisturbed, changed):
    with pytest.raises(ValueError, match="--" + next(iter(changed)).replace("_", "-")):
        generate_dataset(real, tmp_path / "undisturbed", FakePipeline(),
                         GenerationOptions(**{"variants": 3, "steps": 40, **changed}))
    assert tree(tmp_path / "undisturbed") == undisturbed


def test_another_model_dtype_size_or_prompt_is_refused(real, tmp_path, undisturbed):
    for name, value, message in [("fingerprint", "0" * 64, "--model"), ("dtype", "bf16", "--dtype"),
                                 ("size", (16, 16), "--size")]:
        pipe = FakePipeline()
        setattr(pipe, name, value)
        with pytest.raises(ValueError, match=message):
            generate_dataset(real, tmp_path / "undisturbed", pipe, SETTINGS)
    with pytest.raises(ValueError, match="--template"):
        generate_dataset(real,
                         tmp_path / "undisturbed",
                         FakePipeline(),
                         SETTINGS,
                         prompts=prompts_from_template(real, "one {}"),
                         prompt_source={"template": "one {}"})
    assert tree(tmp_path / "undisturbed") == undisturbed


def test_a_folder_that_is_not_ours_is_refused(real, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="no run.json"):
        generate_dataset(real, tmp_path / "other", FakePipeline(), SETTINGS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        generate_dataset(real, tmp_path / "file", FakePipeline(), SETTINGS)
    for inside in (real.root, real.root / "synthetic", real.root / "coat" / "x"):
        with pytest.raises(ValueError, match="lies in the data set"):
            check_out(inside, real, {})
    for content in ("[]", "{", "[" * 100_000, '"x"'):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / "run.json").write_text(content)
        with pytest.raises(ValueError, match="run.json"):
            generate_dataset(real, tmp_path / "broken", FakePipeline(), SETTINGS)
    assert sorted(os.listdir(tmp_path)) == ["broken", "file", "other", "real"]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_images_of_another_shape_are_fitted_as_asked_for(tmp_path, fit):
    """What the pipeline gets; run.json says how, and another way is another run."""
    wide = np.random.default_rng(0).integers(0, 256, (12, 30, 3), np.uint8)
    (tmp_path / "real/cat").mkdir(parents=True)
    Image.fromarray(wide).save(tmp_path / "real/cat/a.png")
    seen = []

    class Seeing(FakePipeline):
        def _augment(self, images, *args, **options):
            seen.extend(images)
            return super()._augment(images, *args, **options)

    folder, settings = ImageFolder.scan(tmp_path / "real"), replace(SETTINGS, fit=fit)
    generate_dataset(folder, tmp_path / "out", Seeing(), settings)
    assert np.array_equal(seen[0], fitted(wide, (8, 8), fit))
    assert json.loads(
        (tmp_path / "out/run.json").read_text())["fit"] == fit and {row["fit"]
                                                                    for row in lines(tmp_path / "out")} == {fit}
    with pytest.raises(ValueError, match="holds a run with another --fit"):
        generate_dataset(folder, tmp_path / "out", Seeing(), replace(SETTINGS, fit="pad" if fit == "crop" else "crop"))


def test_a_run_begun_before_there_was_a_choice_goes_on_squashing(tmp_path):
    folder = make_real(tmp_path / "real")
    generate_dataset(folder, tmp_path / "out", FakePipeline(), replace(SETTINGS, fit="squash"))
    run = json.loads((tmp_path / "out/run.json").read_text())
    del run["fit"]
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    assert generate_dataset(folder, tmp_path / "out", FakePipeline(), replace(SETTINGS, fit="squash")).present == 18
    with pytest.raises(ValueError, match="another --fit 'squash' .now 'crop'."):
        generate_dataset(folder, tmp_path / "out", FakePipeline(), SETTINGS)


def test_images_in_deeper_folders(real, tmp_path):
    """They belong to the class, and their files in OUT are not in deeper folders; names that would be the same are told
    apart."""
    content = (real.root / "coat/00.png").read_bytes()
    for name in ("coat/deeper/00.png", "coat/deeper-00.png", "coat/deeper/00.jpg"):
        (real.root / name).parent.mkdir(exist_ok=True)
        (real.root / name).write_bytes(content)
    folder = ImageFolder.scan(real.root)
    stems = output_stems(folder)
    assert stems["coat/00.png"] == "00" and len(set(stems.values())) == 6 and not any("/" in stem
                                                                                      for stem in stems.values())
    assert stems["coat/deeper/00.jpg"] == "deeper-00.jpg" and stems["coat/deeper/00.png"].startswith("deeper-00.png-")
    report = generate_dataset(folder, tmp_path / "out", FakePipeline(), SETTINGS)
    assert report.made == 27 and report.skipped == [] and len(lines(tmp_path / "out")) == 27
    assert generate_dataset(folder, tmp_path / "out", FakePipeline(), SETTINGS).present == 27


def test_broken_images_are_skipped_and_tried_again(real, tmp_path):
    good = (real.root / "coat/01.png").read_bytes()
    generate_dataset(real, tmp_path / "whole", FakePipeline(), SETTINGS)
    for broken in (good[: len(good) // 2], b"", b"GIF89a"):
        (real.root / "coat/01.png").write_bytes(broken)
        report = generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
        assert [name for name, _ in report.skipped] == ["coat/01.png"] and len(lines(tmp_path / "out")) == 15
    (real.root / "coat/01.png").write_bytes(good)
    assert generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS).made == 3
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_changed_seed_is_made_again_and_a_removed_one_reported(real, tmp_path, undisturbed):
    Image.new("RGB", (8, 8), "red").save(real.root / "coat/00.png")
    (real.root / "coat/02.png").unlink()
    report = generate_dataset(ImageFolder.scan(real.root), tmp_path / "undisturbed", FakePipeline(), SETTINGS)
    assert report.made == 3 and [name for name, _ in report.skipped] == ["coat/02.png"]
    now = tree(tmp_path / "undisturbed")
    changed = {name for name in now if now[name] != undisturbed[name]}
    assert changed == {"metadata.jsonl", "run.json", *(f"coat/00-00{v}.png"
                                                       for v in range(3))} and now.keys() == undisturbed.keys()


def test_a_seed_that_vanishes_during_the_run_is_skipped(real, tmp_path):
    report = generate_dataset(real, tmp_path / "out",
                              FakePipeline(lambda _: (real.root / "coat/02.png").unlink(missing_ok=True)), SETTINGS)
    assert report.skipped == [("coat/02.png", "cannot be read (No such file or directory)")] and report.made == 15


def test_a_deleted_image_is_made_again(real, tmp_path, undisturbed):
    (tmp_path / "undisturbed/coat/01-002.png").unlink()
    (tmp_path / "undisturbed/ankle_boot/00-001.png").unlink()
    assert generate_dataset(real, tmp_path / "undisturbed", FakePipeline(), SETTINGS).made == 2
    assert tree(tmp_path / "undisturbed") == undisturbed


def test_an_error_in_the_engine_leaves_a_consistent_folder(real, tmp_path, undisturbed):
    def fail(pipe):
        if len(pipe.calls) == 2:
            raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        generate_dataset(real, tmp_path / "out", FakePipeline(fail), SETTINGS)
    assert len(lines(tmp_path / "out")) == 1 and not (tmp_path / "out/.dreamda").exists()
    generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert tree(tmp_path / "out") == undisturbed


def test_a_refusal_before_the_first_image_leaves_nothing(real, tmp_path, undisturbed):
    def refuse(_):
        raise ValueError("dtype bf16 needs another processor")

    for out in (tmp_path / "new", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        with pytest.raises(ValueError, match="another processor"):
            generate_dataset(real, out, FakePipeline(refuse), GenerationOptions(variants=3, steps=9))
        assert out.exists() == (out.name == "empty") and (not out.exists() or not os.listdir(out))
        generate_dataset(real, out, FakePipeline(), SETTINGS)
        assert tree(out) == undisturbed
    with pytest.raises(ValueError, match="another processor"):  # a run that was begun before keeps its record
        (tmp_path / "new/coat/00-000.png").unlink()
        generate_dataset(real, tmp_path / "new", FakePipeline(refuse), SETTINGS)
    assert (tmp_path / "new/run.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_images_in_hand(real, tmp_path, undisturbed, number):
    before = signal.getsignal(number)
    report = generate_dataset(real, tmp_path / "out", FakePipeline(lambda pipe: os.kill(os.getpid(), number)), SETTINGS)
    assert report.signal == number and 0 < report.made < 18 and len(lines(tmp_path / "out")) == report.made
    assert signal.getsignal(number) is before
    generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_variant_in_hand_of_a_large_image(real, tmp_path, number, monkeypatch):
    """The pipeline gives back what is finished when it is asked to stop; the next call goes on with the variants that
    are missing."""
    def interrupt(pipe):
        if len(pipe.calls) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(generate, "MAX_BATCH", 1)
    settings = replace(SETTINGS, share_source=True)  # all three variants a visit
    generate_dataset(real, tmp_path / "whole", FakePipeline(), settings)
    report = generate_dataset(real, tmp_path / "out", FakePipeline(interrupt, variant_by_variant=True), settings)
    assert (report.signal, report.made, len(lines(tmp_path / "out"))) == (number, 3 + 1, 4)
    pipe = FakePipeline()
    assert generate_dataset(real, tmp_path / "out", pipe, settings).made == 14 and pipe.calls[0] == [real.images[3].key]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_long_image_is_saved_as_it_grows(real, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SECONDS_A_SAVE", -1.0)
    monkeypatch.setattr(generate, "MAX_BATCH", 1)
    settings = replace(SETTINGS, share_source=True)
    generate_dataset(real, tmp_path / "whole", FakePipeline(), settings)
    pipe = FakePipeline(variant_by_variant=True)
    assert generate_dataset(real, tmp_path / "out", pipe, settings).made == 18 == len(pipe.calls)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, share_source=True)], ids=["a variant a visit", "all"])
def test_a_seed_that_changes_between_its_variants_is_made_again(real, tmp_path, monkeypatch, settings):
    def change(pipe):
        if len(pipe.calls) == 1:
            Image.new("RGB", (8, 8), "red").save(real.root / "ankle_boot/00.png")

    monkeypatch.setattr(generate, "SECONDS_A_SAVE", -1.0)
    generate_dataset(real, tmp_path / "out", FakePipeline(change, variant_by_variant=True), settings)
    generate_dataset(real, tmp_path / "whole", FakePipeline(), settings)
    made, whole = tree(tmp_path / "out"), tree(tmp_path / "whole")
    assert made.pop("run.json") != whole.pop("run.json")  # it knows the file that was there in the beginning
    assert made == whole


# ---- the order of the work


def test_any_beginning_of_a_run_is_a_balanced_data_set(tmp_path, monkeypatch):
    """Whenever a run is killed, the classes have as many images each, and the seeds of a class as many variants; to
    one."""
    real = make_real(tmp_path / "real", 4, ("a", "b", "c"))
    monkeypatch.setattr(generate, "SECONDS_A_BATCH", 0.0)
    seen = []

    def look(pipe):
        rows = read_manifest(tmp_path / "out") if len(pipe.calls) > 2 else []  # the writer is one piece behind
        of_class, of_seed = Counter(row["label"] for row in rows), Counter(row["seed_file"] for row in rows)
        seen.append(len(rows))
        for counts, n in ((of_class, 3), (of_seed, 12)):
            all_of_them = [*counts.values(), *[0] * (n - len(counts))]
            assert max(all_of_them) - min(all_of_them) <= 1

    generate_dataset(real, tmp_path / "out", FakePipeline(look), SETTINGS)
    assert len(seen) == 36 and max(seen) >= 33 and seen == sorted(seen)
    rows = lines(tmp_path / "out")
    assert [(r["seed_file"], r["variant"]) for r in rows] == [(i.key, v) for i in real.images for v in range(3)]


@pytest.mark.parametrize("changed, variants", [({}, 1), ({"share_source": True}, 5),
                                               ({"share_source": True, "guidance_scale": 1.0}, 9),
                                               ({"method": "asymmetric"}, 5), ({"steps": 5}, 3),
                                               ({"method": "sdedit"}, 1), ({"diverse": True, "share_start": False}, 10),
                                               ({"share_source": True, "variants": 2}, 2),
                                               ({"steps": 4, "strength": 0.1}, 10)])
def test_a_visit_makes_more_than_one_variant_only_where_much_would_be_repeated(changed, variants):
    assert variants_a_visit(GenerationOptions(**{"variants": 10, "steps": 100, **changed})) == variants


def test_the_work_list_does_what_is_missing_and_nothing_else(real):
    made = {(image.key, v): hashlib.sha256(real.path(image).read_bytes()).hexdigest()
            for image in real.images
            for v in range(3)}
    del made["coat/01.png", 1], made["coat/02.png", 1], made["ankle_boot/00.png", 2]
    work = WorkList(real, in_turn(real.images), (8, 8), "crop", 3, 1, made)
    assert (work.total, work.present) == (18, 15)
    first, second = work.take(10), work.take(10)
    assert (first.keys, first.first, first.last) == (["coat/01.png", "coat/02.png"], 1, 2)
    assert (second.keys, second.first, second.last) == (["ankle_boot/00.png"
                                                         ], 2, 3) and work.take(10) is None and not work
    for piece in (second, first):
        work.done(piece, 1)
    assert not work and len(made) == 18


# ---- the run goes on: more variants, more images, an earlier version


def test_the_number_of_variants_may_grow_but_not_shrink(real, tmp_path):
    out = tmp_path / "out"
    generate_dataset(real, out, FakePipeline(), replace(SETTINGS, variants=2))
    before = tree(out)
    report = generate_dataset(real, out, FakePipeline(), replace(SETTINGS, variants=10))
    assert (report.made, report.present, report.total) == (48, 12, 60)
    generate_dataset(real, tmp_path / "whole", FakePipeline(), replace(SETTINGS, variants=10))
    grown = tree(out)
    assert grown == tree(tmp_path / "whole")
    assert all(grown[name] == content for name, content in before.items() if name.endswith(".png"))
    with pytest.raises(ValueError, match=r"--variants 10 \(now 2\), which can grow but not shrink"):
        generate_dataset(real, out, FakePipeline(), replace(SETTINGS, variants=2))
    assert tree(out) == grown


def test_variants_chosen_together_cannot_grow(real, tmp_path):
    settings = replace(SETTINGS, diverse=True, share_start=False)
    generate_dataset(real, tmp_path / "out", FakePipeline(), settings)
    with pytest.raises(ValueError, match="--diverse chooses the starts of all variants together"):
        generate_dataset(real, tmp_path / "out", FakePipeline(), replace(settings, variants=4))


def test_one_missing_variant_of_those_chosen_together_is_made_with_all_of_them_in_view(real, tmp_path):
    settings = replace(SETTINGS, diverse=True, share_start=False)
    generate_dataset(real, tmp_path / "out", FakePipeline(), settings)
    whole = tree(tmp_path / "out")
    (tmp_path / "out/coat/01-001.png").unlink()
    pipe = FakePipeline()
    assert generate_dataset(real, tmp_path / "out", pipe, settings).made == 2 and pipe.variants == {3}
    assert tree(tmp_path / "out") == whole


def other_data_set(tmp_path, names=("00", "01", "02"), labels=("coat", "ankle_boot")):
    for label in labels:
        for name in names:
            path = tmp_path / "other" / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), len(str(path)), np.uint8)).save(path)
    return ImageFolder.scan(tmp_path / "other")


@pytest.mark.parametrize("names, labels", [(("00", "01", "02"), ("coat", "ankle_boot")),
                                           (("a", "b"), ("coat", "ankle_boot")), (("00", ), ("cat", "dog"))],
                         ids=["the same names", "the same classes", "other classes"])
@pytest.mark.parametrize("finished", [True, False])
def test_another_data_set_is_refused(real, tmp_path, names, labels, finished):
    out = tmp_path / "out"
    if finished:
        generate_dataset(real, out, FakePipeline(), SETTINGS)
    else:  # killed before the first image
        assert run_worker(real.root, out, 9).returncode == -signal.SIGKILL and not list(out.rglob("*.png"))
    before = tree(out)
    with pytest.raises(
            ValueError,
            match=
            r"made from another data set .*real.: of 6 real images compared, 0 are unchanged in .*other; give another"
    ):
        generate_dataset(other_data_set(tmp_path, names, labels), out, FakePipeline(), SETTINGS)
    assert tree(out) == before


def test_a_data_set_may_grow_and_move(real, tmp_path):
    out = tmp_path / "out"
    generate_dataset(real, out, FakePipeline(), SETTINGS)
    other = other_data_set(tmp_path, ("03", "04", "05", "06"), ("coat", "cardigan"))
    shutil.copytree(other.root, real.root, dirs_exist_ok=True)
    real.root.rename(tmp_path / "moved")
    report = generate_dataset(ImageFolder.scan(tmp_path / "moved"), out, FakePipeline(), SETTINGS)
    assert (report.made, report.present, report.skipped) == (3 * 8, 18, [])


def as_earlier_version(out: Path) -> None:
    """Turn a run into one of the format 1, whose rows held the number of variants and whose run.json knew no seeds."""
    run = json.loads((out / "run.json").read_text())
    del run["seed_images"], run["fit"], run["negative_prompt"], run["prompt_syntax"], run["tile_size"]
    del run["text_share"]
    run = {"format": 1, **{"step" if k == "method" else k: v for k, v in run.items() if k != "format"}}
    (out / "run.json").write_text(json.dumps(run))


def test_a_run_of_an_earlier_version_goes_on_in_its_own_format(real, tmp_path):
    out, settings = tmp_path / "out", replace(SETTINGS, fit="squash", prompt_syntax="plain")
    generate_dataset(real, out, FakePipeline(), settings, shard=(0, 6))
    as_earlier_version(out)
    shutil.rmtree(out / "ankle_boot")
    (out / "metadata.jsonl").unlink()
    record = (out / "run.json").read_bytes()
    generate_dataset(real, out, FakePipeline(), settings, shard=(0, 2))
    rows = lines(out)
    assert [list(row) for row in rows] == [[
        "file_name", "label", "seed_file", "seed_sha256", "variant", "prompt", "dreamda", "variants", "steps",
        "strength", "eta", "guidance_scale", "noise_scale", "source_prompt", "source_guidance_scale", "step",
        "share_source", "share_start", "diverse", "seed", "guidance_low", "guidance_high", "dtype", "size",
        "model_sha256", "model", "sha256"
    ]] * 9
    assert (out / "run.json").read_bytes() == record
    (out / ".dreamda").mkdir()
    # where an earlier version kept the lines until it ended
    (out / "metadata.jsonl").rename(out / ".dreamda/0-of-2.jsonl")
    assert generate_dataset(real, out, FakePipeline(), settings).present == 9 and len(lines(out)) == 18
    with pytest.raises(ValueError, match="begun by an earlier version"):
        generate_dataset(real, out, FakePipeline(), replace(settings, variants=4))
    with pytest.raises(ValueError, match="another data set .*: of 6 real images compared, 0 are"):
        generate_dataset(other_data_set(tmp_path), out, FakePipeline(), settings)


def test_the_records_say_which_images_are_from_the_text_alone(real, tmp_path):
    """So they can be told apart; a run without `text_share` in its run.json goes on as one with 0."""
    out, settings = tmp_path / "out", replace(SETTINGS, text_share=0.5)
    generate_dataset(real, out, FakePipeline(), replace(settings, variants=2), shard=(0, 2))
    generate_dataset(real, out, FakePipeline(), settings)
    generate_dataset(real, tmp_path / "whole", FakePipeline(), settings)
    assert tree(out) == tree(tmp_path / "whole")
    assert [row.get("from_text") for row in lines(out)] == [None, True, None] * 6
    assert [row["strength"] for row in lines(out)] == [0.8, 1.0, 0.8] * 6
    assert not any("text_share" in row for row in lines(out))
    with pytest.raises(ValueError, match=r"another --text-share 0.5 \(now 0.0\)"):
        generate_dataset(real, out, FakePipeline(), SETTINGS)
    plain = tmp_path / "plain"
    generate_dataset(real, plain, FakePipeline(), replace(SETTINGS, variants=2))
    run = json.loads((plain / "run.json").read_text())
    del run["text_share"]
    (plain / "run.json").write_text(json.dumps(run))
    generate_dataset(real, plain, FakePipeline(), SETTINGS)
    assert not any({"from_text", "text_share"} & set(row) for row in lines(plain)) and len(lines(plain)) == 18


def test_the_manifest_can_be_read_at_any_time(real, tmp_path):
    """It grows while the run goes on; a line that a kill has cut is no line, and the next call cuts it off."""
    out, path = tmp_path / "out", tmp_path / "out/metadata.jsonl"
    generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(0, 2))
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(whole.splitlines()[0][:100])
    assert len(read_manifest(out)) == 9
    generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(1, 2))
    assert len(lines(out)) == 18
    path.write_bytes(whole + b'{"file_name": 1}')
    with pytest.raises(ValueError, match="metadata.jsonl line 10 is not a line of dreamda generate"):
        read_manifest(out)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has no metadata.jsonl"):
        read_manifest(out)


@pytest.mark.parametrize("matter", [False, True])
def test_another_machine_is_mentioned_where_it_decides_bits(real, tmp_path, matter):
    def report(threads, isa, shard):
        pipe = FakePipeline()
        pipe.threads_matter = matter
        return generate_dataset(real,
                                tmp_path / "out",
                                pipe,
                                SETTINGS,
                                environment={"threads": threads, "kernels_isa": isa, "cpu": shard},
                                shard=(shard, 3)).notes

    assert report(2, "avx2", 0) == []
    assert report(3, "avx2", 1) == ([
        "this run was begun with threads 2 (now 3): the images made from here on may differ in their last bits"
    ] if matter else [])
    assert "begun with kernels_isa avx2 (now avx512)" in report(2, "avx512", 2)[0]


WORKER = textwrap.dedent("""
    import os, sys, random, signal
    sys.path.insert(0, sys.argv[3])
    from test_generate import FakePipeline, SETTINGS
    from dreamda.data import ImageFolder
    import dreamda.runs.generate as g
    after = int(sys.argv[4])
    events = 0
    def counted(function):
        def call(*a, **k):
            global events
            events += 1
            if events == after:
                if function is os.write:
                    function(a[0], bytes(a[1][: len(a[1]) // 2]))
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*a, **k)
        return call
    for name in ("write", "fsync", "rename", "mkdir", "unlink", "ftruncate", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    g.generate_dataset(ImageFolder.scan(sys.argv[1]), sys.argv[2], FakePipeline(), SETTINGS)
    print("events", events)
""")


def run_worker(real: Path, out: Path, after: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WORKER, real, out,
         Path(__file__).parent, str(after)], capture_output=True, text=True)


def test_kill_at_any_moment_then_resume_is_byte_identical(real, tmp_path, undisturbed):
    """SIGKILL before the n-th call that changes the disk (in the middle of it, where it is a write), for n spread over
    a whole run."""
    whole = run_worker(real.root, tmp_path / "whole", 0)
    assert tree(tmp_path / "whole") == undisturbed, whole.stderr
    events = int(whole.stdout.split()[-1])
    for after in sorted({*range(1, 12), *range(12, events - 6, 9), *range(events - 6, events + 1)}):
        out = tmp_path / f"out{after}"
        assert run_worker(real.root, out, after).returncode == -signal.SIGKILL
        generate_dataset(real, out, FakePipeline(), SETTINGS)
        assert tree(out) == undisturbed, after
        assert sorted(os.listdir(out)) == ["ankle_boot", "coat", "metadata.jsonl", "run.json"]


def test_what_a_killed_shard_left_is_taken_over(real, tmp_path, undisturbed):
    out = tmp_path / "out"
    generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(1, 2))
    rows = (out / "metadata.jsonl").read_text()
    (out / ".dreamda").mkdir()
    (out / "metadata.jsonl").rename(out / ".dreamda/1-of-2.jsonl")
    (out / ".dreamda/1-of-2.tmp").write_text("half an image")
    (out / ".dreamda/1-of-2.jsonl").write_text(rows + '{"file_name": "torn')
    pipe = FakePipeline()
    generate_dataset(real, out, pipe, SETTINGS)
    assert tree(out) == undisturbed and sum(map(len, pipe.calls)) == 9


def test_what_a_killed_shard_left_is_not_newer_than_an_image_made_again(real, tmp_path, undisturbed):
    out = tmp_path / "out"
    generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(0, 2))
    (out / ".dreamda").mkdir()
    (out / "metadata.jsonl").rename(out / ".dreamda/0-of-2.jsonl")
    Image.new("RGB", (8, 8), "red").save(real.root / "ankle_boot/00.png")
    generate_dataset(ImageFolder.scan(real.root), out, FakePipeline(), SETTINGS)
    for row in lines(out):
        assert hashlib.sha256((out / row["file_name"]).read_bytes()).hexdigest() == row["sha256"]
        assert hashlib.sha256((real.root / row["seed_file"]).read_bytes()).hexdigest() == row["seed_sha256"]
    pipe = FakePipeline()
    assert generate_dataset(ImageFolder.scan(real.root), out, pipe, SETTINGS).made == 0 and pipe.calls == []


@pytest.mark.parametrize("allowed", [0, 400, 3000, 9000])
def test_a_full_disk_is_one_sentence_and_resumable(real, tmp_path, undisturbed, monkeypatch, allowed):
    left = allowed
    write = os.write

    def limited(fd, data):
        nonlocal left
        if left <= 0:
            raise OSError(28, "No space left on device")
        left -= min(left, len(data))
        return write(fd, bytes(data)[: max(1, len(data) // 2)])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(OSError, match="No space left on device") as caught:
            generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert isinstance(caught.value, OutputError) == (allowed > 400)
    report = generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert report.made + report.present == 18 and tree(tmp_path / "out") == undisturbed


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 KiB for OUT; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, place], capture_output=True, text=True)

    if os.geteuid() or not shutil.which("mount") or mount("-t", "tmpfs", "-o", "size=256k", "tmpfs").returncode:
        pytest.skip("no right to mount a file system")
    yield place, mount
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_keeps_what_is_finished(real, tmp_path, disk):
    place, mount = disk
    settings = GenerationOptions(variants=20, steps=4)
    generate_dataset(real, tmp_path / "whole", FakePipeline(), settings)
    for _ in range(2):                                              # the second call can do no more, and loses nothing
        with pytest.raises(OutputError, match="No space left on device.*run the same command again to resume"):
            generate_dataset(real, place / "out", FakePipeline(), settings)
    for image in (place / "out").glob("*/*.png"):
        assert image.read_bytes() == (tmp_path / "whole" / image.relative_to(place / "out")).read_bytes()
    assert not list((place / "out").rglob("*.tmp"))
    assert mount("-o", "remount,size=4m").returncode == 0
    report = generate_dataset(real, place / "out", FakePipeline(), settings)
    assert report.present > 0 and report.made + report.present == 120
    assert without_run(tree(place / "out")) == without_run(tree(tmp_path / "whole"))


def test_a_read_only_disk_is_one_sentence_and_nothing_is_lost(real, tmp_path, disk, undisturbed):
    place, mount = disk
    assert mount("-o", "remount,size=4m").returncode == 0
    generate_dataset(real, place / "out", FakePipeline(), SETTINGS, shard=(0, 2))
    assert mount("-o", "remount,ro").returncode == 0
    for out in ("out", "new"):
        with pytest.raises(
                OSError, match="OUT .* cannot be written .Read-only file system.; fix that, or give another OUT"):
            generate_dataset(real, place / out, FakePipeline(), SETTINGS)
    assert mount("-o", "remount,rw").returncode == 0
    assert generate_dataset(real, place / "out", FakePipeline(), SETTINGS).made == 9
    assert without_run(tree(place / "out")) == without_run(undisturbed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_one_sentence(real, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(OSError, match="Permission denied"):
        generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert not list((tmp_path / "out").iterdir())


def test_a_file_size_limit_is_reported_and_resumable(real, tmp_path, undisturbed):
    """The kernel's own refusal: images fit into 5,000 bytes, the lines of a whole run do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    report = generate_dataset(real, tmp_path / "out", FakePipeline(), SETTINGS)
    assert report.present > 0 and tree(tmp_path / "out") == undisturbed


def test_a_jump_of_the_clock_leaves_no_trace(real, tmp_path, undisturbed, monkeypatch):
    jumps = random.Random(0)
    for image, when in zip(real.images, (0, 1e10, 1e9, 2e9, 3e9, 4e9)):
        os.utime(real.path(image), (when, when))
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: jumps.uniform(-1e9, 1e10))
    generate_dataset(real, tmp_path / "out", FakePipeline(variant_by_variant=True), SETTINGS)
    assert tree(tmp_path / "out") == undisturbed


def test_nothing_is_written_through_a_symlink(real, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(0, 6))  # an ankle boot
    (out / "coat").symlink_to(elsewhere)
    with pytest.raises(OutputError):
        generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(1, 6))
    assert os.listdir(elsewhere) == []
    (out / "coat").unlink()
    (out / ".dreamda").symlink_to(elsewhere)
    with pytest.raises(OSError):
        generate_dataset(real, out, FakePipeline(), SETTINGS, shard=(1, 6))
    assert os.listdir(elsewhere) == []


def test_odd_names(tmp_path):
    labels = ["..a", "a b\n", "-rf", "Ünïcødé", "猫", "%s{}", "x" * 255, "nul", "'\"`$(id)", "\u202eabc"]
    names = [
        "..png", "a.png", "a.jpg", "a.png.jpg", "b" * 251 + ".png", "c" * 251 + ".PNG", "é.png", "e\u0301.png",
        "a-000.png", "\\.png", "\x7f\x01.png"
    ]
    for label in labels:
        (tmp_path / "real" / label).mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / "real" / "猫" / name, "PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "real" / "a b\n" / "x\n.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "real" / ("x" * 255) / ("y" * 251 + ".png"))
    folder = ImageFolder.scan(tmp_path / "real")
    report = generate_dataset(folder, tmp_path / "out", FakePipeline(), SETTINGS)
    rows = lines(tmp_path / "out")
    assert report.made == len(rows) == len({r["file_name"]
                                            for r in rows}) == 3 * len(folder.images) == 3 * (len(names) - 1 + 2)
    assert {r["file_name"]
            for r in rows} == {str(p.relative_to(tmp_path / "out"))
                               for p in (tmp_path / "out").rglob("*.png")}
    assert sorted(os.listdir(tmp_path)) == ["out", "real"]
    stems = output_stems(folder)
    assert [stems[f"猫/{n}"]
            for n in ("a.png", "a.jpg", "a.png.jpg", "a-000.png")] == ["a.png", "a.jpg", "a.png.jpg", "a-000"]


def test_reserved_class_names_are_refused(tmp_path):
    folder = make_real(tmp_path / "real", labels=("run.json", "coat"))
    with pytest.raises(ValueError, match="collide"):
        generate_dataset(folder, tmp_path / "out", FakePipeline(), SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [
    dict(variants=0),
    dict(steps=0),
    dict(strength=0),
    dict(strength=1.01),
    dict(strength=float("nan")),
    dict(eta=-1),
    dict(eta=2),
    dict(method="ddpm"),
    dict(guidance_scale=float("inf")),
    dict(noise_scale=-1),
    dict(diverse=True, share_start=True),
    dict(negative_prompt="a blur", guidance_scale=1),
    dict(negative_prompt="a blur", guidance_scale=0),
    dict(seed=-1),
    dict(seed=1 << 64),
    dict(guidance_low=1.0),
    dict(guidance_low=-0.5),
    dict(guidance_low=float("nan"))
])
def test_settings_that_cannot_be_meant(bad):
    with pytest.raises(ValueError, match=f"^{list(bad)[0]}: "):
        GenerationOptions(**bad)
