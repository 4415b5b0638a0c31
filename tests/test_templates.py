"""Templates with fields, lists of prompts and captions: which prompt each variant gets, that runs repeat it, and that
bad ones are refused before anything is written."""
import json
import os
import shutil
from collections import Counter

import pytest
from test_cli import FAST, fake, real, run  # noqa: F401  (fixtures)
from test_generate import FakePipeline, lines, make_real, tree
from test_pipeline import MODEL

from dreamda.data import ImageFolder, choose_prompts
from dreamda.data.fields import read_fields, set_names
from dreamda.data.templates import Template
from dreamda.generation.options import GenerationOptions
from dreamda.runs.generate import generate_dataset

FIELDS = {"style": ["photo", "sketch", "oil painting"], "view": ["from above", "from the side"]}

# template -> (fields, the prompt with class "ankle boot", style "oil painting" and view "from above")
FILLED = {
    "a photo of a {}": (["class"], "a photo of an ankle boot"),
    "a {style} of a {class}, {view}": (["style", "class", "view"], "an oil painting of an ankle boot, from above"),
    "__style__ of a ({}:1.2) __view__": (["style", "class", "view"], "oil painting of an (ankle boot:1.2) from above"),
    "{{a}} {} {red|blue}": (["class", "red|blue"], "{a} ankle boot red"),
    "{{{class}}}": (["class"], "{ankle boot}"),
    "{class} snake__case__ __init": (["class", "case"], None),
    "a {view}, {view}": (["view"], "a from above, from above"),
}


@pytest.mark.parametrize("text", FILLED)
def test_fields_of_a_template(text):
    fields, filled = FILLED[text]
    template = Template(text)
    assert list(template.fields) == fields
    if filled:
        values = {"class": "ankle boot", "style": "oil painting", "view": "from above", "red|blue": "red"}
        assert template.fill(values) == filled
    assert template.inline.get("red|blue", ("red", "blue")) == ("red", "blue")


@pytest.mark.parametrize("text, expected", [
    ("a {red|} {|} of a {}", "a of an ankle boot"), ("a {red|} {}", "an ankle boot"), ("{red|} {}", "ankle boot"),
    ("an {red|} coat and {}", "an coat and ankle boot"), ("{} {red|}", "ankle boot"), ("a  {|}  {}", "an ankle boot"),
    ("{red|}, {}", ", ankle boot"), ("{}{red|}, x", "ankle boot, x"), ("x{red|}y  {}", "xy  ankle boot"),
    ("{caption}  of a {}", "  of an ankle boot"), ("a {caption} of a {} ", "an  of an ankle boot ")])
def test_an_empty_value_leaves_one_space(text, expected):
    template = Template(text)
    assert template.fill({"class": "ankle boot", "caption": "", "red|": "", "|": ""}) == expected


@pytest.fixture
def folder(tmp_path):
    return make_real(tmp_path / "real", per_class=20)


