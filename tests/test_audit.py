"""`dreamda audit`: copies are found whatever was done to them, other images are not, and numbers say how sure it is.

The statistics at full size, with photographs, are in benchmarks/audit.py.
"""
import hashlib
import json
import shutil

import numpy as np
import pytest
from audit_images import CHANGES, natural, xray
from PIL import Image
from test_cli import run

import dreamda
from dreamda.copies.calibration import area_under_curve, calibrated, share, share_above
from dreamda.copies import pictures
from dreamda.copies.evidence import membership, ratios
from dreamda.copies.features import nearest_features
from dreamda.copies.index import CopyIndex
from dreamda.copies.pictures import Pictures
from dreamda.copies.thumbnails import thumbnail, views
from dreamda.runs import audit as module
from dreamda.runs import records

REAL, COPIED = 100, 12
KINDS = {"natural": natural, "xray": xray}


def thumbnails(images):
    return np.stack([thumbnail(np.asarray(image)) for image in images])


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    """An index of real images, some of them, thumbnails of others, and the default threshold."""
    make = KINDS[request.param]
    real = [make(i) for i in range(REAL)]
    index = CopyIndex(thumbnails(real))
    return index, real[:COPIED], thumbnails([make(1000 + i) for i in range(REAL)]), calibrated(
        index.among_themselves().matches.score).value


# The least share to be found here, of 12 images each; the others are found all.
HARD = {"four lines of large text": 0.25}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found(made, change):
    index, real, _, limit = made
    rng = np.random.default_rng(0)
    found = index.nearest(thumbnails([CHANGES[change](image, rng) for image in real]))
    assert (found.image == np.arange(COPIED)).all()
    assert (found.score > limit).mean() >= HARD.get(change, 1), np.round(found.score, 3)


def test_other_images_are_not_copies(made):
    index, _, others, limit = made
    assert (index.nearest(others).score > limit).mean() <= 0.04


def test_a_score_does_not_depend_on_the_batch(made):
    index, _, others, _ = made
    whole = index.nearest(others)
    for part in (slice(0, 1), slice(1, 8), slice(30, 100)):
        alone = index.nearest(others[part], threads=2)
        assert all(np.array_equal(a[part], b) for a, b in zip(whole, alone, strict=True))


def test_one_image_is_compared_with_a_given_one(made):
    index, real, others, _ = made
    own = index.compare(thumbnails(real), np.arange(COPIED))
    assert (own.score == 1).all() and (own.image == np.arange(COPIED)).all() and (own.hash_score == 1).all()
    apart = index.compare(thumbnails(real), np.arange(COPIED)[::-1])
    assert (apart.score < 0.97).all() and (apart.image == np.arange(COPIED)[::-1]).all()


