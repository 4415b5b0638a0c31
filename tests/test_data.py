"""Image folders, prompts, decoding of untrusted image files, and the bundled images."""
import csv
import hashlib
import io
import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from dreamda.data import folders
from dreamda.data.folders import list_images, shown
from dreamda.data import (BrokenImageError, ImageFolder, choose_prompts, class_names, class_words, decode_image,
                          fill_template, fit, load_bundled, own_prompt_files, prompts_from_file, prompts_from_template,
                          read_image)


@pytest.fixture
def folder(tmp_path):
    for name in ("b_b/2.png", "b_b/10.JPG", "a/x.webp", "a/y.bmp", "a/z.tiff"):
        path = tmp_path / "real" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), "red").save(path)
    return ImageFolder.scan(tmp_path / "real")


def test_scan_is_sorted_and_lists_what_it_leaves_out(folder):
    root = folder.root
    (root / "a/Thumbs.db").write_bytes(b"x")
    (root / "a/.hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "__MACOSX/a").mkdir(parents=True)
    (root / "__MACOSX/a/x.png").write_bytes(b"x")
    (root / "empty").mkdir()
    (root / "README.md").write_text("x")
    (root / "loose.PNG").write_bytes(b"x")
    (root / "linked").symlink_to(root / "b_b")
    with open(os.fsencode(root) + b"/a/\xff.png", "wb"):
        pass
    found = ImageFolder.scan(root)
    assert found.classes == ("a", "b_b", "empty", "linked")
    assert [i.key for i in found.images
            ] == ["a/x.webp", "a/y.bmp", "a/z.tiff", "b_b/10.JPG", "b_b/2.png", "linked/10.JPG", "linked/2.png"]
    assert [name for name, _ in found.ignored] == ["loose.PNG", "'a/\\udcff.png'", "empty"]
    assert read_image(found.path(found.images[0])).pixels.shape == (4, 5, 3)


@pytest.mark.parametrize("name, kind, result",
                         [("x.gif", "GIF", True), ("x.ppm", "PPM", True), ("x.pgm", "PPM", True),
                          ("x.jfif", "JPEG", True), ("x.JPE", "JPEG", True), ("x", "JPEG", True),
                          ("x.jpg_large", "JPEG", True), ("x.heic", "JPEG", True), ("x.png", "JPEG", True),
                          ("x.xyz", "WEBP", True), ("x.img", "BMP", True), ("x.scan", "TIFF", True),
                          ("photo.2024.final", "PNG", True), ("x.nef", "TIFF", "raw camera images are not read"),
                          ("x.heic", b"\0\0\0\x18ftypheic", "HEIC images are not read; convert it to PNG or JPEG"),
                          ("x", b"\0\0\0\x18ftypavif", "AVIF images"), ("x", bytes(128) + b"DICM", "DICOM images"),
                          ("x.jp2", b"\0\0\0\x0cjP  \r\n", "JPEG 2000 images"), ("x.svg", b"<svg/>", "SVG images"),
                          ("x.txt", b"BMW and others", False), ("x.txt", b"P1 is the first part", False),
                          ("x.json", b"{}", False), ("x", b"", False)])
def test_what_an_image_file_is(tmp_path, name, kind, result):
    """By its ending or its first bytes, in any folder inside of the class folder."""
    path = tmp_path / "cat/deeper/still" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(kind if isinstance(kind, bytes) else encoded(Image.new("L", (5, 4), 77), kind))
    (tmp_path / "cat/a.png").write_bytes(encoded(Image.new("L", (5, 4), 77)))
    found = ImageFolder.scan(tmp_path)
    assert [i.key for i in found.images] == ["cat/a.png"] + [f"cat/deeper/still/{name}"] * (result is True)
    assert [n for n, _ in found.ignored] == [f"cat/deeper/still/{name}"] * isinstance(result, str)
    assert isinstance(result, bool) or found.ignored[0][1].startswith(result)
    assert result is not True or abs(int(read_image(found.path(found.images[-1])).pixels[0, 0, 0]) - 77) <= 2
    assert list_images(tmp_path / "cat") == ([i.name for i in found.images], [(n.removeprefix("cat/"), r)
                                                                              for n, r in found.ignored])


def test_links_inside_of_class_folders_are_named_and_not_followed(folder):
    (folder.root / "a/loop").symlink_to(folder.root)
    assert ImageFolder.scan(folder.root).ignored == (("a/loop",
                                                      "a link to a folder; only links to class folders are followed"), )


@pytest.mark.parametrize(
    "files, message", [(["train/cat/1.png", "test/cat/2.png", "train/dog/3.png"
                         ], r"parts of a data set, not classes: test/ \(1 class folder\), train/ \(2 class folders\); "
                        "give one of them"),
                       (["Validation/cat/1.png", "other/cat/2.png"], r"parts of a data set, not classes: Validation/"),
                       (["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"
                         ], "cat holds the part test/ of a data set; the parts must be outermost"),
                       (["images/cat/1.png", "images/dog/2.png"
                         ], r"holds one folder, images, which holds folders \(cat, dog\).*give .*/images;")])
def test_folders_that_are_no_classes(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        ImageFolder.scan(tmp_path)


@pytest.mark.parametrize(
    "files", [["train/1.png", "car/2.png"], ["cat/a/1.png", "dog/2.png"], ["cat/a/1.png", "cat/2.png"], ["test/1.png"]])
def test_classes_that_only_look_like_something_else(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert sorted(image.key for image in ImageFolder.scan(tmp_path).images) == sorted(files)


def test_class_names_that_look_alike(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / name).mkdir()
    with pytest.raises(
            ValueError,
            match=r"'cafe\\u0301' and 'caf\\xe9' in .* differ only in their Unicode normalisation; merge them"):
        ImageFolder.scan(tmp_path)
    assert shown("caf\u00e9", ["cafe\u0301"]) == r"'caf\xe9'" and shown("caf\u00e9",
                                                                        ["tea", "caf\u00e9"]) == "'caf\u00e9'"


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_names_under_another_locale(folder, monkeypatch, encoding):
    """A UTF-8 name is not called anything else where the locale has another encoding."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    name = "caf\u00e9".encode().decode(encoding, "surrogateescape")
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode(encoding, "surrogateescape"))
    assert folders._name_problem("plain.png") is None
    assert folders._name_problem(
        name) == f"its name is UTF-8, but the locale's encoding is {encoding}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    assert folders._name_problem(b"\xff".decode(encoding, "surrogateescape")) == "its name is not UTF-8; rename it"


def test_scan_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder.scan(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        ImageFolder.scan(tmp_path / "file")
    with pytest.raises(ValueError, match="no class folders"):
        ImageFolder.scan(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no images"):
        ImageFolder.scan(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        ImageFolder.scan(tmp_path)


@pytest.mark.parametrize("template, label, prompt", [
    ("a photo of a {}", "ankle_boot", "a photo of an ankle boot"), ("a photo of an {}", "coat", "a photo of a coat"),
    ("A {}", "Übung", "A Übung"), ("A  {}", "Ewer", "An  Ewer"), ("{}, a photo", "t-shirt", "t-shirt, a photo"),
    ("the pasta {}", "elbow", "the pasta elbow"), ("a photo of a big {}", "ant", "a photo of a big ant"),
    ("a {} in {x} %s", "__soccer___ball_", "a soccer ball in {x} %s")])
def test_templates(template, label, prompt):
    assert fill_template(template, label) == prompt


def test_class_words():
    assert class_words("Faces_easy") == "Faces easy" and class_words("t-shirt") == "t-shirt"


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a { }", ""])
def test_template_refusals(folder, template):
    with pytest.raises(ValueError, match="template: .* must hold {} once"):
        prompts_from_template(folder, template)


def prompt_lines(folder, **changes):
    rows = {i.key: {"file_name": i.key, "text": f"text of {i.name}"} for i in folder.images}
    rows.update(changes)
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows.values() if r)


def test_prompt_file(folder, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\ufeff"
                    + prompt_lines(folder, **{"a/x.webp": {"file_name": "x.webp", "text": "Größe 猫", "other": 1}})
                    + "\n\n")
    prompts = prompts_from_file(folder, path)
    assert prompts["a/x.webp"] == "Größe 猫" and prompts["b_b/2.png"] == "text of 2.png" and len(prompts) == 5


@pytest.mark.parametrize("line, message", [({"file_name": "c/none.png", "text": "x"}, "line 6 names 'c/none.png'"),
                                           ({"file_name": "../a/x.webp", "text": "x"}, "line 6 names"),
                                           ({"file_name": "/etc/passwd", "text": "x"}, "line 6 names"),
                                           ({"file_name": "a/x.webp", "text": "x"}, "second text"),
                                           ({"file_name": "a/x.webp"}, "line 6 must have"),
                                           ({"file_name": 3, "text": "x"}, "line 6 must have"),
                                           ("[1]", "line 6 is no JSON object"), ("{", "line 6 is no JSON object"),
                                           ("[" * 100_000, "line 6 is no JSON object"),
                                           ("9" * 10_000, "line 6 is no JSON object"),
                                           ("9" * (1 << 20 | 1), "line 6 is longer than the 1 MiB"),
                                           ('{"file_name": "a/x.webp", "text": "\\ud800"}', "surrogate")])
def test_prompt_file_refusals(folder, tmp_path, line, message):
    (tmp_path / "prompts.jsonl").write_text(prompt_lines(folder, last=line))
    with pytest.raises(ValueError, match=message):
        prompts_from_file(folder, tmp_path / "prompts.jsonl")


def test_prompt_file_must_cover_every_image_and_be_unambiguous(folder, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(prompt_lines(folder, **{"a/x.webp": None, "b_b/2.png": None}))
    with pytest.raises(ValueError, match="no line for 2 of the 5 images; the first is 'a/x.webp'"):
        prompts_from_file(folder, path)
    (folder.root / "a/2.png").write_bytes((folder.root / "b_b/2.png").read_bytes())
    again = ImageFolder.scan(folder.root)
    path.write_text(prompt_lines(again, **{"a/2.png": {"file_name": "2.png", "text": "x"}}))
    with pytest.raises(ValueError, match="several classes; write it as 'a/2.png'"):
        prompts_from_file(again, path)
    with pytest.raises(FileNotFoundError):
        prompts_from_file(folder, tmp_path / "none.jsonl")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="line 1"):
        prompts_from_file(folder, path)


def test_own_prompt_file_is_found_by_its_text_field(folder):
    assert own_prompt_files(folder) == []
    (folder.root / "metadata.jsonl").write_text('{"file_name": "a/x.webp", "score": 1}\n')
    assert own_prompt_files(folder) == []
    (folder.root / "metadata.jsonl").write_text(prompt_lines(folder))
    assert own_prompt_files(folder) == [folder.root / "metadata.jsonl"]


def captions(folder, column="text"):
    return {image.key: f"{column} of {image.key}" for image in folder.images}


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["root", "classes"])
def test_captions_of_the_data_set_are_honoured(folder, column, kind, place):
    """Also those in CSV, in class folders, and under other names."""
    for top in [""] if place == "root" else ["a/", "b_b/"]:
        rows = [{"file_name": key.removeprefix(top), "other": 1, column: text}
                for key, text in captions(folder, column).items() if key.startswith(top)]
        with open(folder.root / top / f"metadata.{kind}", "w", newline="") as file:
            if kind == "csv":
                table = csv.DictWriter(file, rows[0])
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    chosen = choose_prompts(ImageFolder.scan(folder.root))
    assert chosen.texts == captions(folder, column) and list(chosen.source) == ["prompts_sha256"] and chosen.notes == ()
    assert choose_prompts(folder, template="a {}").texts["a/x.webp"] == "an a"


def test_metadata_that_gives_no_prompts_is_named(folder):
    (folder.root / "metadata.jsonl").write_text('{"file_name": "a/x.webp", "description": "x"}\n')
    (folder.root / "metadata.parquet").write_bytes(b"PAR1")
    chosen = choose_prompts(folder)
    assert chosen.texts["a/x.webp"] == "a photo of an a" and chosen.source == {"template": "a photo of a {}"}
    assert "has no column text, caption or prompt" in chosen.notes[
        0] and "metadata.parquet is not read" in chosen.notes[1]
    (folder.root / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="has both metadata.jsonl and metadata.csv; keep one of them"):
        choose_prompts(folder)


def test_captions_for_a_part_of_the_images_are_refused(folder):
    (folder.root / "a/metadata.csv").write_text("file_name,text\nx.webp,one\ny.bmp,two\n")
    with pytest.raises(ValueError, match="a/metadata.csv has no line for 3 of the 5 images; the first is 'a/z.tiff'"):
        choose_prompts(folder)


@pytest.mark.parametrize(
    "content",
    ["file_name,text\nx.webp,one,two\n", "file_name,text\nx.webp\n", 'file_name,text\n"x.webp,one\n', "\xff"])
def test_damaged_csv(folder, content):
    (folder.root / "prompts.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="is not CSV with as many fields as its first line names"):
        prompts_from_file(folder, folder.root / "prompts.csv")


def classes_in(root, *labels):
    for label in labels:
        (root / label).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(root / label / "x.png")
    return ImageFolder.scan(root)


@pytest.mark.parametrize(
    "labels, prompts", [(["001.Black_footed_Albatross", "002.Laysan_Albatross"
                          ], ["a photo of a Black footed Albatross", "a photo of a Laysan Albatross"]),
                        (["NORMAL", "PNEUMONIA"], ["a photo of a normal", "a photo of a pneumonia"]),
                        (["BMW", "VW_Golf"], ["a photo of a BMW", "a photo of a VW Golf"]),
                        (["daisy", "roses", "tulips"], ["a photo of a daisy", "a photo of roses", "a photo of tulips"]),
                        (["1_cat", "2_dog"], ["a photo of a cat", "a photo of a dog"]),
                        (["2-door", "4-door"], ["a photo of a 2-door", "a photo of a 4-door"]),
                        (["3-piece_suit", "tie"], ["a photo of a 3-piece suit", "a photo of a tie"]),
                        (["0", "1"], ["a photo of a 0", "a photo of a 1"]),
                        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"
                          ], ["a photo of a Chihuahua", "a photo of a Japanese spaniel"]),
                        (["AnnualCrop", "McLaren"], ["a photo of an annual crop", "a photo of a McLaren"]),
                        (["pair_of_scissors", "scissors", "dress", "cactus", "iris"], [
                            "a photo of a cactus", "a photo of a dress", "a photo of an iris",
                            "a photo of a pair of scissors", "a photo of scissors"
                        ])])
def test_prompts_from_folder_names(tmp_path, labels, prompts):
    found = prompts_from_template(classes_in(tmp_path, *labels))
    assert [found[f"{label}/x.png"] for label in sorted(labels)] == prompts


def test_classes_json_says_what_a_class_is(tmp_path):
    folder = classes_in(tmp_path, "NORMAL", "a_b")
    before = choose_prompts(folder)
    (tmp_path / "classes.json").write_text('{"NORMAL": "healthy chest, an  X-ray"}')
    assert class_names(folder) == {"NORMAL": "healthy chest, an X-ray", "a_b": "a b"}
    after = choose_prompts(folder)
    assert after.texts == {"NORMAL/x.png": "a photo of a healthy chest, an X-ray", "a_b/x.png": "a photo of an a b"}
    assert before.source == {"template": "a photo of a {}"} and after.source.keys() == {"template", "prompts_sha256"}


@pytest.mark.parametrize("content, message",
                         [("{", "cannot be read as JSON"), ("[" * 100_000, "cannot be read as JSON"),
                          ("[]", "must be an object"), ('{"cat": 1}', "must be an object"),
                          ('{"cat": " "}', "must be an object"), ('{"cat": "\\ud800"}', "must be an object"),
                          ('{"dog": "a dog"}', "names 'dog', which is no class folder")])
def test_classes_json_refusals(tmp_path, content, message):
    folder = classes_in(tmp_path, "cat")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        choose_prompts(folder)

def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decoding_of_every_mode():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (6, 9, 3), np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(rgb))), rgb)
    gray = decode_image(encoded(Image.fromarray(rgb[..., 0])))
    assert np.array_equal(gray, rgb[..., :1].repeat(3, 2))
    deep = rgb[..., 0].astype(np.uint16) * 257
    assert np.array_equal(decode_image(encoded(Image.fromarray(deep))), gray)
    assert np.array_equal(decode_image(encoded(Image.fromarray(deep), "TIFF")), gray)
    assert np.array_equal(decode_image(encoded(Image.fromarray(rgb).quantize(), "PNG")),
                          np.array(Image.fromarray(rgb).quantize().convert("RGB")))
    alpha = np.dstack([rgb, np.zeros((6, 9), np.uint8)])
    alpha[0, 0, 3] = 255
    white = np.full_like(rgb, 255)
    white[0, 0] = rgb[0, 0]
    assert np.array_equal(decode_image(encoded(Image.fromarray(alpha))), white)
    assert decode_image(encoded(Image.fromarray(alpha, "CMYK"), "JPEG")).shape == rgb.shape
    assert decode_image(encoded(Image.fromarray(rgb).convert("1"))).shape == rgb.shape
    with pytest.raises(BrokenImageError, match="32-bit"):
        decode_image(encoded(Image.fromarray(rgb[..., 0].astype(np.float32)), "TIFF"))


def test_exif_orientation_and_plain_resize():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_image(encoded(Image.fromarray(rgb), exif=exif)), np.rot90(rgb, -1))
    small = decode_image(encoded(Image.fromarray(rgb)), (4, 4))
    assert np.array_equal(small, np.array(Image.fromarray(rgb).resize((4, 4), Image.Resampling.BICUBIC)))


def stripes(height, width):
    """Red rises with the column and green with the row, so that a pixel tells where it came from."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1),
                      np.zeros_like(rows)]).astype(np.uint8)


def test_fit_crops_the_centre():
    wide = stripes(20, 60)
    assert np.array_equal(fit(wide, (20, 20)), wide[:, 20:40])                       # nothing to resample
    assert np.array_equal(fit(wide.transpose(1, 0, 2), (20, 20)), wide[:, 20:40].transpose(1, 0, 2))
    middle = fit(wide, (10, 10)).astype(int)
    assert 85 <= middle[:, 0, 0].min() <= 92 and 163 <= middle[:, -1, 0].max() <= 170 and middle[-1, 0, 1] > 240
    # the same aspect ratio: nothing is cut
    assert np.array_equal(fit(wide, (10, 30)), fit(wide, (10, 30), "squash"))


def test_fit_pads_with_the_mirror_image():
    wide = stripes(20, 60)
    padded = fit(wide, (60, 60), "pad")
    assert np.array_equal(padded[20:40], wide) and np.array_equal(padded[:20], wide[::-1]) and np.array_equal(
        padded[40:], wide[::-1])
    assert fit(stripes(1, 500), (8, 8), "pad").shape == (8, 8, 3)                     # one row, repeated
    assert np.array_equal(fit(wide, (10, 30), "pad"), fit(wide, (10, 30), "squash"))


def test_fit_squashes_as_the_authors_do_and_refuses_other_words():
    wide = stripes(20, 60)
    assert np.array_equal(fit(wide, (16, 16), "squash"),
                          np.array(Image.fromarray(wide).resize((16, 16), Image.Resampling.BICUBIC)))
    assert fit(wide, (20, 60), "crop") is wide
    with pytest.raises(ValueError, match="fit must be crop, pad or squash; it is 'stretch'"):
        fit(wide, (16, 16), "stretch")


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 40)] * 4, st.sampled_from(["crop", "pad", "squash"]))
def test_fit_gives_any_size(rows, columns, height, width, how):
    flat = np.full((rows, columns, 3), 77, np.uint8)
    assert (fit(flat, (height, width), how) == 77).all() and fit(flat, (height, width), how).shape == (height, width, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_are_broken_images(tmp_path):
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(bytes(1000)))
    large = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9_500, 9_500, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(bytes(1000)))
    good = encoded(Image.new("RGB", (64, 64), "red"), "JPEG")
    for data in (b"", b"\x89PNG", bomb, large, good[:-200], good[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(BrokenImageError):
            read_image(tmp_path / "x.png", (8, 8))
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "dangling", "device", "missing"):
        with pytest.raises(BrokenImageError):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]), st.integers(0, 10_000), st.binary(min_size=1,
                                                                                                  max_size=6),
       st.integers(0, 10_000))
def test_damaged_files_give_pixels_or_a_broken_image(kind, at, patch, length):
    data = bytearray(encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)), kind))
    at %= len(data)
    data[at: at + len(patch)] = patch
    try:
        pixels = decode_image(bytes(data[: max(1, length % (2 * len(data)))]), (8, 8))
    except BrokenImageError:
        return
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8


def test_bundled_images():
    bundled = load_bundled()
    assert bundled.seeds.shape == (100, 32, 32, 3) and bundled.test.shape == (1000, 32, 32,
                                                                              3) and bundled.seeds.dtype == np.uint8
    assert np.array_equal(np.bincount(bundled.seed_labels), [10] * 10) and np.array_equal(
        np.bincount(bundled.test_labels), [100] * 10)
    assert bundled.class_names[9] == "ankle boot" and len(bundled.class_names) == 10
    hashes = [hashlib.sha256(x.tobytes()).digest() for x in np.concatenate([bundled.seeds, bundled.test])]
    assert len(set(hashes)) == 1100
    assert not bundled.seeds[:, :2].any() and bundled.seeds.mean() > 20
    with pytest.raises(ValueError, match="fashion-mini"):
        load_bundled("imagenet")
