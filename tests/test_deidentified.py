"""What is known of real images besides their pixels stays with them: strings are planted in every channel of metadata
and in the folders above the data set, and no output may hold them. The engine is a stand-in where pixels do not
matter."""
import base64
import io
import json
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from test_cli import fake, run  # noqa: F401  (fixture)
from test_generate import lines, tree
from test_labels import SIZES, WRITERS, picture

import dreamda
from dreamda.data import ImageFolder, decode_image
from dreamda.data.images import pixels_of_png
from dreamda.runs import measures
from dreamda.runs.manifest import read_manifest
from dreamda.runs.records import nearby, shown_path

PLANTED = "Zaphod" + "Beeblebrox"
EXIF_TEXTS = {0x010E: "description", 0x013B: "artist", 0x8298: "copyright", 0x0131: "software"}
FAST = ["--model", "fake", "--variants", "2", "--steps", "3"]


def exif() -> Image.Exif:
    """EXIF data with texts, a GPS position, a comment of the camera, and a turned picture."""
    about = Image.Exif()
    about[0x0112] = 1
    for tag, what in EXIF_TEXTS.items():
        about[tag] = f"{PLANTED} {what}"
    about.get_ifd(0x8769).update({0x9286: f"{PLANTED} comment", 0xA430: f"{PLANTED} owner", 0xA431: PLANTED})
    about.get_ifd(0x8825).update({1: "N", 2: (51.0, 28.0, 38.0), 27: f"{PLANTED} method", 29: "2026:11:27"})
    return about


def png_texts() -> PngImagePlugin.PngInfo:
    """The three kinds of text, as DICOM converters write them, XMP, and a private chunk."""
    about = PngImagePlugin.PngInfo()
    about.add_text("PatientName", PLANTED)
    about.add_text("PatientID", f"{PLANTED} 4711", zip=True)
    about.add_itxt("XML:com.adobe.xmp", f"<x:xmpmeta>{PLANTED}</x:xmpmeta>")
    about.add_itxt("StudyDescription", PLANTED, zip=True)
    about.add(b"prVt", PLANTED.encode())
    return about


def save(image: Image.Image, path: Path) -> None:
    """Save an image with planted strings in every channel of metadata that the format has."""
    profile = PLANTED.encode() * 20
    if path.suffix == ".png":
        image.save(path, pnginfo=png_texts(), exif=exif(), icc_profile=profile)
    elif path.suffix == ".tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, what in EXIF_TEXTS.items():
            tags[tag] = f"{PLANTED} {what}"
        tags[700] = f"<x:xmpmeta>{PLANTED}</x:xmpmeta>".encode()
        tags[33723] = PLANTED.encode()  # IPTC
        tags[50839] = PLANTED.encode()  # ImageJ
        image.save(path, tiffinfo=tags, icc_profile=profile)
    elif path.suffix == ".jpg":
        image.save(path, quality=95, exif=exif(), icc_profile=profile, comment=PLANTED,
                   xmp=f"<x:xmpmeta>{PLANTED}</x:xmpmeta>".encode())
        data = path.read_bytes()
        iptc = b"Photoshop 3.0\0" + PLANTED.encode()
        path.write_bytes(data[:2] + b"\xff\xed" + (len(iptc) + 2).to_bytes(2, "big") + iptc + data[2:]
                         + PLANTED.encode())  # and after the end of the image
    else:
        image.save(path, lossless=True, exif=exif(), icc_profile=profile,
                   xmp=f"<x:xmpmeta>{PLANTED}</x:xmpmeta>".encode())


def hidden_in(data: bytes) -> bool:
    """Whether the planted string is in these bytes: as it is, or in a picture of an HTML page, or deflated."""
    wanted = [PLANTED.encode(), PLANTED.encode("utf-16-le"), PLANTED.encode("utf-16-be")]
    if any(text in data for text in wanted):
        return True
    if any(hidden_in(base64.b64decode(found)) for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data)):
        return True
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        image = Image.open(io.BytesIO(data))
        image.load()
        return PLANTED in repr(image.info)
    if data[:4] == b"PK\3\4" or not data[257:262] == b"ustar":
        return False
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return any(PLANTED in each.name or hidden_in(tar.extractfile(each).read()) for each in tar)


def found_in(folder: Path) -> list[str]:
    """The files in a folder that hold the planted string, or have it in their names."""
    return [name for name, data in tree(folder).items() if PLANTED in name or hidden_in(data)]


