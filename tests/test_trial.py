"""`dreamda try`: the plan keeps to the time, held-out images leave no trace in training, the verdict follows from the
numbers, and a trial that was stopped goes on to the same result."""
import json
import os
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from networks import write_pixel_model
from test_cli import run

from dreamda import Pipeline
from dreamda.data import ImageFolder, load_bundled
from dreamda.generation.options import GenerationOptions
from dreamda.options import ParameterError
from dreamda.presets import load_preset
from dreamda.runs import trial
from dreamda.runs.generate import generate_dataset
from dreamda.runs.trial import Kind, judge, make_plan, right_by_image, try_dataset

FAST, HALF, TEXT = Kind("fast"), Kind("fast", 0.5), Kind("fast", 1.0)
ROWS = 5  # two without synthetic images, a preset, text alone, and half of each


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.load("fashion-mini", threads=1)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two classes of four images, and a trial of seconds."""
    bundled = load_bundled()
    folder = bundled.folder(tmp_path / "all")
    bundled.write(folder)
    for label in folder.classes[:2]:
        (tmp_path / "real" / label).mkdir(parents=True)
        for image in [image for image in folder.images if image.label == label][:4]:
            folder.path(image).rename(tmp_path / "real" / label / image.name)
    for name, value in dict(STEPS=(6, ), EPOCHS=3, VARIANTS=(2, ), ROUNDS=1, FOLDS=2).items():
        monkeypatch.setattr(trial, name, value)
    return tmp_path / "real"


@pytest.fixture
def estimated(monkeypatch):
    """Nothing is measured, which takes longer than such a trial."""
    monkeypatch.setattr(trial, "describe_model", lambda *_, **__: {"seconds_per_image": 0.01})
    monkeypatch.setattr(trial._Trial, "step_seconds", lambda self: 0.01)


def outcome(out):
    return [(r["round"], r["fold"], r["row"], r["held"], r["right"])
            for r in json.loads((out / "trial.json").read_text())["results"]]


@pytest.mark.parametrize("counts, image_seconds, step_seconds, minutes, expected",
                         [([10, 10], {"fast": 0.01}, 0.01, 60, (10, 4, 1200, 4, ("fast", ))),
                          ([10, 10], {"fast": 0.01}, 0.01, 10, (10, 4, 600, 4, ("fast", ))),
                          ([10, 10], {"fast": 0.01}, 0.01, 5, (10, 4, 300, 4, ("fast", ))),
                          ([10, 10], {"fast": 1.0}, 0.01, 2.1, (10, 2, 300, 4, ("fast", ))),
                          ([10, 10], {"fast": 0.01}, 0.05, 4, (10, 4, 200, 4, ("fast", ))),
                          ([3, 10], {"fast": 0.01}, 0.01, 60, (10, 4, 1200, 3, ("fast", ))),
                          ([100, 100], {"fast": 1.0}, 0.01, 10, (40, 2, 600, 4, ("fast", ))),
                          ([10, 10], {"balanced": 60.0, "fast": 0.1}, 0.01, 10, (10, 4, 600, 4, ("fast", )))])
def test_a_plan_fits_into_the_time(counts, image_seconds, step_seconds, minutes, expected):
    plan = make_plan(counts, image_seconds, step_seconds, minutes)
    assert (plan.per_class, plan.variants, plan.steps, plan.folds, plan.presets) == expected
    assert plan.seconds <= 60 * minutes and plan.kinds == tuple(map(Kind, plan.presets))


@pytest.mark.parametrize("image_seconds, step_seconds, minutes, text_seconds, expected", [
    ({"fast": 0.01}, 0.01, 60, 0.01, (4, 1200, [FAST, TEXT, HALF])),
    ({"balanced": 0.1, "fast": 0.01}, 0.01, 60, 0.01, (4, 1200, [Kind("balanced"), FAST, TEXT, HALF])),
    ({"fast": 0.01}, 0.01, 3, 0.01, (4, 300, [FAST, TEXT, HALF])),
    ({"fast": 0.5}, 0.01, 3, 0.8, (2, 300, [FAST, TEXT, HALF])),  # fewer images of each kind
    ({"fast": 0.5}, 0.01, 3, 9.0, (4, 300, [FAST])),  # then none from the text
    ({"fast": 0.01}, 0.05, 5, 0.01, (4, 300, [FAST])),
    ({"fast": 0.01}, 0.05, 4, 0.01, (4, 200, [FAST]))])
def test_when_a_plan_has_images_from_the_text(image_seconds, step_seconds, minutes, text_seconds, expected):
    plan = make_plan([10, 10], image_seconds, step_seconds, minutes, text_seconds)
    assert (plan.variants, plan.steps, list(plan.kinds)) == expected
    assert plan.seconds <= 60 * minutes and plan.made == tuple(kind for kind in plan.kinds if kind.text_share != 0.5)


@pytest.mark.parametrize("counts, minutes, message",
                         [([10, 10], 1, r"minutes: 1 are too few: the smallest trial takes about \d+ minutes"),
                          ([1, 10], 60, "real: has a class with 1 image")])
def test_a_plan_that_is_not_possible(counts, minutes, message):
    with pytest.raises(ParameterError, match=message):
        make_plan(counts, {"paper": 300.0}, 0.05, minutes)


def test_the_minutes_that_an_error_names_are_enough():
    with pytest.raises(ParameterError) as error:
        make_plan([10, 10], {"paper": 300.0}, 0.05, 1)
    named = int(str(error.value).split("about ")[1].split()[0])
    assert make_plan([10, 10], {"paper": 300.0}, 0.05, named).presets == ("paper", )


@pytest.mark.parametrize("share, word", [(0.3, "helps"), (0.0, "unclear"), (-0.3, "hurts")])
def test_the_verdict_follows_from_the_numbers(share, word):
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.5).astype(float)
    changed = rng.permutation(200)[:round(abs(share) * 200)]
    other = base.copy()
    other[changed] = float(share > 0)
    right = {"real images": base, "real images, RandAugment": base * 0.9, HALF.name: other}
    gains = {(HALF.name, row): np.full(4, (other - right[row]).mean()) + [0.02, -0.02, 0.01, -0.01]
             for row in trial.WITHOUT}
    comparisons, verdict = judge(right, [HALF], gains)
    assert verdict.word == word and comparisons == [verdict.best]
    assert ("best with --preset fast: +" in verdict.sentence) == (word == "helps")
    assert ("preset fast, half text is" in verdict.sentence) == (word != "helps")
    assert verdict.best.low <= verdict.best.gain <= verdict.best.high
    assert verdict.best.gain == pytest.approx((other - base).mean())


def test_the_best_of_several_kinds_must_be_further_ahead():
    right = {row: np.tile([0.0, 1.0], 50) for row in (*trial.WITHOUT, FAST.name, TEXT.name)}
    gains = {(kind.name, row): np.array([0.1, -0.1, 0.1, 0.0]) for kind in (FAST, TEXT) for row in trial.WITHOUT}
    (one, ), _ = judge(right, [FAST], gains)
    both, _ = judge(right, [FAST, TEXT], gains)
    assert both[0].high - both[0].low > one.high - one.low


def test_an_image_counts_once_a_round():
    results = [{"round": r, "row": "a", "held": [fold], "right": [fold ^ r]} for r in range(3) for fold in range(2)]
    assert right_by_image(results, ["a"], 2, 2)["a"].tolist() == [0.5, 0.5]


def test_what_was_made_from_a_held_out_image_is_left_out(pipe, tiny, estimated, tmp_path, monkeypatch):
    seen, sets = [], []
    fit = trial.AMSTClassifier.fit

    def watched(self, X, y, X_made=None, y_made=None, **groups):
        done = fit(self, X, y, X_made, y_made, **groups)
        if X_made is not None:
            seen.append((set(groups["groups"].tolist()), groups["groups_synthetic"].tolist(), self.left_out_.tolist()))
            sets.append(sorted(image.tobytes() for image in X_made))
            assert (self.method, self.view) == ("amst", "randaugment")
        return done

    monkeypatch.setattr(trial.AMSTClassifier, "fit", watched)
    done = try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    assert len(seen) == 3 * done.plan.folds == 6
    for trained, made_from, left_out in seen:
        assert Counter(made_from) == {i: 2 for i in range(8)} and len(trained) == 4
        assert left_out == [place for place, group in enumerate(made_from) if group not in trained]
    tested = Counter(i for _, _, row, held, _ in outcome(tmp_path / "out") if row == FAST.name for i in held)
    assert tested == {i: 1 for i in range(8)}
    half = GenerationOptions(**load_preset("fast").generate, variants=2)
    generate_dataset(ImageFolder.scan(tiny), tmp_path / "half", pipe, half)
    expected = sorted(np.asarray(Image.open(path)).tobytes() for path in (tmp_path / "half").rglob("*.png"))
    assert sets[2] == sets[5] == expected and len({str(each) for each in sets}) == 3


def test_without_text_there_are_no_rows_from_it(tiny, estimated, tmp_path):
    pipe = Pipeline.load(write_pixel_model(tmp_path / "m"), threads=1)
    made = try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    assert list(made.accuracy) == [*trial.WITHOUT, FAST.name] and [c.kind for c in made.comparisons] == [FAST]


def test_a_trial_that_was_stopped_goes_on_to_the_same_result(pipe, tiny, estimated, tmp_path, capfd):
    whole = try_dataset(tiny, tmp_path / "whole", pipe, minutes=5, presets=["fast"], threads=1)
    assert whole.rounds == 1 and whole.verdict and len(outcome(tmp_path / "whole")) == 2 * ROWS

    class Stop:
        def __init__(self, unit):
            self.unit = unit

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, done, total):
            if self.unit == "training" and done == 4:
                os.kill(os.getpid(), signal.SIGINT)

    stopped = try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1, watch=Stop)
    assert stopped.signal == signal.SIGINT and stopped.verdict is None and len(outcome(tmp_path / "out")) == 4
    again = try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    assert again.signal is None and outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert again.accuracy == whole.accuracy and again.verdict == whole.verdict
    kept = json.loads((tmp_path / "out/trial.json").read_text())
    for place, value in (("plan", {}), ("plan", kept["plan"] | {"text": "paper"}), ("results", [{"row": FAST.name}]),
                         ("results", [kept["results"][0] | {"fold": 9}]), ("image_seconds", None)):
        (tmp_path / "out/trial.json").write_text(json.dumps(kept | {place: value}))
        with pytest.raises(ParameterError, match="trial.json is not as dreamda try writes it; give another folder"):
            try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    (tmp_path / "out/trial.json").write_text(json.dumps(kept))
    (tmp_path / "out/trial.json").write_text(json.dumps(kept | {"identity": kept["identity"] | {"format": 1}}))
    with pytest.raises(ParameterError, match="out: .*holds a trial of another version of dreamda; give another folder"):
        try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    (tmp_path / "out/trial.json").write_text(json.dumps(kept))
    with pytest.raises(ParameterError, match="holds a trial of another seed"):
        try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], seed=1, threads=1)
    image = next(tiny.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    with pytest.raises(ParameterError, match="holds a trial of another data set REAL"):
        try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)


def test_the_command(tiny, tmp_path, capsys):
    arguments = [
        "try", tiny, "--out", tmp_path / "out", "--model", "fashion-mini", "--minutes", "5", "--preset", "fast",
        "--threads", "1"
    ]
    assert run(*arguments) == 0
    shown = capsys.readouterr()
    assert "\\n" not in shown.out and shown.out.splitlines()[-1] == f"Look at: {tmp_path / 'out/trial.html'}"
    rows = (*trial.WITHOUT, FAST.name, TEXT.name, HALF.name)
    assert all(f"{row:30} " in shown.out for row in rows) and "trial.html" in shown.out
    page = (tmp_path / "out/trial.html").read_text()
    assert "Do synthetic images help on real?" in page and page.count("data:image/png") == 2
    assert all(f">{row}<" in page for row in rows) and "<code>--text-share 0.5</code>" in page
    (tiny / "coat" if
     (tiny / "coat").is_dir() else next(tiny.iterdir())).joinpath("broken.png").write_bytes(b"no image")
    before = (tmp_path / "out/trial.json").read_bytes()
    assert run(*arguments) == 1
    assert "broken.png" in capsys.readouterr().err and (tmp_path / "out/trial.json").read_bytes() != b""
    assert json.loads(before)["results"] == json.loads((tmp_path / "out/trial.json").read_bytes())["results"]


@pytest.mark.parametrize("change, message",
                         [(["--minutes", "0"], "--minutes: 0.0 is not possible; use a number above 0"),
                          (["--minutes", "0.001"], "--minutes: 0.001 are too few"),
                          (["--preset", "slow"], "--preset: 'slow' is not possible; use one of balanced, paper, fast"),
                          (["--out", "taken"], "taken holds files but no trial.json"),
                          (["--out", "real/inside"], "lies in the data set")])
def test_what_the_command_refuses(tiny, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    assert run("try", "real", "--out", "out", "--model", "fashion-mini", "--preset", "fast", "--threads", "1",
               *change) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
