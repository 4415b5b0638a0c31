"""Tokens against those of transformers' CLIPTokenizer, for many texts and for folders of every age, and damaged
folders."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from batteries.tokenizers import FOLDERS, REFUSED, TEXTS, write_folder
from dreamda.generation.pipeline import BUNDLED
from dreamda.networks.models import TextEncoder
from dreamda.networks.tokenizer import Tokenizer

FOLDER = BUNDLED / "fashion-mini" / "tokenizer"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
FOLDERS_GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer_folders.json").read_text())


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda e: e["name"])
def test_folders(tmp_path, entry):
    """`tests/golden/make_text_and_schedules.py` asked transformers about the same folders."""
    tokenizer = Tokenizer(write_folder(entry, FOLDER, tmp_path))
    assert FOLDERS_GOLDEN["texts"] == TEXTS, "make the golden file again"
    for text, ids, expected in zip(TEXTS, tokenizer(TEXTS).tolist(), FOLDERS_GOLDEN["ids"][entry["name"]]):
        assert ids == expected, repr(text)
        assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("entry", REFUSED, ids=lambda e: e["name"])
def test_refused_folders(tmp_path, entry):
    kind = FileNotFoundError if entry.get("error") else ValueError
    with pytest.raises(kind) as caught:
        Tokenizer(write_folder(entry, FOLDER, tmp_path))
    assert entry["says"] in str(caught.value) and str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


def test_names_are_told_apart():
    names = [entry["name"] for entry in FOLDERS + REFUSED]
    assert len(set(names)) == len(names) and set(FOLDERS_GOLDEN["ids"]) == {entry["name"] for entry in FOLDERS}


def test_tokens_equal_transformers(tmp_path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))
    edit(folder / "tokenizer_config.json", model_max_length=GOLDEN["length"])
    for text, ids, expected in zip(GOLDEN["texts"], Tokenizer(folder)(GOLDEN["texts"]).tolist(), GOLDEN["ids"]):
        assert ids == expected + expected[-1:] * (GOLDEN["length"] - len(expected)), repr(text)


def test_long_texts_are_cut_and_keep_their_end():
    tokenizer = Tokenizer(FOLDER)
    short, long = tokenizer(["a", "coat " * 100])
    assert tokenizer.length == len(long) == 16
    assert long[0] == short[0] and long[-1] == short[-1] and long[-2] != long[-1]
    assert short.dtype == np.int32
    assert tokenizer([]).shape == (0, 16)


@pytest.mark.parametrize("side, cut", [("right", " ninth tenth"), ("left", "first second ")])
def test_the_part_of_a_text_that_is_not_read(tmp_path, side, cut):
    """On the side that the folder says."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))
    text = "first second third fourth fifth sixth seventh eighth ninth tenth"
    whole = len(Tokenizer(folder)._engine.encode(text).ids) > 14
    kept = text.removesuffix(cut) if side == "right" else text.removeprefix(cut)
    edit(folder / "tokenizer_config.json", truncation_side=side, model_max_length=500)
    length = int((Tokenizer(folder)([kept])[0] != Tokenizer(folder)([""])[0, -1]).sum()) + 1
    edit(folder / "tokenizer_config.json", model_max_length=length)
    tokenizer = Tokenizer(folder)
    assert tokenizer.truncation_side == side and tokenizer.unread([text, "first"]) == [cut, ""] and whole


@pytest.mark.parametrize("length", [10**30, None, "77", 0, -5, True, 10**6])
def test_the_length_defaults_to_clips(tmp_path, length):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))
    edit(folder / "tokenizer_config.json", model_max_length=length)  # transformers writes 10**30 for "unlimited"
    assert Tokenizer(folder).length == 77


def test_added_tokens_need_embeddings(tmp_path):
    """A folder with more tokens than the text encoder has embeddings for is refused; with as many, a new token is one
    embedding."""
    model = Path(shutil.copytree(BUNDLED / "fashion-mini", tmp_path / "model"))
    (model / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 598}))
    with pytest.raises(ValueError, match="599 tokens exceed the text encoder's 'vocab_size' 598"):
        TextEncoder.load(model / "text_encoder")
    assert list(Tokenizer(model / "tokenizer")(["<cat-toy>"])[0, :3]) == [596, 598, 597]


@pytest.mark.parametrize(
    "name", ["vocab.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_damaged_files_are_read_or_refused(tmp_path, name):
    """Bytes changed at random: either tokens come out, or an error names the folder; never another exception."""
    rng = random.Random(name)
    entry = next(e for e in FOLDERS if e["name"] == "fast tokenizer before 4.34") if name == "tokenizer.json" else \
        next(e for e in FOLDERS if e["name"] == "added_tokens.json, one special")
    whole = (write_folder(entry, FOLDER, tmp_path) / name).read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 2, 10])):
            content[rng.randrange(len(content))] = rng.choice(b'0123456789"{}[],: nulltrefas\\u' if rng.random() <
                                                              0.8 else bytes(range(256)))
        (tmp_path / name).write_bytes(content)
        try:
            tokenizer = Tokenizer(tmp_path)
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error)
        else:
            assert tokenizer(TEXTS).max() < tokenizer.vocab_size
