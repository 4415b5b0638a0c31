"""Prompt templates with fields: ``a {style} of a {class}, {view}``.

    {} or {class}      the words of the image's class
    {caption}          the image's own caption
    {style}            a value of the field `style`; also __style__, as wildcards are written
    {red|blue}         one of these
    {{ and }}          the characters themselves

The variants of an image go through all values of a field, and through all templates, before one comes a second time, in
an order that depends on the seed, the image and the field alone. So the values appear evenly, and a variant's prompt
depends neither on the other images nor on the number of variants.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from ..options import ParameterError
from .files import is_utf8
from .prompt_syntax import Syntax, escape_prompt

CLASS, CAPTION, TEMPLATE = "class", "caption", "template"
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|__(\w(?:[\w/-]*?\w)?)__(?![^\W_])|[{}]")
_NAME = re.compile(r"[^\W\d][\w/-]*")


class Prompt(NamedTuple):
    """A prompt, and the values that were chosen for it, by field."""

    text: str
    fields: dict[str, str] = {}


class Template:
    """A prompt with fields, see the top of this file.

    Parameters
    ----------
    text : str

    Attributes
    ----------
    text : str
    fields : tuple of str
        Names of the fields, each once.
    inline : dict of str to tuple of str
        The values of fields that are written in the template itself.

    Raises
    ------
    ParameterError
        A brace has no partner, or the name of a field is not one.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if not is_utf8(text):
            raise ParameterError("template", f"{text!r} is not UTF-8")
        self.inline: dict[str, tuple[str, ...]] = {}
        self._parts: list[tuple[str, str]] = []  # a text and the field after it
        end, before = 0, ""
        for found in _PARTS.finditer(text):
            before += text[end : found.start()]
            end = found.end()
            if found[0] in ("{{", "}}"):
                before += found[0][0]
            elif found[0] in ("{", "}"):
                other = "}" if found[0] == "{" else "{"
                raise ParameterError("template", f"{text!r} has a {found[0]} without a {other}; complete it, or write "
                                     f"{found[0] * 2} for the character itself")
            else:
                self._parts.append((before, self._name(found[2] if found[1] is None else found[1])))
                before = ""
        self._rest = before + text[end:]
        self.fields = tuple(dict.fromkeys(name for _, name in self._parts))

    def _name(self, written: str) -> str:
        name = written.strip() if written else CLASS
        if "|" in name:
            if "$$" in name or "::" in name:
                raise ParameterError("template", f"{self.text!r} has {{{written}}}: numbers and weights of values are "
                                     "not supported; write the values alone, {red|blue}")
            self.inline[name] = tuple(value.strip() for value in name.split("|"))
        elif not _NAME.fullmatch(name):
            raise ParameterError("template", f"{self.text!r} has {{{written}}}, which is no name of a field; write "
                                 "{{ and }} for braces that are none")
        return name

    def fill(self, values: Mapping[str, str | Callable[[str], str]]) -> str:
        """The prompt with these values of its fields.

        An article ``a`` or ``an`` directly before a field is adapted to its value, see `dreamda.data.fill_template`. A
        function is called with the text before the field, and returns that with the value. Where a value is empty, as
        one of ``{red|}``, the spaces around it become one, and an article is adapted to what follows.
        """
        text, empty = "", False
        for before, name in self._parts:
            text = _after_nothing(text, before) if empty else text + before
            value = values[name]
            empty = value == "" and name != CAPTION
            if not empty:
                text = placed(text, value) if isinstance(value, str) else value(text)
        return _after_nothing(text, self._rest).rstrip(" ") if empty else text + self._rest

    def count(self, field: str) -> int:
        """How often the template has a field."""
        return sum(name == field for _, name in self._parts)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def _after_nothing(before: str, after: str) -> str:
    """Two texts between which an empty value was: the spaces there become one, or none where the prompt begins."""
    left, right = before.rstrip(" "), after.lstrip(" ")
    spaces = len(before) + len(after) - len(left) - len(right)
    return left + " " * bool(left and spaces) + right


def placed(before: str, words: str, prompt_syntax: Syntax = "plain") -> str:
    """A text with words after it; an article at its end is adapted to them. With "a1111" the words are escaped."""
    if match := re.search(r"\b([Aa])n?(\s+)([(\[]*)$", before):
        article = "" if is_plural(words) else match[1] + ("n" if words[:1].lower() in "aeiou" else "") + match[2]
        before = before[: match.start()] + article + match[3]
    return before + (words if prompt_syntax == "plain" else escape_prompt(words))


def class_words(label: str) -> str:
    """A folder name as words for a prompt.

    Underscores become spaces; hyphens are kept (``t-shirt``). A number before the name is removed if it can only be a
    number (``001.Black_footed_Albatross``, ``n02085620-Chihuahua``), long words in capitals become lower case
    (``NORMAL``), and joined words are separated (``AnnualCrop``).

    >>> class_words("001.Black_footed_Albatross"), class_words("NORMAL"), class_words("soccer_ball")
    ('Black footed Albatross', 'normal', 'soccer ball')
    """
    return readable(re.sub(r"^(?:n\d{8}[-_. ]+|\d+\.\s*|0\d*[-_ ]+)(?=[^\W\d_])", "", label))


def readable(name: str) -> str:
    """A folder name as words, without underscores; numbers stay."""
    divided = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", "_", name)
    if divided != name:
        divided = divided.lower()
    words = divided.replace("_", " ").split()
    return " ".join(word.lower() if word.isupper() and word.isalpha() and len(word) > 4 else word for word in words)


def is_plural(words: str) -> bool:
    """Whether a name is a plural, judged by its last letters."""
    head = re.split(r",| of | with | in | from | on ", words)[0].split()
    last = head[-1].lower() if head else ""
    return (len(last) > 3 and last.endswith("s") and last.isalpha() and not last.endswith(
        ("ss", "us", "is", "as", "os")) and last not in ("lens", "news", "mercedes"))


@lru_cache(4096)
def order_of(count: int, seed: int, key: str, field: str, turn: int) -> tuple[int, ...]:
    """The numbers below `count` in an order that depends on the other arguments alone.

    A `turn` is one use of each of the values of a field, for the image `key`.
    """
    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{key}\0{field}\0{turn}\0{number}".encode()).digest()

    return tuple(sorted(range(count), key=rank))
