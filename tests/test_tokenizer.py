"""Tokens against those of transformers' CLIPTokenizer (golden/tokens.json), and damaged tokenizer folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dreamda.generation.pipeline import BUNDLED
from dreamda.networks.tokenizer import Tokenizer

FOLDER = BUNDLED / "fashion-mini" / "tokenizer"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def test_tokens_equal_transformers(folder):
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


def test_padding_of_its_own(folder):
    """Stable Diffusion 2 pads with "!" (token 0), and writes special tokens as objects."""
    edit(folder / "tokenizer_config.json", pad_token="!", eos_token={"content": "<|endoftext|>", "__type": "AddedToken"})
    edit(folder / "special_tokens_map.json", pad_token="!")
    padded, plain = Tokenizer(folder)(["a coat"])[0], Tokenizer(FOLDER)(["a coat"])[0]
    end = list(plain).index(plain[-1])
    assert list(padded) == [*plain[: end + 1], *[0] * (15 - end)]


def test_the_length_defaults_to_clips(folder):
    edit(folder / "tokenizer_config.json", model_max_length=10**30)  # what transformers writes for "unlimited"
    assert Tokenizer(folder).length == 77


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("vocab.json", "{", "not valid JSON"),
        ("vocab.json", "[1]", "expected a JSON object"),
        ("vocab.json", '{"a": "b"}', "whole number"),
        ("vocab.json", '{"a": 0}', "is not in it"),
        ("merges.txt", "a b c\n", "line 1 has to hold two tokens"),
        ("merges.txt", "zz yy\n", "does not fit vocab.json"),
    ],
)
def test_damaged_folders(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Tokenizer(folder)
