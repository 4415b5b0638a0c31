"""A classifier of crops judges the objects in new labelled images; annotations are also written during a run."""

import json

import numpy as np
import pytest
from PIL import Image
from test_labels import tree

import dreamda
from dreamda import cli
from dreamda.data.annotations import READERS, Composition, coco
from dreamda.data.annotations.crops import crop, write_crops
from dreamda.data.folders import ImageRef
from dreamda.generation.options import GenerationOptions
from dreamda.runs import output
from dreamda.runs.generate import generate_dataset
from dreamda.runs.manifest import read_manifest
from dreamda.runs.verify import Verifier
from dreamda.training.saved import TrainedModel

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}
BOXES = {"red": (6, 8, 14, 12), "blue": (30, 10, 16, 16)}  # x, y, width, height
SIZE = (40, 56)


@pytest.fixture
def real(tmp_path):
    """Images with a red and a blue rectangle; COCO, YOLO and masks of 8 bits say so."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "masks").mkdir()
    images, annotations = [], []
    for i in range(3):
        pixels, mask = np.full((*SIZE, 3), 120 + 10 * i, np.uint8), np.zeros(SIZE, np.uint8)
        lines = []
        for number, (name, (x, y, w, h)) in enumerate(BOXES.items()):
            pixels[y : y + h, x : x + w], mask[y : y + h, x : x + w] = COLOURS[name], number + 1
            annotations.append({"id": len(annotations), "image_id": i, "category_id": number, "bbox": [x, y, w, h],
                                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h})
            lines.append(f"{number} {(x + w / 2) / 56} {(y + h / 2) / 40} {w / 56} {h / 40}\n")
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
        (tmp_path / f"labels/{i}.txt").write_text("".join(lines))
        images.append({"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]})
    categories = [{"id": number, "name": name} for number, name in enumerate(BOXES)]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations,
                                                        "categories": categories}))
    (tmp_path / "data.yaml").write_text("names: [red, blue]\n")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def pipe():
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2)


@pytest.fixture
def by_colour(monkeypatch, tmp_path):
    """A classifier that looks at the colour in the middle, as a file that only its digest is read from."""
    model = TrainedModel("resnet18", "small", 8, (32, 32), (0.5,) * 3, (0.5,) * 3, ["blue", "red", "green"], {})

    def predict(images, **_):
        means = [image[len(image) // 3 : -(len(image) // 3)].mean((0, 1)) for image in images]
        rows = [[blue, red, 0] if abs(red - blue) > 90 else [0, 0, 1] for red, _, blue in means]
        return np.array(rows, np.float32)

    monkeypatch.setattr(model, "predict_proba", predict)
    monkeypatch.setattr(TrainedModel, "load", lambda path: model)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    return tmp_path / "model.safetensors"


def painted(pixels, box, colour):
    x, y, w, h = box
    pixels = pixels.copy()
    pixels[y - 2 : y + h + 2, x - 2 : x + w + 2] = colour
    return pixels


def test_what_was_recognised_and_no_longer_is_counts_as_lost(tmp_path, real, by_colour):
    folder = coco(tmp_path / "instances.json", real).folder()
    verify, image = Verifier(by_colour, folder, 0), ImageRef("images", "1.png")
    before = np.asarray(Image.open(real / "1.png"))
    assert verify(image, 0, before) == {"recognised": 2, "not_judged": 0, "lost": []}
    grey = painted(before, BOXES["blue"], 128)
    assert verify(image, 0, grey) == {"recognised": 1, "not_judged": 0, "lost": [{"number": 1, "category": "blue"}]}
    Image.fromarray(grey).save(real / "1.png")  # now the real one is not recognised either
    assert Verifier(by_colour, folder, 0)(image, 0, before) == {"recognised": 1, "not_judged": 1, "lost": []}


def generate(labels, out, pipe, verify=None, action="drop", keep="background", composition=None, **arguments):
    options = GenerationOptions(variants=2, steps=2, seed=3)
    folder = labels.folder(keep, composition)
    return generate_dataset(folder, out, pipe, options, model="fashion-mini",
                            verify=verify and Verifier(verify, folder, options.seed, action), **arguments)


@pytest.mark.parametrize("kind, path", [("coco", "instances.json"), ("yolo", "data.yaml"), ("masks", "masks")])
@pytest.mark.parametrize("action", ["drop", "flag"])
def test_annotations_of_lost_objects_are_dropped_or_flagged(tmp_path, real, pipe, by_colour, monkeypatch, kind, path,
                                                            action):
    if kind == "masks":  # their categories are the values
        monkeypatch.setattr(TrainedModel.load(by_colour), "classes", ["2", "1", "green"])
    source, out = READERS[kind](tmp_path / path, real), tmp_path / "out"
    report = generate(source, out, pipe, by_colour, action)
    made, rows = source.read_back(out), read_manifest(out)
    assert report.lost == sum(len(row["lost"]) for row in rows) > 0  # a greyscale model makes no red and no blue
    for row in rows:
        things = made.things(row["file_name"].removeprefix("images/"))
        gone = {each["category"] for each in row["lost"]}
        left = {thing.category for thing in things if not thing.ignored}
        assert left == ({"1", "2"} if kind == "masks" else set(BOXES)) - (gone if action == "drop" else set())
        assert row["recognised"] + row["not_judged"] + len(row["lost"]) == 2
        assert any(t.ignored for t in things) == (kind == "masks" and action == "drop" and bool(gone))
    assert generate(source, out, pipe, by_colour, action).made == 0
    with pytest.raises(ValueError, match="--verify-action"):
        generate(source, out, pipe, by_colour, "flag" if action == "drop" else "drop")
    with pytest.raises(ValueError, match="--verify model"):
        generate(source, out, pipe)


def test_shards_and_replay_give_the_same_bytes(tmp_path, real, pipe, by_colour):
    labels, two = coco(tmp_path / "instances.json", real), Composition(compose=2)
    generate(labels, tmp_path / "whole", pipe, by_colour, keep="objects", composition=two)
    for i in (1, 0):
        generate(labels, tmp_path / "parts", pipe, by_colour, keep="objects", composition=two, shard=(i, 2))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert sum(row["recognised"] for row in read_manifest(tmp_path / "whole")) >= 12
    code = cli.main(["replay", str(tmp_path / "whole"), str(real), "--labels", str(tmp_path / "instances.json"),
                     "--out", str(tmp_path / "again"), "--threads", "2"])
    assert code == 0 and tree(tmp_path / "again") == tree(tmp_path / "whole")


@pytest.mark.parametrize("box, size", [((2, 2, 10, 10), (12, 12)), ((0, 0, 10, 20), (11, 22)), ((2, 2, 7, 30), None),
                                       ((30, 30, 20, 20), (12, 12)), ((-4, -4, 9, 9), None)])
def test_a_crop_has_a_margin_within_the_image(box, size):
    part = crop(np.zeros((40, 40, 3), np.uint8), box)
    assert (part is None) == (size is None) and (part is None or part.shape[:2] == size[::-1])


def test_crops_are_class_folders(tmp_path, real, capsys):
    labels = coco(tmp_path / "instances.json", real)
    report = write_crops(labels, tmp_path / "crops")
    assert (report.counts, report.small, report.skipped) == ({"red": 3, "blue": 3}, 0, [])
    x, y, w, h = BOXES["red"]
    with Image.open(tmp_path / "crops/red/2.png-0.png") as image:
        assert image.size == (w + 2, h + 2) and image.getpixel((3, 3)) == COLOURS["red"]
    with pytest.raises(ValueError, match="is there already"):
        write_crops(labels, tmp_path / "crops")
    assert cli.main(["crops", str(real), "--out", str(tmp_path / "cli"), "--yolo", str(tmp_path / "data.yaml")]) == 0
    assert "6 objects of 2 classes" in capsys.readouterr().out
    assert tree(tmp_path / "cli") == tree(tmp_path / "crops")
    assert cli.main(["crops", str(real), "--out", str(tmp_path / "other")]) == 2
    assert "add --coco" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_categories_that_share_a_folder_are_refused(tmp_path, real):
    text = (tmp_path / "instances.json").read_text().replace('"red"', '"a b"').replace('"blue"', '"a_b"')
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(ValueError, match="share the class folder 'a_b'"):
        write_crops(coco(tmp_path / "instances.json", real), tmp_path / "crops")
    assert not (tmp_path / "crops").exists()


def test_the_commands_from_crops_to_the_report(tmp_path, real, capsys):
    labels = ["--coco", str(tmp_path / "instances.json")]
    assert cli.main(["crops", str(real), "--out", str(tmp_path / "crops"), *labels]) == 0
    assert cli.main(["train", str(tmp_path / "crops"), "--out", str(tmp_path / "run"), "--method", "real-only",
                     "--epochs", "3", "--steps-per-epoch", "4", "--batch-size", "8", "--size", "16", "--width", "8",
                     "--validation", "0", "--threads", "2"]) == 0
    command = ["generate", str(real), "--out", str(tmp_path / "out"), "--model", "fashion-mini", "--variants", "1",
               "--steps", "2", "--threads", "2", "--keep", "background", "--verify", str(tmp_path / "run"), *labels]
    assert cli.main(command) == 0
    rows = read_manifest(tmp_path / "out")
    assert all(row["recognised"] + row["not_judged"] + len(row["lost"]) == 2 for row in rows)
    assert cli.main(["report", str(real), str(tmp_path / "out"), "--out", str(tmp_path / "page.html"), "--labels",
                     labels[1]]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "no longer recognises: their annotations were left out" in page and "no longer recognised</th>" in page
    capsys.readouterr()
    for wrong, said in ((["--verify-action", "hide"], "use drop or flag"),
                        (["--verify", str(tmp_path / "nowhere")], "nowhere: no such file")):
        assert cli.main([*command, *wrong]) == 2 and said in capsys.readouterr().err
    assert cli.main([*command[:-2]]) == 2 and "is for labelled images" in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(tmp_path, real, by_colour, monkeypatch):
    monkeypatch.setattr(TrainedModel.load(by_colour), "classes", ["cat", "dog"])
    with pytest.raises(ValueError, match="knows none of the categories"):
        Verifier(by_colour, coco(tmp_path / "instances.json", real).folder(), 0)


def test_annotations_are_written_during_a_run(tmp_path, real, pipe, monkeypatch):
    monkeypatch.setattr(output, "SECONDS_A_SAVE", -1e9)
    labels, there = coco(tmp_path / "instances.json", real), []

    def look(done, total):
        if (tmp_path / "out/annotations.json").is_file():
            there.append(len(json.loads((tmp_path / "out/annotations.json").read_text())["images"]))

    generate(labels, tmp_path / "out", pipe, keep="objects", composition=Composition(compose=1), progress=look)
    assert there and there[0] < 6 and there == sorted(there)
    assert len(labels.read_back(tmp_path / "out")) == 6
