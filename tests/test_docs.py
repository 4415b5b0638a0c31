"""What is public explains itself: numpydoc docstrings, complete for the names of `dreamda`, and a help text for every
option."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import textwrap
from functools import cached_property
from pathlib import Path

import pytest
import typer

import dreamda
from dreamda import cli

MODULES = ["dreamda"] + [
    m.name for m in pkgutil.walk_packages(dreamda.__path__, "dreamda.") if not m.name.split(".")[-1].startswith("_")
]


def own(module):
    """The public classes and functions that a module defines; of `dreamda` itself, all it offers."""
    for name in dir(module):
        value = getattr(module, name)
        at_home = module is dreamda or getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and at_home and (inspect.isclass(value) or inspect.isroutine(value)):
            yield f"{module.__name__}.{name}", value


def with_members(name, value):
    """It, and of a class the public methods and properties of its own, and ``__call__``."""
    yield name, value
    for member, inner in vars(
            value).items() if inspect.isclass(value) and not getattr(value, "_is_protocol", False) else ():
        inner = inner.__func__ if isinstance(inner, (classmethod, staticmethod)) else inner
        if (member == "__call__" or not member.startswith("_")) and (inspect.isfunction(inner)
                                                                     or isinstance(inner, (property, cached_property))):
            yield f"{name}.{member}", inner


EVERYTHING = {
    name: value
    for module in MODULES
    for whole in own(importlib.import_module(module))
    for name, value in with_members(*whole)
}
API = {
    name: value
    for name, value in EVERYTHING.items() if name.count(".") < 2 or name.split(".")[1] in dreamda.__all__
}


def section(text, title):
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^[A-Z][^\n]*\n---|\Z)", text, re.M | re.S)
    return found and found[1]


def described(text):
    """The names that a section describes: those before the colon of every line that is not indented."""
    joined = re.sub(r",[ \\]*\n(?=\w)", ", ", text)
    return [
        name.strip().lstrip("*") for line in joined.splitlines() if line[:1].strip()
        for name in line.split(" : ")[0].split(",")
    ]


def parameters(value):
    try:
        return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
    except (TypeError, ValueError):  # properties, and exceptions without a constructor of their own
        return []


def test_the_walk_finds_what_is_public():
    assert {"dreamda.Pipeline.augment", "dreamda.UNet.__call__", "dreamda.normals",
            "dreamda.AMSTClassifier.fit"} <= API.keys()
    assert "dreamda.runs.replay.replay" in EVERYTHING.keys() - API.keys()


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_public_has_a_docstring(name):
    """And its section of parameters, where it has one, is about the parameters that there are."""
    text = inspect.cleandoc(EVERYTHING[name].__doc__ or "")
    assert text
    listed = section(text, "Parameters")
    if listed:
        assert set(described(listed)) == set(parameters(EVERYTHING[name]))


@pytest.mark.parametrize("name", API)
def test_the_names_of_dreamda_say_all(name):
    value, text = API[name], inspect.cleandoc(API[name].__doc__ or "")
    names = parameters(value)
    if names:
        assert section(text, "Parameters"), "no section Parameters"
    if not inspect.isroutine(value) or isinstance(value, cached_property):
        return
    if inspect.isbuiltin(value) or value.__annotations__["return"] not in (None, "None"):
        assert section(text, "Returns"), "no section Returns"
    if inspect.isfunction(value):
        raises = any(
            isinstance(node, ast.Raise) for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))))
        assert not raises or section(text, "Raises"), "no section Raises"


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name):
    command = COMMANDS[name]
    assert command.help and command.help.strip()
    without = [parameter.name for parameter in command.params if not (getattr(parameter, "help", None) or "").strip()]
    assert without == []


def test_all_the_commands_are_walked():
    assert {"generate", "replay", "demo", "inspect", "doctor", "train", "evaluate", "predict", "import",
            "report"} <= set(COMMANDS)


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "python/docs").glob("*.md"))]


def commands_in(page):
    """The words of every ``dreamda ...`` line in the page's shell blocks."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("dreamda "):
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_docs_exist(page):
    for words in commands_in(page):
        if words[1].startswith("-"):
            continue
        command = COMMANDS[words[1]]
        known = {name
                 for parameter in command.params
                 for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
        for word in words[2:]:
            assert not word.startswith("-") or word.split("=")[0] in known, f"{page.name}: {shlex.join(words)}"


def test_the_docs_have_commands():
    assert sum(len(list(commands_in(page))) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_the_docs_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reference_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "python/docs/make_reference.py")
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
    for name, make in make_reference.PAGES.items():
        assert (ROOT / "python/docs" / name).read_text() == make(), "run: python python/docs/make_reference.py"


def test_the_page_of_the_package_lists_every_module():
    package = ROOT / "python/dreamda"
    page = (package / "ARCHITECTURE.md").read_text()
    listed = {match for row in re.findall(r"^\| `([^|]+)` \|", page, re.M) for match in row.split("` `")}
    there = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
    }
    there |= {
        path.parent.relative_to(package).as_posix() + "/"
        for path in package.rglob("__init__.py") if path.parent != package
    }
    assert listed == there