@pytest.fixture
def secret(tmp_path):
    """A data set in a folder whose name is a secret, with planted strings in all of its images."""
    root, rng = tmp_path / PLANTED / "deeper" / "photos", np.random.default_rng(0)
    for label in ("coat", "bag"):
        (root / label).mkdir(parents=True)
        for number, suffix in enumerate((".png", ".jpg", ".webp", ".tif")):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            save(coarse.resize((16, 16), Image.Resampling.BICUBIC), root / label / f"{number}{suffix}")
    for path in root.rglob("*.*"):
        assert hidden_in(path.read_bytes()) and decode_image(path.read_bytes()).shape == (16, 16, 3)
    return root


@pytest.mark.parametrize("names", ["names", "hash"])
def test_no_output_holds_what_is_known_of_real_images(secret, tmp_path, fake, monkeypatch, capsys, names):  # noqa: F811
    monkeypatch.setattr(measures, "EPOCHS", 1)
    fake.folder = secret.parent / "model"  # the model may lie there, too
    public = tmp_path / "public"
    public.mkdir()
    monkeypatch.chdir(public)
    assert run("generate", secret, "--out", "out", *FAST, "--record-names", names, "--preview", "4") == 0
    assert run("generate", secret, "--out", "out", *FAST, "--record-names", names) == 0
    dreamda.to_webdataset("out", "shards/%d.tar")
    assert run("train", secret, "out", "--out", "run", "--epochs", "2", "--size", "16", "--width", "8",
               "--steps-per-epoch", "2", "--test", secret, "--threads", "1") == 0, capsys.readouterr().err
    assert run("report", secret, "out", "--out", "page.html", "--classifier", "run", "--threads", "1") == 0
    assert run("replay", "out", secret, "--out", "again") == 0, capsys.readouterr().err
    assert {"out", "out-preview.png", "page.html", "shards", "run", "again"} <= {p.name for p in public.iterdir()}
    assert found_in(public) == []
    assert not [text for text in re.findall(r'"([^"]*)"', Path("out/run.json").read_text()) if text.startswith("/")]
    (public / "out/coat/extra.png").write_bytes((secret / "coat/0.png").read_bytes())
    assert found_in(public) == ["out/coat/extra.png"]


