"""Write the reference pages, commands.md and python.md, from the help texts and docstrings.

    python python/docs/make_reference.py

tests/test_docs.py checks that the pages are up to date.
"""
from __future__ import annotations

import inspect
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

import dreamda
from dreamda.cli import app

DOCS = Path(__file__).parent
NOTE = "<!-- Made by make_reference.py. Change the help texts and docstrings instead. -->\n"


def anchor(title: str) -> str:
    """The link target that Markdown viewers make of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def cell(text: str) -> str:
    """One line, fit for a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def default_of(option: Any) -> str:
    """What a command does without the option; empty where the help text says it or nothing is to be said."""
    value = option.default
    if value is None or value == "" or option.required or value is ... or "[default:" in (option.help or ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def placeholder(argument: Any) -> str:
    """How a usage line shows an argument."""
    name = (argument.metavar or argument.name).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def command_page(name: str, command: Any) -> str:
    """A section of commands.md."""
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([f"dreamda {name}", *map(placeholder, arguments), "[OPTIONS]"])
    lines = [
        f"## dreamda {name}", "", f"```sh\n{usage}\n```", "",
        inspect.cleandoc(command.help or "").replace("\b\n", ""), ""
    ]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{(a.metavar or a.name).upper()}` | {cell(getattr(a, 'help', '') or '')} |"
                  for a in arguments] + [""]
    groups: dict[str, list[Any]] = {}
    for option in options:
        groups.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    for title, members in groups.items():
        lines += [f"| {title[0].lower() + title[1:]} | default | |", "|---|---|---|"]
        for option in members:
            names = ", ".join(f"`{n}`" for n in [*option.opts, *option.secondary_opts])
            lines.append(f"| {names} | {default_of(option)} | {cell(option.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """commands.md."""
    commands = typer.main.get_command(app).commands
    lines = [
        NOTE, "# Commands", "",
        "Every command has `--help`. Exit codes: 0 done; 1 ran, but some inputs were skipped or lost; "
        "2 wrong use or bad input, nothing written; 128 + n ended by signal n.", ""
    ]
    for name, command in commands.items():
        summary = inspect.cleandoc(command.help or "").split("\n\n")[0]
        lines.append(f"- [`dreamda {name}`](#{anchor('dreamda ' + name)}): {cell(summary)}")
    return "\n".join([*lines, "", *(command_page(name, command) for name, command in commands.items())]).rstrip() + "\n"


def docstring(value: Any) -> str:
    """A numpydoc docstring as Markdown: section titles in bold, entries as a list."""
    out: list[str] = []
    lines = inspect.cleandoc(value.__doc__ or "").split("\n")
    section, code = "", False
    position = 0
    while position < len(lines):
        line = lines[position]
        if position + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[position + 1]):
            section = line.strip()
            out += ["", f"**{section}**", ""]
            position += 2
            continue
        if line.startswith(">>> ") and not code:
            out += ["", "```python"]
            code = True
        if code and not line.strip():
            out.append("```")
            code = False
        if section and line.strip() and not line.startswith(" ") and not code:
            name, colon, kind = line.partition(" : ")
            out.append(f"- `{name}`" + (f": {kind}" if colon else "") if colon or section != "Returns" else f"- {line}")
        else:
            out.append(line if code or not section else ("  " + line.strip() if line.strip() else ""))
        position += 1
    if code:
        out.append("```")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip().replace("``", "`")


def members(value: Any) -> list[tuple[str, Any, str]]:
    """The public methods and properties of a class, in their order of definition; then those of a base class of ours
    that is not public itself."""
    inherited = [base for base in value.__mro__[1:] if base.__module__.startswith("dreamda.")
                 and base.__name__ not in dreamda.__all__]
    found, own = [], dict(vars(value))
    for base in inherited:
        own = {**own, **{name: inner for name, inner in vars(base).items() if name not in own}}
    for name, inner in own.items():
        kind = "class method" if isinstance(inner,
                                            classmethod) else "static method" if isinstance(inner, staticmethod) else ""
        inner = inner.__func__ if isinstance(inner, (classmethod, staticmethod)) else inner
        if name != "__call__" and name.startswith("_"):
            continue
        if isinstance(inner, (property, cached_property)):
            found.append((name, inner, "property"))
        elif inspect.isfunction(inner):
            found.append((name, inner, kind))
    return found


def signature(name: str, value: Any) -> str:
    """A call as Python writes it, an argument a line where it is long."""
    try:
        parameters = [p for p in inspect.signature(value).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError):
        return name
    shown, starred = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        starred = starred or p.kind is p.VAR_POSITIONAL
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        shown.append(f"{stars}{p.name}" + ("" if p.default is p.empty else f"={p.default!r}"))
    line = f"{name}({', '.join(shown)})"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"


def python_page() -> str:
    """python.md."""
    names = [name for name in dreamda.__all__ if not name.startswith("_")]
    lines = [NOTE, "# Python", "", "What `import dreamda` offers; arrays are NumPy's.", "",
             *(f"- [`dreamda.{name}`](#{anchor('dreamda.' + name)})" for name in names), ""]
    for name in names:
        value = getattr(dreamda, name)
        lines += [
            f"## dreamda.{name}", "", f"```python\n{signature(f'dreamda.{name}', value)}\n```", "",
            docstring(value), ""
        ]
        for member, inner, kind in members(value) if inspect.isclass(value) else []:
            title = f"{name}.{member}" if member != "__call__" else f"{name}()"
            lines += [f"### {title}", ""]
            if kind != "property":
                lines += [f"```python\n{signature(member if member != '__call__' else name.lower(), inner)}\n```", ""]
            lines += [(f"*{kind.capitalize()}.* " if kind else "") + docstring(inner), ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"commands.md": commands_page, "python.md": python_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
