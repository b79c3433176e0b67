"""How one direction or two are passed to the scan's operators: a list of tensors, and which fields it contains.

Operators take lists of tensors, but no lists with missing entries.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
FIELDS = ("u", "delta", "A", "B", "C", "D", "bias")


def by_direction(tensors: Sequence[T], present: Sequence[int]) -> list[dict[str, T]]:
    """Name the tensors of each direction; ``present`` is 1 for every field that a direction has, else 0."""
    remaining = iter(tensors)
    directions: list[dict[str, T]] = []
    for position, is_present in enumerate(present):
        if position % len(FIELDS) == 0:
            directions.append({})
        if is_present:
            directions[-1][FIELDS[position % len(FIELDS)]] = next(remaining)
    return directions
