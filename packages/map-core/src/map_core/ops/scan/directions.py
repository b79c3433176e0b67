"""How the scan's operators are passed one direction or two: one list of tensors, and which fields are among them.

Operators take lists of tensors, but no lists in which some are missing.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
FIELDS = ("u", "delta", "A", "B", "C", "D", "bias")


def by_direction(tensors: Sequence[T], present: Sequence[int]) -> list[dict[str, T]]:
    """Name the tensors of each direction; ``present`` is 1 for each field of each direction that is there."""
    remaining = iter(tensors)
    directions: list[dict[str, T]] = []
    for place, there in enumerate(present):
        if place % len(FIELDS) == 0:
            directions.append({})
        if there:
            directions[-1][FIELDS[place % len(FIELDS)]] = next(remaining)
    return directions
