r"""The prompt syntax of AUTOMATIC1111's web UI (A1111): weights of words, and chunks.

    (word)        weight 1.1                  [word]        weight 1 / 1.1
    (word:1.3)    weight 1.3                  ((word))      brackets inside each other multiply: 1.21
    \( \) \[ \] \\                            the characters themselves
    one BREAK two                             `two` begins a new chunk of tokens

The weight of a bracket that is never closed goes to the end of the prompt; one that was never opened is a character.
"""
from __future__ import annotations

import re
from typing import Literal, NamedTuple

Syntax = Literal["a1111", "plain"]
ROUND, SQUARE = 1.1, 1 / 1.1
_PARTS = re.compile(r"\\(?P<literal>[\\()\[\]]?)|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Piece(NamedTuple):
    """A part of a prompt, and the weight of its tokens."""

    text: str
    weight: float


def parse_prompt(prompt: str) -> list[list[Piece]]:
    r"""The pieces of a prompt in the syntax at the top of this file, one list for each part between two BREAKs.

    Raises
    ------
    ValueError
        A weight is not a number.

    >>> parse_prompt(r"a (red:1.3) coat \(new\) BREAK photo")
    [[Piece(text='a ', weight=1.0), Piece(text='red', weight=1.3), Piece(text=' coat (new)', weight=1.0)], \
[Piece(text='photo', weight=1.0)]]
    """
    parts: list[list[Piece]] = [[]]
    for piece in _read(prompt)[0]:
        if piece is None:
            parts.append([])
        elif parts[-1] and parts[-1][-1].weight == piece.weight:  # joined, so that no word is torn apart
            parts[-1][-1] = Piece(parts[-1][-1].text + piece.text, piece.weight)
        elif piece.text:
            parts[-1].append(piece)
    return parts


def unclosed(prompt: str) -> str | None:
    """The end of a prompt from its first bracket that is never closed; None if there is none."""
    start = _read(prompt)[1]
    return None if start is None else prompt[start:]


def _read(prompt: str) -> tuple[list[Piece | None], int | None]:
    """The pieces, None for a BREAK, and where the first bracket is that is never closed."""
    pieces: list[Piece | None] = []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # the number of pieces before it, and its place

    def close(bracket: str, weight: float) -> int:
        first, place = opened[bracket].pop()
        pieces[first:] = [piece and Piece(piece.text, piece.weight * weight) for piece in pieces[first:]]
        return place

    for found in _PARTS.finditer(prompt):
        text = found[0]
        if text in opened:
            opened[text].append((len(pieces), found.start()))
        elif found["weight"] and opened["("]:
            close("(", _number(found["weight"], prompt))
        elif text == ")" and opened["("]:
            close("(", ROUND)
        elif text == "]" and opened["["]:
            close("[", SQUARE)
        elif found["literal"] is not None:
            pieces.append(Piece(found["literal"], 1.0))
        else:
            for number, part in enumerate(_BREAK.split(text)):
                pieces += [None] * (number > 0) + [Piece(part, 1.0)]
    left = [close(bracket, weight) for bracket, weight in (("(", ROUND), ("[", SQUARE)) for _ in opened[bracket][:]]
    return pieces, min(left, default=None)


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the prompt {prompt[:100]!r} has the weight {text[:20]!r}, which is not a number") from None


def escape_prompt(text: str) -> str:
    r"""A text that `parse_prompt` reads as it is, without weights and BREAKs.

    >>> escape_prompt("crane (bird)")
    'crane \\(bird\\)'
    """
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", re.sub(r"\bBREAK\b", "break", text))


def plain_text(prompt: str, syntax: Syntax = "a1111") -> str:
    """The words of a prompt, without the marks of its syntax."""
    if syntax == "plain":
        return prompt
    return " ".join("".join(piece.text for piece in part) for part in parse_prompt(prompt))
