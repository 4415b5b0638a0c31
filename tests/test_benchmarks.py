"""What the efficacy benchmark promises about its own data: nested draws, separate parts, honest tables."""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """A benchmark's main sets this for its worker processes; later tests must not inherit it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def efficacy():
    yield from loaded("efficacy")


@pytest.fixture(scope="module")
def efficacy_steps():
    yield from loaded("efficacy_steps")


@pytest.fixture(scope="module")
def efficacy_labels(efficacy):
    sys.modules.setdefault("efficacy", efficacy)
    yield from loaded("efficacy_labels")


def loaded(name):
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_a_smaller_size_is_the_beginning_of_a_larger_one(efficacy):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    members = efficacy.draw_members(labels, 3)
    assert members.shape == (10, 50) and (labels[members] == np.arange(10)[:, None]).all()
    assert len(np.unique(members)) == 500
    assert np.array_equal(members, efficacy.draw_members(
        labels, 3)) and not np.array_equal(members, efficacy.draw_members(labels, 4))
    for size in efficacy.SIZES:
        bounds = efficacy.chunks(efficacy.fashion_mnist(""), size)
        assert [i for first, last in bounds for i in range(first, last)] == list(range(size))


def test_the_parts_share_no_image(efficacy):
    numbers = [set(range(60_000)[slice(*part)]) for part in efficacy.PARTS.values()]
    seen = set(range(50_000))  # what the diffusion model was trained on
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 10_000 and not seen & set.union(*numbers)


@pytest.fixture(scope="module")
def photos(efficacy):
    sys.modules.setdefault("efficacy", efficacy)
    sys.path.insert(0, str(FOLDER))
    try:
        import efficacy_photos
        yield efficacy_photos
    finally:
        sys.path.remove(str(FOLDER))


def test_photographs_are_divided_without_overlap(photos, tmp_path):
    for label in ("a", "b"):
        (tmp_path / "new-names" / label).mkdir(parents=True)
        for number in range(30):
            grey = 8 * number + 4 * (label == "b")
            Image.new("RGB", (64, 64), (grey, grey, grey)).save(tmp_path / "new-names" / label / f"{number}.jpg",
                                                                quality=100)
    data = photos.photos("new-names", tmp_path, tmp_path)
    parts = {part: data.images(part) for part in ("sweep", "final")}
    assert [len(labels) for _, labels in parts.values()] == [24, 36]
    assert len({image.tobytes() for images, _ in parts.values() for image in images}) == 60
    for part, (images, labels) in parts.items():
        members = data.members(part, 3)
        assert (labels[members] == [[0], [1]]).all() and not np.array_equal(members, data.members(part, 4))
        tested, tested_labels = data.tested(part, 3)
        assert len(tested) == len(images) - members.size == len(tested_labels)
        assert not {i.tobytes() for i in tested} & {i.tobytes() for i in images[members.ravel()]}


def test_the_table_of_photographs_says_where_draws_are_missing(photos):
    records = [dict(regime="new-names", method=name, size=5, draw=draw, accuracy=0.4 + 0.1 * draw)
               for name, draw in (("real only", 0), ("real only", 1), ("real + RandAugment", 1))]
    table = photos.result_table(records + [records[0] | dict(size=10, draw=2)], 5).splitlines()
    assert table[0].endswith("| new-names (2 draws) |")
    assert table[2:] == ["| real only | **45.0 ± 7.1** |", "| real + RandAugment | 50.0 (1) |"]
    assert len(photos.result_table(records, 5, ("real only", )).splitlines()) == 3
    chosen = photos.CHOSEN["new-names"]
    records += [records[0] | dict(method=chosen, draw=draw, accuracy=0.55) for draw in range(2)]
    table = photos.ahead_table(records, 5).splitlines()
    assert table[2:] == ["| real only | 10.0 ± 7.1 (ahead in 2 of 2) |",
                         "| real + RandAugment | 5.0 (ahead in 1 of 1) |"]


def test_the_sweep_of_photographs_names_what_differs(photos):
    usual = dict(kind=photos.few(), recipe=dict(method="amst", view="randaugment"))
    records = [usual | dict(regime="new-names", accuracy=0.4), usual | dict(regime="new-names", accuracy=0.5),
               dict(kind=photos.few(strength=0.6), recipe=dict(method="plain", view="randaugment"),
                    regime="known-names", accuracy=0.3),
               dict(kind=None, recipe=dict(method="real-only"), regime="known-names", accuracy=0.2)]
    table = photos.choice_table(records).splitlines()
    assert table[0] == "| synthetic images | training | known-names | new-names |"
    assert table[2:5] == ["| as usual | as usual | - | 45.0 ± 7.1 (2) |",
                          "| strength 0.6 | method plain | 30.0 (1) | - |",
                          "| none | view weak, method real-only | 20.0 (1) | - |"]
    assert photos.described(photos.mixed(steps=2)).startswith("a share each of: steps 2; ")


def test_a_kind_of_parts_takes_a_share_of_each(photos, efficacy, tmp_path):
    data = photos.Photos("none", "", "none", ("a", "b"), {5: 1}, 4, photos.TRAINING)
    for number, kind in enumerate(parts := [photos.few(), photos.few(strength=0.6)]):
        file = efficacy.image_file(str(tmp_path), kind, "final", 0, 0, 5)
        file.parent.mkdir(parents=True)
        made = np.full((2, 5, 4, 8, 8, 3), 100 * number, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
        np.save(file, made)
        file.with_suffix(".cpu").write_text(f"{10 * (number + 1)}")
    images, labels = efficacy.load_images(data, str(tmp_path), dict(parts=parts), "final", 0, 5)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 100, 101] * 10 and labels.tolist() == [0] * 20 + [1] * 20
    assert efficacy.image_seconds(data, str(tmp_path), dict(parts=parts), "final", 0, 5) == 15.0


def test_photographs_that_are_missing_are_named_and_skipped(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["efficacy_photos.py", "run", "--work", str(tmp_path / "work"), "--data",
                                      str(tmp_path), "--models", str(tmp_path), "--processes", "1"])
    monkeypatch.setattr(photos, "RESULTS", tmp_path)
    photos.main()
    assert f"skipped: {tmp_path / 'natural-mini'} is not here" in capsys.readouterr().err
    assert not list(tmp_path.glob("efficacy*"))


def test_wrong_labels_are_as_many_as_asked_for_and_wrong(efficacy):
    hints = np.repeat(np.arange(10), 30)
    for share in (0.0, 0.2, 0.4):
        assert (efficacy.flip(hints, share, 1) != hints).sum() == round(300 * share)
    assert efficacy.flip(None, 0.2, 1) is None


def test_tables_show_what_the_records_say(efficacy):
    records = [dict(method=name, size=5, draw=draw, accuracy=0.5 + 0.01 * number + 0.1 * draw)
               for number, name in enumerate(efficacy.METHODS) for draw in range(2)]
    table = efficacy.result_table(records).splitlines()
    assert "5 a class (2 draws)" in table[0] and len(table) == 2 + len(efficacy.METHODS)
    assert table[2] == "| real only | 55.0 ± 7.1 |" and table[-1].startswith("| DreamDA + AMST | **")
    difference = efficacy.difference_table(records).splitlines()
    assert difference[2] == f"| real only | {len(efficacy.METHODS) - 1:.1f} ± 0.0 (ahead in 2 of 2) |"
    noise = [dict(method="plain", wrong=share, draw=0, accuracy=0.7 - share / 2) for share in (0.0, 0.2)]
    assert efficacy.noise_table(noise).splitlines()[-1] == "| plain | 70.0 | 60.0 (lost 10.0) |"


def test_the_table_of_steps_counts_cpu_time_and_compares_draw_by_draw(efficacy_steps):
    records = [
        dict(method="real only", size=10, draw=0, accuracy=0.6, cpu_seconds=12.0),
        *(dict(method="fashion-mini, 10 steps", size=10, draw=draw, accuracy=0.7 + draw / 10, cpu_seconds=60.0,
               image_cpu_seconds=180.0) for draw in range(2)),
        dict(method="fashion-mini-lcm, 4 steps", size=10, draw=1, accuracy=0.79, cpu_seconds=30.0,
             image_cpu_seconds=18.0),
    ]
    assert efficacy_steps.table(records).splitlines()[2:] == [
        "| real only | 1 | - | 0.20 | 60.0 | -10.0 |", "| fashion-mini, 10 steps | 2 | 3.00 | 1.00 | 75.0 ± 7.1 |  |",
        "| fashion-mini-lcm, 4 steps | 1 | 0.30 | 0.50 | 79.0 | -1.0 |"
    ]
    tried = [dict(kind=efficacy_steps.student(4, noise_scale=3.0), draw=draw, accuracy=0.7) for draw in range(2)]
    assert efficacy_steps.sweep_table(tried).splitlines()[2:] == ["| 4 | sdedit | 1.0 | 1.5 | 3.0 | 2 | 70.0 ± 0.0 |"]


def test_the_curves_of_steps_differ_in_the_model_and_the_steps_alone(efficacy_steps):
    kinds = [kind for curve in efficacy_steps.CURVES.values() for kind in curve.values()]
    rest = [{k: v for k, v in kind.items() if k not in ("model", "steps")} for kind in kinds]
    assert all(r == rest[0] for r in rest) and len({(k.get("model"), k["steps"]) for k in kinds}) == len(kinds)


@pytest.fixture(scope="module")
def efficacy_prompts(photos):
    yield from loaded("efficacy_prompts")


def test_rows_of_prompts_differ_in_prompts_alone(efficacy, efficacy_prompts):
    """From the row that each is compared with; and a variant's prompt is that of `choose_prompts`."""
    for name in efficacy_prompts.STUDENTS:
        rows = efficacy_prompts.rows(name)
        for row, kind in rows.items():
            other = rows[efficacy_prompts.against(row)]
            if kind is not None:
                assert {k for k in {**kind, **other} if kind.get(k) != other.get(k)} <= {
                    "templates", "fields", "negative_prompt"}
    data = efficacy.fashion_mnist("")
    made = efficacy.varied_prompts(data, np.array([4, 9]), ["a", "b"], ["a photo of a {}", "a {}"], None, 0, 4)
    assert [sorted(texts) for texts in made] == [["a coat", "a coat", "a photo of a coat", "a photo of a coat"],
                                                 ["a photo of an ankle boot"] * 2 + ["an ankle boot"] * 2]
    assert efficacy.varied_prompts(data, np.array([4]), ["a"], None, None, 0, 4) == ["a photo of a coat"]


