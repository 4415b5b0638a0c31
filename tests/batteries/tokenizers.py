"""Tokenizer folders as people have them, and broken ones: a line each. Add a line to add a test.

Every folder of FOLDERS gives the tokens that transformers gives (golden/tokenizer_folders.json, and live in
tests/parity); every folder of REFUSED is refused with a message that says `says`.

    name         what the folder stands for
    vocabulary   "files": vocab.json and merges.txt; "json4", "json5": a tokenizer.json of transformers 4 or 5; "both"
    files        other files of the folder: an object becomes JSON, a text stays as it is, None removes the file
    added        the list of added tokens in tokenizer.json
    model, json  changes to the "model" object of tokenizer.json, and to the file as a whole

The vocabulary is the bundled model's: 598 tokens, of which "!" is 0, the start mark 596 and the end mark 597. It stands
for CLIP's 49,408, whose marks are the last two as well.
"""

import json
from pathlib import Path
from typing import Any

START, END, NEXT = 596, 597, 598  # ids: the marks, and the first that a new token gets
TEXTS = [
    "", "a photo of a coat", "A PHOTO OF A COAT!!", "coat !", "!", "a <cat-toy> on a chair", "a<cat-toy>b",
    "a  <cat-toy>  !", "<CAT-TOY> <cat-toy>s", "a <sks> dog", "a <sks1><sks2> dog", "a bag sks dog", "asks sks",
    "<|endoftext|> inside", "x<|startoftext|>y", "<|ENDOFTEXT|>", "<|StartOfText|> a bag", "[CLS] a shirt [SEP]",
    "caf\u00e9 e\u0301t\u00e9", "\u65e5\u672c", "word " * 30, "coat! " * 30, " <cat-toy> " * 12,
    "<|endoftext|><|endoftext|>",
]  # fmt: skip


def _object(content: str, special: bool | None = None, **flags: bool) -> dict[str, Any]:
    """A token as an object, with the flags that transformers writes."""
    token: dict[str,
                Any] = dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False) | flags
    return token if special is None else token | {"special": special}


_BOS, _EOS, _CAT = "<|startoftext|>", "<|endoftext|>", "<cat-toy>"
_OLD = {
    "bos_token": _object(_BOS, normalized=True), "eos_token": _object(_EOS, normalized=True), "unk_token":
    _object(_EOS, normalized=True)
}
_OLD_CONFIG: dict[str,
                  Any] = {k: v | {"__type": "AddedToken"}
                          for k, v in _OLD.items()} | {
                              "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length":
                              16, "pad_token": _EOS, "special_tokens_map_file": "./special_tokens_map.json",
                              "tokenizer_class": "CLIPTokenizer", "name_or_path": "openai/clip-vit-large-patch14"
                          }
_NEW = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS}
_MARKS = {str(START): _object(_BOS, True), str(END): _object(_EOS, True)}
_NEW_CONFIG: dict[str, Any] = _NEW | {
    "add_prefix_space": False, "added_tokens_decoder": _MARKS, "clean_up_tokenization_spaces": True, "do_lower_case":
    True, "errors": "replace", "model_max_length": 16, "pad_token": _EOS, "tokenizer_class": "CLIPTokenizer"
}
_BANG = {"0": _object("!", True)}
_CONFIG5: dict[str, Any] = _NEW | {
    "backend": "tokenizers", "do_lower_case": True, "is_local": True, "model_max_length": 16, "pad_token": _EOS,
    "tokenizer_class": "CLIPTokenizer"
}
_LISTED = [{"id": START} | _object(_BOS, True), {"id": END} | _object(_EOS, True)]


def _entry(name: str,
           vocabulary: str = "files",
           config: dict[str, Any] | None = None,
           tokens_map: dict[str, Any] | None = None,
           others: dict[str, Any] | None = None,
           **rest: Any) -> dict[str, Any]:
    files = {
        k: v
        for k, v in (("tokenizer_config.json", config), ("special_tokens_map.json", tokens_map)) if v is not None
    } | (others or {})
    return dict(name=name, vocabulary=vocabulary, files=files, added=[], model={}, json={}) | rest


