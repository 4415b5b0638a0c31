"""Textual inversion: new tokens with learned vectors, of one or several; unfit files are
refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_lora import MODEL, OPTIONS, command, real, stored  # noqa: F401  (fixture)

from dreamda.generation.pipeline import Pipeline
from dreamda.networks.embeddings import Embedding
from dreamda.networks.models import TextEncoder
from dreamda.networks.tokenizer import Tokenizer

TABLE = stored("text_encoder")["text_model.embeddings.token_embedding.weight"]
WIDTH = TABLE.shape[1]


def load(*embeddings):
    return TextEncoder.load(MODEL / "text_encoder", dtype="f32", threads=1, embeddings=embeddings)


def rows_of(word):
    """The vectors that the model has for a word of its own."""
    ids = Tokenizer(MODEL / "tokenizer")([word])[0]
    return TABLE[ids[1 : list(ids).index(ids[-1])]]


def write(path, token, vectors):
    save_file({token: np.asarray(vectors, np.float32)}, path)
    return path


def test_a_copy_of_a_word_is_that_word(tmp_path):
    """A new token with the vectors of a word (one or several) gives the word's embedding; so does a renamed one."""
    for word in ("coat", "ankle boot"):
        vectors = rows_of(word)
        file = write(tmp_path / f"{len(vectors)}.safetensors", "<new>", vectors)
        for given, token in ((file, "<new>"), ((file, "<Mine>"), "<Mine>")):
            made = load(given)([f"a photo of a {token}", "a photo of a shirt"])
            assert np.array_equal(made, load()([f"a photo of a {word}", "a photo of a shirt"]))
    assert len(rows_of("ankle boot")) > 1, "several vectors"
    flat = write(tmp_path / "flat.safetensors", "<new>", rows_of("coat")[0])
    webui = write(tmp_path / "style.safetensors", "emb_params", rows_of("coat"))
    for given, token in ((flat, "<new>"), (webui, "style")):
        assert np.array_equal(load(given)([f"a {token}"]), load()(["a coat"]))


def test_several_embeddings_and_their_tokens(tmp_path):
    one = write(tmp_path / "1.safetensors", "<a>", np.full((1, WIDTH), 0.1))
    two = write(tmp_path / "2.safetensors", "<b>", np.full((3, WIDTH), 0.2))
    encoder, size = load(one, two), Tokenizer(MODEL / "tokenizer").vocab_size
    ids = encoder.tokenizer(["a <b> <a>"])[0]
    assert list(ids[2:6]) == [size + 1, size + 2, size + 3, size] and encoder.tokenizer.vocab_size == size + 4
    first = encoder(["a <b> <a>"])
    encoder.unload()
    assert np.array_equal(encoder(["a <b> <a>"]), first)
    assert encoder.tokenizer.unread(["<b> " * 9])[0].strip() != "", "three tokens each"


COAT = np.zeros((1, WIDTH))
# name -> (tensors, what the message says)
REFUSED = {
    "another width": ({"<new>": np.zeros((1, WIDTH + 1))}, f"its vectors have {WIDTH + 1} values, and the text"),
    "SDXL": ({"clip_l": COAT, "clip_g": COAT}, "made for the two text encoders of SDXL"),
    "two tensors": ({"<a>": COAT, "<b>": COAT}, "an embedding is one tensor named by its token, and this file has 2"),
    "none": ({}, "this file has 0: none"),
    "no vector": ({"<new>": np.zeros((0, WIDTH))}, r"has the shape \(0, "),
    "a number": ({"<new>": np.array(1.0)}, r"its vectors have 1 values|has the shape \(\)"),
    "too many": ({"<new>": np.zeros((76, WIDTH))}, "expected 1 to 75 vectors"),
    "not finite": ({"<new>": np.full((1, WIDTH), np.nan)}, "values that are not finite"),
    "two words": ({"my coat": COAT}, "the token 'my coat' has to be one word"),
    "a mark of the tokenizer": ({"<|endoftext|>": COAT}, "the tokenizer has the token .* already; give the embedding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_embedding_for_the_model_is_refused(name, tmp_path):
    tensors, message = REFUSED[name]
    file = tmp_path / "a.safetensors"
    save_file({key: np.asarray(value, np.float32) for key, value in tensors.items()}, file)
    with pytest.raises(ValueError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_that_another_embedding_has(tmp_path):
    file = write(tmp_path / "a.safetensors", "<new>", np.zeros((1, WIDTH)))
    with pytest.raises(ValueError, match="the tokenizer has the token '<new>' already"):
        load(file, file)
    assert len(load(file, (file, "<other>")).tokenizer(["<other>"])) == 1
    with pytest.raises(FileNotFoundError, match="no such file"):
        Embedding(tmp_path / "gone.safetensors")


def test_a_run_with_an_embedding(real, tmp_path, capsys):  # noqa: F811
    """It is in run.json and part of the fingerprint, and the run is replayed, also when the file has moved."""
    file, out = write(tmp_path / "a.safetensors", "<new>", rows_of("ankle boot")), tmp_path / "out"
    template = ("--template", "a <new> like {}")
    assert command("generate", real, out, *OPTIONS, *template, "--embedding", file, "--record-names", "paths") == 0
    run = json.loads((out / "run.json").read_text())
    assert run["embeddings"] == [{"file": file.name, "token": "<new>", "sha256": Embedding(file).sha256}]
    assert command("generate", real, out, *OPTIONS, *template, "--embedding", f"{file}:<other>") == 2
    assert "another --model, --vae, --lora, --scheduler or --embedding" in capsys.readouterr().err
    moved = file.rename(tmp_path / "moved.safetensors")
    assert command("replay", out) == 2 and command("replay", out, "--embedding", moved) == 0
    assert "2 of 2 images repeated to the same bytes" in capsys.readouterr().out
    wrong = write(tmp_path / "wide.safetensors", "<new>", np.zeros((1, WIDTH + 1)))
    assert command("generate", real, tmp_path / "b", *OPTIONS, "--embedding", wrong) == 2
    error = capsys.readouterr().err
    assert "wide.safetensors: its vectors have" in error and error.count("\n") == 1 and not (tmp_path / "b").exists()


def test_the_fingerprint(tmp_path):
    file = write(tmp_path / "a.safetensors", "<new>", np.zeros((1, WIDTH)))
    copy = shutil.copy(file, tmp_path / "b.safetensors")
    own, one, same, other = (Pipeline.load(MODEL, "f32", 1, embeddings=each).fingerprint
                             for each in ([], [file], [(copy, "<new>")], [(copy, "<other>")]))
    assert one == same and len({own, one, other}) == 3