def test_the_table_of_prompts_compares_draw_by_draw(efficacy_prompts):
    records = [dict(data="fashion-mnist", method=method, draw=draw, accuracy=value)
               for method, values in (("one template", (0.7, 0.8)), ("six templates, the model's own", (0.72, 0.83)))
               for draw, value in enumerate(values)]
    lines = efficacy_prompts.table(records).splitlines()
    assert lines[2].startswith("| one template | 75.0 ± 7.1 (2 draws) |  |")
    assert lines[3] == "| six templates, the model's own | 77.5 ± 7.8 (2 draws) | 2.5 ± 0.7 |"
    assert len(lines) == 4, "rows that were not measured are left out"


def test_the_table_of_labels_compares_seed_by_seed_and_image_by_image(efficacy_labels):
    records = [dict(row=row, seed=seed, overlaps=[0.5 + 0.1 * number, 0.3 + 0.02 * seed])
               for number, row in enumerate(efficacy_labels.ROWS) for seed in range(2)]
    lines = efficacy_labels.table(records).splitlines()
    assert lines[2] == "| real only | 40.5 | 40.0, 41.0 | | |"
    assert lines[3].startswith("| real + flips and colours | 45.5 | 45.0, 46.0 | +5.0 (+5.0, +5.0) | +0.0 to +10.0 |")
    assert len(lines) == 2 + len(efficacy_labels.ROWS)


def test_overlap_leaves_out_what_does_not_count(efficacy_labels):
    found, mask = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    everything = np.ones_like(mask)
    assert efficacy_labels.overlap(found, mask, everything) == pytest.approx(1 / 3)
    assert efficacy_labels.overlap(found, mask, ~(found & ~mask)) == 1 / 2
    assert efficacy_labels.overlap(~everything, ~everything, everything) == 1
