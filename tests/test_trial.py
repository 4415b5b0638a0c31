"""`dreamda try`: the plan keeps to the time, held-out images leave no trace in training, the verdict follows from the
numbers, and a trial that was stopped goes on to the same result."""
import json
import os
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_cli import run

from dreamda import Pipeline
from dreamda.data import load_bundled
from dreamda.options import ParameterError
from dreamda.runs import trial
from dreamda.runs.trial import judge, make_plan, right_by_image, try_dataset

ROWS = 3  # two without synthetic images, and a preset


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


def outcome(out):
    return [(r["round"], r["fold"], r["row"], r["held"], r["right"])
            for r in json.loads((out / "trial.json").read_text())["results"]]


@pytest.mark.parametrize("counts, image_seconds, step_seconds, minutes, expected",
                         [([10, 10], {"fast": 0.01}, 0.01, 60, (10, 4, 300, 4, ("fast", ))),
                          ([10, 10], {"fast": 1.0}, 0.01, 2.1, (10, 3, 300, 4, ("fast", ))),
                          ([10, 10], {"fast": 0.01}, 0.05, 4, (10, 4, 200, 4, ("fast", ))),
                          ([3, 10], {"fast": 0.01}, 0.01, 60, (10, 4, 300, 3, ("fast", ))),
                          ([100, 100], {"fast": 1.0}, 0.01, 10, (40, 3, 300, 4, ("fast", ))),
                          ([10, 10], {"balanced": 60.0, "fast": 0.1}, 0.01, 10, (10, 4, 300, 4, ("fast", )))])
def test_a_plan_fits_into_the_time(counts, image_seconds, step_seconds, minutes, expected):
    plan = make_plan(counts, image_seconds, step_seconds, minutes)
    assert (plan.per_class, plan.variants, plan.steps, plan.folds, plan.presets) == expected
    assert plan.seconds <= 60 * minutes


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
    right = {"real images": base, "real images, RandAugment": base * 0.9, "fast": other}
    gains = {("fast", row): np.full(4, (other - right[row]).mean()) + [0.02, -0.02, 0.01, -0.01]
             for row in trial.WITHOUT}
    comparisons, verdict = judge(right, ["fast"], gains)
    assert verdict.word == word and comparisons == [verdict.best]
    assert verdict.best.low <= verdict.best.gain <= verdict.best.high
    assert verdict.best.gain == pytest.approx((other - base).mean())


def test_the_best_of_several_presets_must_be_further_ahead():
    right = {row: np.tile([0.0, 1.0], 50) for row in (*trial.WITHOUT, "a", "b")}
    gains = {(preset, row): np.array([0.1, -0.1, 0.1, 0.0]) for preset in "ab" for row in trial.WITHOUT}
    (one, ), _ = judge(right, ["a"], gains)
    both, _ = judge(right, ["a", "b"], gains)
    assert both[0].high - both[0].low > one.high - one.low


def test_an_image_counts_once_a_round():
    results = [{"round": r, "row": "a", "held": [fold], "right": [fold ^ r]} for r in range(3) for fold in range(2)]
    assert right_by_image(results, ["a"], 2, 2)["a"].tolist() == [0.5, 0.5]


def test_what_was_made_from_a_held_out_image_is_left_out(pipe, tiny, tmp_path, monkeypatch):
    seen = []
    fit = trial.AMSTClassifier.fit

    def watched(self, X, y, X_made=None, y_made=None, **groups):
        done = fit(self, X, y, X_made, y_made, **groups)
        if X_made is not None:
            seen.append((set(groups["groups"].tolist()), groups["groups_synthetic"].tolist(), self.left_out_.tolist()))
        return done

    monkeypatch.setattr(trial.AMSTClassifier, "fit", watched)
    done = try_dataset(tiny, tmp_path / "out", pipe, minutes=5, presets=["fast"], threads=1)
    assert len(seen) == done.plan.folds == 2
    for trained, made_from, left_out in seen:
        assert Counter(made_from) == {i: 2 for i in range(8)} and len(trained) == 4
        assert left_out == [place for place, group in enumerate(made_from) if group not in trained]
    tested = Counter(i for _, _, row, held, _ in outcome(tmp_path / "out") if row == "fast" for i in held)
    assert tested == {i: 1 for i in range(8)}


def test_a_trial_that_was_stopped_goes_on_to_the_same_result(pipe, tiny, tmp_path, capfd):
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
    for place, value in (("plan", {}), ("results", [{"row": "fast"}]), ("results", [kept["results"][0] | {"fold": 9}]),
                         ("image_seconds", None)):
        (tmp_path / "out/trial.json").write_text(json.dumps(kept | {place: value}))
        with pytest.raises(ParameterError, match="trial.json is not as dreamda try writes it; give another folder"):
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
    assert "preset fast" in shown.out and "real images, RandAugment" in shown.out and "trial.html" in shown.out
    page = (tmp_path / "out/trial.html").read_text()
    assert "Do synthetic images help on real?" in page and page.count("data:image/png") == 1
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