def test_an_image_that_is_there_twice_does_not_raise_the_threshold():
    real = thumbnails([natural(i) for i in range(30)])
    changed = thumbnails([CHANGES["crop of 15 %"](natural(i), np.random.default_rng(i)) for i in (3, 4)])
    among = CopyIndex(np.concatenate([real, real[:3] // 2 * 2, changed])).among_themselves()
    assert among.duplicates == 10 and len(among.image) == 25
    assert among.matches.score.max() < 0.95


def test_images_that_are_not_square_are_found_cropped_and_squashed():
    wide = [np.asarray(natural(i, 96))[:64] for i in range(12)]
    shown = [views(image) for image in wide]
    assert all(len(each) == 2 for each in shown) and len(views(wide[0][:, :64])) == 1
    index = CopyIndex(np.concatenate(shown), np.repeat(np.arange(12), 2))
    for copies in (wide, [image[:, 16:80] for image in wide]):
        found = index.nearest(np.stack([thumbnail(image) for image in copies]))
        assert (found.image == np.arange(12)).all() and (found.score == 1).all()


@pytest.mark.parametrize("count, rate, rank, enough", [(99, 0.01, 99, True), (98, 0.01, 98, False),
                                                       (199, 0.01, 198, True), (19, 0.05, 19, True),
                                                       (1, 0.01, 1, False)])
def test_the_threshold_is_that_of_conformal_prediction(count, rate, rank, enough):
    scores = np.random.default_rng(0).permutation(count) + 1.0
    assert calibrated(scores, rate) == (rank, rate, count, enough)


def test_the_false_alarm_rate_is_kept():
    rng = np.random.default_rng(0)
    alarms = [(rng.gumbel(size=200) > calibrated(rng.gumbel(size=150), 0.05).value).mean() for _ in range(400)]
    assert 0.04 < np.mean(alarms) < 0.052
    assert np.allclose(share_above([1, 2, 3], [0, 2, 4]), [1, 0.75, 0.25])


def test_the_interval_of_a_share():
    assert share(0, 100) == pytest.approx((0, 0, 0.0370), abs=1e-4)
    assert share(95, 100) == pytest.approx((0.95, 0.8882, 0.9785), abs=1e-4)


def test_the_area_under_the_curve_and_its_interval():
    area = area_under_curve([3, 4, 5], [1, 2, 3])
    assert area.auc == pytest.approx(8.5 / 9) and area.p < 0.05
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        area = area_under_curve(rng.normal(size=60), rng.normal(size=80))
        covered += area.low <= 0.5 <= area.high
    assert 0.91 <= covered / 200 <= 0.99
    ranks = pytest.importorskip("scipy.stats", reason="compared with SciPy where it is there")
    a, b = rng.integers(0, 20, 50), rng.integers(2, 20, 70)
    theirs = ranks.mannwhitneyu(a, b, alternative="greater", use_continuity=False, method="asymptotic")
    assert area_under_curve(a, b).p == pytest.approx(theirs.pvalue)


# ---- the command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """100 real images in two classes, 20 others as a reference, and 6 synthetic images, none of them a copy."""
    root = tmp_path_factory.mktemp("audit")
    for part, numbers in (("real", range(100)), ("reference", range(200, 220)), ("synthetic", range(300, 306))):
        for i in numbers:
            path = root / part / ("cat", "dog")[i % 2] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            natural(i, 32).save(path)
    return root


@pytest.fixture
def data(folders, tmp_path):
    shutil.copytree(folders, tmp_path / "data")
    return tmp_path / "data"


def result(out):
    return json.loads((out / "audit.json").read_text())


def test_nothing_found_then_copies(data, capsys):
    command = ("audit", data / "real", data / "synthetic", "--out", data / "report", "--threads", "1")
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "0 images of 6 are more like a real image" in said.out and said.err == ""
    assert "That no copy is found does not show" in said.out
    found = result(data / "report")
    assert found["copies"] == [] and found["calibration"]["images"] == 100 and found["calibration"]["enough"]
    for i in (2, 5):
        CHANGES["mirrored"](natural(i, 32), None).save(data / f"synthetic/dog/copy{i}.jpg", quality=80)
    assert run(*command) == 1
    said = capsys.readouterr().out
    assert "dog/copy2.jpg" in said and "That no other copy is found does not show" in said
    copies = {copy["synthetic"]: copy for copy in result(data / "report")["copies"]}
    assert {name: (copy["real"], copy["kind"], copy["own_seed"]) for name, copy in copies.items()} == {
        "dog/copy2.jpg": ("cat/002.png", "mirrored", False), "dog/copy5.jpg": ("dog/005.png", "mirrored", False)}
    assert all(copy["score"] > found["max_similarity"] and copy["p"] < 0.01 for copy in copies.values())
    page = (data / "report/audit.html").read_text()
    assert page.count("data:image/png") == 4 and "arXiv 2505.01524" in page and "private" not in page.lower()
    assert str(data) not in (data / "report/audit.json").read_text() + page
    assert sorted(path.name for path in (data / "report").iterdir()) == ["audit.html", "audit.json"]
    assert run(*command, "--max-similarity", "0.9999") == 0
    assert run(*command, "--max-similarity", "1.5") == 2
    assert "--max-similarity: 1.5 is not possible" in capsys.readouterr().err


def test_own_seeds_and_the_reference(data):
    rows = [{"file_name": f"{label}/{i}.png", "label": label, "seed_file": f"{label}/{i - 300:03d}.png"}
            for i in range(300, 306) for label in [("cat", "dog")[i % 2]]]
    natural(1, 32).save(data / "synthetic/dog/301.png")
    (data / "synthetic/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = dreamda.audit(data / "real", data / "synthetic", data / "reference", threads=1)
    assert [(copy.synthetic, copy.real, copy.kind, copy.own_seed) for copy in found.copies] == [
        ("dog/301.png", "dog/001.png", "as it is", True)] and found.copies[0].score == 1
    assert "dog/001.png (as it is, its own real image)" in found.table()
    measures = found.to_json()
    assert measures["own_seed"]["images"] == 6 and measures["own_seed"]["above"] == 1
    assert measures["membership"]["members"] == 100 and measures["membership"]["others"] == 20
    area = measures["membership"]["density_ratio"]
    assert 0 <= area["low"] <= area["auc"] <= area["high"] <= 1
    assert {row["class"]: (row["images"], row["copies"]) for row in measures["classes"]} == {"cat": (3, 0), "dog":
                                                                                             (3, 1)}
    json.dumps(measures, allow_nan=False)


@pytest.mark.parametrize("seed_of", [
    lambda name, content: f"cat/{name}",
    lambda name, content: f"cat/{records.hash_of(name, content)}",  # --record-names hash
    lambda name, content: f"images/cat/{name}",  # annotated images
    lambda name, content: f"images/{records.hash_of(f'cat/{name}', content)}"])
def test_the_real_image_of_a_synthetic_one_is_known_from_any_record(data, seed_of):
    digest = hashlib.sha256((data / "real/cat/002.png").read_bytes()).hexdigest()
    row = {"file_name": "cat/300.png", "label": "cat", "seed_file": seed_of("002.png", digest)}
    (data / "synthetic/metadata.jsonl").write_text(json.dumps(row))
    real, synthetic = Pictures.read(data / "real"), Pictures.read(data / "synthetic")
    assert module._seeds(real, synthetic).tolist() == [real.names.index("cat/002.png"), -1, -1, -1, -1, -1]


def test_masks_of_an_annotated_run_are_no_images(data):
    shutil.copytree(data / "synthetic/cat", data / "synthetic/masks")
    assert len(Pictures.read(data / "synthetic").names) == 9
    assert len(Pictures.read(data / "synthetic", without="masks").names) == 6


def test_features_are_one_more_view(data, capsys):
    from safetensors.numpy import save_file

    from dreamda.training.backbone import create_backbone

    backbone = create_backbone("resnet18", size=(32, 32), batch=1, stem="small", width=8, threads=1, slots=1)
    rng = np.random.default_rng(0)
    save_file({name: (np.abs(rng.normal(size=array.shape)) * 0.1 + 0.01).astype(np.float32)
               for name, array in (*backbone.parameters.items(), *backbone.buffers.items())},
              data / "net.safetensors")
    natural(7, 32).save(data / "synthetic/dog/copy.png")
    command = ("audit", data / "real", data / "synthetic", "--out", data / "report", "--threads", "1", "--features")
    assert run(*command, data / "net.safetensors") == 1
    view = result(data / "report")["views"]["features"]
    assert {"synthetic": "dog/copy.png", "real": "dog/007.png", "score": 1.0} in view["pairs"]
    assert "cosine between the features" in (data / "report/audit.html").read_text()
    assert run(*command, data / "real/cat/000.png") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nearest_features():
    rows = np.random.default_rng(0).normal(size=(9000, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    some = np.arange(0, 9000, 900)
    image, similarity = nearest_features(rows[some], rows)
    assert (image == some).all() and np.allclose(similarity, 1, atol=1e-6)
    image, similarity = nearest_features(rows[some], rows, some)
    product = rows[some] @ rows.T
    product[np.arange(10), some] = -2
    assert (image == product.argmax(axis=1)).all() and np.allclose(similarity, product.max(axis=1), atol=1e-6)


# ---- whole sets. The generators are stand-ins; benchmarks/AUDIT.md has a diffusion model that memorised its images.


def test_a_generator_that_memorised_is_told_from_one_that_did_not():
    members, others = (thumbnails([natural(i) for i in numbers]) for numbers in (range(40), range(100, 140)))
    rng = np.random.default_rng(0)
    noisy = members[rng.integers(0, 40, 80)] + rng.normal(0, 12, (80, 32, 32))
    memorised = np.clip(noisy, 0, 255).astype(np.uint8)
    independent = thumbnails([natural(i) for i in range(300, 380)])
    found = membership(members, others, memorised)
    assert found["density_ratio"]["low"] > 0.8 and found["nearest"]["low"] > 0.8
    assert ratios(members, others, memorised)["nearer_to_real"]["low"] > 0.95
    found = membership(members, others, independent)
    assert found["density_ratio"]["low"] < 0.5 < found["density_ratio"]["high"]
    near = ratios(members, others, independent)["nearer_to_real"]
    assert near["low"] < 0.5 < near["high"]


def test_an_interrupted_audit_goes_on(data, monkeypatch):
    monkeypatch.setattr(pictures, "BLOCK", 50)
    monkeypatch.setattr(module, "BLOCK", 2)
    out = data / "report"

    def stop(phase, done, total):
        if phase == "comparing" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dreamda.audit(data / "real", data / "synthetic", out=out, progress=stop, threads=1)
    kept = sorted(out.rglob("*.npz"))
    assert len(kept) == 2 + 1 + 2 and not (out / "audit.json").exists()  # read, and compared
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # a damaged one is computed again
    searched = []
    nearest = CopyIndex.nearest
    monkeypatch.setattr(CopyIndex, "nearest",
                        lambda self, queries, **how: searched.append(len(queries)) or nearest(self, queries, **how))
    dreamda.audit(data / "real", data / "synthetic", out=out, threads=1)
    assert sum(searched) - 100 in (2, 4)  # the calibration; one block that is missing, or also the damaged one
    whole = dreamda.audit(data / "real", data / "synthetic", threads=1)
    assert result(out) == json.loads(json.dumps(whole.to_json())) and not (out / ".blocks").exists()


def test_an_interruption_is_said_in_a_line(data, monkeypatch, capsys):
    out = data / "report"

    def stop(*_, **__):
        raise KeyboardInterrupt

    command = ("audit", data / "real", data / "synthetic", "--out", out, "--threads", "1")
    for where, what, said in ((Pictures, "read", "to resume\n"), (
            CopyIndex, "nearest",
            f"to resume; {out}/.blocks holds thumbnails of the images, real ones too, until then\n")):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, stop)
            assert run(*command) == 130
        lines = capsys.readouterr().err.splitlines(keepends=True)
        assert lines[-1].endswith(f"interrupted; run the same command again {said}")
        assert "Traceback" not in "".join(lines)
    assert run(*command) == 0


@pytest.mark.parametrize("option, said", [("--reference", "no such folder; give a folder of real images"),
                                          ("--features", "no such file; give the weights of a ResNet")])
def test_what_is_missing_is_named_by_its_option(data, capsys, option, said):
    assert run("audit", data / "real", data / "synthetic", "--out", data / "report", option, data / "none") == 2
    error = capsys.readouterr().err
    assert f"{option}: {data / 'none'}: {said}" in error and error.count("\n") == 1 and not (data / "report").exists()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def unreadable(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")


@pytest.mark.parametrize("part, spoil, said", [
    ("real", shutil.rmtree, "real: no such folder; give a folder of images"),
    ("real", empty, "real holds no images; give a folder of images"),
    ("real", unreadable, "real: none of the images can be read; the first, cat/000.png: not an image"),
    ("synthetic", empty, "synthetic holds no images"),
    ("reference", empty, "reference holds no images"),
    ("reference", lambda folder: shutil.copy(folder.parent / "real/cat/002.png", folder / "cat/known.png"),
     "--reference: 1 image of {data}/reference is in {data}/real too: cat/known.png (REAL has it as cat/002.png)"),
    ("reference", lambda folder: natural(7, 32).save(folder / "cat/known.jpg", quality=90),
     "--reference: 1 image of {data}/reference is in {data}/real too: cat/known.jpg (REAL has it as dog/007.png)"),
    ("reference", lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.parent / "real", folder)),
     "--reference: 100 images of {data}/reference are in {data}/real too: cat/000.png, cat/002.png"),
    ("real", lambda folder: [path.unlink() for path in sorted(folder.rglob("*.png"))[1:]],
     "--max-similarity: the default is calibrated on the real images, and there are no two different ones"),
    ("synthetic", lambda folder: (folder / "metadata.jsonl").write_text("[]\n"), "metadata.jsonl line 1"),
])
def test_bad_input_is_refused_in_a_sentence(data, capsys, part, spoil, said):
    spoil(data / part)
    assert run("audit", data / "real", data / "synthetic", "--reference", data / "reference", "--out",
               data / "report", "--threads", "1") == 2
    error = capsys.readouterr().err
    assert said.format(data=data) in error and error.count("\n") == 1
    assert not (data / "report").exists()  # nor thumbnails of real images


@pytest.mark.parametrize("out, said", [
    ("real", "lies in the folder of images {data}/real"), ("real/report", "lies in the folder of images {data}/real"),
    ("synthetic/new/deep", "lies in the folder of images {data}/synthetic"),
    ("reference/.", "lies in the folder of images {data}/reference"),
    ("notes.txt", "is no folder; give a new or an empty one"),
    ("notes.txt/report", "--out: {data}/notes.txt is no folder"),
    ("other", "holds files but no report of an audit; give a new or an empty folder")])
def test_a_report_is_written_into_no_other_folder(data, capsys, out, said):
    (data / "notes.txt").write_text("mine")
    (data / "other").mkdir()
    (data / "other/thesis.tex").write_text("mine")
    before = sorted(data.rglob("*"))
    assert run("audit", data / "real", data / "synthetic", "--reference", data / "reference", "--out", data / out) == 2
    error = capsys.readouterr().err
    assert said.format(data=data) in error and "--out: " in error and error.count("\n") == 1
    assert sorted(data.rglob("*")) == before


def test_bad_input_leaves_what_an_interrupted_audit_kept(data):
    kept = data / "report/.blocks/of-before.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    unreadable(data / "synthetic")
    assert run("audit", data / "real", data / "synthetic", "--out", data / "report", "--threads", "1") == 2
    assert list((data / "report").rglob("*.npz")) == [kept]


def test_unreadable_images_are_named_and_counted(data, capsys):
    (data / "synthetic/cat/300.png").write_bytes(b"x")
    (data / "real/dog/broken.png").write_bytes(b"")
    (data / "real/dog/scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert run("audit", data / "real", data / "synthetic", "--out", data / "report", "--threads", "1") == 1
    error = capsys.readouterr().err
    assert all(name in error for name in ("real/dog/broken.png", "real/dog/scan.dcm", "synthetic/cat/300.png"))
    found = result(data / "report")
    assert (found["real"]["unreadable"], found["synthetic"]["unreadable"], found["synthetic"]["images"]) == (2, 1, 5)
    assert len(found["skipped"]) == 3 and "3 files could not be read" in (data / "report/audit.html").read_text()


def test_another_class_list_is_said_and_not_refused(data, capsys):
    (data / "synthetic/dog").rename(data / "synthetic/wolf")
    natural(1, 32).save(data / "synthetic/wolf/copy.png")
    assert run("audit", data / "real", data / "synthetic", "--out", data / "report", "--threads", "1") == 1
    assert "SYNTHETIC has 1 folder that REAL lacks ('wolf')" in capsys.readouterr().err
    assert [(copy["synthetic"], copy["real"]) for copy in result(data / "report")["copies"]] == [
        ("wolf/copy.png", "dog/001.png")]
