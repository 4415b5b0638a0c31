"""Readers and writers of annotations: every form of them, turned images, and files from strangers."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamda.data.annotations import READERS, Frame, Made, Thing, coco, masks, voc, yolo
from dreamda.data.annotations.yolo import read_names
from dreamda.data.images import read_image

HEIGHT, WIDTH = 24, 36
VOC = (f"<annotation><filename>1.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>" +
       "{}</annotation>")
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "photos/1.png")
    return tmp_path / "photos"


def coco_file(folder, annotations, images=None, **more):
    images = [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}] if images is None else images
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "categories": [{"id": 3, "name": "cat"}], **more,
                                "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [2, 2, 9, 9], **a}
                                                for a in annotations]}))
    return path


def runs(mask):
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


# ---- what is read is written

numbers = st.floats(0, 1)
boxes = st.tuples(numbers, numbers, numbers, numbers).map(
    lambda b: [b[0] * WIDTH * 0.9, b[1] * HEIGHT * 0.9, 0.5 + b[2] * WIDTH, 0.5 + b[3] * HEIGHT])
polygons = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=8).map(
    lambda points: [round(v * side, 3) for x, y in points for v, side in ((x, WIDTH), (y, HEIGHT))])
regions = st.binary(min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH).map(
    lambda b: np.frombuffer(b, np.uint8).reshape(HEIGHT, WIDTH) > 127).filter(lambda mask: mask.any())
segmentations = st.one_of(st.none(), st.just([]), st.lists(polygons, min_size=1, max_size=3),
                          regions.map(lambda mask: {"size": [HEIGHT, WIDTH], "counts": runs(mask)}))


def same(one, other):
    return ((one.category, one.ignored) == (other.category, other.ignored)
            and np.allclose(one.box, other.box, atol=1e-3)
            and np.array_equal(one.region((HEIGHT, WIDTH)), other.region((HEIGHT, WIDTH))))


def again(labels, out, where):
    """The labels of a copy of the only image."""
    labels.write(out, [Made("copy.png", "1.png")])
    (out / "images").mkdir(exist_ok=True)
    Image.fromarray(read_image(labels.root / "1.png").pixels).save(out / "images/copy.png")
    made = READERS[labels.format](out / where, out / "images")
    assert made.problems == [] and made.names == ["copy.png"]
    return made.things("copy.png")


@FEW
@given(st.lists(st.tuples(boxes, segmentations, st.booleans()), max_size=4))
def test_coco_comes_back(tmp_path_factory, things):
    pytest.importorskip("pycocotools")
    folder = tmp_path_factory.mktemp("coco")
    (folder / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "photos/1.png")
    path = coco_file(folder, [{"bbox": b, "segmentation": s, "iscrowd": int(c)} for b, s, c in things])
    labels = coco(path, folder / "photos")
    assert labels.problems == [] and len(labels.things("1.png")) == len(things)
    for thing, (_, segmentation, _) in zip(labels.things("1.png"), things):
        if isinstance(segmentation, dict):
            assert runs(thing.mask) == segmentation["counts"]
    now = again(labels, folder / "out", "annotations.json")
    assert len(now) == len(things) and all(map(same, labels.things("1.png"), now))


@FEW
@given(st.lists(st.one_of(st.tuples(numbers, numbers, st.floats(0.02, 1), st.floats(0.02, 1)),
                          polygons.map(lambda p: [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(p)]).filter(
                              lambda p: min(np.ptp(p[::2]), np.ptp(p[1::2])) > 0)), max_size=4))
def test_yolo_comes_back(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("yolo")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images/1.png")
    (folder / "labels/1.txt").write_text("".join(f"0 {' '.join(map(repr, line))}\n" for line in lines))
    (folder / "data.yaml").write_text("names: [cat]\n")
    labels = yolo(folder / "data.yaml", folder / "images")
    assert labels.problems == [] and len(labels.things("1.png")) == len(lines)
    now = again(labels, folder / "out", "data.yaml")
    assert len(now) == len(lines) and all(map(same, labels.things("1.png"), now))


@FEW
@given(st.lists(st.tuples(st.integers(1, WIDTH), st.integers(1, HEIGHT), st.integers(0, WIDTH), st.integers(0, HEIGHT),
                          st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8)),
                max_size=4))
def test_voc_comes_back(tmp_path_factory, objects):
    folder = tmp_path_factory.mktemp("voc")
    (folder / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "photos/1.png")
    root = ElementTree.fromstring(VOC.format(""))
    for x, y, w, h, name in objects:
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = name
        box = ElementTree.SubElement(thing, "bndbox")
        for tag, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
            ElementTree.SubElement(box, tag).text = str(value)
    (folder / "1.xml").write_text(ElementTree.tostring(root, encoding="unicode"))
    labels = voc(folder, folder / "photos")
    things = labels.things("1.png")
    expected = [(name.strip(), (x - 1, y - 1, w + 1, h + 1)) for x, y, w, h, name in objects if name.strip()]
    assert [(t.category, t.box) for t in things] == expected
    now = again(labels, folder / "out", "")
    assert len(now) == len(things) and all(map(same, things, now))


@pytest.mark.parametrize("text, names", [
    ("names: [cat, dog]", ["cat", "dog"]), ("nc: 2\nnames: ['a, b', \"c: d\"]  # two", ["a, b", "c: d"]),
    ("names:\n- cat\n- traffic light\ntrain: x", ["cat", "traffic light"]),
    ("names:\n  0: cat\n  1: 'it''s'\n  # more\n  2: \"d\\u00e9j\\u00e0\"\n", ["cat", "it's", "déjà"]),
    ("names: {0: cat, 1: dog}", ["cat", "dog"]), ("names: [\n  cat,\n  dog # the last\n]\n", ["cat", "dog"]),
])
def test_the_names_of_a_data_yaml(tmp_path, text, names):
    assert read_names(tmp_path / "data.yaml", text.encode()) == dict(enumerate(names))


@pytest.mark.parametrize("text", ["", "names:", "names: cat", "names: [cat", "names: *anchor", "names: [a, [b]]",
                                  "names: []", "names:\n  0: cat\n  0: dog", "names: !!python/object:os.system [x]",
                                  "name: [cat]"])
def test_other_yaml_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="no 'names' that can be read"):
        read_names(tmp_path / "data.yaml", text.encode())


# ---- turned images

@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["box", "polygon", "counts", "text", "voc", "masks"])
def test_labels_turn_with_the_pixels(tmp_path, orientation, form):
    """A white rectangle in the stored pixels is where the labels say, in the image as it is shown."""
    if form in ("counts", "text"):
        pytest.importorskip("pycocotools")
    x, y, w, h = 4, 6, 20, 9
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[y : y + h, x : x + w] = 255
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photos/1.png", exif=exif)
    region, where = stored[..., 0] > 0, "annotations.json"
    if form == "voc":
        (tmp_path / "1.xml").write_text(VOC.format(
            f"<object><name>cat</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>"))
        labels, where = voc(tmp_path, tmp_path / "photos"), ""
    elif form == "masks":
        (tmp_path / "masks").mkdir()
        Image.fromarray(region.astype(np.uint16) * 700).save(tmp_path / "masks/1.png")
        labels, where = masks(tmp_path / "masks", tmp_path / "photos"), "masks"
    else:
        segmentation = {"box": lambda: None, "polygon": lambda: [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "counts": lambda: {"size": [HEIGHT, WIDTH], "counts": runs(region)},
                        "text": lambda: packed(region)}[form]()
        labels = coco(coco_file(tmp_path, [{"bbox": [x, y, w, h], "segmentation": segmentation}]), tmp_path / "photos")
    shown = read_image(tmp_path / "photos/1.png").pixels[..., 0] > 0
    assert labels.problems == [] and labels.size("1.png") == shown.shape
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    for thing in (*labels.things("1.png"), *again(labels, tmp_path / "out", where)):
        assert thing.box == (columns[0], rows[0], len(columns), len(rows))
        if form in ("counts", "text", "masks"):
            assert np.array_equal(thing.region(shown.shape), shown)
        if form == "polygon":
            drawn = thing.region(shown.shape)
            assert not (shown & ~drawn).any() and drawn.sum() <= (w + 4) * (h + 4)


def packed(region):
    tools = pytest.importorskip("pycocotools.mask")
    made = tools.encode(np.asfortranarray(region, np.uint8))
    return {"size": list(region.shape), "counts": made["counts"].decode()}


def test_annotations_of_the_shown_size_are_left_as_they_are(tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "photos/1.png", exif=exif)
    labels = coco(coco_file(tmp_path, [{"bbox": [1, 2, 3, 4]}]), tmp_path / "photos")
    assert labels.problems == [] and labels.things("1.png")[0].box == (1, 2, 3, 4)


def test_a_frame_turns_points_as_arrays():
    for orientation in range(1, 9):
        frame = Frame((HEIGHT, WIDTH), orientation)
        array = np.zeros((HEIGHT, WIDTH), bool)
        array[3, 5] = True
        (row, column), = np.argwhere(frame.array(array))
        assert frame.array(array).shape == frame.shown
        assert frame.points(np.array([[5.5, 3.5]])).tolist() == [[column + 0.5, row + 0.5]]


# ---- what is kept

def test_a_mask_is_of_objects_and_what_is_ignored_is_kept(photos, tmp_path):
    pytest.importorskip("pycocotools")
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:, :6] = True
    crowded = {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(crowd)}}
    labels = coco(coco_file(tmp_path, [{"segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]]}, crowded]), photos)
    kept, new = labels.mask("1.png"), labels.mask("1.png", "background")
    assert kept[:, :6].all() and kept[5, 10] and not kept[20, 20]
    assert not new[:, :6].any() and new[5, 10]
    assert labels.categories("1.png") == ["cat"]


def test_a_box_alone_is_a_rounded_box():
    region = Thing("cat", (2, 3, 20, 10)).region((HEIGHT, WIDTH))
    assert region[3:13, 8:16].all() and not region[3, 2] and not region[:3].any() and not region[:, 22:].any()


@pytest.mark.parametrize("categories, prompt", [
    ([], "a photo"), (["cat"], "a photo of a cat"), (["apple", "traffic_light"], "a photo of an "
                                                                                 "apple and a traffic light"),
    (["cat", "dog", "bus"], "a photo of a cat, a dog and a bus")])
def test_prompts_name_the_categories(photos, tmp_path, categories, prompt):
    path = coco_file(tmp_path, [{"category_id": i} for i in range(len(categories))],
                     categories=[{"id": i, "name": name} for i, name in enumerate(categories)])
    labels = coco(path, photos)
    assert labels.prompts() == labels.prompts("a photo of a {}") == {"images/1.png": prompt}


# ---- bad input: one sentence that names the entry

TALL = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 1]}


@pytest.mark.parametrize("annotation, said", [
    ({"category_id": 4}, "has the category 4, which is not in the file"),
    ({"image_id": 9}, "is for the image 9, which is not in the file"),
    ({"bbox": [1, 2, 3]}, "its box is not four numbers"), ({"bbox": None}, "its box is not four numbers"),
    ({"bbox": [1, 2, float("nan"), 4]}, "its box is not four numbers"), ({"bbox": [1, 2, "3", 4]}, "not four numbers"),
    ({"bbox": [1, 2, 0, 4]}, "its box is 0 x 4 pixels"), ({"bbox": [40, 2, 5, 5]}, "lies outside of the image"),
    ({"bbox": [-9, 2, 9, 5]}, "lies outside of the image"),
    ({"segmentation": [[1, 2, 3, 4]]}, "a polygon has 2 points; it needs three"),
    ({"segmentation": [[1, 2, 3]]}, "a polygon is not pairs of numbers"),
    ({"segmentation": "x"}, "neither polygons nor"),
    ({"segmentation": TALL}, "do not add up to the 864 pixels"),
    ({"segmentation": {**TALL, "size": [1, 2]}}, "its run lengths are for"),
    ({"segmentation": {**TALL, "counts": [-4, HEIGHT * WIDTH + 4]}}, "do not add up"),
    ({"segmentation": {**TALL, "counts": "o" * 50}}, "do not add up"),
    ({"segmentation": {**TALL, "counts": "0"}}, "do not add up"),
    ({"segmentation": {**TALL, "counts": None}}, "neither numbers nor a text"),
    ({"segmentation": {**TALL, "counts": [HEIGHT * WIDTH]}}, "hold no pixel"),
])
def test_a_broken_annotation_is_left_out(photos, tmp_path, annotation, said):
    if isinstance(annotation.get("segmentation"), dict):
        pytest.importorskip("pycocotools")
    labels = coco(coco_file(tmp_path, [annotation, {"bbox": [0, 0, 4, 4]}]), photos)
    (where, problem), = labels.problems
    assert where == "instances.json annotation 5" and said in problem
    assert [thing.box for thing in labels.things("1.png")] == [(0, 0, 4, 4)]
    assert labels.folder().ignored == tuple(labels.problems)
    labels.write(tmp_path / "out", [Made("1-000.png", "1.png")])
    assert len(json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]) == 1


@pytest.mark.parametrize("change, said", [
    ({"width": WIDTH + 1}, "is for 37 x 24 pixels, and the image 1.png has 36 x 24"),
    ({"file_name": "2.png"}, "names the image '2.png', which is not in"),
    ({"file_name": "../photos/1.png"}, "names the image '../photos/1.png', which is not in"),
    ({"file_name": "/etc/passwd"}, "names the image '/etc/passwd', which is not in"),
    ({"file_name": 1}, "needs the texts and"),
    ({"height": "24"}, "needs the texts and"), ({"id": 2}, "names the image '1.png' a second time"),
])
def test_a_broken_image_is_left_out(photos, tmp_path, change, said):
    good = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    Image.new("RGB", (8, 8)).save(photos / "good.png")
    images = [{"id": 7, "file_name": "good.png", "height": 8, "width": 8},
              {**good, **change}] + [good] * ("id" in change)
    labels = coco(coco_file(tmp_path, [], images=images), photos)
    (where, problem), = labels.problems
    assert where.startswith("instances.json image") and said in problem and "good.png" in labels.names


@pytest.mark.parametrize("content",
                         ["", "[]", "{", "{}", '{"images": 1, "annotations": [], "categories": []}', "[" * 100_000,
                                     '{"images": [1], "annotations": [], "categories": []}',
                                     '{"images": [], "annotations": [], "categories": [{"id": "x"}]}',
                                     '{"images": [], "annotations": [], "categories": []}',
                                     '{"images": [], "annotations": [], "categories": [], "x": "\\ud800"}'])
def test_a_broken_file_is_refused(photos, tmp_path, content):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(ValueError, match="instances.json"):
        coco(tmp_path / "instances.json", photos)


@pytest.mark.parametrize("line, said", [
    ("0 0.5 0.5 0.1", "a polygon is not pairs"), ("0 0.1 0.1 0.5 0.5", None), ("7 0.5 0.5 0.1 0.1", "has the class 7"),
    ("0 0.1 0.2 0.3 0.4 0.5", "a polygon is not pairs"), ("cat 0.5 0.5 0.1 0.1", "is not a class and numbers"),
    ("0 30 40 10 10", "are not from 0 to 1"), ("0 0.5 0.5 0 0.1", "its box is 0 x"),
    ("0 nan 0.5 0.1 0.1", "not from 0 to 1"),
    ("0", "needs three"), ("0 0.1 0.1", "a polygon has 1 point; it needs three"),
])
def test_a_broken_line_is_left_out(tmp_path, line, said):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/1.png")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (tmp_path / "labels/1.txt").write_text(f"{line}\n\n0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels/other.txt").write_text("")
    labels = yolo(tmp_path / "data.yaml", tmp_path / "images")
    problems = dict(labels.problems)
    assert problems.pop("labels/other.txt") == "has no image in the folder of the images"
    assert said in problems["labels/1.txt line 1"] if said else not problems
    assert len(labels.things("1.png")) == (1 if said else 2)


BOMB = '<!DOCTYPE a [<!ENTITY b "' + "x" * 1000 + '">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("content, said", [
    (BOMB, "has a document type"), (BOMB.encode("utf-16"), "has a document type"),
    ("<annotation>", "cannot be read as XML"),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a document type"), ("<a/>", "is no annotation"),
    ("<annotation/>", "has no size"), ("<annotation><size><width>x</width></size></annotation>", "has no size"),
    ("<a>" * 20_000, "cannot be read as XML"),
    ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "cannot be read as XML"),
])
def test_hostile_xml_is_left_out(photos, tmp_path, content, said):
    (tmp_path / "1.xml").write_text(VOC.format(""))
    (tmp_path / "bad.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    labels = voc(tmp_path, photos)
    (where, problem), = labels.problems
    assert where == f"{tmp_path.name}/bad.xml" and said in problem and labels.names == ["1.png"]


@pytest.mark.parametrize("image, said", [
    (Image.new("RGB", (WIDTH, HEIGHT)), "has colours"), (Image.new("L", (WIDTH, HEIGHT + 1)), "is for 36 x 25 pixels"),
    (b"no image", "cannot be read as an image"),
])
def test_a_broken_mask_is_left_out(photos, tmp_path, image, said):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (4, 4)).save(photos / "good.png")
    Image.new("L", (4, 4)).save(tmp_path / "masks/good.png")
    Image.new("L", (4, 4)).save(tmp_path / "masks/none.png")
    if isinstance(image, bytes):
        (tmp_path / "masks/1.png").write_bytes(image)
    else:
        image.save(tmp_path / "masks/1.png")
    labels = masks(tmp_path / "masks", photos)
    problems = dict(labels.problems)
    assert said in problems["masks/1.png"] and "has no image of this name" in problems["masks/none.png"]
    assert labels.names == ["good.png"]
    assert bool(labels.notes) == (said != "is for 36 x 25 pixels")  # that image has a mask, of another size
    assert all("1 of 2 images" in note for note in labels.notes)


def test_an_image_that_cannot_be_read_is_not_said_to_have_no_annotations(photos, tmp_path):
    size = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": number, "file_name": f"{number}.png", **size} for number in (1, 2, 3)]
    (photos / "2.png").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(photos / "3.png")
    labels = coco(coco_file(tmp_path, [{}], images), photos)
    assert labels.names == ["1.png"] and len(labels.problems) == 2 and labels.notes == []
    Image.new("RGB", (4, 4)).save(photos / "4.png")
    assert "1 of 4 images" in coco(tmp_path / "instances.json", photos).notes[0]


def test_images_without_objects_are_counted(photos, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(photos / "2.png")
    images = [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} for number in (1, 2)]
    labels = coco(coco_file(tmp_path, [{}], images), photos)
    assert labels.names == ["1.png", "2.png"]
    assert labels.notes == [f"1 of 2 images have no objects in {tmp_path / 'instances.json'}; the first is 2.png"]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/2.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    assert yolo(tmp_path / "data.yaml", photos).notes == [
        f"1 of 2 images have no objects in {tmp_path / 'labels'}; the first is 1.png"]


@pytest.mark.parametrize("kind", READERS)
def test_a_set_without_an_annotation_is_refused(photos, tmp_path, kind):
    for folder in ("labels", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (tmp_path / "1.xml").write_text(VOC.format(""))
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "masks/1.png")
    path, searched = {"coco": (coco_file(tmp_path, []), "instances.json"), "yolo": (tmp_path / "data.yaml", "labels"),
                      "voc": (tmp_path, "."), "masks": (tmp_path / "masks", "masks")}[kind]
    with pytest.raises(ValueError, match="no annotation fits an image in .*; looked in") as error:
        READERS[kind](path, photos).folder()
    assert str(error.value).endswith(f"looked in {tmp_path / searched}")


def test_ignored_and_sixteen_bit_values(photos, tmp_path):
    (tmp_path / "masks").mkdir()
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    values[2:5, 2:9], values[8:, :] = 255, 40_000
    Image.fromarray(values).save(tmp_path / "masks/1.png")
    things = masks(tmp_path / "masks", photos).things("1.png")
    assert [(t.category, t.ignored, t.box) for t in things] == [("255", False, (2, 2, 7, 3)),
                                                                ("40000", False, (0, 8, 36, 16))]
    Image.fromarray(np.minimum(values, 255).astype(np.uint8)).save(tmp_path / "masks/1.png")
    assert [t.ignored for t in masks(tmp_path / "masks", photos).things("1.png")] == [True]
