"""The forms of YAML that are read here: scalars, and lists of texts. A library for the rest is not needed.

    style: [photo, "oil painting"]
    view:
      - from above, at noon
"""
from __future__ import annotations

import json
import re
from pathlib import Path

_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
_FIRST = r"""[^\s\[\]{},:#&*!|>'"%@`-]"""
# A scalar in brackets, and one in a line of its own, in which brackets and commas are characters
SCALAR = rf"""(?:{_QUOTED}|{_FIRST}(?:[^\n\[\]{{}},:#]|(?<=\S)#|:(?=\S))*)"""
_LINE = re.compile(rf"""(?:{_QUOTED}|{_FIRST}(?:[^\n:#]|(?<=\S)#|:(?=\S))*)""")
_ITEM, _GAP = re.compile(SCALAR), re.compile(r"\s*(,?)\s*")
_KEY = re.compile(rf"({_QUOTED}|[^\W\d][\w/-]*)\s*:(?=\s|$)")
_COMMENT = re.compile(rf"({_QUOTED})|(?:^|\s)#[^\n]*")


def scalar(text: str) -> str | None:
    """The text of a scalar; None if its quotes do not hold one."""
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return None
    return text[1:-1].replace("''", "'") if text.startswith("'") else text.strip()


def yaml_lists(path: Path, content: str) -> dict[str, list[str]]:
    """The entries of a file: ``name: [one, two]``, ``name:`` and a line ``- one`` for each, or ``name: one``.

    All values are texts. Anything else is refused; tags and references are not read.

    Raises
    ------
    ValueError
        The message names the line.
    """
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    lines = enumerate(content.splitlines(), 1)
    for number, line in lines:
        line = _uncommented(line)
        if not line.strip():
            continue
        if item := re.match(r"\s*-\s", line):
            value = _alone(line[item.end() :])
            if values is None or value is None:
                raise _refused(path, number)
            values.append(value)
            continue
        key = _KEY.match(line)
        name = scalar(key[1]) if key else None
        if key is None or name is None or name in found:
            raise _refused(path, number)
        values, rest = [], line[key.end() :].strip()
        found[name] = values
        if rest.startswith("["):
            text, closed = rest[1:], False
            while not closed:
                items, closed = _items(text)
                following = (0, "") if closed else next(lines, None)
                if items is None or following is None:
                    raise _refused(path, number)
                values += items
                text = _uncommented(following[1])
        elif rest:
            value = _alone(rest)
            if value is None:
                raise _refused(path, number)
            values.append(value)
    return found


def _refused(path: Path, number: int) -> ValueError:
    return ValueError(f"{path} line {number} is in none of the forms of YAML that are read; write name: [one, two], or "
                      "a line - one for each value below name:, with quotes around special characters")


def _uncommented(line: str) -> str:
    return _COMMENT.sub(lambda found: found[1] or "", line)


def _alone(text: str) -> str | None:
    """The scalar that is all of a text."""
    return scalar(text.strip()) if _LINE.fullmatch(text.strip()) else None


def _items(line: str) -> tuple[list[str] | None, bool]:
    """The values in a line of a list in brackets, None if it is not one; and whether the list ends there."""
    values: list[str] = []
    place, line = 0, line.strip()
    while place < len(line) and (line[place] != "]" or place + 1 < len(line)):
        found = _ITEM.match(line, place)
        value = scalar(found[0]) if found else None
        if found is None or value is None:
            return None, True
        values.append(value)
        gap = _GAP.match(line, found.end())
        assert gap is not None  # it may be empty
        place = gap.end()
        if not gap[1] and line[place : place + 1] not in ("", "]"):
            return None, True
    return values, place < len(line)
