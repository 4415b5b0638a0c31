"""Options as dataclass fields: the type, default, documentation, group and checks of each are declared once.

    @dataclass(frozen=True)
    class Recipe(Options):
        epochs: int = option(30, "Passes over the images.", group="Training", low=1)
        view: Literal["weak", "strong"] = option("weak", "How labelled images are changed.", group="Training")

An instance is checked on creation. A Python function accepts the fields as keywords (`accepts`), a command as
command-line options (`dreamda.cli.common.accepts_options`). Texts name other options in backticks, `` `epochs` `` or
`` `view=strong` ``: the library shows them without the backticks, the command line as ``--epochs`` and
``--view strong``.
"""
from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])  # a class, too
O = TypeVar("O", bound="Options")


class ParameterError(ValueError):
    """A parameter has an invalid value.

    Parameters
    ----------
    parameter : str
        The name of the parameter.
    reason : str
        The problem and the valid values; names other parameters in backticks.
    """

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(parameter, reason)
        self.parameter, self.reason = parameter, reason

    def __str__(self) -> str:
        return f"{self.parameter}: {spelled(self.reason)}"


def spelled(text: str, spell: Callable[[str, str | None], str | None] = lambda name, value: None) -> str:
    """Replace every `` `name` `` or `` `name=value` `` in a text by the result of `spell`.

    If that is None, only the backticks are removed.
    """
    return re.sub(r"`(\w+)(?:=([^`]*))?`", lambda found: spell(found[1], found[2]) or found[0].strip("`"), text)


@dataclass(frozen=True)
class Option:
    """The properties of a field besides its name.

    Attributes
    ----------
    help : str
        One or two sentences: the field's documentation and the help of its command-line option.
    group : str
        The heading under which the command line lists it.
    kind : type
        bool, int, float or str.
    choices : tuple
        The valid values, if there are only a few.
    optional : bool
        Whether None is valid.
    low, above : number or None
        The smallest value; an exclusive lower bound.
    high : number or None
        The largest value.
    count : int
        The number of numbers in a value; 0: it is not a tuple.
    broadcast : bool
        Whether one number stands for `count` equal ones.
    shown_default : str
        The default to show, if None stands for something.
    spelling : str
        The command-line option, if it differs from the field's name.
    """

    help: str
    group: str
    kind: type = str
    choices: tuple[Any, ...] = ()
    optional: bool = False
    count: int = 0
    broadcast: bool = False
    low: float | None = None
    above: float | None = None
    high: float | None = None
    shown_default: str = ""
    spelling: str = ""

    @property
    def possible(self) -> str:
        """The valid values, in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.kind is bool:
            return "True or False"
        if self.kind is str:
            return "a text"
        noun, high = "whole number" if self.kind is int else "number", _number(self.high)
        if self.count:
            one = dataclasses.replace(self, count=0).possible
            return f"{one}, or {self.count} of them" if self.broadcast else f"{self.count} numbers, each {one}"
        if self.above is not None:
            return f"a {noun} above {self.above}" + (f", at most {high}" if high else "")
        if self.low is not None:
            return f"a {noun} from {self.low} to {high}" if high else f"a {noun} of {self.low} or more"
        return f"a {noun} of at most {high}" if high else f"a finite {noun}"

    def checked(self, name: str, value: Any) -> Any:
        """The value as the field's own type.

        Raises
        ------
        ParameterError
            The value is invalid.
        """
        if value is None and self.optional:
            return None
        if self.count:
            return self._several(name, value)
        if self.kind is bool and isinstance(value, (bool, np.bool_)):
            return bool(value)
        if self.kind is str and isinstance(value, str) and (not self.choices or value in self.choices):
            return str(value)
        numbers = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        if self.kind in (int, float) and isinstance(value,
                                                    numbers) and not isinstance(value, bool) and self._has(value):
            return self.kind(value)
        raise ParameterError(name, f"{value!r} is not possible; use {self.possible}")

    def _several(self, name: str, value: Any) -> tuple[Any, ...]:
        one = dataclasses.replace(self, count=0, optional=False)
        values = value.tolist() if isinstance(value, np.ndarray) else value
        if self.broadcast and isinstance(values, (int, np.integer)):
            values = [values] * self.count
        if isinstance(values, (tuple, list)) and len(values) == self.count:
            try:
                return tuple(one.checked(name, each) for each in values)
            except ParameterError:
                pass
        raise ParameterError(name, f"{value!r} is not possible; use {self.possible}")

    def read(self, name: str, text: str) -> tuple[Any, ...] | None:
        """The numbers of a text, ``0.5,0.5,0.5`` or ``480x640``; None for an empty one.

        Raises
        ------
        ParameterError
            The text contains anything else.
        """
        if not text:
            return None
        parts = re.split("[x,]", text.lower())
        try:
            numbers = [self.kind(part) for part in parts]
            return self._several(name, numbers[0] if self.broadcast and len(numbers) == 1 else numbers)
        except ValueError:  # a ParameterError, too
            raise ParameterError(name, f"{text!r} is not possible; use {self.possible}") from None

    def _has(self, value: Any) -> bool:
        return bool(
            math.isfinite(value) and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above) and (self.high is None or value <= self.high)
            and (not self.choices or value in self.choices))


def _number(value: float | None) -> str:
    """2**64 - 1 rather than 18446744073709551615; nothing for None."""
    if isinstance(value, int) and value > 1 << 20 and value & (value + 1) == 0:
        return f"2**{value.bit_length()} - 1"
    return "" if value is None else str(value)


def option(default: Any,
           help: str,
           *,
           group: str,
           low: float | None = None,
           above: float | None = None,
           high: float | None = None,
           count: int = 0,
           shown_default: str = "",
           spelling: str = "") -> Any:
    """A field of an `Options` dataclass; its type and its choices (``Literal``) come from the annotation.

    Parameters
    ----------
    default : object
        The field's default.
    help, group, low, above, high, count, shown_default, spelling
        As in `Option`.
    """
    about = Option(help,
                   group,
                   low=low,
                   above=above,
                   high=high,
                   count=count,
                   shown_default=shown_default,
                   spelling=spelling)
    return field(default=default, metadata={"option": about})


class Options:
    """A frozen dataclass of options, each created by `option`.

    Every field is checked on creation, and a number is converted to its field's type. A subclass can add checks across
    fields in ``__post_init__``, after calling this one.
    """

    def __post_init__(self) -> None:
        for name, about in options_of(type(self)).items():
            object.__setattr__(self, name, about.checked(name, getattr(self, name)))


def options_of(cls: type[Options]) -> Mapping[str, Option]:
    """The fields of a dataclass of options, in order."""
    hints, found = get_type_hints(cls), {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass, as its docstring says
        kinds = get_args(hints[each.name]) if get_origin(
            hints[each.name]) in (Union, types.UnionType) else (hints[each.name], )
        several = [k for k in kinds if get_origin(k) is tuple]
        single = [k for k in kinds if k is not type(None) and k not in several]
        kind = single[0] if single else get_args(several[0])[0]
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        found[each.name] = dataclasses.replace(each.metadata["option"],
                                               kind=type(choices[0]) if choices else kind,
                                               choices=choices,
                                               optional=type(None) in kinds,
                                               broadcast=bool(several and single))
    return types.MappingProxyType(found)


def defaults_of(cls: type[Options]) -> dict[str, Any]:
    """The fields' defaults, by name."""
    return {each.name: each.default for each in dataclasses.fields(cls)}  # type: ignore[arg-type]


