"""How many operations a scan takes, for PyTorch's FlopCounterMode.

Counted are the multiplications, additions and exponentials of the recurrence as ``reference_scan`` writes it.
Activations and the product with the gate are not counted, as PyTorch does not count those of other layers.
"""

import math
from collections.abc import Sequence
from typing import Any

from map_core.ops.scan.directions import by_direction

Shape = Sequence[int]


def one_direction_flops(u: Shape, state: int, skip: bool) -> int:
    """Operations of one scan over ``u`` (b, l, d)."""
    # For each state: delta A, its exponential, decay times h, delta u times B, their sum, C h and its sum.
    # For each channel: delta u; D u and its sum.
    return math.prod(u) * (7 * state + 1 + 2 * skip)


def one_direction_backward_flops(u: Shape, state: int, skip: bool, gated: bool) -> int:
    """Operations of the gradients of one scan over ``u`` (b, l, d)."""
    # For each state: h again (five), two each for the gradients of C, B, delta u and A, of h through y and of delta
    # through the decay, one each for h through the decay and for delta A; C h and its sum again for a gate.
    # For each channel: delta u again, the gradients of u (one) and delta (two); those of D and of u through it, and
    # for a gate D u and its sum again.
    by_channel = 4 + skip * (4 + 2 * gated)
    return math.prod(u) * ((19 + 2 * gated) * state + by_channel)


def forward_flops(
    tensors: Sequence[Shape], z: Shape | None, present: Sequence[int], *_: Any, out_shape: Any = None
) -> int:
    """Operations of the scans over all directions whose shapes are listed in ``tensors``."""
    return sum(
        one_direction_flops(direction["u"], direction["A"][1], "D" in direction)
        for direction in by_direction(tensors, present)
    )


def backward_flops(
    grad_out: Shape,
    tensors: Sequence[Shape],
    z: Shape | None,
    present: Sequence[int],
    *_: Any,
    out_shape: Any = None,
) -> int:
    """Operations of the gradients of ``tensors`` and ``z``."""
    return sum(
        one_direction_backward_flops(direction["u"], direction["A"][1], "D" in direction, z is not None)
        for direction in by_direction(tensors, present)
    )
