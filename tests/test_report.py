"""`dreamda report`: the measures on sets whose answer is known, and a page that needs nothing else."""
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from standin import FoldedStandIn, StandIn
from test_cli import run
from test_generate import SETTINGS, FakePipeline, make_real, tree

from dreamda.training import saved
from dreamda.runs.generate import generate_dataset
from dreamda.runs import measures
from dreamda.runs.measures import Judged, Space, covered, judge, neighbour_metrics, read_network, verdicts
from dreamda.runs.report import _balance, _redrawn
from dreamda.training.saved import TrainedModel

RNG = np.random.default_rng(0)


def report(*arguments):
    return run("report", *arguments, "--threads", "1")  # tiny networks: more threads would wait for each other


def by_hand(real, synthetic, k):
    """The definitions, one image after another."""
    distance = lambda a, b: float(np.linalg.norm(a - b))  # noqa: E731
    radius = lambda those: [sorted(distance(a, b) for b in those)[k] for a in those]  # noqa: E731
    r, s = radius(real), radius(synthetic)
    precision = np.mean([any(distance(y, x) <= r[i] for i, x in enumerate(real)) for y in synthetic])
    recall = np.mean([any(distance(y, x) <= s[j] for j, y in enumerate(synthetic)) for x in real])
    density = sum(distance(y, x) <= r[i] for y in synthetic for i, x in enumerate(real)) / (k * len(synthetic))
    coverage = np.mean([min(distance(y, x) for y in synthetic) <= r[i] for i, x in enumerate(real)])
    return precision, recall, density, coverage


def test_measures_against_their_definitions():
    for shift in (0.0, 1.0, 3.0):
        real, synthetic = RNG.normal(size=(30, 3)).astype(np.float32), (RNG.normal(size=(22, 3)) * 0.7 + shift).astype(
            np.float32)
        np.testing.assert_allclose(neighbour_metrics(real, synthetic, 4), by_hand(real, synthetic, 4), atol=1e-6)


def test_measures_where_the_answer_is_known():
    real, same = RNG.normal(size=(2, 600, 8)).astype(np.float32)
    alike = neighbour_metrics(real, same)
    assert 0.85 < alike.density < 1.15 and alike.coverage > 0.9 and alike.precision > 0.8 and alike.recall > 0.8
    assert neighbour_metrics(real, same + 50) == (0, 0, 0, 0)
    # many images, all of them nearly one
    collapsed = neighbour_metrics(real, (real[:1] + 1e-3 * same).astype(np.float32))
    assert collapsed.precision == 1 and collapsed.recall < 0.05 and collapsed.coverage < 0.1
    with pytest.raises(ValueError, match="need more than 5 images"):
        neighbour_metrics(real[:5], same)


def test_coverage_where_the_answer_is_known():
    """A class of two groups of images: of the second one, nothing was made. A class of two images is not judged."""
    groups = np.concatenate([RNG.normal(size=(20, 4)), RNG.normal(size=(10, 4)) + 40]).astype(np.float32)
    others = RNG.normal(size=(2, 4)).astype(np.float32) - 40
    made = groups[:20] + RNG.normal(size=(20, 4)).astype(np.float32) * 0.1
    labels = np.array([0] * 30 + [1] * 2)
    space = Space(np.arange(32), np.concatenate([groups, others]), np.arange(20), made)
    found = covered([space], labels, np.arange(20))
    assert found[:20].all() and not found[20:30].any() and np.isnan(found[30:]).all()
    nothing = covered([space._replace(synthetic=np.arange(0), synthetic_features=made[:0])], labels, np.arange(20))
    assert not nothing[:30].any()