def accepts(cls: type[Options], **defaults: Any) -> Callable[[F], F]:
    """Decorate a function that takes ``**options``, or a class whose constructor does.

    Its signature lists the fields of `cls` as keywords with their defaults, or with the defaults given here. In its
    docstring, the documentation of the fields replaces the line with the name of `cls` and the indented lines below.
    """
    def decorate(function: F) -> F:
        called: Any = getattr(function, "__init__") if inspect.isclass(function) else function
        signature = inspect.signature(called)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = defaults_of(cls) | defaults
        hints = {each.name: each.type for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown[name], annotation=hints[name])
            for name in hints
        ]
        called.__signature__ = signature.replace(parameters=own + fields)
        function.__options__ = shown  # type: ignore[attr-defined]
        if function.__doc__:
            function.__doc__ = re.sub(rf"^( *){cls.__name__}\n(?:\1 +.*\n)*",
                                      lambda m: documentation(cls, shown, m[1]),
                                      function.__doc__,
                                      flags=re.M)
        return function

    return decorate


def documented(cls: type[O]) -> type[O]:
    """Decorate a dataclass of options: add a section of parameters to its docstring."""
    parameters = documentation(cls, defaults_of(cls))
    cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nParameters\n----------\n{parameters}"
    return cls


def documentation(cls: type[Options], defaults: Mapping[str, Any], indent: str = "") -> str:
    """The entries of a numpydoc section of parameters, one per field."""
    lines = []
    for name, about in options_of(cls).items():
        kind = "{" + ", ".join(f'"{c}"' for c in about.choices) + "}" if about.choices else about.kind.__name__
        if about.count:
            kind = f"{kind} or " * about.broadcast + f"tuple of {about.count} {about.kind.__name__}"
        default = f"default {spelled(about.shown_default) or repr(defaults[name])}"
        lines += [f"{indent}{name} : {kind}, {default}\n", f"{indent}    {spelled(about.help)}\n"]
    return "".join(lines)


def from_keywords(cls: type[O], function: Callable[..., Any], options: Mapping[str, Any]) -> O:
    """The options that a function (or class) decorated with `accepts` was called with.

    Raises
    ------
    TypeError
        A keyword is not a field.
    ParameterError
        A value is invalid.
    """
    shown: Mapping[str, Any] = getattr(function, "__options__")
    if unknown := [name for name in options if name not in shown]:
        raise TypeError(
            f"{function.__qualname__}() got an unexpected keyword argument {unknown[0]!r}; "
            f"the options are {', '.join(shown)}")
    return cls(**{**shown, **options})
