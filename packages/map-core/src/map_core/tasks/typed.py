"""Values of settings: whether one that was read from a file is of its setting's type, and how it is written."""

import shlex
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union


def fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the type that an annotation names; annotations unknown here fit everything."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and fit_each(value, arguments)
    if origin in (list, dict, set):
        return isinstance(value, origin)
    return isinstance(value, kind) if isinstance(kind, type) else True


def fit_each(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether the values of a tuple are of the types of ``tuple[kinds]``."""
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return all(fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def name_of(kind: Any) -> str:
    """An annotation as people write it."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def words_of(value: Any) -> list[str]:
    """A setting's value as the command line has it; of a place on this machine only the last name."""
    if isinstance(value, list | tuple):
        return [word for entry in value for word in words_of(entry)]
    if value is None or isinstance(value, bool):
        return ["null" if value is None else str(value).lower()]
    text = str(value)
    return [Path(text).name if isinstance(value, str) and Path(text).is_absolute() else text]


def told_options(settings: Mapping[str, Any], section: str = "") -> list[str]:
    """Settings as a shell takes them.

    >>> told_options({"img_size": (64, 64), "layout": "(MMMT)x8"}, "model.")
    ['--model.img_size 64 64', "--model.layout '(MMMT)x8'"]
    """
    return [f"--{section}{name} {shlex.join(words_of(value))}" for name, value in settings.items()]
