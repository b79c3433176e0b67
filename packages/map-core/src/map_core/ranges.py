"""Ranges of settings, checked before anything is read or built."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from map_core.errors import UserError

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
    """Check fields of a configuration; each value of a list or tuple counts, None does not.

    Args:
        section: What messages put before the fields' names; empty for settings outside of any section.
        config: Has the fields.
        at_least_one: Fields of 1 or more.
        positive: Above 0, and finite.
        not_negative: 0 or more, and finite.
        shares: In [0, 1], such as the probability of mixing.
        shares_below_one: In [0, 1), such as drop path: at 1 nothing would be left.
        inside_zero_and_one: In (0, 1), such as the decay of an average of weights.
        seeds: Of 63 bits, as generators of random numbers take them.

    Raises:
        UserError: naming the first field outside of its range, its value and the range.
    """
    rules: tuple[tuple[Iterable[str], Callable[[Any], bool], str], ...] = (
        (at_least_one, lambda value: 1 <= value < math.inf, "must be at least 1"),
        (positive, lambda value: 0 < value < math.inf, "must be a positive number"),
        (not_negative, lambda value: 0 <= value < math.inf, "must be 0 or more"),
        (shares, lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
        (shares_below_one, lambda value: 0 <= value < 1, "must lie in [0, 1)"),
        (inside_zero_and_one, lambda value: 0 < value < 1, "must lie inside (0, 1)"),
        (seeds, lambda value: 0 <= value <= LARGEST_SEED, f"must lie in 0 to {LARGEST_SEED}"),
    )
    for names, holds, rule in rules:
        for name in names:
            require(section, config, name, holds, rule)


def refuse_without_effect(section: str, config: Any, *names: str, because: str) -> None:
    """Refuse settings that nothing reads, where they are other than by default.

    Args:
        section: As in :func:`check`.
        config: Has the fields, whose defaults are values.
        names: Of the fields.
        because: What they have no effect with.

    Raises:
        UserError: naming the first, its value, what it has no effect with and its default.
    """
    for name in names:
        value, default = getattr(config, name), getattr(type(config), name)
        if value != default:
            place = f"{section}.{name}" if section else name
            cure = "leave it out" if default is None else f"leave it at {default}"
            raise UserError(f"{place} {value} has no effect with {because}: {cure}")


def require(section: str, config: Any, name: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Check one field by a rule of its own.

    Args:
        section: As in :func:`check`.
        config: Has the field.
        name: Of the field.
        holds: Whether a value is allowed; asked of each value of a list or tuple, and never of None.
        rule: What to say otherwise, such as "must be below epochs (100)".

    Raises:
        UserError: naming the field, its value and the rule.
    """
    value = getattr(config, name)
    values = value if isinstance(value, (list, tuple)) else (value,)
    if not all(one is None or holds(one) for one in values):
        place = f"{section}.{name}" if section else name
        raise UserError(f"{place} {rule}; got {value}; change --{place}")
