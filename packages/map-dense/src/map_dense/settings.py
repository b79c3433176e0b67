"""Settings of a backbone as a config or a command line writes them: lists made tuples, numbers checked."""

from collections.abc import Mapping
from typing import Any

from map_core.errors import UserError


def as_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a tuple for every list."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, value: Any, otherwise: str) -> None:
    """Require a whole number of at least 1, or None ``otherwise``.

    Raises:
        UserError: anything else.
    """
    if value is not None and not (is_whole(value) and value >= 1):
        raise UserError(f"{name} must be a whole number of at least 1, or None {otherwise}; got {value!r}")


def check_frozen_stages(frozen_stages: Any, count: int, *, first: str, stages: str) -> None:
    """Require a number of ``stages`` that are frozen behind the ``first``, which 0 freezes alone.

    Raises:
        UserError: no whole number, or one beyond ``count``.
    """
    if not (is_whole(frozen_stages) and -1 <= frozen_stages <= count):
        raise UserError(
            f"frozen_stages must be a whole number in -1..{count}, the {stages} of the backbone; got "
            f"{frozen_stages!r}: -1 freezes nothing, 0 the {first}, n also the first n {stages}"
        )