def test_shares_of_classes_and_what_was_left_out():
    same = _balance({"a": 10, "b": 30}, {"a": 40, "b": 120}, {"a": np.ones(10), "b": np.array([1.0] * 15 + [0] * 15)})
    assert "about the same shares" in same["sentences"][0]
    assert same["table"] == [["a", "10", "25.0%", "40", "25.0%", "100%"], ["b", "30", "75.0%", "120", "75.0%", "50%"]]
    assert "62% of the real images" in same["sentences"][1] and "is b, with 50%" in same["sentences"][1]
    other = _balance({"a": 10, "b": 30, "c": 0}, {"b": 120}, {"b": np.full(30, np.nan)})
    assert "2 classes have another share" in other["sentences"][0] and len(other["sentences"]) == 1
    assert "a (25.0% of the real images, 0.0% of the synthetic ones)" in other["sentences"][0]
    assert _redrawn([{"redraws": 0}, {}], []) == []
    assert _redrawn([{"redraws": 2}], [{"label": "b"}, {"label": "b"}, {"label": "a"}]) == [
        "Because of their similarity to real images, 1 image was made again with other noise, and 3 left out, most of "
        "class b."]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "EPOCHS", 1)  # the verdicts have tests of their own
    monkeypatch.setattr(measures, "STEPS", 2)
    monkeypatch.chdir(tmp_path)
    generate_dataset(make_real(tmp_path / "real", 4, ("coat", "<b>hat</b>".replace("/", "_"))), tmp_path / "out",
                     FakePipeline(), SETTINGS)
    return tmp_path


def test_what_generate_has_skipped_does_not_count(data, capsys):
    assert report(data / "real", data / "out", "--out", data / "before.html") == 0
    (data / "real/coat/broken.png").write_bytes(b"x")
    assert report(data / "real", data / "out", "--out", data / "after.html") == 0
    assert (data / "before.html").read_bytes() == (data / "after.html").read_bytes()
    assert report(data / "real", data / "real") == 2
    assert "has no metadata.jsonl; give the OUT of a dreamda generate" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_skipped_and_named(data, capsys):
    made = sorted((data / "out/coat").iterdir())[0]
    for path in (made, data / "real/coat" / sorted(os.listdir(data / "real/coat"))[-1]):
        path.write_bytes(b"x")
    assert report(data / "real", data / "out") == 1
    err = capsys.readouterr().err
    assert err.count("not an image, or damaged") == 2 and f"skipped {made}: " in err and "skipped 2 in all" in err
    assert "20 synthetic images from 7 real ones" in (data / "out-report.html").read_text()


def test_the_page_holds_everything_itself(data, capsys):
    before = tree(data / "out")
    assert report(data / "real", data / "out") == 0
    assert "Look at: out-report.html" in capsys.readouterr().out and tree(data / "out") == before
    text = (data / "out-report.html").read_text()
    assert "24 synthetic images from 8 real ones" in text and "among 8 real and 24 synthetic images" in text
    assert all(source.startswith("data:image/png;base64,")
               for source in re.findall(r'src="([^"]*)"', text)) and "http" not in text
    assert len(re.findall("<img ", text)) == 1 + 12 * 4 and all("alt=" in tag
                                                                for tag in re.findall("<img [^>]*>", text))
    assert "<b>hat" not in text and "&lt;b&gt;hat" in text  # names are untrusted
    assert report(data / "real", data / "out", "--out", data / "again.html") == 0
    assert (data / "again.html").read_text() == text


def test_a_run_that_is_going_on(data):
    """metadata.jsonl grows, and not every seed has its images yet."""
    lines = (data / "out/metadata.jsonl").read_text().splitlines(keepends=True)
    (data / "out/metadata.jsonl").write_text("".join(lines[::2]))
    assert report(data / "real", data / "out") == 0
    assert "12 synthetic images from 8 real ones" in (data / "out-report.html").read_text()