@pytest.mark.parametrize("kind", WRITERS)
def test_annotations_are_written_without_what_is_about_the_real_image(tmp_path, kind):
    root = tmp_path / PLANTED / "photos"
    for number, (name, size) in enumerate(SIZES.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save(Image.fromarray(np.asarray(picture(size, number))), root / name)
    path = WRITERS[kind](tmp_path / PLANTED)
    if kind == "coco":
        top = json.loads(path.read_text())
        for image in top["images"]:
            image |= {"coco_url": f"http://x/{PLANTED}", "flickr_url": PLANTED, "date_captured": PLANTED, "license": 4}
        path.write_text(json.dumps(top))
    elif kind == "voc":
        for file in (path / "Annotations").rglob("*.xml"):
            file.write_text(file.read_text().replace("<size>", f"<source><image>{PLANTED}</image></source><owner><name>"
                                                     f"{PLANTED}</name></owner><!-- {PLANTED} --><size>"))
    elif kind == "masks":
        for file in path.rglob("*.png"):
            image = Image.open(file)
            image.load()
            image.save(file, pnginfo=png_texts(), exif=exif())
    out = tmp_path / "public"
    assert run("generate", root, "--out", out, "--model", "fashion-mini", "--variants", "1", "--steps", "2",
               "--threads", "1", f"--{kind}", path) == 0
    assert run("report", root, out, "--labels", path, "--out", out / "page.html") == 0
    assert found_in(out) == []
    if kind == "coco":
        assert json.loads((out / "annotations.json").read_text())["images"][0].keys() == {
            "licence", "license", "id", "file_name", "width", "height"}
    if kind == "masks":
        real = Image.open(path / "a.png")
        made = Image.open(out / "masks/a-000.png")
        assert made.mode == real.mode == "P" and np.array_equal(np.asarray(made), np.asarray(real))
        assert made.getpalette() == real.getpalette()


# ---- hashes for names


def test_names_of_real_images_become_hashes(secret, tmp_path, fake, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(measures, "EPOCHS", 1)
    plain, out = tmp_path / "plain", tmp_path / "out"
    for place, names in ((plain, "names"), (out, "hash")):
        assert run("generate", secret, "--out", place, *FAST, "--record-names", names) == 0
    text = (out / "metadata.jsonl").read_text() + (out / "run.json").read_text()
    assert re.search(r'"seed_file": "coat/[0-9a-f]{32}"', text)
    assert not any(f'/{image.name}"' in text for image in ImageFolder.scan(secret).images)
    assert sorted(row["seed_sha256"] for row in lines(out)) == sorted(row["seed_sha256"] for row in lines(plain))
    pixels = [{(row["seed_sha256"], row["variant"]): decode_image((place / row["file_name"]).read_bytes()).tobytes()
               for row in lines(place)} for place in (plain, out)]
    assert pixels[0] == pixels[1]  # names are only records: the images are the same
    before = tree(out)
    (out / lines(out)[0]["file_name"]).unlink()
    assert run("generate", secret, "--out", out, *FAST, "--record-names", "hash") == 0
    assert "1 image made" in capsys.readouterr().out and tree(out) == before
    for part in ("1/2", "0/2"):
        assert run("generate", secret, "--out", tmp_path / "parts", *FAST, "--record-names", "hash", "--shard",
                   part) == 0
    assert tree(tmp_path / "parts") == before
    assert run("generate", secret, "--out", out, *FAST) == 2
    assert "--record-names 'hash' (now 'names')" in capsys.readouterr().err
    assert run("replay", out) == 2
    assert "run.json; give the folder of the real images" in capsys.readouterr().err
    assert run("replay", out, secret, "--out", tmp_path / "again") == 0 and tree(tmp_path / "again") == before
    assert run("report", secret, out, "--out", tmp_path / "page.html", "--threads", "1") == 0
    assert "coat/0.png" in (tmp_path / "page.html").read_text()  # the report is for whoever has the real images
    (secret / "coat/0.png").unlink()
    assert run("replay", out, secret) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_hash_hides_equal_names_and_files(tmp_path, fake):  # noqa: F811
    """Two images of equal content in a class, and two of equal names in two classes, keep their own images."""
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "real" / name)
    (tmp_path / "real/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "real/a/pipe.png").symlink_to("nowhere")
    assert run("generate", tmp_path / "real", "--out", tmp_path / "out", *FAST, "--record-names", "hash") == 1
    assert len({row["seed_file"] for row in lines(tmp_path / "out")}) == 3
    assert len({row["file_name"] for row in lines(tmp_path / "out")}) == 6


def test_paths_are_recorded_when_asked(secret, tmp_path, fake):  # noqa: F811
    assert run("generate", secret, "--out", tmp_path / "out", *FAST, "--record-names", "paths") == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["real"] == str(secret) and record["environment"]["model_folder"] == str(fake.folder)
    assert PLANTED not in (tmp_path / "out/metadata.jsonl").read_text()
    assert run("replay", tmp_path / "out") == 0
    record = (tmp_path / "out/run.json").read_text()
    assert run("generate", secret, "--out", tmp_path / "out", *FAST) == 0  # places are not compared
    assert (tmp_path / "out/run.json").read_text() == record


@pytest.mark.parametrize("place, start, expected", [
    ("/a/real", "/a/out", "../real"), ("/a/out/real", "/a/out", "real"), ("/a/real", "/a/b/out", None),
    ("/secret/real", "/a/out", None), ("/a", "/a/out", None), ("/a/l.json", "/a/real", "../l.json"),
    ("/a/x/l.json", "/a/real", None), ("/a/real/l", "/a/real", "l")])
def test_places_next_to_each_other(place, start, expected):
    assert nearby(Path(place), Path(start)) == expected


@pytest.mark.parametrize("given, expected", [
    ("fashion-mini", "fashion-mini"), ("owner/name@main", "owner/name@main"), ("models/sd15", "models/sd15"),
    ("/home/me/models/sd15", "sd15"), ("../sd15", "sd15"), ("~/sd15", "sd15"), ("", "")])
def test_paths_as_they_are_recorded(given, expected):
    assert shown_path(given) == expected


def test_a_png_without_its_metadata():
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    image.save(buffer, "PNG", pnginfo=png_texts(), exif=exif())
    data = buffer.getvalue() + zlib.compress(PLANTED.encode()) + PLANTED.encode()
    bare = pixels_of_png(data)
    assert PLANTED.encode() not in bare and bare.endswith(b"IEND\xaeB`\x82") and not Image.open(io.BytesIO(bare)).info
    assert np.array_equal(decode_image(bare), np.asarray(image)) and pixels_of_png(bare) == bare
