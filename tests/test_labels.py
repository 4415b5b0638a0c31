"""Annotated data sets: read, made larger and written in COCO, YOLO, Pascal VOC and masks."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import dreamda
from dreamda import cli, distributed
from dreamda.data.annotations import READERS, coco, yolo
from dreamda.data.annotations.crops import write_crops
from dreamda.generation.options import GenerationOptions
from dreamda.runs.generate import generate_dataset
from dreamda.runs.manifest import read_manifest

SIZES = {"a.png": (40, 56), "b.png": (40, 56), "deep/a.png": (32, 48), "empty.png": (36, 36)}  # height, width
BOX = (10, 8, 20, 16)  # x, y, width, height, of the coat in every image but the last
POLYGON = [10, 8, 30, 8, 30, 24, 20, 24, 10, 20]


def outline(size, box=BOX):
    mask = np.zeros(size, bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


def picture(size, seed):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


def write_images(root):
    for seed, (name, size) in enumerate(SIZES.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(size, seed).save(root / name)
    return root


def write_coco(folder, names=tuple(SIZES), kind="polygon"):
    images = [{"id": 10 + i, "file_name": name, "height": SIZES[name][0], "width": SIZES[name][1], "licence": "x"}
              for i, name in enumerate(names)]
    segmentation = {"polygon": lambda size: [POLYGON], "box": lambda size: None,
                    "runs": lambda size: {"size": list(size), "counts": runs(outline(size))}}[kind]
    annotations = [{"id": 7 * i, "image_id": 10 + i, "category_id": 90, "bbox": list(BOX), "iscrowd": 0, "area": 320,
                    "extra": "kept", "segmentation": segmentation(SIZES[name])}
                   for i, name in enumerate(names) if name != "empty.png"]
    top = {"info": {"year": 2026}, "images": images, "annotations": annotations,
           "categories": [{"id": 90, "name": "coat"}]}
    path = folder / "instances.json"
    path.write_text(json.dumps(top))
    return path


def runs(mask):
    """Uncompressed run lengths, column by column, from the format's definition."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def write_yolo(folder):
    for name, (height, width) in SIZES.items():
        if name == "empty.png":
            continue
        path = folder / "labels" / Path(name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        x, y, w, h = BOX
        box = f"1 {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
        points = " ".join(str(v / (height if i % 2 else width)) for i, v in enumerate(POLYGON))
        path.write_text(box + f"0 {points}\n")
    (folder / "data.yaml").write_text("path: ..\ntrain: images\nnc: 2\nnames:\n  0: coat  # the "
                                      "first\n  1: 'ankle boot'\n")
    return folder / "data.yaml"


def write_voc(folder):
    for name, (height, width) in SIZES.items():
        path = folder / "Annotations" / Path(name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        thing = ("<object><name>coat</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>9</ymin><xmax>30</xmax>"
                 "<ymax>24</ymax></bndbox></object>") * (name != "empty.png")
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path.write_text(f"<annotation><folder>x</folder><filename>{Path(name).name}</filename><path>/home/x</path>"
                        f"{size}{thing}</annotation>")
    return folder


def write_masks(folder, kind="palette"):
    for name, size in SIZES.items():
        path = folder / "masks" / Path(name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = outline(size).astype(np.uint8) * (name != "empty.png")
        if kind == "sixteen":
            image = Image.fromarray(values.astype(np.uint16) * 1000)
        else:
            values[0, :] = 255
            image = Image.fromarray(values)
        if kind == "palette":
            image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(path)
    return folder / "masks"


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "masks": write_masks}


@pytest.fixture(scope="module")
def pipe():
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2)


@pytest.fixture
def real(tmp_path):
    return write_images(tmp_path / "photos")


def tree(folder):
    """Everything in a folder, but for what is said of places."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "run.json"}


def generate(labels, out, pipe, keep="objects", **arguments):
    options = GenerationOptions(variants=2, steps=2, seed=3)
    return generate_dataset(labels.folder(keep), out, pipe, options, prompts=labels.prompts(),
                            prompt_source={"template": "a photo of {}"}, model="fashion-mini", **arguments)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_data_set_becomes_a_larger_one_in_the_same_format(tmp_path, real, pipe, kind):
    """Nothing is lost, doubled or renamed; what is labelled is the source's to the pixel, and so are the labels."""
    path = WRITERS[kind](tmp_path)
    source = READERS[kind](path, real)
    assert source.problems == [] and source.names == sorted(SIZES)
    out = tmp_path / "out"
    report = generate(source, out, pipe)
    assert (report.made, report.skipped, report.notes) == (8, [], [])
    where = {"coco": "annotations.json", "yolo": "data.yaml", "voc": "", "masks": "masks"}[kind]
    made = READERS[kind](out / where, out / "images")
    assert made.problems == []
    empty = {"coco": out / where, "yolo": out / "labels"}.get(kind)  # the formats whose note tells of such images
    assert made.notes == ([f"2 of 8 images have no objects in {empty}; the first is empty-000.png"] if empty else [])
    rows = read_manifest(out)
    assert sorted(row["file_name"] for row in rows) == sorted(f"images/{name}"
                                                              for name in made.names) and len(rows) == 8
    for row in rows:
        name, seed = row["file_name"].removeprefix("images/"), row["seed_file"].removeprefix("images/")
        pixels, before = (np.asarray(Image.open(p).convert("RGB")) for p in (out / row["file_name"], real / seed))
        assert pixels.shape == before.shape == (*SIZES[seed], 3)
        was, now = source.things(seed), made.things(name)
        assert [(t.category, t.box, t.ignored) for t in was] == [(t.category, t.box, t.ignored) for t in now]
        mask = source.mask(seed)
        assert np.array_equal(mask, made.mask(name)) and mask.any() == (seed != "empty.png" or kind == "masks")
        assert np.array_equal(pixels[mask], before[mask])
        assert np.abs(pixels.astype(int) - before)[~mask].mean() > 2


def test_what_is_written_is_what_the_formats_say(tmp_path, real, pipe):
    outs = {}
    for kind, write in WRITERS.items():
        outs[kind] = tmp_path / f"out-{kind}"
        generate(READERS[kind](write(tmp_path), real), outs[kind], pipe)
    top = json.loads((outs["coco"] / "annotations.json").read_text())
    assert top["info"] == {"year": 2026} and top["categories"] == [{"id": 90, "name": "coat"}]
    assert [image["id"] for image in top["images"]] == list(range(1, 9))
    assert {image["file_name"] for image in top["images"]} == {path.name
                                                               for path in (outs["coco"] / "images").iterdir()}
    assert [a["id"] for a in top["annotations"]] == list(range(1, 7))
    assert all(a["bbox"] == list(BOX) and a["extra"] == "kept" and a["segmentation"] == [POLYGON]
               for a in top["annotations"])
    assert {a["image_id"] for a in top["annotations"]} == {i["id"] for i in top["images"]
                                                           if "empty" not in i["file_name"]}
    assert (outs["yolo"] / "data.yaml").read_text() == (
        'train: images\nval: images\nnc: 2\nnames:\n  0: "coat"\n  1: "ankle boot"\n')
    stems = {path.stem for path in (outs["yolo"] / "images").iterdir()}
    assert {path.stem for path in (outs["yolo"] / "labels").iterdir()} == stems
    assert (outs["yolo"] / "labels/b-001.txt").read_text() == (tmp_path / "labels/b.txt").read_text()
    assert (outs["yolo"] / "labels/empty-000.txt").read_text() == ""
    root = ElementTree.parse(outs["voc"] / "Annotations/b-000.xml").getroot()
    assert (root.findtext("folder"), root.findtext("filename"), root.find("path")) == ("images", "b-000.png", None)
    assert root.findtext("object/bndbox/xmax") == "30"
    mask = Image.open(outs["masks"] / "masks/b-001.png")
    assert mask.mode == "P" and mask.getpalette()[:6] == [0, 0, 0, 255, 0, 0]


def test_interruptions_shards_and_replay_give_the_same_bytes(tmp_path, real, pipe):
    labels = coco(write_coco(tmp_path), real)
    generate(labels, tmp_path / "whole", pipe)
    generate(labels, tmp_path / "parts", pipe, most=3)
    assert len(coco(tmp_path / "parts/annotations.json", tmp_path / "parts/images").names) == 3
    for i in (1, 0):
        generate(labels, tmp_path / "parts", pipe, shard=(i, 2))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    code = cli.main(["replay", str(tmp_path / "whole"), "--out", str(tmp_path / "again"), "--threads", "2"])
    assert code == 0 and tree(tmp_path / "again") == tree(tmp_path / "whole")
    (tmp_path / "instances.json").write_text((tmp_path / "instances.json").read_text() + " ")
    with pytest.raises(ValueError, match="content of the annotations"):
        generate(coco(tmp_path / "instances.json", real), tmp_path / "whole", pipe)
    assert cli.main(["replay", str(tmp_path / "whole")]) == 2


def test_annotations_are_those_of_the_images_that_are_there(tmp_path, real, pipe):
    labels, out = coco(write_coco(tmp_path), real), tmp_path / "out"
    generate(labels, out, pipe)
    before = tree(out)
    (out / "images/b-000.png").unlink()
    generate(labels, out, pipe, shard=(0, 2))  # b.png is in the other part
    assert coco(out / "annotations.json", out / "images").problems == []
    assert "b-000.png" not in (out / "annotations.json").read_text()
    generate(labels, out, pipe)
    assert tree(out) == before


def test_a_worker_of_a_cluster_makes_the_same(tmp_path, real, pipe):
    """What `--engine ray` runs on a machine, without the cluster."""
    def stream(take, settings, stop, within):
        worker = distributed._Worker("fashion-mini", {"dtype": "f32", "threads": 2})
        while piece := take(1):
            yield piece, worker.make(piece.images, piece.prompts, piece.keys, piece.first, piece.options(settings),
                                     piece.around)[0]

    labels = coco(write_coco(tmp_path), real)
    generate(labels, tmp_path / "here", pipe)
    generate(labels, tmp_path / "there", pipe, engine=stream)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_the_command(tmp_path, real, capsys):
    path = write_coco(tmp_path, kind="box")
    arguments = ["generate", str(real), "--out", str(tmp_path / "out"), "--model", "fashion-mini", "--variants", "1",
                 "--steps", "2", "--threads", "2", "--coco", str(path), "--keep", "background"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert "4 images of their own sizes" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--preview", "2"]) == 0
    assert (tmp_path / "out-preview.png").is_file()
    assert cli.main(arguments) == 0
    assert '"a photo of a coat"' in capsys.readouterr().out
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert (run["labels"], run["keep"], run["labels_path"]) == ("coco", "background", "../instances.json")
    page = tmp_path / "page.html"
    assert cli.main(["report", str(real), str(tmp_path / "out"), "--out", str(page)]) == 0
    assert "4 synthetic images from 4 real ones" in page.read_text()
    assert "<td>coat</td><td>3</td><td>3</td>" in page.read_text()
    assert cli.main([*arguments[:-1], "objects"]) == 2
    assert "--keep 'background' (now 'objects')" in capsys.readouterr().err


@pytest.mark.parametrize("extra, said", [
    (["--keep", "objects"], "add --coco, --yolo, --voc or --masks"),
    (["--masks", "{masks}", "--out", "{masks}/new"], "lies in the folder of annotations"),
    (["--coco", "{path}", "--min-visibility", "0.5"], "--min-visibility: has no effect without --compose"),
    (["--coco", "{path}", "--verify-action", "flag"], "--verify-action: has no effect without --verify"),
    (["--coco", "{empty}"], "no annotation fits an image in"),
    (["--coco", "{path}", "--keep", "all"], "--keep must be objects, background or none"),
    (["--coco", "{path}", "--masks", "."], "exclude each other"),
    (["--coco", "nowhere.json"], "nowhere.json: no such file or folder"),
    (["--yolo", "{path}"], "no 'names' that can be read"),
    (["--voc", "{path}"], "is a file; give the folder"),
])
def test_wrong_use_is_refused_and_nothing_written(tmp_path, real, capsys, extra, said):
    path, empty, masks = write_coco(tmp_path), tmp_path / "empty.json", write_masks(tmp_path)
    empty.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    code = cli.main(["generate", str(real), "--out", str(tmp_path / "out"), "--model", "fashion-mini",
                     *(word.format(path=path, empty=empty, masks=masks) for word in extra)])
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (masks / "new").exists()


@pytest.mark.parametrize("kind, inside", [("coco", "photos"), ("voc", "photos"), ("voc", "Annotations"),
                                          ("yolo", "labels"), ("masks", "masks")])
def test_nothing_is_written_among_the_images_or_the_annotations(tmp_path, real, pipe, kind, inside):
    labels, out = READERS[kind](WRITERS[kind](tmp_path), real), tmp_path / inside / "new"
    for write in (lambda: write_crops(labels, out), lambda: generate(labels, out, pipe)):
        with pytest.raises(ValueError, match=f"lies in the .* {tmp_path / inside}"):
            write()
        assert not out.exists()
