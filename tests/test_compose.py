"""Objects placed in other images: outlines, places, what is hidden, and data sets with such images in every format."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_labels import BOX, POLYGON, SIZES, picture, runs, tree, write_coco, write_images, write_masks, write_voc

import dreamda
from dreamda import cli, distributed
from dreamda.data.annotations import READERS, Composition, Thing, coco
from dreamda.data.annotations.compose import LARGEST, SMALLEST, Composer
from dreamda.data.annotations.outlines import covered, joined, outlines
from dreamda.generation.options import GenerationOptions
from dreamda.runs.generate import generate_dataset
from dreamda.runs.manifest import read_manifest
from dreamda.runs.withdrawal import MADE, trace

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
regions = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: st.binary(min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda bits: np.frombuffer(bits, np.uint8).reshape(size) > 90))


# ---- outlines

@FEW
@example(np.array([[0, 0, 1, 0], *[[0] * 4] * 5, [0, 1, 1, 1]], bool))  # left 1e-17 of other pixels covered
@given(regions)
def test_an_outline_covers_exactly_the_pixels_of_its_region(region):
    polygons = outlines(region)
    assert np.array_equal(covered(polygons, region.shape), region.astype(np.float32))
    if polygons:
        assert np.array_equal(covered([joined(polygons)], region.shape), region.astype(np.float32))


@FEW
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 7)), min_size=3, max_size=3))
def test_a_triangle_covers_its_area(corners):
    points = np.array(corners)
    (x0, y0), (x1, y1), (x2, y2) = corners
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
    share = covered([points], (7, 9))
    assert share.min() >= 0 and share.max() <= 1
    assert abs(share.sum() - area) < 9 / 4  # lines at a quarter of a pixel: less than one line at each end


def test_a_ring_becomes_polygons_without_a_hole():
    ring = np.ones((9, 9), bool)
    ring[3:6, 3:6] = False
    assert len(outlines(ring)) == 2 and covered(outlines(ring), ring.shape).sum() == 72


# ---- places

def data_set(folder, boxes):
    """COCO with rectangles (x, y, width, height) as polygons, one list of them per image."""
    root = folder / "photos"
    root.mkdir()
    images, annotations = [], []
    for i, of_image in enumerate(boxes):
        size = (40 + 8 * i, 64)
        picture(size, i).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        for x, y, w, h in of_image:
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({"id": len(annotations), "image_id": i, "category_id": 1 + w % 2, "iscrowd": 0,
                                "bbox": [x, y, w, h], "area": w * h, "segmentation": [outline]})
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [
        {"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]}))
    return coco(path, root)


rectangles = st.tuples(st.integers(0, 40), st.integers(0, 24), st.integers(1, 24), st.integers(1, 16))


@settings(FEW, max_examples=25)
@given(st.lists(st.lists(rectangles, max_size=4), min_size=2, max_size=3), st.integers(1, 4), st.integers(0, 9),
       st.sampled_from([0.0, 0.25, 0.8]))
def test_scenes_are_possible_and_always_the_same(tmp_path_factory, boxes, count, seed, least):
    labels = data_set(tmp_path_factory.mktemp("set"), [[(5, 5, 12, 10)], *boxes])
    composer = Composer(labels, Composition(compose=count, min_visibility=least))
    for name in labels.names:
        shape, things = labels.size(name), labels.things(name)
        scene = composer.scene(name, 1, seed)
        cutout = composer.cutout(scene)
        again = Composer(labels, composer.options).scene(name, 1, seed)
        assert [(p.name, p.number, p.thing and p.thing.box) for p in scene.objects] == [
            (p.name, p.number, p.thing and p.thing.box) for p in again.objects]
        placed = np.zeros(shape, bool)
        others = [each for each in scene.objects if each.name != name]
        for each in others:
            x, y, w, h = each.thing.box
            assert 0 <= x and 0 <= y and x + w <= shape[1] and y + h <= shape[0]
            assert w <= LARGEST * shape[1] + 1 and h <= LARGEST * shape[0] + 1
            assert each.thing.category == labels.things(each.name)[each.number].category
            placed |= each.thing.pixels(shape)
        assert len(scene.placed) <= count and all(min(p.patch.share.shape) >= SMALLEST for p in scene.placed)
        assert (cutout is None) == (not scene.placed)
        if cutout is not None:  # every pixel of a cut-out belongs to an object that has an annotation
            assert np.array_equal(cutout.weight >= 0.5, placed) or len(scene.placed) > 1
        own = {each.number: each for each in scene.objects if each.name == name}
        for index, thing in enumerate(things):
            region = thing.pixels(shape)
            visible = region & ~placed
            share = visible.sum() / max(1, region.sum())
            assert (index in own) == (share >= least and visible.any() or not region.any())
            if index in own and own[index].thing is None:
                assert np.array_equal(visible, region)
            elif index in own:
                assert np.array_equal(own[index].thing.pixels(shape), visible)
        mask = np.zeros(shape, bool)
        for index in own:
            mask |= things[index].region(shape)
        assert np.array_equal(composer.mask(scene), mask)


def test_sizes_are_those_of_the_category(tmp_path):
    labels = data_set(tmp_path, [[(4, 4, 30, 30)], [(4, 4, 30, 30)], [(20, 20, 9, 9)], [(20, 20, 9, 9)]])
    composer = Composer(labels, Composition(compose=1))
    sides = {"even": [], "odd": []}
    for name in labels.names:
        for variant in range(12):
            for each in composer.scene(name, variant, 0).placed:
                sides[each.thing.category].append(each.patch.share.shape[1])
    assert min(sides["even"]) > 2 * max(sides["odd"]) and len(sides["odd"]) > 5


def test_what_is_within_an_object_comes_with_it(tmp_path):
    bowl, apple = (4, 4, 32, 24), (12, 8, 9, 9)
    labels = data_set(tmp_path, [[bowl, apple], []])
    composer = Composer(labels, Composition(compose=1))
    scenes = [composer.scene("1.png", variant, 0) for variant in range(8)]
    found = [sorted(p.thing.category for p in scene.objects) for scene in scenes]
    assert ["even", "odd"] in found and ["even"] not in found and ["odd"] in found
    scene = scenes[found.index(["even", "odd"])]
    outer, inner = (next(p.thing for p in scene.objects if p.thing.category == c).pixels(labels.size("1.png"))
                    for c in ("even", "odd"))
    assert (outer & inner).sum() == inner.sum() > 0


def test_an_object_that_is_hidden_too_far_loses_its_annotation(tmp_path):
    labels = data_set(tmp_path, [[(2, 2, 60, 34)], [(20, 10, 8, 8)]])
    strict = Composer(labels, Composition(compose=1, min_visibility=1.0))
    loose = Composer(labels, Composition(compose=1, min_visibility=0.0))
    own = [[p for p in composer.scene("1.png", v, 0).objects if p.name == "1.png"]
           for composer in (strict, loose) for v in range(6)]
    assert all(len(each) == 1 for each in own[6:])
    assert any(not each for each in own[:6])


# ---- runs

WRITERS = {
    "coco": lambda folder: ("coco", write_coco(folder)),
    "runs": lambda folder: ("coco", write_coco(folder, kind="runs")),
    "yolo": lambda folder: ("yolo", write_outlines_of_yolo(folder)),
    "masks": lambda folder: ("masks", write_masks(folder, "sixteen")),
}


def write_outlines_of_yolo(folder):
    for name, (height, width) in SIZES.items():
        if name != "empty.png":
            path = (folder / "labels" / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("0 " + " ".join(str(v / (height if i % 2 else width)) for i, v in enumerate(POLYGON)))
    (folder / "data.yaml").write_text("names: [coat]\n")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def pipe():
    return dreamda.Pipeline.load("fashion-mini", dtype="f32", threads=2)


@pytest.fixture
def real(tmp_path):
    return write_images(tmp_path / "photos")


def generate(labels, out, pipe, compose=2, **arguments):
    options = GenerationOptions(variants=2, steps=2, seed=3)
    return generate_dataset(labels.folder("objects", Composition(compose=compose)), out, pipe, options,
                            prompts=labels.prompts(), prompt_source={"template": "a photo of {}"},
                            model="fashion-mini", **arguments)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_data_set_with_objects_of_other_images(tmp_path, real, pipe, kind):
    if kind == "runs":
        pytest.importorskip("pycocotools", reason='pycocotools is not installed: pip install ".[labels]"')
    format, path = WRITERS[kind](tmp_path)
    source, out = READERS[format](path, real), tmp_path / "out"
    assert generate(source, out, pipe).made == 8
    made = source.read_back(out)
    assert made.problems == [] and made.notes == [] and len(made) == 8
    composer, gained = Composer(source, Composition(compose=2)), 0
    found = trace(real / "b.png", [out])
    given = {row["file_name"] for row in read_manifest(out) if "images/b.png" in row.get("objects_from", {})}
    assert {each.file for each in found.traces if each.reason == MADE} == given | {"images/b-000.png",
                                                                                  "images/b-001.png"} and given
    for row in read_manifest(out):
        file, seed = row["file_name"].removeprefix("images/"), row["seed_file"].removeprefix("images/")
        pixels, before = (np.asarray(Image.open(p).convert("RGB")) for p in (out / row["file_name"], real / seed))
        scene = composer.scene(seed, row["variant"], 3)
        assert set(row.get("objects_from", {})) == {f"images/{each.donor.name}" for each in scene.placed}
        cutout, own = composer.cutout(scene), composer.mask(scene)
        if cutout is not None:
            full, own = cutout.weight == 1, own & (cutout.weight == 0)
            assert np.array_equal(pixels[full], cutout.pixels[full]) and full.any()
        assert np.array_equal(pixels[own], before[own])
        shape, things = made.size(file), made.things(file)
        assert len(things) == len(scene.objects)
        gained += len(things) - len(source.things(seed))
        for thing, placed in zip(sorted(things, key=lambda t: t.box),
                                 sorted(scene.objects, key=lambda p: (p.thing or source.things(p.name)[p.number]).box)):
            was = placed.thing or source.things(placed.name)[placed.number]
            assert np.abs(np.subtract(thing.box, was.box)).max() <= 1
            differing = thing.pixels(shape) != was.pixels(shape)
            assert differing.sum() <= (0.02 * differing.size if format == "masks" else 0)
    assert gained >= 6


def test_interruptions_shards_replay_and_workers_give_the_same_bytes(tmp_path, real, pipe):
    labels = coco(write_coco(tmp_path), real)
    generate(labels, tmp_path / "whole", pipe)
    generate(labels, tmp_path / "parts", pipe, most=3)
    for i in (1, 0):
        generate(labels, tmp_path / "parts", pipe, shard=(i, 2))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    code = cli.main(["replay", str(tmp_path / "whole"), "--out", str(tmp_path / "again"), "--threads", "2"])
    assert code == 0 and tree(tmp_path / "again") == tree(tmp_path / "whole")

    def stream(take, settings, stop, within):
        worker = distributed._Worker("fashion-mini", {"dtype": "f32", "threads": 2})
        while piece := take(4):
            yield piece, worker.make(piece.images, piece.prompts, piece.keys, piece.first, piece.options(settings),
                                     piece.around)[0]

    generate(labels, tmp_path / "there", pipe, engine=stream)
    assert tree(tmp_path / "there") == tree(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"--compose 2 \(now 1\)"):
        generate(labels, tmp_path / "whole", pipe, compose=1)
    with pytest.raises(ValueError, match=r"another --compose 2 \(now not given\); repeat that"):
        generate(labels, tmp_path / "whole", pipe, compose=0)


def test_a_broken_image_gives_no_object_and_is_reported(tmp_path, real, pipe):
    path = write_coco(tmp_path)
    (real / "b.png").write_bytes((real / "b.png").read_bytes()[:-200])
    labels = coco(path, real)
    report = generate(labels, tmp_path / "out", pipe)
    assert [name for name, _ in report.skipped] == ["images/b.png"] and report.made == 6
    made = labels.read_back(tmp_path / "out")
    assert made.problems == [] and len(made) == 6


def test_an_excluded_image_gives_no_object(tmp_path, real):
    folder = coco(write_coco(tmp_path), real).folder("objects", Composition(compose=1))
    def donors(folder):
        scenes = [folder.composer.scene("empty.png", variant, 0) for variant in range(9)]
        return {each.donor.name for scene in scenes for each in scene.placed}

    assert donors(folder) == {"a.png", "b.png", "deep/a.png"}
    assert donors(folder.without(["b.png"])) == {"a.png", "deep/a.png"}
    with pytest.raises(ValueError, match="no object that can be placed"):
        folder.without(["b.png", "a.png", "deep/a.png"]).apart


def test_the_command(tmp_path, real, capsys):
    path = write_coco(tmp_path)
    arguments = ["generate", str(real), "--out", str(tmp_path / "out"), "--model", "fashion-mini", "--variants", "1",
                 "--steps", "2", "--threads", "2", "--coco", str(path), "--compose", "1"]
    assert cli.main([*arguments, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--preview", "2"]) == 0
    assert (tmp_path / "out-preview.png").is_file()
    assert "around their objects and 1 object of other images" in capsys.readouterr().out
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert (run["compose"], run["min_visibility"]) == (1, 0.25)
    assert cli.main(["report", str(real), str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize("labels, extra, said", [
    (lambda folder: ["--coco", write_coco(folder, kind="box")], [], "not boxes alone"),
    (lambda folder: ["--voc", write_voc(folder)], [], "not boxes alone"),
    (lambda folder: ["--masks", write_masks(folder)], [], "a mask of 8 bits holds classes"),
    (lambda folder: ["--coco", write_coco(folder)], ["--keep", "none"], "--compose: needs --keep objects; it is none"),
    (lambda folder: ["--coco", write_coco(folder)], ["--diverse"], "--diverse"),
    (lambda folder: ["--coco", write_coco(folder)], ["--text-share", "0.5"], "--text-share: is for class folders"),
    (lambda folder: ["--coco", write_coco(folder)], ["--min-visibility", "2"], "a number from 0 to 1"),
    (lambda folder: [], [], "--compose is for labelled images"),
])
def test_wrong_use_is_refused_and_nothing_written(tmp_path, real, capsys, labels, extra, said):
    code = cli.main(["generate", str(real), "--out", str(tmp_path / "out"), "--model", "fashion-mini", "--compose", "1",
                     *map(str, labels(tmp_path)), *extra])
    assert code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()