def fields_file(tmp_path, content=FIELDS, name="fields.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_value_appears_evenly(folder, tmp_path):
    """Within the variants of an image, whatever their number, and about evenly over the images."""
    templates = ["a {style} of a {}, {view}", "a {style} of a {}", "{}, {view}"]
    prompts = choose_prompts(folder, templates, fields=fields_file(tmp_path), seed=4)
    whole = {image.key: [prompts.of(image.key, variant) for variant in range(18)] for image in folder.images}
    for made in whole.values():
        for count in (3, 6, 18):
            used = Counter(prompt.fields["template"] for prompt in made[:count])
            assert set(used.values()) == {count // 3}
        for name, values in FIELDS.items():
            used = Counter(prompt.fields[name] for prompt in made if name in prompt.fields)
            assert set(used) == set(values) and set(used.values()) == {12 // len(values)}
    first = Counter(made[0].fields["template"] for made in whole.values())
    assert len(first) == 3 and max(first.values()) < 25, "images begin with different ones"
    assert len({tuple(p.text for p in made) for made in whole.values()}) == len(whole)
    again = choose_prompts(ImageFolder(folder.root, folder.classes, folder.images[3:], ()), templates,
                           fields=fields_file(tmp_path), seed=4)
    assert again.of(folder.images[5].key, 7) == whole[folder.images[5].key][7], "not by the other images"
    other = choose_prompts(folder, templates, fields=fields_file(tmp_path), seed=5)
    assert any(other.of(key, 0) != made[0] for key, made in whole.items())
    texts = [prompt.text for prompt in whole[folder.images[0].key]]
    assert prompts.variants(folder.images[0].key, 0, 3) == texts[:3]
    assert prompts.variants(folder.images[0].key, 2, 4)[2:] == texts[2:4]
    assert prompts.variants(folder.images[0].key, 5, 6) == texts[5]
    assert len(prompts.distinct(18)) == len({p.text for made in whole.values() for p in made})


YAML = """# styles
about: |
style: [photo, "oil painting", 'it''s']   # three
view:
  - from above, at noon   # a comment
  - "seen: from # the side"
  - (blurred:1.2)
season: [spring,
         summer,   # two
         autumn]
single: one value
"""


@pytest.mark.parametrize("write", ["json", "yaml", "folder", "set"])
def test_where_values_come_from(tmp_path, write):
    if write == "set":
        for name in set_names():
            found = read_fields(name)
            used = {field for template in found.templates for field in template.fields}
            assert used - {"class"} == set(found.values) and all(t.count("class") == 1 for t in found.templates)
        assert set_names() == ["fine-grained", "medical", "natural", "satellite"]
        return
    if write == "folder":
        (tmp_path / "w/deep").mkdir(parents=True)
        (tmp_path / "w/style.txt").write_text("\ufeffphoto\n\n# sketches\n  sketch \n")
        (tmp_path / "w/deep/view.txt").write_text("from above\n")
        assert read_fields(tmp_path / "w").values == {"deep/view": ("from above",), "style": ("photo", "sketch")}
        return
    if write == "json":
        assert read_fields(fields_file(tmp_path)).values == {k: tuple(v) for k, v in FIELDS.items()}
        return
    found = read_fields(fields_file(tmp_path, YAML.replace("about: |\n", "about: some\n"), "f.yaml"))
    assert found.values == {"style": ("photo", "oil painting", "it's"), "season": ("spring", "summer", "autumn"),
                            "view": ("from above, at noon", "seen: from # the side", "(blurred:1.2)"),
                            "single": ("one value",)}


# name of the file -> what is in it, and what the message says of it
BROKEN = {
    "a.json": [("[", "is no JSON object"), ('{"a": 3}', "'a' must be a list"), ('{"a": []}', "'a' must be a list"),
               ('{"a": ["x", "x"]}', "'x' twice"), ('{"class": ["x"]}', "depends on the image; rename it"),
               ('{"template": ["x"]}', "has a field 'template', the name under which metadata.jsonl records"),
               ('{"templates": ["a {b"]}', "has a { without a }"), ("[" * 99_999, "is no JSON object"),
               ('{"a": ["\\ud800"]}', "'a' must be a list")],
    "a.yaml": [("style", "line 1 is in none of the forms"), ("a: [x", "line 1 is"), ("a: [x]]", "line 1 is"),
               ("a: {b: c}", "line 1 is"), ("- x", "line 1 is"), ("a:\n  - x\na: y", "line 3 is"),
               ("a: &b c", "line 1 is"),
               ("a: [x y: z]", "line 1 is"), ("a:\n  - [x]", "line 2 is"), ("a:", "'a' must be a list"),
               ("a: !!python/object:x y", "line 1 is"), ("a: [" + " " * 50_000, "line 1 is"),
               ("a: [" + "x," * 50_000 + "?:", "line 1 is"), ("template: [x]", "has a field 'template'")],
}


@pytest.mark.parametrize("name, content, message", [(n, c, m) for n, cases in BROKEN.items() for c, m in cases])
def test_files_of_fields_that_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_fields(path)
    assert str(caught.value).startswith(f"fields: {path}") and message in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_fields(path)


def test_lists_and_captions(folder, tmp_path):
    lists = {"ankle_boot": ["a boot", "a {style} of a {}", "(boots:1.2)"], "coat": "a coat"}
    path = fields_file(tmp_path, lists, "prompts.json")
    prompts = choose_prompts(folder, file=path, fields=fields_file(tmp_path))
    boots = {prompts.of("ankle_boot/00.png", variant).text for variant in range(3)}
    assert {"a boot", "(boots:1.2)"} < boots and len(boots) == 3 and prompts.of("coat/00.png", 1).text == "a coat"
    assert prompts.source.keys() == {"prompts_sha256", "fields_sha256"}
    assert prompts.notes == (f"no template has the field view of {fields_file(tmp_path)}",)
    rows = [{"file_name": image.key, "text": f"{image.name} (new)"} for image in folder.images]
    (folder.root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain, styled = choose_prompts(folder), choose_prompts(folder, "{caption}, {style}", fields=fields_file(tmp_path))
    assert plain.of("coat/00.png", 3).text == r"00.png \(new\)" and plain.choice is None
    assert styled.of("coat/00.png", 0).text.startswith(r"00.png \(new\), ")
    assert choose_prompts(folder, prompt_syntax="plain").texts["coat/00.png"] == "00.png (new)"


def test_brackets_in_names_are_no_weights(tmp_path):
    folder = make_real(tmp_path / "real", 1, ("crane_(bird)", "crane_(machine)"))
    (folder.root / "classes.json").write_text('{"crane_(machine)": "[tall] crane"}')
    assert list(choose_prompts(folder, "a ({}:1.2)").texts.values()) == [
        r"a (crane \(bird\):1.2)", r"a (\[tall\] crane:1.2)"]
    assert choose_prompts(folder, "{}", prompt_syntax="plain").texts["crane_(bird)/00.png"] == "crane (bird)"


# ---- runs

def command(real, out, *more):  # noqa: F811
    return run("generate", real, "--out", out, *FAST[:2], "--variants", "4", "--steps", "3", *more)


def test_a_run_with_fields(fake, real, tmp_path, capsys):  # noqa: F811
    """It is resumed, sharded and replayed to the same bytes; other values, templates and seeds are another run."""
    path, out = fields_file(tmp_path), tmp_path / "out"
    options = ["--template", "a {style} of a {}", "--template", "a {} {view}", "--fields", path]
    assert command(real, out, *options) == 0 and command(real, out, *options) == 0
    assert "24 were there already" in capsys.readouterr().out
    for part in ("1/3", "0/3", "2/3"):
        assert command(real, tmp_path / "shards", *options, "--shard", part) == 0
    assert command(real, tmp_path / "grown", *options, "--variants", "1") == 0
    assert command(real, tmp_path / "grown", *options) == 0
    assert tree(out) == tree(tmp_path / "shards") == tree(tmp_path / "grown")
    record = json.loads((out / "run.json").read_text())
    assert record["template"] == ["a {style} of a {}", "a {} {view}"] and len(record["fields_sha256"]) == 64
    expected = choose_prompts(ImageFolder.scan(real), record["template"], fields=path)
    for row in lines(out):
        assert (row["prompt"], row["fields"]) == expected.of(row["seed_file"], row["variant"])
    assert {row["fields"]["template"] for row in lines(out)} == set(record["template"])
    capsys.readouterr()
    fields_file(tmp_path, FIELDS | {"unused": ["x"]})
    assert command(real, out, *options) == 0 and "no template has the field unused" in capsys.readouterr().err
    for change, message in (({"style": ["x"]}, "another --fields;"), ({}, "another --template")):
        fields_file(tmp_path, FIELDS | change)
        assert command(real, out, *(options if change else options[2:])) == 2
        assert message in capsys.readouterr().err
    path.unlink()
    assert run("replay", out) == 0 and "24 of 24 images repeated to the same bytes" in capsys.readouterr().out


def test_a_prompt_for_each_variant_from_python(tmp_path):
    folder, out = make_real(tmp_path / "real", 1), tmp_path / "out"
    prompts = {image.key: [f"{image.label} {k}" for k in range(3)] for image in folder.images}
    settings = GenerationOptions(variants=3, steps=40)
    generate_dataset(folder, out, FakePipeline(), settings, prompts=prompts)
    assert [row["prompt"] for row in lines(out)] == [text for key in sorted(prompts) for text in prompts[key]]
    with pytest.raises(ValueError, match="prompts: ankle_boot/00.png has 3 prompts, and no variant 3; give one for"):
        generate_dataset(folder, tmp_path / "b", FakePipeline(), GenerationOptions(variants=4), prompts=prompts)
    for wrong, message in (({"coat/00.png": "x"}, "there is none for ankle_boot/00.png"),
                           (prompts | {"coat/00.png": []}, "the list for coat/00.png is empty")):
        with pytest.raises(ValueError, match=f"prompts: {message}"):
            generate_dataset(folder, tmp_path / "b", FakePipeline(), settings, prompts=wrong)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--template", "a {style of a {}"], "--template: 'a {style of a {}' has a { without a }; complete it"),
    (["--template", "a {} style}"], "has a } without a {; complete it, or write }} for the character itself"),
    (["--template", "a {style} of a {}"], "has the field {style}: it has no values; give them as --fields"),
    (["--template", "a {stile} of a {}", "--fields", "{f}"], "fields.json has none of that name, only style, view"),
    (["--template", "a {style}", "--fields", "{f}"], "must hold {} once, where the class name goes"),
    (["--template", "__coat__ {}", "--fields", "{w}"], "there is no file {w}/coat.txt; add it, or correct the name"),
    (["--template", "{2$$a|b} {}"], "numbers and weights of values are not supported"),
    (["--template", "a {a b} {}"], "which is no name of a field"),
    (["--template", "{caption}"], "has {caption}, and the data set has no captions"),
    (["--fields", "{f}"], "fields.json has the fields style, view; give a --template with some of them"),
    (["--fields", "{s}"], "single.json has the field style; give a --template with it, or templates in the file"),
    (["--fields", "none"], "--fields: none: no such file or folder; give one, or a set that comes with dreamda: fine"),
    (["--fields", "{real}"], "has no .txt files"),
    (["--fields", "{t}", "--template", "a {template} of a {}"], "prompts.yaml has a field 'template', the name under"),
    (["--fields", "{r}", "--template", "a {}"], "reserved gives values to 'class', which depends on the image; rename"),
    (["--prompts", "missing.json"], "--prompts: missing.json: no such file; give JSON Lines or CSV with file_name and"),
    (["--prompts", "missing.csv"], "--prompts: missing.csv: no such file; give JSON Lines or CSV with file_name and"),
    (["--prompts", "{p}"], "prompts.json has no prompts for the class 'ankle_boot'; add them"),
    (["--prompts", "{p}", "--template", "{}"], "a template and a file of prompts exclude each other"),
    (["--template", "a (red:1.2.3) {}"], "has the weight '1.2.3', which is not a number"),
    (["--negative-prompt", "(red:.)"], "has the weight '.', which is not a number"),
])
def test_bad_prompts_are_one_sentence_and_nothing_is_written(fake, real, tmp_path, capsys, arguments,  # noqa: F811
                                                             message):
    fake.folder = MODEL
    (tmp_path / "w").mkdir()
    (tmp_path / "w/style.txt").write_text("photo\n")
    (tmp_path / "reserved").mkdir()
    (tmp_path / "reserved/class.txt").write_text("photo\n")
    names = {"{f}": fields_file(tmp_path), "{p}": fields_file(tmp_path, {"coat": "x"}, "prompts.json"),
             "{w}": tmp_path / "w", "{real}": real, "{r}": tmp_path / "reserved",
             "{s}": fields_file(tmp_path, {"style": ["x"]}, "single.json"),
             "{t}": fields_file(tmp_path, "template: [photo, sketch]", "prompts.yaml")}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
        message = message.replace(name, str(path))
    before = tree(tmp_path)
    assert command(real, tmp_path / "out", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dreamda: ") and captured.err.count("\n") == 1 and message in captured.err
    assert captured.out == "" and tree(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, message", [
    ("[", "is no JSON object of classes"), ('{"cat": "x"}', "names 'cat', which is no class"),
    ('{"coat": [], "ankle_boot": "x"}', "the prompts of 'coat' must be a text or a list"),
    ('{"coat": ["a", "a"], "ankle_boot": "x"}', "hold one of them twice"),
    ('{"coat": "{x}", "ankle_boot": "x"}', "the prompt '{x}' has the field {x}: it has no values"),
    ('{"coat": "{", "ankle_boot": "x"}', "the prompt '{' has a { without a }"), ("[" * 99_999, "is no JSON object")])
def test_lists_that_are_refused(folder, tmp_path, content, message):
    path = fields_file(tmp_path, content, "prompts.json")
    with pytest.raises(ValueError) as caught:
        choose_prompts(folder, file=path)
    assert str(path) in str(caught.value) and message in str(caught.value)


# ---- dreamda prompts, and notes before a run

def test_the_table_of_prompts(real, tmp_path, capsys):  # noqa: F811
    path = fields_file(tmp_path)
    options = ["--template", "a {style} of a {}", "--fields", path, "--variants", "3"]
    assert run("prompts", real, *options, "--model", "fashion-mini") == 0
    captured = capsys.readouterr()
    lines_ = captured.out.splitlines()
    assert lines_[0] == "6 images in 2 classes, 3 variants of each: 6 different prompts"
    assert lines_[1].split() == ["class", "images", "prompts", "tokens", "chunks", "of", "these"]
    assert lines_[2].startswith("ankle boot       3        3    ") and '"a photo of an ankle boot"' in lines_[2]
    assert lines_[4] == 'style: "oil painting" 6, "photo" 6, "sketch" 6'
    assert f"no template has the field view of {path}" in captured.err
    assert 'has never seen the words "oil" (class ankle_boot)' in captured.err.replace('"sketch"', '"oil"')
    assert run("prompts", real, *options) == 0 and "tokens" not in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["fields.json", "real"]
    texts = {text for label in ("coat", "ankle_boot") for text in
             (prompts_of(real, options, f"{label}/0{i}.png", k) for i in range(3) for k in range(3))}
    assert len(texts) == 6 and all(text in captured.out for text in texts)


def prompts_of(real, options, key, variant):  # noqa: F811
    return choose_prompts(ImageFolder.scan(real), options[1], fields=options[3]).of(key, variant).text


@pytest.mark.parametrize("options, note", [
    (["--template", "a {} beside a coat"], "1 of 2 prompts names another class than that of the image"),
    (["--template", "a {}", "--negative-prompt", "ankle boots"], "the negative prompt names the class 'ankle boot'"),
    (["--template", "a (photo of a {}"], "'(photo of an ankle boot': its weight goes to the end"),
    (["--template", "a photo " * 8 + "of a {}"], "have more than the 14 tokens of a chunk and are read in several"),
    (["--template", "a photo " * 8 + "{}", "--prompt-syntax", "plain"], "is in the part that is cut off"),
    (["--template", "a {} " + "a photo " * 8, "--prompt-syntax", "plain"], "it does not read 'photo a photo a photo'"),
    (["--template", "a coat and an ankle boot, {}"], "2 of 2 prompts name another class"),
    (["--template", "a photo of a {}"], ""),
    (["--template", "a {} in a raincoat"], "has never seen the words \"in\" (class ankle_boot), \"raincoat\""),
])
def test_notes_about_prompts(real, capsys, options, note):  # noqa: F811
    code = run("prompts", real, *options, "--variants", "1", "--model", "fashion-mini")
    error = capsys.readouterr().err
    assert code == (2 if "cut off" in note else 0) and note in error and (note or not error)


@pytest.mark.parametrize("words, cut", [(11, 0), (12, 1), (13, 2)])
def test_the_table_and_the_note_count_the_same_tokens(real, capsys, words, cut):  # noqa: F811
    """Without the marks of start and end; "ankle boot" has a token more than "coat"."""
    options = ["--template", "a {}" + " photo" * words, "--prompt-syntax", "plain", "--model", "fashion-mini"]
    assert run("prompts", real, *options, "--variants", "1") == 0
    captured = capsys.readouterr()
    tokens = [int(line.partition('"')[0].split()[-2]) for line in captured.out.splitlines()[2:4]]
    assert sorted(tokens) == [words + 2, words + 3]
    assert sum(count > 14 for count in tokens) == cut and ("longer" in captured.err) == bool(cut)
    assert not cut or f"{cut} of 2 prompts {'is' if cut == 1 else 'are'} longer than the 14 tokens" in captured.err


def test_the_table_refuses_what_generate_refuses(real, tmp_path, capsys):  # noqa: F811
    assert run("prompts", real, "--template", "a {x} {}") == 2
    assert "has the field {x}: it has no values; give them as --fields" in capsys.readouterr().err
    assert run("prompts", real, "--model", tmp_path / "none") == 2 and run("prompts", tmp_path / "none") == 2
    assert run("prompts", real, "--recipe", "oxford-pets") == 0
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
    assert run("prompts", real, "--model", tmp_path / "model") == 2
    assert "has no tokenizer: it reads no prompts" in capsys.readouterr().err