FOLDERS: list[dict[str, Any]] = [
    # As published.
    _entry("Stable Diffusion 1.x", config=_OLD_CONFIG, tokens_map=_OLD | {"pad_token": _EOS}),
    _entry("Stable Diffusion 2.x", config=_OLD_CONFIG, tokens_map=_OLD | {"pad_token": "!"}),
    _entry("SDXL tokenizer",
           config=_OLD_CONFIG | {"clean_up_tokenization_spaces": True},
           tokens_map=_OLD | {"pad_token": _EOS}),
    _entry("SDXL tokenizer_2",
           config=_OLD_CONFIG | {"clean_up_tokenization_spaces": True, "pad_token": "!"},
           tokens_map=_OLD | {"pad_token": "!"}),
    # Saved again by transformers 4.34 to 4.57: an added_tokens_decoder, and then the map does not count.
    _entry("SD 1.x, transformers 4.40", config=_NEW_CONFIG, tokens_map=_NEW | {"pad_token": _EOS}),
    _entry("SD 2.x, transformers 4.40",
           config=_NEW_CONFIG | {"pad_token": "!", "added_tokens_decoder": _BANG | _MARKS},
           tokens_map=_NEW | {"pad_token": "!"}),
    _entry("SD 2.x, the two files disagree",
           config=_NEW_CONFIG | {"added_tokens_decoder": _BANG | _MARKS},
           tokens_map=_NEW | {"pad_token": "!"}),
    _entry("SD 1.x, fast tokenizer of 4.40", "both", _NEW_CONFIG, _NEW | {"pad_token": _EOS}, added=_LISTED),
    _entry("SDXL tokenizer_2, fast tokenizer of 4.40",
           "both",
           _NEW_CONFIG | {"pad_token": "!", "added_tokens_decoder": _BANG | _MARKS},
           _NEW | {"pad_token": "!"},
           added=[{"id": 0} | _object("!", True), *_LISTED]),
    _entry("fast tokenizer before 4.34", "json4", _OLD_CONFIG, _OLD | {"pad_token": "!"}, added=_LISTED),
    # Saved by transformers 5: two files.
    _entry("SD 1.x, transformers 5", "json5", _CONFIG5, added=_LISTED),
    _entry("SD 2.x, transformers 5",
           "json5",
           _CONFIG5 | {"pad_token": "!"},
           added=[{"id": 0} | _object("!", True), *_LISTED]),
    _entry("transformers 5, marks normalized",
           "json5",
           _CONFIG5,
           added=[_LISTED[0], {"id": END} | _object(_EOS, True, normalized=True)]),
    _entry("transformers 5, an added token",
           "json5",
           _CONFIG5,
           added=[*_LISTED, {"id": NEXT} | _object(_CAT, False, normalized=True)]),
    # Added tokens: textual inversion and DreamBooth leave them behind.
    _entry("added_tokens.json",
           config=_OLD_CONFIG,
           tokens_map=_OLD | {"pad_token": _EOS},
           others={"added_tokens.json": {_CAT: NEXT}}),
    _entry("added_tokens.json, several, in another order",
           config=_OLD_CONFIG,
           tokens_map=_OLD,
           others={"added_tokens.json": {"<sks2>": NEXT + 2, _CAT: NEXT, "<sks1>": NEXT + 1}}),
    _entry("added_tokens.json, one special",
           config=_OLD_CONFIG,
           tokens_map=_OLD | {"additional_special_tokens": [_CAT]},
           others={"added_tokens.json": {_CAT: NEXT, "sks": NEXT + 1}}),
    _entry("added_tokens_decoder",
           config=_NEW_CONFIG | {"added_tokens_decoder": _MARKS | {str(NEXT): _object(_CAT, False, normalized=True)}}),
    _entry("added_tokens_decoder, stripping",
           config=_NEW_CONFIG | {
               "added_tokens_decoder": _MARKS | {
                   str(NEXT): _object(_CAT, False, lstrip=True, rstrip=True),
                   str(NEXT + 1): _object("<sks>", True, lstrip=True)
               }
           }),
    _entry("added_tokens_decoder, whole words",
           config=_NEW_CONFIG | {
               "added_tokens_decoder": _MARKS | {
                   str(NEXT): _object("sks", False, single_word=True, normalized=True),
                   str(NEXT + 1): _object(_CAT, True, rstrip=True)
               }
           }),
    _entry("added_tokens_decoder, a word of the vocabulary",
           config=_NEW_CONFIG | {"added_tokens_decoder": _MARKS | {"0": _object("!", False)}}),
    _entry("a token that shouts",
           config=_NEW_CONFIG
           | {"added_tokens_decoder": _MARKS | {str(NEXT): _object("<CAT-TOY>", False, normalized=True)}}),
    _entry("additional special tokens",
           config=_OLD_CONFIG
           | {"additional_special_tokens": [_CAT, _object("<sks>", lstrip=True)
                                            | {"__type": "AddedToken"}]}),
    _entry("extra special tokens in both files",
           config=_OLD_CONFIG | {"extra_special_tokens": [_CAT]},
           tokens_map=_OLD | {"extra_special_tokens": [_object("<sks>", lstrip=True), _CAT]}),
    _entry("named extra tokens", config=_CONFIG5 | {"extra_special_tokens": {"toy_token": _CAT}, "dog_token": "<sks>"}),
    _entry("named and unnamed extra tokens",
           config=_OLD_CONFIG | {"extra_special_tokens": [_CAT], "dog_token": "<sks>"},
           others={"added_tokens.json": {"<sks>": NEXT}}),
    _entry("marks of other models",
           config=_OLD_CONFIG | {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": None}),
    # What a folder may leave out, and settings.
    _entry("no configuration", others={"tokenizer_config.json": {"model_max_length": 16}}),
    _entry("the map alone", config={"model_max_length": 16}, tokens_map=_OLD | {"pad_token": "!"}),
    _entry("padding on the left", config=_CONFIG5 | {"padding_side": "left"}),
    _entry("cut on the left", config=_CONFIG5 | {"truncation_side": "left"}),
    _entry("marks in a text are only text", config=_CONFIG5 | {"split_special_tokens": True}),
    _entry("another end mark", config=_CONFIG5 | {"eos_token": "!", "pad_token": "!"}),
    _entry("marks at neither end are still written",
           config=_CONFIG5 | {"add_bos_token": False, "add_eos_token": False}),
]  # fmt: skip

_LONG = "x" * 1001
REFUSED: list[dict[str, Any]] = [
    _entry("no vocabulary",
           others={"vocab.json": None},
           says="neither tokenizer.json nor vocab.json is in it",
           error="FileNotFoundError"),
    _entry("no merges", others={"merges.txt": None}, says="merges.txt: no such file", error="FileNotFoundError"),
    _entry("vocab.json: no JSON", others={"vocab.json": "{"}, says="vocab.json: not valid JSON"),
    _entry("vocab.json: a list", others={"vocab.json": "[1]"}, says="expected a JSON object"),
    _entry("vocab.json: empty", others={"vocab.json": {}}, says="map a token to a whole number"),
    _entry("vocab.json: texts", others={"vocab.json": {"a": "b"}}, says="map a token to a whole number"),
    _entry("vocab.json: an id below 0", others={"vocab.json": {"a": -1}}, says="map a token to a whole number"),
    _entry("vocab.json: an endless id", others={"vocab.json": {"a": 10**30}}, says="map a token to a whole number"),
    _entry("vocab.json: no marks", others={"vocab.json": {"a": 0}},
           says="the bos_token '<|startoftext|>' is not in it"),
    _entry("merges.txt: three words",
           others={"merges.txt": "a b c\n"},
           says="merges.txt: line 1 has to hold two tokens"),
    _entry("merges.txt: unknown words",
           others={"merges.txt": "zz yy\n"},
           says="merges.txt: a merge does not fit the vocabulary"),
    _entry("another class",
           config=_CONFIG5 | {"tokenizer_class": "T5Tokenizer"},
           says="'tokenizer_class' is 'T5Tokenizer', but only CLIPTokenizer"),
    _entry("a mark that is null", config=_CONFIG5 | {"pad_token": None}, says="'pad_token' is null"),
    _entry("a mark that is a number", config=_CONFIG5 | {"pad_token": 3}, says="'pad_token' has 3, but a token has"),
    _entry("a mark that is empty", config=_CONFIG5 | {"eos_token": ""}, says="'eos_token' has ''"),
    _entry("a mark that is unknown",
           config=_CONFIG5 | {"pad_token": "[PAD]"},
           says="the pad_token '[PAD]' is not in it"),
    _entry("half a character",
           config=_CONFIG5 | {"cls_token": "\ud800"},
           says="'cls_token' has '\\ud800', which is not valid Unicode"),
    _entry("another side", config=_CONFIG5 | {"padding_side": "top"}, says="'padding_side' has to be left or right"),
    _entry("extra tokens: a number",
           config=_CONFIG5 | {"additional_special_tokens": 3},
           says="'additional_special_tokens' has to be a list"),
    _entry("extra tokens: endless",
           config=_CONFIG5 | {"additional_special_tokens": [_LONG]},
           says="a token has 1 to 1000 characters"),
    _entry("decoder: a list",
           config=_CONFIG5 | {"added_tokens_decoder": [1]},
           says="'added_tokens_decoder' has to map ids to tokens"),
    _entry("decoder: a text for an id",
           config=_CONFIG5 | {"added_tokens_decoder": {"a": _object(_CAT)}},
           says="has the id 'a'"),
    _entry("decoder: a text",
           config=_CONFIG5 | {"added_tokens_decoder": {"598": _CAT}},
           says="where an object with a 'content' belongs"),
    _entry("decoder: a flag that is a text",
           config=_CONFIG5 | {"added_tokens_decoder": {"598": _object(_CAT) | {"lstrip": "no"}}},
           says="true or false"),
    _entry("decoder: a gap",
           config=_CONFIG5 | {"added_tokens_decoder": {"600": _object(_CAT)}},
           says="has id 600, but it would get 598"),
    _entry("decoder: another id than the vocabulary's",
           config=_CONFIG5 | {"added_tokens_decoder": {"5": _object("!")}},
           says="has id 5, but it would get 0"),
    _entry("added_tokens.json: a gap",
           config=_CONFIG5,
           others={"added_tokens.json": {_CAT: 700}},
           says="added_tokens.json: the added token"),
    _entry("added_tokens.json: a text",
           config=_CONFIG5,
           others={"added_tokens.json": {_CAT: "598x"}},
           says="has the id '598x'"),
    _entry("added_tokens.json: endless",
           config=_CONFIG5,
           others={"added_tokens.json": {f"<{i}>": NEXT + i
                                         for i in range(10_001)}},
           says="more than 10000 tokens"),
    _entry("tokenizer.json: no JSON", others={"tokenizer.json": "{"}, says="tokenizer.json: not valid JSON"),
    _entry("tokenizer.json: deep", others={"tokenizer.json": "[" * 100_000}, says="tokenizer.json: not valid JSON"),
    _entry("tokenizer.json: empty", others={"tokenizer.json": {}}, says="not a CLIP tokenizer: 'model.type' is None"),
    _entry("tokenizer.json: T5's kind", "json5", model={"type": "Unigram"}, says="'model.type' is 'Unigram'"),
    _entry("tokenizer.json: BERT's kind", "json5", model={"type": "WordPiece"}, says="'model.type' is 'WordPiece'"),
    _entry("tokenizer.json: GPT-2's kind",
           "json5",
           model={"end_of_word_suffix": None},
           says="'model.end_of_word_suffix' is None"),
    _entry("tokenizer.json: chance", "json5", model={"dropout": 0.1}, says="'model.dropout' is 0.1"),
    _entry("tokenizer.json: Llama's kind", "json5", model={"byte_fallback": True},
           says="'model.byte_fallback' is True"),
    _entry("tokenizer.json: no vocabulary", "json5", model={"vocab": None}, says="needs a 'vocab'"),
    _entry("tokenizer.json: a merge of three",
           "json5",
           model={"merges": ["a b c"]},
           says="'merges' has 'a b c' at place 0, but"),
    _entry("tokenizer.json: a merge of numbers",
           "json5",
           model={"merges": [[1, 2]]},
           says="'merges' has [1, 2] at place 0, but"),
    _entry("tokenizer.json: a merge of unknown words",
           "json5",
           model={"merges": ["zz yy"]},
           says="tokenizer.json: a merge does not fit"),
    _entry("tokenizer.json: another normalizer",
           "json5",
           json={"normalizer": {"type": "Lowercase"}},
           says="'normalizer' is"),
    _entry("tokenizer.json: another split",
           "json5",
           json={"pre_tokenizer": {"type": "Whitespace"}},
           says="'pre_tokenizer' is"),
    _entry("tokenizer.json: an endless pattern",
           "json5",
           says="'pre_tokenizer' is",
           json={
               "pre_tokenizer": {
                   "type":
                   "Sequence", "pretokenizers":
                   [{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": True},
                    {"type": "ByteLevel"}]
               }
           }),
    _entry("tokenizer.json: a text of added tokens",
           "json5",
           json={"added_tokens": "x"},
           says="'added_tokens' has to be a list"),
    _entry("tokenizer.json: numbers for added tokens", "json5", added=[1], says="has the id None"),
    _entry("tokenizer.json: an added token without id", "json5", added=[_object(_CAT)], says="has the id None"),
]  # fmt: skip


def tokenizer_json(vocab: dict[str, int], merges: list[str], entry: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as transformers 4 ("json4", "both") or 5 writes it."""
    fresh = entry["vocabulary"] == "json5"
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    regex = {"use_regex": True} if fresh else {}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entry["added"], "normalizer": {
            "type":
            "Sequence", "normalizers":
            [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]
        }, "pre_tokenizer": {
            "type":
            "Sequence", "pretokenizers": [{
                "type": "Split", "pattern": {
                    "Regex": r"<\|startoftext\|>|<\|endoftext\|>|" + words if fresh else words
                }, "behavior": "Removed", "invert": True
            }, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | regex]
        }, "post_processor": {
            "type": "RobertaProcessing", "sep": [_EOS, END], "cls": [_BOS, START], "trim_offsets": False,
            "add_prefix_space": False
        }, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True} | regex, "model":
        ({"type": "BPE", "byte_fallback": False, "ignore_merges": False} if fresh else {}) | {
            "dropout": None, "unk_token": _EOS, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": False, "vocab": vocab, "merges": [merge.split(" ") for merge in merges] if fresh else merges
        } | entry["model"],
    } | entry["json"]  # fmt: skip


def write_folder(entry: dict[str, Any], base: Path, folder: Path) -> Path:
    """Make an entry's folder; `base` is a tokenizer folder to take vocab.json and merges.txt from."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = ((base / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt"))
    files: dict[str,
                Any] = {"vocab.json": vocab, "merges.txt": merges} if entry["vocabulary"] in ("files", "both") else {}
    if entry["vocabulary"] != "files":
        files["tokenizer.json"] = tokenizer_json(json.loads(vocab),
                                                 [m for m in merges.splitlines() if m and not m.startswith("#")], entry)
    for name, content in (files | entry["files"]).items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder
