"""CLIP's byte-pair tokenizer, using the `tokenizers` library, for folders saved by any version of transformers."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data.prompt_syntax import Syntax, parse_prompt
from .config import read_json, shown

MAX_MERGES_BYTES = 64 << 20
MAX_ADDED_TOKENS = 10_000
MAX_TOKEN_LENGTH = 1000
MAX_CHUNKS = 16  # of a prompt; more are a mistake, and the U-Net's attention to them costs time and memory
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
_MARKS = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
# In transformers' order.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_MARKS_OR_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|" + _WORDS
# The contents of CLIP's tokenizer.json, as different versions of transformers write them.
_NORMALIZER: dict[str, Any] = {"type": "Sequence", "normalizers": [
    {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]}
_PRE_TOKENIZERS: list[dict[str, Any]] = [
    {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | regex]}
    for words in (_WORDS, _MARKS_OR_WORDS) for regex in ({}, {"use_regex": True})]

T = TypeVar("T")


class Tokenizer:
    """The tokenizer folder of a diffusers model.

    Reads `tokenizer.json` (all that transformers 5 writes beside the configuration) or, where it is absent,
    `vocab.json` and `merges.txt`; and `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where
    they exist. The precedence is that of transformers: the map overrides the configuration unless that has an
    `added_tokens_decoder`.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    length : int
        The number of tokens to which a text is padded or truncated.
    vocab_size : int
        Includes added tokens.

    Raises
    ------
    FileNotFoundError, ValueError
        The message names the file and the problem. Tokenizers other than CLIP's are refused.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tokenizers import Regex, Tokenizer as Engine, models, normalizers, pre_tokenizers

        folder = Path(folder)
        source, vocab, merges, listed = _read_vocabulary(folder)
        options = _Options(folder, listed)
        bos, eos, unk, pad = (options.text(key) for key in _MARKS)
        declared = {token.content for token in options.declared.values()}
        for key, mark in zip(_MARKS, (bos, eos, unk, pad)):
            if mark not in vocab and (mark not in declared or key == "unk_token"):
                raise ValueError(f"{source}: the {key} {mark[:100]!r} is not in it")
        try:
            model = models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=False, continuing_subword_prefix="",
                               end_of_word_suffix="</w>")
        except Exception as error:  # the library raises plain Exception
            where = source if source.name == "tokenizer.json" else folder / "merges.txt"
            raise ValueError(f"{where}: a merge does not fit the vocabulary ({error})") from None
        engine = Engine(model)
        engine.normalizer = normalizers.Sequence([
            normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        engine.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_MARKS_OR_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])
        engine.add_tokens(options.added_tokens())
        for number, token in options.declared.items():
            actual = engine.token_to_id(token.content)
            if actual != number:
                raise ValueError(
                    f"{options.path}: the added token {token.content[:100]!r} has id {number}, but it would get "
                    f"{actual}; the ids of added tokens continue those of {source.name} without a gap")
        ids = engine.get_vocab(with_added_tokens=True)
        engine.encode_special_tokens = options.split_special_tokens
        self._bos, self._eos, self._pad = ids[bos], ids[eos], ids[pad]
        self._pads_left = options.padding_side == "left"
        self.length, self.truncation_side = options.length, options.truncation_side
        self.vocab_size: int = max(ids.values()) + 1
        self._engine = engine
        self._series: dict[str, str] = {}  # a token of several vectors -> all of its tokens

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Token ids, padded or truncated to `length`; the end token is kept.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        int32 array (len(texts), length)
        """
        rows = [self._framed(self._kept(encoding.ids), self._bos, self._eos, self._pad)
                for encoding in self._encoded(texts)]
        return np.array(rows, np.int32).reshape(len(rows), self.length)

    def chunks(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of a prompt of any length, and their weights, in rows of `length` tokens.

        As in A1111, the parts between the marks of the syntax become tokens each for themselves, a row is filled before
        the next one begins, and each has a start and an end token.

        Parameters
        ----------
        prompt : str
            In the syntax of `dreamda.data.prompt_syntax`.

        Returns
        -------
        ids : int32 array (chunks, length)
        weights : float32 array (chunks, length)

        Raises
        ------
        ValueError
            A weight is not a number, or there are more than `MAX_CHUNKS` rows.
        """
        rows: list[list[tuple[int, float]]] = []
        size = self.length - 2
        parts = parse_prompt(prompt)
        for number, pieces in enumerate(parts):
            encoded = self._encoded([piece.text for piece in pieces])
            tokens = [(token, piece.weight) for piece, each in zip(pieces, encoded) for token in each.ids]
            if tokens or number + 1 < len(parts) or not rows:
                rows += [tokens[i : i + size] for i in range(0, max(len(tokens), 1), size)]
        if len(rows) > MAX_CHUNKS:
            raise ValueError(f"the prompt {prompt[:100]!r} has {len(rows)} chunks of {size} tokens, and at most "
                             f"{MAX_CHUNKS} are read; shorten it")
        ids = [self._framed([token for token, _ in row], self._bos, self._eos, self._pad) for row in rows]
        weights = [self._framed([weight for _, weight in row], 1.0, 1.0, 1.0) for row in rows]
        with np.errstate(over="ignore"):
            return np.array(ids, np.int32), np.array(weights, np.float32)

    def count(self, prompt: str, prompt_syntax: Syntax = "a1111") -> int:
        """The number of tokens of a prompt, without those of starts and ends.

        Parameters
        ----------
        prompt : str
        prompt_syntax : {"a1111", "plain"}

        Returns
        -------
        int
        """
        texts = [prompt] if prompt_syntax == "plain" else [each.text for part in parse_prompt(prompt) for each in part]
        return sum(len(encoding.ids) for encoding in self._encoded(texts))

    def unread(self, texts: list[str]) -> list[str]:
        """The part of each text that is truncated; "" if none is.

        This is the end of the text, or the beginning if `truncation_side` is left.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        list of str
        """
        lost = []
        for text, encoding in zip(self._spelled_out(texts), self._encoded(texts)):
            read = self._kept(encoding.offsets)
            first, last = min((start for start, _ in read), default=len(text)), max((end for _, end in read), default=0)
            cut = text[:first] if self.truncation_side == "left" else text[last:]
            for token, series in self._series.items():
                cut = cut.replace(series, token)
            lost.append(cut if len(encoding.ids) > len(read) else "")
        return lost

    def _encoded(self, texts: list[str]) -> list[Any]:
        """The library's encodings of texts: all their tokens, without start and end."""
        return self._engine.encode_batch(self._spelled_out(texts), add_special_tokens=False)

    def _kept(self, values: list[T]) -> list[T]:
        """The values of the tokens that are read; the others are truncated."""
        size = self.length - 2
        return values[max(0, len(values) - size) :] if self.truncation_side == "left" else values[:size]

    def _framed(self, values: list[T], first: T, last: T, pad: T) -> list[T]:
        """The values of a row's tokens, between those of the start and the end token, padded to `length`."""
        row = [first, *values, last]
        padding = [pad] * (self.length - len(row))
        return padding + row if self._pads_left else row + padding

    def add(self, tokens: list[str]) -> list[int]:
        """Add tokens; in texts, the first one stands for all of them.

        Parameters
        ----------
        tokens : list of str

        Returns
        -------
        list of int
            Their ids.

        Raises
        ------
        ValueError
            A token exists already.
        """
        from tokenizers import AddedToken

        if known := next((token for token in tokens if self._engine.token_to_id(token) is not None), None):
            raise ValueError(f"the tokenizer has the token {known[:100]!r} already")
        self._engine.add_tokens([AddedToken(token) for token in tokens])
        numbers = self._engine.get_vocab(with_added_tokens=True)
        ids = [numbers[token] for token in tokens]
        self.vocab_size = max(self.vocab_size, *(number + 1 for number in ids))
        if len(tokens) > 1:
            self._series[tokens[0]] = " ".join(tokens)
        return ids

    def _spelled_out(self, texts: list[str]) -> list[str]:
        result = list(texts)
        for token, series in self._series.items():
            result = [text.replace(token, series) for text in result]
        return result


class _Options:
    """The settings in the small files of a tokenizer folder, merged as in transformers; errors name the file."""

    def __init__(self, folder: Path, listed: list[Any]) -> None:
        self.path = folder / "tokenizer_config.json"
        self._values: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        kind = self._values.get("tokenizer_class")
        if kind is not None and kind not in CLASSES:
            raise ValueError(
                f"{self.path}: 'tokenizer_class' is {shown(kind)}, but only CLIPTokenizer can be loaded here")
        if self._values.get("additional_special_tokens") is not None and not self._values.get("extra_special_tokens"):
            self._values["extra_special_tokens"] = self._values.pop("additional_special_tokens")
        self.declared: dict[int, Any] = {}
        decoder = self._values.get("added_tokens_decoder")
        if decoder is not None:
            self._declare(self.path, "added_tokens_decoder", decoder.items() if isinstance(decoder, dict) else None)
        else:
            self._read_older_files(folder, listed)
        length = self._values.get("model_max_length")
        self.length: int = length if isinstance(length, int) and 3 <= length <= 4096 else 77
        self.padding_side, self.truncation_side = (self._side(f"{what}_side") for what in ("padding", "truncation"))
        self.split_special_tokens = self._values.get("split_special_tokens") is True
        contents = {token.content: token for token in self.declared.values()}
        self._named: dict[str, Any] = {}
        for key in _NAMED:
            value = self._values.get(key, _MARKS.get(key))
            if value is not None:
                token = _token(self.path, key, value)
                self._named[key] = contents.get(_content(token), token)
            elif key in _MARKS:
                raise ValueError(f"{self.path}: '{key}' is null, but CLIP's tokenizer needs one")

    def _read_older_files(self, folder: Path, listed: list[Any]) -> None:
        """Read special_tokens_map.json, added_tokens.json and the list in tokenizer.json.

        transformers uses these if there is no `added_tokens_decoder`.
        """
        path = folder / "special_tokens_map.json"
        if path.is_file():
            self.path = path
            for key, value in read_json(path).items():
                known = self._values.get(key, [])
                if isinstance(value, dict) and "content" in value:
                    value = value | {"special": True}
                elif key == "extra_special_tokens" and isinstance(value, list) and isinstance(known, list):
                    value = known + value
                self._values[key] = value
        path = folder / "added_tokens.json"
        if path.is_file():
            special = {
                _content(_token(path, key, self._values[key]))
                for key in _NAMED if self._values.get(key) is not None
            }
            special |= {_content(token) for token in self._extra("extra_special_tokens")}
            self.path = path
            self._declare(path, "added_tokens", [
                (number, {"content": text, "normalized": text not in special, "special": text in special})
                for text, number in read_json(path).items()])
        self._declare(folder / "tokenizer.json", "added_tokens",
                      ((token.get("id"), {k: v
                                          for k, v in token.items() if k != "id"}) if isinstance(token, dict) else
                       (None, token) for token in listed))

    def _declare(self, path: Path, key: str, items: Iterable[tuple[Any, Any]] | None) -> None:
        if items is None:
            raise ValueError(f"{path}: '{key}' has to map ids to tokens")
        for number, value in items:
            text = str(number)
            if not (len(text) < 9 and text.isascii() and text.isdigit() and int(text) < 1 << 24):
                raise ValueError(
                    f"{path}: '{key}' has the id {shown(number)}, but ids are whole numbers up to {(1 << 24) - 1}")
            if not isinstance(value, dict):
                raise ValueError(f"{path}: '{key}' has {shown(value)} where an object with a 'content' belongs")
            self.declared[int(text)] = _token(path, key, value)
            if len(self.declared) > MAX_ADDED_TOKENS:
                raise ValueError(f"{path}: '{key}' has more than {MAX_ADDED_TOKENS} tokens")

    def _side(self, key: str) -> str:
        value = self._values.get(key, "right")
        if value not in ("left", "right"):
            raise ValueError(f"{self.path}: '{key}' has to be left or right, got {shown(value)}")
        return str(value)

    def _extra(self, *keys: str) -> list[Any]:
        """The special tokens in the first of these lists that exists."""
        value: Any = next((self._values[key] for key in keys if self._values.get(key) is not None), [])
        if isinstance(value, dict):
            return []
        if not isinstance(value, list) or len(value) > MAX_ADDED_TOKENS:
            raise ValueError(f"{self.path}: '{keys[-1]}' has to be a list of at most {MAX_ADDED_TOKENS} tokens, "
                             f"got {shown(value)}")
        return [_token(self.path, keys[-1], v) for v in value]

    def _other_named(self) -> list[Any]:
        """The special tokens with model-specific names."""
        named = {k: v for k, v in self._values.items() if k.endswith("_token") and k not in _NAMED
                 and (isinstance(v, str) or isinstance(v, dict) and "content" in v)}
        extra = self._values.get("extra_special_tokens")
        return [_token(self.path, k, v) for k, v in (named | (extra if isinstance(extra, dict) else {})).items()]

    def text(self, key: str) -> str:
        """The text of a named token."""
        return _content(self._named[key])

    def added_tokens(self) -> list[Any]:
        """All tokens that are matched before words.

        They are in the order in which transformers adds them, because that decides the ids of new ones.
        """
        from tokenizers import AddedToken

        tokens = [self.declared[number] for number in sorted(self.declared)]
        known = {token.content for token in tokens}
        marks = {_content(token) for token in self._named.values()}
        for token in [
                *self._named.values(), *self._other_named(),
                *self._extra("extra_special_tokens", "additional_special_tokens")
        ]:
            # A text and an object with the same content are both kept, and the later one wins, as in transformers.
            if _content(token) not in known and token not in tokens:
                tokens.append(token)
        for place, token in enumerate(tokens):
            if isinstance(token, str):
                tokens[place] = AddedToken(token, special=True)
            elif token.content in marks:
                token.special = True
        return tokens


def _token(path: Path, key: str, value: Any) -> Any:
    """A text, or an `AddedToken` for an object with flags."""
    from tokenizers import AddedToken

    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not 1 <= len(content) <= MAX_TOKEN_LENGTH:
        raise ValueError(f"{path}: '{key}' has {shown(value)}, but a token has 1 to {MAX_TOKEN_LENGTH} characters")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: '{key}' has {shown(value)}, which is not valid Unicode") from None
    if not isinstance(value, dict):
        return content
    flags = {k: v for k, v in value.items() if k in _FLAGS and v is not None}
    if not all(isinstance(v, bool) for v in flags.values()):
        raise ValueError(f"{path}: '{key}': the flags of {content[:100]!r} have to be true or false")
    return AddedToken(content, **flags)


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token.content)


def _read_vocabulary(folder: Path) -> tuple[Path, dict[str, int], list[tuple[str, str]], list[Any]]:
    """Read the vocabulary: its file, token -> id, the merges, and the added tokens that tokenizer.json lists."""
    source, listed = folder / "tokenizer.json", []
    if source.is_file():
        content = read_json(source)
        vocab, merges = _clip_model(source, content)
        listed = content.get("added_tokens", [])
        if not isinstance(listed, list):
            raise ValueError(f"{source}: 'added_tokens' has to be a list")
    else:
        source = folder / "vocab.json"
        if not source.is_file():
            raise FileNotFoundError(
                f"{folder}: neither tokenizer.json nor vocab.json is in it; a tokenizer folder holds "
                "tokenizer.json, or vocab.json and merges.txt")
        vocab, merges = read_json(source), _read_merges(folder / "merges.txt")
    if not vocab or not all(type(i) is int and 0 <= i < 1 << 24 for i in vocab.values()):
        raise ValueError(f"{source}: every entry of the vocabulary has to map a token to a whole number")
    return source, vocab, merges, listed


def _clip_model(path: Path, content: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json, if it describes a CLIP tokenizer.

    The rest of the file is compared with CLIP's and never passed to the library, so a hostile pattern is never run.
    """
    def refuse(key: str, value: Any) -> ValueError:
        return ValueError(
            f"{path}: not a CLIP tokenizer: '{key}' is {shown(value)}; only CLIP tokenizers are supported")

    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise refuse("model.type", model.get("type") if isinstance(model, dict) else model)
    for key, allowed in (("end_of_word_suffix", ("</w>", )), ("continuing_subword_prefix", ("", None)),
                         ("dropout", (None, 0)), ("byte_fallback", (False, None)), ("ignore_merges", (False, None))):
        if model.get(key, allowed[-1]) not in allowed:
            raise refuse(f"model.{key}", model.get(key))
    if content.get("normalizer") != _NORMALIZER:
        raise refuse("normalizer", content.get("normalizer"))
    if content.get("pre_tokenizer") not in _PRE_TOKENIZERS:
        raise refuse("pre_tokenizer", content.get("pre_tokenizer"))
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ValueError(f"{path}: 'model' needs a 'vocab' that maps tokens to ids and a list of 'merges'")
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"{path}: 'merges' has {shown(merge)} at place {number}, but a merge has two tokens")
        pairs.append((pair[0], pair[1]))
    return vocab, pairs


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
