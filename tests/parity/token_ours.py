"""Our side of the token parity: makes texts and tokenizes them with every tokenizer folder.

    python tests/parity/token_ours.py WORK
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batteries import tokenizers  # noqa: E402

COUNT = 4000
_FIXED = [
    *tokenizers.TEXTS, "", " ", "\t\n", "a", "A photo of a COAT", "  a   photo\nof\ta  coat  ",
    "don't you'll we've I'm he'd it's they're", "DON'T", "'s't're", "1234567890", "3.14159e-10", "x²+y³=½", "ⅣⅫ", "£€¥",
    "a" * 500, "coat " * 100, "<|startoftext|>", "<|endoftext|> a coat", "a<|endoftext|>b", "<|ENDOFTEXT|>",
    "e\u0301 é E\u0301 É", "ﬁ ﬀ ﬃ", "ſ K Å", "İstanbul ıI", "ΑΣ ας ΣΣ", "straße ẞ", "👩‍👩‍👧‍👦", "🇩🇪🇯🇵", "👍🏽", "☺️",
    "写真のコート", "사진", "صورة معطف", "תמונה", "ภาพถ่าย", "तस्वीर", "\u200b\u200d\ufeff", "\x00\x01\x7f",
    "a\u00a0b\u3000c\u2028d", "a\x1cb\x1fc\x85d", "\U0010ffff", "…—“”‘’", "…" * 90, "¿?¡!", "&amp; &lt;b&gt;",
    "snake_case __init__", "a_b-c.d,e;f", "C:\\path\\file", "http://a.b/c?d=e#f", "#tag @name", "\ud7ff\ue000",
]  # fmt: skip
_RANGES = [
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0x00, 0x20),
    (0xA0, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x900, 0xA00),
    (0x1E00, 0x2100),
    (0x2100, 0x2C00),
    (0x3000, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xFB00, 0xFB50),
    (0x1F300, 0x1FAFF),
    (0x10000, 0x10FFFF)
]
_WORDS = ("a photo of an ankle boot t-shirt trouser pullover dress Coat SANDAL it's don't 42 7th 3.5 café naïve "
          "o'clock, (bag) shirt! new").split(
)


def texts() -> list[str]:
    """The same list in every process: fixed oddities, then random mixtures of words, scripts, marks and blanks."""
    rng = random.Random(5)
    result = list(_FIXED)
    while len(result) < COUNT:
        parts = []
        for _ in range(rng.choice([1, 2, 3, 5, 8, 30])):
            low, high = rng.choice(_RANGES)
            parts.append(
                rng.choice(_WORDS) if rng.random() < 0.6 else "".join(
                    chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6))))
        result.append(rng.choice(["", " ", "  ", "\n"]).join(parts))
    return result


def make_vocabulary(folder: Path) -> None:
    """A tokenizer folder in CLIP's layout with some thousand merges, learned from the texts themselves."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token="<|endoftext|>"))
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True),
                                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False))
    folder.mkdir(parents=True, exist_ok=True)
    engine.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for token in [a + "</w>" for a in alphabet] + ["<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    options = dict(model_max_length=77,
                   tokenizer_class="CLIPTokenizer",
                   bos_token="<|startoftext|>",
                   eos_token="<|endoftext|>",
                   unk_token="<|endoftext|>",
                   pad_token="<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")


def main(work: Path) -> None:
    import dreamda.generation.pipeline
    from dreamda.networks.tokenizer import Tokenizer

    if not (work / "large" / "vocab.json").exists():
        make_vocabulary(work / "large")
    small = dreamda.generation.pipeline.BUNDLED / "fashion-mini" / "tokenizer"
    folders = {"fashion-mini": small, "large": work / "large"}
    for number, entry in enumerate(tokenizers.FOLDERS):
        folders[entry["name"]] = tokenizers.write_folder(entry, small, work / f"folder-{number}")
    (work / "folders.json").write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))
    np.savez(work / "ours.npz", **{name: Tokenizer(folder)(texts()) for name, folder in folders.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
