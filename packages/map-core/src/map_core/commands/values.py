"""From what a user typed or wrote to a value of a setting's type, or to a text on what was expected instead."""

import contextlib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from map_core.commands.plain_yaml import read_document

NULL = ("null", "~")
TRUTH_VALUES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
LONGEST_NUMBER = 100  # characters
MAX_REPR_LENGTH = 60


class MismatchError(ValueError):
    """A value that is not of its setting's type; the message says what is expected."""


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or a type that is none by itself."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def takes_several(kind: Any) -> bool:
    """Whether a setting may have several values, as in ``--images a.png b.png``."""
    return any(typing.get_origin(alternative) in (list, tuple) for alternative in alternatives(kind))


def convert_arguments(arguments: Sequence[Any], kind: Any) -> Any:
    """Make a value from the arguments that follow an option: one, several, or a list as YAML writes it.

    A call in Python passes one, which need not be a text.

    Raises:
        MismatchError: they are not a value of ``kind``.
    """
    if not takes_several(kind) or not isinstance(arguments[0], str):
        return convert(arguments[0], kind)
    if len(arguments) > 1:
        return convert(list(arguments), kind)
    text = arguments[0]
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(yaml.YAMLError):
            return convert(read_document(text), kind)
    with contextlib.suppress(MismatchError):
        return convert(text, kind)
    return convert([text], kind)


def convert(value: Any, kind: Any) -> Any:
    """Make a value of a type.

    A text setting keeps its text, whatever YAML would make of it: there only the null of a file is None.

    Args:
        value: A text, None, a list or a mapping as :func:`~map_core.commands.plain_yaml.read_texts` returns
            them, or numbers and truth values as in JSON.
        kind: A plain type, ``Literal``, list, tuple, or a union of them.

    Raises:
        MismatchError: the value is not of that type.
    """
    allowed = alternatives(kind)
    if types.NoneType in allowed:
        keeps_text = str in allowed or Path in allowed
        if value is None or (not keeps_text and isinstance(value, str) and value in NULL):
            return None
    # text types come last: they accept any string
    for alternative in sorted(allowed, key=lambda member: member in (str, Path)):
        with contextlib.suppress(MismatchError):
            return convert_to(value, alternative)
    raise MismatchError(expectation(kind))


def convert_to(value: Any, kind: Any) -> Any:
    """Make a value of a type that is not a union; see :func:`convert`."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return to_choice(value, kind)
    if origin in (list, tuple):
        return to_sequence(value, kind)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): convert(entry, typing.get_args(kind)[1]) for key, entry in value.items()}
    if kind in SCALARS:
        with contextlib.suppress(ValueError):
            return SCALARS[kind](value)
    raise MismatchError(expectation(kind))


def to_choice(value: Any, kind: Any) -> Any:
    """The choice of a ``Literal`` that ``value`` names."""
    for choice in typing.get_args(kind):
        if value == str(choice) or (type(value) is type(choice) and value == choice):
            return choice
    raise MismatchError(expectation(kind))


def to_sequence(value: Any, kind: Any) -> Any:
    """A list or tuple of the type's length and elements."""
    if not isinstance(value, (list, tuple)):
        raise MismatchError(expectation(kind))
    entry_types = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return [convert(entry, entry_types[0]) for entry in value]
    if entry_types[-1] is Ellipsis:
        return tuple(convert(entry, entry_types[0]) for entry in value)
    if len(value) != len(entry_types):
        raise MismatchError(expectation(kind))
    return tuple(convert(entry, entry_type) for entry, entry_type in zip(value, entry_types, strict=True))


def to_text(value: Any) -> str:
    """A text; one that begins with ``~/``, as a path in a home folder does, is expanded to that path."""
    if not isinstance(value, str):
        raise ValueError
    return os.path.expanduser(value) if value.startswith("~") and os.sep in value else value


def to_bool(value: Any) -> bool:
    if isinstance(value, str):
        value = TRUTH_VALUES.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def to_int(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9_]+", value) and len(value) <= LONGEST_NUMBER:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return value


def to_float(value: Any) -> float:
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        signs, infinity = {"-": -1.0}, re.fullmatch(r"([+-]?)\.inf", value.lower())  # as YAML writes it
        return signs.get(infinity[1], 1.0) * math.inf if infinity else float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError
    return float(value)


def to_null(value: Any) -> None:
    if value is not None:
        raise ValueError


SCALARS: dict[Any, Callable[[Any], Any]] = {
    str: to_text,
    Path: lambda value: Path(to_text(value)),
    bool: to_bool,
    int: to_int,
    float: to_float,
    types.NoneType: to_null,
}
TYPE_NAMES = {  # singular, plural
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    bool: ("true or false", "truth values"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    types.NoneType: ("null", "nulls"),
    Any: ("anything", "values"),
}


def expectation(kind: Any, *, plural: bool = False) -> str:
    """Say in words what a setting's value may be, such as "a whole number or null"."""
    parts = [describe_type(alternative, plural=plural) for alternative in alternatives(kind)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def describe_type(kind: Any, *, plural: bool) -> str:
    """Say in words what a type that is not a union allows."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in TYPE_NAMES:
        return TYPE_NAMES[kind][plural]
    if origin is Literal:
        return f"{'some' if plural else 'one'} of {', '.join(str(choice) for choice in arguments)}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        letters = ", ".join("abcdef"[: len(arguments)])
        return f"{len(arguments)} {expectation(arguments[0], plural=True)} as a list [{letters}]"
    if origin in (list, tuple):
        return f"a list of {expectation(arguments[0], plural=True)}"
    return "a mapping" if origin is dict else str(kind)


def short_repr(value: Any) -> str:
    """A value as messages show it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}... ({len(text)} characters)"
