"""Range checks of settings, made before anything is read or built."""

import math
from collections.abc import Callable, Iterable
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from map_core.errors import UserError, unknown_name

LARGEST_SEED = 2**63 - 1


def check(
    section: str,
    config: Any,
    *,
    at_least_one: Iterable[str] = (),
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    shares: Iterable[str] = (),
    shares_below_one: Iterable[str] = (),
    inside_zero_and_one: Iterable[str] = (),
    seeds: Iterable[str] = (),
) -> None:
    """Check fields of a configuration; every value of a list or tuple is checked, None only where it should be a seed.

    Args:
        section: Prefix of the fields' names in messages; empty for settings outside any section.
        config: The configuration.
        at_least_one: Names of fields that must be 1 or more.
        positive: Above 0, and finite.
        not_negative: 0 or more, and finite.
        shares: In [0, 1], such as the probability of mixing.
        shares_below_one: In [0, 1), such as drop path: at 1 nothing would be left.
        inside_zero_and_one: In (0, 1), such as the decay of an average of weights.
        seeds: Whole numbers of 63 bits, as random number generators accept them.

    Raises:
        UserError: naming the first field outside its range, its value and the range.
    """
    rules: tuple[tuple[Iterable[str], Callable[[Any], bool], str], ...] = (
        (at_least_one, lambda value: 1 <= value < math.inf, "must be at least 1"),
        (positive, lambda value: 0 < value < math.inf, "must be a positive number"),
        (not_negative, lambda value: 0 <= value < math.inf, "must be 0 or more"),
        (shares, lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
        (shares_below_one, lambda value: 0 <= value < 1, "must lie in [0, 1)"),
        (inside_zero_and_one, lambda value: 0 < value < 1, "must lie inside (0, 1)"),
    )
    for names, holds, rule in rules:
        for name in names:
            require(section, config, name, holds, rule)
    for name in seeds:
        rule = f"must be a whole number from 0 to {LARGEST_SEED}"
        require(section, config, name, is_seed, rule, or_none=False)


def is_seed(value: Any) -> bool:
    """Whether a value is a whole number of 63 bits, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= LARGEST_SEED


def check_choices(section: str, config: Any) -> None:
    """Check every field whose annotation is a ``Literal``, or a ``Literal`` or None.

    Args:
        section: As in :func:`check`.
        config: The configuration, a dataclass.

    Raises:
        UserError: naming the first field with another value, the value, and the nearest choice or all of them.
    """
    for name, kind in get_type_hints(type(config)).items():
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        literals = [entry for entry in kinds if get_origin(entry) is Literal]
        if not literals or not set(kinds) <= {*literals, NoneType}:
            continue
        value = getattr(config, name)
        choices = [choice for literal in literals for choice in get_args(literal)]
        if value not in choices and not (value is None and NoneType in kinds):
            raise unknown_name(f"{section}.{name}", value, choices)


def refuse_without_effect(section: str, config: Any, *names: str, because: str) -> None:
    """Refuse settings without effect that differ from their defaults.

    Args:
        section: As in :func:`check`.
        config: The configuration; the defaults of its fields are plain values.
        names: Names of the fields.
        because: The setting that leaves them without effect, as a message names it.

    Raises:
        UserError: naming the first such field, its value, the reason and its default.
    """
    for name in names:
        value, default = getattr(config, name), getattr(type(config), name)
        if value != default:
            place = f"{section}.{name}" if section else name
            cure = "leave it out" if default is None else f"leave it at {default}"
            if default is None and section:
                # a run that --init names may have set it; alone, --NAME null would be a text of that name
                cure += f", or set --{section} '{{{name}: null}}'"
            raise UserError(f"{place} {value} has no effect with {because}: {cure}")


def require(
    section: str, config: Any, name: str, holds: Callable[[Any], bool], rule: str, *, or_none: bool = True
) -> None:
    """Check one field by a custom rule.

    Args:
        section: As in :func:`check`.
        config: The configuration.
        name: Name of the field.
        holds: Whether a value is allowed; called for each value of a list or tuple, and never for None.
        rule: The rule in words for the message, such as "must be below epochs (100)".
        or_none: Whether None is allowed too.

    Raises:
        UserError: naming the field, its value and the rule.
    """
    value = getattr(config, name)
    values = value if isinstance(value, (list, tuple)) else (value,)
    if not all(or_none if item is None else holds(item) for item in values):
        place = f"{section}.{name}" if section else name
        raise UserError(f"{place} {rule}; got {value}; change --{place}")
