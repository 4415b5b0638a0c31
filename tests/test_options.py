"""One definition of every option: the dataclass, the API's signatures, the command line, run.json and the type
checker's keywords agree."""

import dataclasses
import inspect
import json
import pickle
import re
import typing
from pathlib import Path
from typing import Literal

import pytest
import typer
from test_cli import fake, real, run  # noqa: F401  (fixtures)

import dreamda
from dreamda import cli
from dreamda.cli.common import Command, accepts_options, chosen
from dreamda.distributed import Augmenter
from dreamda.generation.options import GenerationOptions, OptionKeywords
from dreamda.generation.recipes import load_recipe
from dreamda.options import (Option, Options, ParameterError, accepts, defaults_of, from_keywords, option, options_of,
                             spelled)
from dreamda.presets import load_preset, presets
from dreamda.training.recipe import Recipe

FIELDS = [each.name for each in dataclasses.fields(GenerationOptions)]
# What differs from the field's default, and why: a call from Python is a first try, a data set is a run.
OWN_DEFAULTS = {
    dreamda.Pipeline.augment: {"variants": 4}, dreamda.Pipeline.augment_latents: {"variants": 4}, Augmenter: {}
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("function", OWN_DEFAULTS, ids=lambda f: f.__qualname__)
def test_signatures(function, name):
    shown = inspect.signature(function).parameters[name]
    assert shown.default == OWN_DEFAULTS[function].get(name, defaults_of(GenerationOptions)[name])
    assert shown.kind is inspect.Parameter.KEYWORD_ONLY
    assert f"\n{name} : " in inspect.cleandoc(function.__doc__) and spelled(
        options_of(GenerationOptions)[name].help) in function.__doc__


@pytest.mark.parametrize("name", FIELDS)
def test_command_line(name):
    param = {p.name: p for p in typer.main.get_command(cli.app).commands["generate"].params}[name]
    about = options_of(GenerationOptions)[name]
    assert param.default == defaults_of(GenerationOptions)[name] and param.rich_help_panel == about.group
    assert param.opts == [f"--{name.replace('_', '-')}"] and bool(param.secondary_opts) == (about.kind is bool)


def test_type_checkers_see_the_same_fields():
    assert typing.get_type_hints(OptionKeywords) == typing.get_type_hints(GenerationOptions) and list(
        OptionKeywords.__annotations__) == FIELDS


def test_run_json_holds_every_field(fake, real, tmp_path):  # noqa: F811
    assert run("generate", real, "--out", tmp_path / "out", "--model", "fake", "--variants", "2", "--steps", "3") == 0
    expected = dataclasses.asdict(GenerationOptions(variants=2, steps=3, **load_preset("balanced").generate))
    assert {
        name: value
        for name, value in json.loads((tmp_path / "out/run.json").read_text()).items() if name in FIELDS
    } == expected


@pytest.mark.parametrize("name", FIELDS)
def test_the_table_of_names_has_every_field(name):
    table = (Path(__file__).parents[1] / "python/docs/names.md").read_text()
    assert any(re.search(rf"`{name}\b", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `"))


@pytest.mark.parametrize("name", presets())
def test_a_preset_holds_fields_with_values_that_are_possible(name):
    preset = load_preset(name)
    assert preset.about
    made = GenerationOptions(**preset.generate), Recipe(**preset.train)
    for options, given in zip(made, (preset.generate, preset.train), strict=True):
        assert {k: getattr(options, k) for k in given} == {k: tuple(v) if isinstance(v, list) else v
                                                           for k, v in given.items()}


def test_a_command_takes_a_presets_numbers_beside_its_own_texts():
    typed = {name: "" if about.count else defaults_of(Recipe)[name] for name, about in options_of(Recipe).items()}
    made = chosen(Recipe, typed | load_preset("paper").train | {"mean": "0.5,0.5,0.5"})
    assert (made.image_size, made.crop_scale, made.mean) == ((224, 224), (0.08, 1.0), (0.5, 0.5, 0.5))


def test_the_balanced_preset_adds_text_to_the_defaults_and_the_papers_names_all_that_decides_an_image():
    assert load_preset("balanced").generate == {"text_share": 0.5} and load_preset("balanced").train == {}
    assert set(FIELDS) - set(load_preset("paper").generate) == {"variants", "seed"}
    with pytest.raises(ParameterError, match="preset: 'slow' is not possible; use one of balanced, paper, fast"):
        load_preset("slow")


@pytest.mark.parametrize("options, expected",
                         [(["--preset", "fast"], load_preset("fast").generate),
                          (["--preset", "fast", "--steps", "3"], load_preset("fast").generate | {"steps": 3}),
                          (["--preset", "fast", "--method", "sdedit"],
                           {"steps": 4, "method": "sdedit", "noise_scale": 0.0, "text_share": 0.0,
                            "share_source": False}),
                          (["--preset", "fast", "--method", "cycle"], {"share_source": True, "text_share": 0.0}),
                          (["--preset", "paper", "--recipe", "mine.json"], load_preset("paper").generate
                           | {"steps": 9}), ([], {"text_share": 0.5}), (["--strength", "0.5"], {"text_share": 0.0}),
                          (["--strength", "0.5", "--text-share", "0.2"], {"text_share": 0.2, "strength": 0.5}),
                          (["--recipe", "share.json"], {"text_share": 0.2}),
                          (["--recipe", "caltech101"], {"text_share": 0.0, "steps": 100})])
def test_options_take_precedence_over_a_recipe_and_that_over_a_preset(fake, real, tmp_path, monkeypatch, options,
                                                                      expected):
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text('{"steps": 9}')
    Path("share.json").write_text('{"text_share": 0.2}')
    assert run("generate", real, "--out", "out", "--model", "fake", "--variants", "1", *options) == 0
    held = json.loads(Path("out/run.json").read_text())
    assert {name: held[name] for name in expected} == expected
    assert held["environment"]["preset"] == (options[1] if "--preset" in options else "balanced")


@pytest.mark.parametrize("option", [["--method", "sdedit"], ["--strength", "0.5"], ["--noise-scale", "2"]])
def test_options_for_changed_images_are_refused_where_there_are_none(fake, real, tmp_path, capsys, option):
    assert run("generate", real, "--out", tmp_path / "out", "--model", "fake", "--text-share", "1", *option) == 2
    assert f"{option[0]}: has no effect: --text-share 1 makes all" in capsys.readouterr().err


def test_the_line_before_the_start_and_a_preview_tell_what_is_from_the_text(fake, real, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("generate", real, "--out", out, "--model", "fake", "--variants", "3", "--preview", "4") == 0
    assert "; 1 of 3 variants from the text alone" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row.get("from_text", False) for row in rows] == [False, True] * 2


def test_recipes_are_checked_by_the_fields(tmp_path):
    (tmp_path / "mine.json").write_text('{"steps": 2.5}')
    with pytest.raises(ValueError, match="steps: 2.5 is not possible; use a whole number of 1 or more"):
        load_recipe(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_text('{"step": "sdedit", "strength": 1}')
    assert load_recipe(tmp_path / "mine.json") == ({"method": "sdedit", "strength": 1.0}, None)


@pytest.mark.parametrize(
    "options, library, command",
    [(["--steps", "0"], "steps: 0 is not possible", "--steps: 0 is not possible; use a whole number of 1 or more"),
     (["--method", "x"], "method: 'x' is not", "--method: 'x' is not possible; use one of cycle, asymmetric, sdedit"),
     (["--diverse", "--share-start"
       ], "diverse: chooses among noisy starts, so it needs share_start=False, and method=cycle or method=sdedit",
      "--diverse: chooses among noisy starts, so it needs --no-share-start, and --method cycle or --method sdedit"),
     (["--guidance-low", "0.5", "--guidance-high", "0.5"], "guidance_low: 0.5 is not below guidance_high, which is 0.5",
      "--guidance-low: 0.5 is not below --guidance-high, which is 0.5"),
     (["--share-source", "--method", "sdedit"
       ], "share_source: method=sdedit has no", "--share-source: --method sdedit has no source trajectory"),
     (["--seed", str(1 << 64)], "seed: 18446744073709551616 is not",
      "--seed: 18446744073709551616 is not possible; use a whole number from 0 to 2**64 - 1"), ])
def test_the_library_names_the_parameter_and_the_command_its_option(fake, real, tmp_path, capsys, options,  # noqa: F811
                                                                    library,
                                                                    command):
    words = [int(word) if word.isdecimal() else float(word) if "." in word else word for word in options]
    keywords, name = {}, ""
    for word in words:
        if str(word).startswith("--"):
            keywords[name := word[2:].replace("-", "_")] = True
        else:
            keywords[name] = word
    with pytest.raises(ParameterError) as caught:
        GenerationOptions(**keywords)
    assert str(caught.value).startswith(library)
    assert run("generate", real, "--out", tmp_path / "out", "--model", "fake", *options) == 2
    assert f"dreamda: {command}" in capsys.readouterr().err


# ---- the mechanism alone


@dataclasses.dataclass(frozen=True)
class Shape(Options):
    sides: int = option(3, "How many sides; not with `round`.", group="Outline", low=3, high=8)
    width: float = option(1.0, "How wide.", group="Outline", above=0, high=2)
    size: float | None = option(None, "How large.", group="Outline", shown_default="as wide as `width=2`")
    style: Literal["thin", "bold"] = option("thin", "How it is drawn; `style=bold` stands out.", group="Ink")
    round: bool = option(False, "Whether corners are round.", group="Ink", spelling="--soft")


@pytest.mark.parametrize("field, value, kept", [("sides", 8, 8), ("width", 2, 2.0), ("size", None, None),
                                                ("size", 1, 1.0), ("style", "bold", "bold"), ("round", True, True)])
def test_values_get_their_fields_type(field, value, kept):
    found = getattr(Shape(**{field: value}), field)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize("field, value, possible", [("sides", 2, "a whole number from 3 to 8"),
                                                    ("sides", 9, "a whole number from 3 to 8"),
                                                    ("sides", 3.0, "a whole number"), ("sides", True, "a whole number"),
                                                    ("width", 0, "a number above 0, at most 2"),
                                                    ("width", float("nan"), "a number"), ("width", "1", "a number"),
                                                    ("width", None, "a number"),
                                                    ("size", float("inf"), "a finite number"),
                                                    ("style", "wide", "one of thin, bold"),
                                                    ("style", 1, "one of thin, bold"), ("round", 1, "True or False")])
def test_values_that_are_not_possible(field, value, possible):
    with pytest.raises(ParameterError) as caught:
        Shape(**{field: value})
    assert caught.value.parameter == field and f"{value!r} is not possible; use {possible}" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.parameter) == (ParameterError, str(caught.value), field)


@pytest.mark.parametrize("about, possible", [(Option("", "", int, low=1), "a whole number of 1 or more"),
                                             (Option("", "", float, above=0), "a number above 0"),
                                             (Option("", "", float, high=4), "a number of at most 4"),
                                             (Option("", "", int, low=0, high=2**64 - 1), "to 2**64 - 1"),
                                             (Option("", "", str), "a text")])
def test_possible_values_in_words(about, possible):
    assert about.possible.endswith(possible)


def test_a_function_with_the_fields_as_keywords():
    @accepts(Shape, sides=4)
    def draw(name, *, colour="red", **options):
        """Draw it.

        Parameters
        ----------
        name, colour : str
        Shape
            Its fields.

        Returns
        -------
        str
        """
        return from_keywords(Shape, draw, options)

    assert list(inspect.signature(draw).parameters) == ["name", "colour", "sides", "width", "size", "style", "round"]
    text = inspect.cleandoc(draw.__doc__)
    assert 'style : {"thin", "bold"}, default \'thin\'\n    How it is drawn; style=bold stands out.\n' in text
    assert "sides : int, default 4\n" in text
    assert "size : float, default as wide as width=2\n" in text and "Its fields." not in text and text.endswith(
        "Returns\n-------\nstr")
    assert draw("x") == Shape(sides=4) and draw("x", round=True) == Shape(sides=4, round=True)
    with pytest.raises(TypeError,
                       match=r"draw\(\) got an unexpected keyword argument 'side'; the options are sides, width"):
        draw("x", side=3)


def test_a_command_with_the_fields_as_options(capsys):
    app, made = typer.Typer(rich_markup_mode=None), []

    @app.command(cls=Command, epilog="draw square\ndraw circle --soft")
    @accepts_options(Shape)
    def draw(name: typing.Annotated[str, typer.Argument(help="Its name.")], **options) -> None:
        """Draw a shape."""
        made.append(chosen(Shape, options))

    def invoke(*arguments):
        return typer.main.get_command(app).main(list(arguments), "draw", standalone_mode=False)

    invoke("square", "--sides", "4", "--size", "2", "--style", "bold", "--soft")
    assert made == [Shape(sides=4, size=2, style="bold", round=True)]
    invoke("--help")
    text = " ".join((shown := capsys.readouterr().out).split())
    for part in ("Outline: --sides N How many sides; not with --soft. [default: 3]",
                 "--size X How large. [default: as wide as --width 2]",
                 "Ink: --style [thin|bold] How it is drawn; --style bold stands out. [default: thin]",
                 "--soft / --no-soft Whether corners are round."):
        assert part in text
    assert shown.endswith("Examples:\n  draw square\n  draw circle --soft\n") and "<" not in shown.split("Outline:")[1]
    with pytest.raises(ValueError, match="^--width: 0.0 is not possible; use a number above 0, at most 2"):
        invoke("square", "--width", "0")
