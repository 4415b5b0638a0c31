"""CLIP's byte-pair tokenizer, through the `tokenizers` library."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from .config import read_json

MAX_MERGES_BYTES = 64 << 20
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """The tokenizer folder of a diffusers model: `vocab.json` and `merges.txt`.

    Parameters
    ----------
    folder : path
        Holds the two files and, optionally, `tokenizer_config.json` and `special_tokens_map.json`.

    Attributes
    ----------
    length : int
        Tokens a text is padded or cut to.
    vocab_size : int

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tokenizers import AddedToken, Regex, Tokenizer as Engine, models, normalizers, pre_tokenizers

        folder = Path(folder)
        vocab = read_json(folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt")
        if not vocab or not all(type(i) is int and 0 <= i < 1 << 24 for i in vocab.values()):
            raise ValueError(f"{folder / 'vocab.json'}: every entry has to map a token to a whole number")
        options = _options(folder)
        special = {key: _text(options.get(key, default)) for key, default in _SPECIAL.items()}
        for key, token in special.items():
            if token not in vocab:
                raise ValueError(f"{folder / 'vocab.json'}: the {key} {token[:100]!r} is not in it")
        length = options.get("model_max_length", 77)
        self.length: int = length if isinstance(length, int) and 2 <= length <= 4096 else 77
        self._bos, self._eos, self._pad = (vocab[special[k]] for k in ("bos_token", "eos_token", "pad_token"))
        try:
            model = models.BPE(vocab=vocab, merges=merges, unk_token=special["unk_token"], continuing_subword_prefix="",
                               end_of_word_suffix="</w>", fuse_unk=False)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{folder / 'merges.txt'}: does not fit vocab.json ({error})") from None
        engine = Engine(model)
        engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                                                        pre_tokenizers.ByteLevel(add_prefix_space=False)])
        engine.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in dict.fromkeys(special.values())])
        self.vocab_size: int = max(vocab.values()) + 1
        self._engine = engine

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Token ids, padded, and cut where a text is too long (its end mark stays).

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        int32 array (len(texts), length)
        """
        ids = np.full((len(texts), self.length), self._pad, np.int32)
        for row, encoding in zip(ids, self._engine.encode_batch(list(texts), add_special_tokens=False)):
            tokens = [self._bos, *encoding.ids[: self.length - 2], self._eos]
            row[: len(tokens)] = tokens
        return ids


def _read_merges(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a tokenizer folder holds vocab.json and merges.txt")
    if path.stat().st_size > MAX_MERGES_BYTES:
        raise ValueError(f"{path}: larger than {MAX_MERGES_BYTES >> 20} MiB, which no list of merges is")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#version"):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}: line {number} has to hold two tokens")
        merges.append((parts[0], parts[1]))
    return merges


def _options(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            options |= {k: v for k, v in read_json(folder / name).items() if v is not None}
    return options


def _text(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token)
