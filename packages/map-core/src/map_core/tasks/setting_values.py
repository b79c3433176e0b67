"""Values of settings: whether those read from a file have the right type, and how a command line writes them."""

import shlex
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union


def fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` has the type that an annotation names; an annotation that is unknown here fits every value."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and fit_each(value, arguments)
    if origin in (list, dict, set):
        return isinstance(value, origin)
    return isinstance(value, kind) if isinstance(kind, type) else True


def fit_each(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether a tuple's values have the types of ``tuple[kinds]``."""
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return all(fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def name_of(kind: Any) -> str:
    """An annotation as people write it."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def command_line_words(value: Any) -> list[str]:
    """A setting's value as words of a command line; an absolute path is cut down to its last component."""
    if isinstance(value, list | tuple):
        return [word for entry in value for word in command_line_words(entry)]
    if value is None or isinstance(value, bool):
        return ["null" if value is None else str(value).lower()]
    text = str(value)
    return [Path(text).name if isinstance(value, str) and Path(text).is_absolute() else text]


def format_options(settings: Mapping[str, Any], section: str = "") -> list[str]:
    """Write settings as command-line options, quoted for a shell.

    >>> format_options({"img_size": (64, 64), "layout": "(MMMT)x8"}, "model.")
    ['--model.img_size 64 64', "--model.layout '(MMMT)x8'"]
    """
    return [f"--{section}{name} {shlex.join(command_line_words(value))}" for name, value in settings.items()]