def coloured(count, classes, seed, size=16):
    """Images of classes that colours tell apart, with noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])[labels]
    return (colours[:, None, None] + random.integers(-39, 40, (count, size, size, 3))).astype(np.uint8), labels


@pytest.mark.parametrize("source", ["trained here", "features"])
def test_verdicts_where_the_answer_is_known(monkeypatch, source):
    monkeypatch.setattr(measures, "EPOCHS", 3)
    monkeypatch.setattr(measures, "STEPS", 10)
    features = (lambda images: images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)
                ) if source == "features" else None
    real, labels = coloured(24, 3, 0)
    good, made_of = coloured(48, 3, 1)
    seeds = np.array([np.flatnonzero(labels == label)[i % 8] for i, label in enumerate(made_of)])
    words = lambda synthetic: [  # noqa: E731
        v.word for v in verdicts(judge(real, labels, synthetic, seeds, features=features, threads=1), labels, seeds,
                                 ["red", "green", "blue"], False)
    ]
    assert words(good) == ["good"] * 3
    assert words(good[:, :, :, [1, 2, 0]]) == ["unlike"] * 3          # every class looks like another
    odd = good.copy()
    odd[made_of == 2] = coloured(48, 3, 2)[0][:16]                     # blue is anything
    assert words(odd)[2] != "good"
    found = verdicts(Judged(""), labels, seeds, ["red", "green", "blue"], True)
    assert {v.word for v in found} == {"unlike"} and found[0].sentence == "They have no colour, and the real images do."


def test_images_that_are_recognised_by_chance_alone_are_unlike():
    """Nearly everything is taken for the first class, whose images are therefore all right."""
    labels = np.repeat([0, 1, 2], 20)
    seeds, real = np.repeat(np.arange(60), 2), labels.copy()
    real[::3] = (real[::3] + 1) % 3                                    # a third of the real images is not recognised
    chance = np.where(np.arange(120) % 10, 0, 1)
    said = lambda guess: [v.word for v in verdicts(  # noqa: E731
        Judged("", real_guess=real, synthetic_guess=guess, taught_guess=real), labels, seeds, ["a", "b", "c"], False)]
    assert measures.is_guessing(Judged("", real_guess=real, synthetic_guess=chance), labels, seeds)
    assert said(chance) == ["unlike"] * 3
    assert said(real[seeds]) == ["good"] * 3
    assert not measures.is_guessing(Judged("", real_guess=(labels + 1) % 3, synthetic_guess=chance), labels, seeds)


def test_images_without_colour_are_called_out(data):
    """A model of greyscale images makes nearly grey ones."""
    for path in (data / "out").rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L").convert("RGB")).astype(int) + [1, 0, -1]
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
    assert report(data / "real", data / "out") == 0
    text = (data / "out-report.html").read_text()
    assert "The synthetic images are unlike the real ones." in text and "Do not train on them." in text


def test_too_few_real_images_for_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate_dataset(make_real(tmp_path / "real", 2), tmp_path / "out", FakePipeline(), SETTINGS)
    assert report(tmp_path / "real", tmp_path / "out") == 0
    text = (tmp_path / "out-report.html").read_text()
    assert "give features of a network with --features or --classifier" in text and "16 x 16 thumbnails" in text


def test_features_of_a_pretrained_network(data, capsys):
    from safetensors.numpy import save_file

    from dreamda.training.backbone import create_backbone

    backbone = create_backbone("resnet18", size=(32, 32), batch=1, stem="small", width=8, threads=1, slots=1)
    random = np.random.default_rng(0)
    weights = {name: (np.abs(random.normal(size=array.shape)) * 0.1 + 0.01).astype(np.float32)
               for name, array in (*backbone.parameters.items(), *backbone.buffers.items())}
    save_file(weights | {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)},
              data / "net.safetensors")
    network = read_network(data / "net.safetensors")
    assert (network.backbone, network.stem, network.width, network.size) == ("resnet18", "small", 8, (64, 64))
    assert network.features(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 64)
    assert report(data / "real", data / "out", "--features", data / "net.safetensors") == 0
    assert "in the features of resnet18" in (data / "out-report.html").read_text()
    save_file({"conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}, data / "other.safetensors")
    assert report(data / "real", data / "out", "--features", data / "other.safetensors") == 2
    assert "holds no ResNet-18, -34 or -50" in capsys.readouterr().err
    assert report(data / "real", data / "out", "--features", data / "a", "--classifier", data / "b") == 2
    assert "exclude each other" in capsys.readouterr().err


def test_in_the_features_of_a_classifier(data, monkeypatch):
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)
    backbone = StandIn(features=6, height=8, width=8)
    weights = {
        k: v + RNG.normal(size=v.shape).astype(np.float32)
        for k, v in (*backbone.parameters.items(), *backbone.buffers.items())
    }
    # calls everything the second class
    weights |= {"fc.weight": np.zeros((2, 6), np.float32), "fc.bias": np.array([0, 1], np.float32)}
    model = TrainedModel("resnet18", "small", 64, (8, 8), (0.5,) * 3, (0.5,) * 3, ["<b>hat<_b>", "coat"], weights)
    model.save(data / "model.safetensors")
    assert report(data / "real", data / "out", "--classifier", data / "model.safetensors") == 0
    text = (data / "out-report.html").read_text()
    assert "in the features of resnet18" in text and "synthetic images recognised" in text


def test_bad_input_is_one_sentence(data, capsys):
    (data / "plain/coat").mkdir(parents=True)
    (data / "real/coat/00.png").rename(data / "other.png")
    for arguments, message in (([data / "real", data / "none"], "has no metadata.jsonl"), ([
            data / "real", data / "out"
    ], "made from coat/00.png, which is not in"), ([data / "none", data / "out"], "no such folder"), ([
            data / "real", data / "out", "--out", data / "real"
    ], "is a folder"), ([data / "real", data / "out", "--classifier", data / "none"], "no such file")):
        assert report(*arguments) == 2
        assert message in (err := capsys.readouterr().err) and err.count("\n") == 1
    (data / "other.png").rename(data / "real/coat/00.png")
    for path in (data / "out").rglob("*.png"):
        path.write_bytes(b"x")
    assert report(data / "real", data / "out") == 2
    assert f"{data / 'out'}: none of the images can be read; the first, " in capsys.readouterr().err
    (data / "out/metadata.jsonl").write_text('{"file_name": "coat/a.png"}')
    assert report(data / "real", data / "out") == 2
    assert "line 1 is not a line of dreamda generate" in capsys.readouterr().err and not (data
                                                                                          / "out-report.html").exists()


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
                None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian package chromium)")
def test_in_a_real_browser(data):
    """The page as it is shown: every picture is there, nothing is loaded from anywhere, and no script or style is
    complained of."""
    assert report(data / "real", data / "out", "--out", data / "page.html") == 0
    # The browser itself counts the pictures that it could decode, in a copy of the page with a script at its end.
    count = ("<script>addEventListener('load', () => document.title = "
             "[...document.images].filter(i => i.naturalWidth > 0).length + ' of ' + document.images.length + ', ' + "
             "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length)</script>")
    (data / "counted.html").write_text((data / "page.html").read_text() + count)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={data / 'profile'}", "--window-size=1200,900", "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND"
    ]
    # a sanitizer is not for the browser
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    shown = subprocess.run([*command, "--dump-dom", f"file://{data / 'counted.html'}"],
                           capture_output=True,
                           text=True,
                           timeout=120,
                           env=plain)
    assert "<title>49 of 49, 0</title>" in shown.stdout, shown.stdout[-300:] + shown.stderr[-2000:]
    assert "CONSOLE" not in shown.stderr
    subprocess.run([*command, f"--screenshot={data / 'page.png'}", f"file://{data / 'page.html'}"],
                   capture_output=True,
                   timeout=120,
                   check=True,
                   env=plain)
    picture = np.asarray(Image.open(data / "page.png").convert("RGB"))
    # text and pictures, not an empty page
    assert picture.shape == (900, 1200, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
