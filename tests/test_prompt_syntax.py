"""A1111's prompt syntax: what is read, the embeddings that follow, and contexts of several chunks in the pipeline."""
import re

import numpy as np
import pytest
from PIL import Image
from test_pipeline import MODEL

from dreamda import Pipeline, TextEncoder, cli
from dreamda.data import escape_prompt, load_bundled
from dreamda.data.prompt_syntax import parse_prompt, plain_text, unclosed
from dreamda.networks.tokenizer import MAX_CHUNKS, Tokenizer
from dreamda.runs.manifest import read_manifest

UP, DOWN = 1.1, 1 / 1.1
LENGTH = 16  # tokens of a chunk of the bundled model
# prompt -> (text, weight) of every piece, a list for each part between BREAKs
READ = {
    "a red coat": [[("a red coat", 1)]],
    "": [[]],
    "a (red) coat": [[("a ", 1), ("red", UP), (" coat", 1)]],
    "a (red:1.3) coat": [[("a ", 1), ("red", 1.3), (" coat", 1)]],
    "(red: +.5 )": [[("red", 0.5)]],
    "(red:-1)": [[("red", -1)]],
    "a [red] coat": [[("a ", 1), ("red", DOWN), (" coat", 1)]],
    "[red:2]": [[("red:2", DOWN)]],
    "((red))": [[("red", UP * UP)]],
    "(a (red:1.5) coat:2)": [[("a ", 2), ("red", 3), (" coat", 2)]],
    "([red])": [[("red", UP * DOWN)]],
    r"a \(red\) \[coat\] \\": [[("a (red) [coat] \\", 1)]],
    r"\a \:": [[("a :", 1)]],
    r"(crane \(bird\):1.2)": [[("crane (bird)", 1.2)]],
    "a (red coat": [[("a ", 1), ("red coat", UP)]],
    "a ((red) coat": [[("a ", 1), ("red", UP * UP), (" coat", UP)]],
    "a [red (coat": [[("a ", 1), ("red ", DOWN), ("coat", UP * DOWN)]],
    "a red) coat]": [[("a red) coat]", 1)]],
    "3:4 coat:1.3)": [[("3:4 coat:1.3)", 1)]],
    "a BREAK coat": [[("a", 1)], [("coat", 1)]],
    "(a BREAK coat:1.2)": [[("a", 1.2)], [("coat", 1.2)]],
    "a BREAK": [[("a", 1)], []],
    "BREAKFAST breaks": [[("BREAKFAST breaks", 1)]],
}


@pytest.mark.parametrize("prompt", READ)
def test_pieces_and_weights(prompt):
    found = parse_prompt(prompt)
    assert [[p.text for p in part] for part in found] == [[text for text, _ in part] for part in READ[prompt]]
    assert np.allclose([p.weight for part in found for p in part], [w for part in READ[prompt] for _, w in part])
    assert (unclosed(prompt) is None) == (prompt not in ("a (red coat", "a ((red) coat", "a [red (coat"))


@pytest.mark.parametrize("text", ["crane (bird)", "[x", r"a\b\(", "BREAK it", "a:1.2)", "((:2)", ""])
def test_an_escaped_text_is_read_as_it_is(text):
    assert plain_text(escape_prompt(text)) == re.sub(r"\bBREAK\b", "break", text)
    assert all(piece.weight == 1 for part in parse_prompt(f"({escape_prompt(text)}:1)") for piece in part)
    assert plain_text("(a:2)", "plain") == "(a:2)"


def test_a_weight_that_is_no_number():
    with pytest.raises(ValueError, match=r"the prompt 'a \(red:1.2.3\)' has the weight '1.2.3', which is not a number"):
        parse_prompt("a (red:1.2.3)")


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load(MODEL / "text_encoder", dtype="f32", threads=1)


