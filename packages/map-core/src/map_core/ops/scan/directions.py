"""How one direction or two are passed to the scan's operators: a list of tensors, and which fields it contains.

Operators take lists of tensors, but no lists with missing entries.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

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


def check_shapes(directions: Sequence[dict[str, Tensor]], z: Tensor | None) -> None:
    """Refuse tensors whose shapes do not agree: kernels check nothing, and traced models call them directly.

    Raises:
        ValueError: It names the tensor and both shapes.
    """
    batch, length, channels = directions[0]["u"].shape
    sequence, weight = (batch, length, channels), (channels,)
    for tensors in directions:
        state = tensors["A"].shape[-1]
        projection = (batch, length, state)
        shapes = (sequence, sequence, (channels, state), projection, projection, weight, weight)
        for name, shape in zip(FIELDS, shapes, strict=True):
            if name in tensors and tensors[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape}; got {(*tensors[name].shape,)}")
    if z is not None and z.shape != sequence:
        raise ValueError(f"z must have shape {sequence}; got {(*z.shape,)}")
