"""How many operations attention takes, for PyTorch's FlopCounterMode.

Counted are the products of matrices, as PyTorch counts those of its attention on GPUs; what a mask hides counts too.
"""

import math
from collections.abc import Sequence
from typing import Any

Shape = Sequence[int]


def forward_flops(q: Shape, k: Shape, v: Shape, *_: Any, out_shape: Any = None) -> int:
    """Operations of both products of queries (b, q, h, d) with keys and values (b, l, h, d)."""
    return 4 * math.prod(q) * k[1]


def backward_flops(
    grad_out: Shape, out: Shape, log_sum: Shape, q: Shape, k: Shape, v: Shape, *_: Any, out_shape: Any = None
) -> int:
    """Operations of the gradients: the scores once more, and two products for each of forward's two."""
    return 5 * forward_flops(q, k, v) // 2