def plainly(encoder, pieces):
    """The rule of A1111 written out in float64: chunks of 14 tokens, weights after the encoder, the old mean."""
    tokenizer = encoder.tokenizer
    content = [(int(token), weight) for text, weight in pieces
               for token in tokenizer._engine.encode(text, add_special_tokens=False).ids]
    start, end = tokenizer([""])[0, :2]
    rows = []
    for first in range(0, max(1, len(content)), LENGTH - 2):
        row = [(start, 1.0), *content[first: first + LENGTH - 2], (end, 1.0)]
        row += [(end, 1.0)] * (LENGTH - len(row))
        hidden = encoder.encode_tokens(np.array([[token for token, _ in row]]))[0].astype(np.float64)
        weighted = hidden * np.array([[weight] for _, weight in row])
        rows.append(weighted * hidden.mean() / weighted.mean())
    return np.concatenate(rows)


LONG = "a photo of a coat on a black background, a studio product image of a (coat:1.4)"


@pytest.mark.parametrize("prompt, chunks", [("a photo of a coat", 1), ("a (photo:1.3) of a [coat]", 1),
                                            ("(a photo of a coat:0.7)", 1), ("a (coat:0)", 1), (LONG, 2), ("", 1)])
def test_embeddings_by_the_plain_rule(encoder, prompt, chunks):
    made, expected = encoder.embed(prompt), plainly(encoder, parse_prompt(prompt)[0])
    assert made.shape == expected.shape == (chunks * LENGTH, encoder.config["hidden_size"])
    assert np.allclose(made, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_without_marks_a_prompt_is_what_it_was(encoder):
    """Bitwise, and also where the marks only escape or cancel."""
    plain = encoder(["a photo of a coat"])[0]
    for same in ("a photo of a coat", "a (photo:1) of a coat", "(a photo of a coat:1.0)"):
        assert np.array_equal(encoder.embed(same), plain)
    assert not np.array_equal(encoder.embed("a (photo:1.2) of a coat"), plain)


def test_a_break_begins_a_chunk(encoder):
    both = encoder.embed("a photo BREAK a coat")
    assert np.array_equal(both, np.concatenate([encoder.embed("a photo"), encoder.embed("a coat")]))
    assert np.array_equal(encoder.embed("a photo BREAK "), encoder.embed("a photo"))
    assert np.array_equal(encoder.embed("BREAK a coat"), np.concatenate([encoder.embed(""), encoder.embed("a coat")]))


@pytest.mark.parametrize("prompt, message", [
    ("coat " * 14 * (MAX_CHUNKS + 1), "17 chunks of 14 tokens, and at most 16"),
    ("(a coat:99999999999999999999999999999999999999999)", "cancel each other or are too large"),
    ("(a:.)", "is not a number")])
def test_prompts_that_cannot_be_read(encoder, prompt, message):
    with pytest.raises(ValueError, match=message):
        encoder.embed(prompt)


@pytest.mark.parametrize("size", [13, 14, 15, 28, 29])
def test_a_full_chunk_is_not_followed_by_an_empty_one(size):
    tokenizer = Tokenizer(MODEL / "tokenizer")
    ids, weights = tokenizer.chunks("a " * size)
    assert ids.shape == weights.shape == (-(-size // 14), LENGTH) and weights.dtype == np.float32
    assert (ids == tokenizer(["a"])[0, 1]).sum() == size and (ids[:, 0] == tokenizer([""])[0, 0]).all()
    if size <= 14:
        assert np.array_equal(ids, tokenizer(["a " * size]))


# ---- in the pipeline

MODES = [dict(method="cycle"), dict(method="cycle", share_source=True), dict(method="cycle", source_prompt=LONG),
         dict(method="asymmetric"), dict(method="sdedit", guidance_low=0.1, guidance_high=0.4),
         dict(method="sdedit", negative_prompt=LONG)]


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.load(MODEL, dtype="f32", threads=2)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_prompts_of_any_length_side_by_side(pipe, mode):
    """An image is the same alone and beside images with longer prompts; a variant beside variants with other ones."""
    rng = np.random.default_rng(0)
    images, keys = rng.integers(0, 256, (3, 32, 32, 3), np.uint8), ["a", "b", "c"]
    prompts = ["a photo of a coat", [LONG, "a dress", "(a bag:1.2)"], "a photo BREAK a shirt"]
    options = dict(variants=3, steps=4, seed=3, **mode)
    seen = []
    together = pipe.augment(images, prompts, keys=keys, progress=lambda done, of: seen.append(done / of), **options)
    assert seen[-1] == 1 and sorted(seen) == seen
    for i in range(3):
        assert np.array_equal(together[i], pipe.augment(images[i], prompts[i], keys=keys[i:i + 1], **options))
    for k, prompt in enumerate(prompts[1]):
        assert np.array_equal(together[1, k], pipe.augment(images[1], prompt, keys="b", **options)[k])
    assert not np.array_equal(together[1, 0], pipe.augment(images[1], "a dress", keys="b", **options)[0])


def test_the_negative_prompt_and_the_prompt_have_equal_lengths(pipe):
    """Padded by the embedding of the empty prompt."""
    empty, one, two = pipe.context(""), pipe.context("a coat"), pipe.context("a coat", chunks=3)
    assert np.array_equal(two, np.concatenate([one, empty, empty]))
    assert len(pipe.context(LONG)) == 2 * LENGTH and len(pipe.context(LONG, "plain")) == LENGTH
    contexts = np.stack([pipe.context(LONG), pipe.context("", chunks=2)])
    out = pipe.unet(np.zeros((2, 4, 16, 16), np.float32), 10, contexts)
    assert out.shape == (2, 4, 16, 16) and not np.array_equal(out[0], out[1])


def test_plain_prompts_have_no_syntax(pipe):
    images = np.zeros((1, 32, 32, 3), np.uint8)
    options = dict(variants=1, steps=2, keys=[1])
    weighted, plain, escaped, bare = (
        pipe.augment(images, text, prompt_syntax=syntax, **options)
        for text, syntax in (("a (coat:1.5)", "a1111"), ("a (coat:1.5)", "plain"), (r"a \(coat:1.5\)", "a1111"),
                             ("a coat", "plain")))
    assert np.array_equal(plain, escaped) and not np.array_equal(weighted, plain) and not np.array_equal(plain, bare)


@pytest.mark.parametrize("prompts, message", [([["a", "b"]], "expected 3 texts for an image, one a variant, got 2"),
                                              (["a", "b"], "expected a text for all, or 1 texts"),
                                              ([["a", "b", 3]], "expected a text for all"),
                                              ("(a:1.2.3)", "prompts: the prompt .* is not a number")])
def test_bad_prompts_are_refused(pipe, prompts, message):
    with pytest.raises(ValueError, match=message):
        pipe.augment(np.zeros((1, 32, 32, 3), np.uint8), prompts, variants=3, steps=2)


def test_a_run_with_weights_is_replayed(tmp_path, capsys):
    """With the real engine: several templates, weights, two chunks and a negative prompt, to the same bytes."""
    bundled, out = load_bundled(), tmp_path / "out"
    for label in (0, 1):
        (tmp_path / "real" / f"coat_({label})").mkdir(parents=True)
        Image.fromarray(bundled.seeds[10 * label]).save(tmp_path / "real" / f"coat_({label})" / "0.png")
    assert cli.main(["generate", str(tmp_path / "real"), "--out", str(out), "--model", "fashion-mini", "--steps", "2",
                     "--variants", "3", "--dtype", "f32", "--template", "a (photo:1.3) of a {}", "--template",
                     "a {picture|photo} BREAK of a {}", "--negative-prompt", "a [bag]"]) == 0
    rows = read_manifest(out)
    assert {row["fields"]["template"] for row in rows} == {"a (photo:1.3) of a {}", "a {picture|photo} BREAK of a {}"}
    assert all(rf"coat \({row['label'][6]}\)" in row["prompt"] for row in rows) and len(rows) == 6
    assert cli.main(["replay", str(out)]) == 0
    assert "6 of 6 images repeated to the same bytes" in capsys.readouterr().out
