"""How many operations a depthwise convolution takes, for PyTorch's FlopCounterMode.

Counted, as for PyTorch's convolutions, are a multiplication and an addition for each tap of each output.
"""

import math
from collections.abc import Sequence
from typing import Any

Shape = Sequence[int]


def forward_flops(x: Shape, weight: Shape, *_: Any, out_shape: Any = None) -> int:
    """Operations of a convolution of ``x`` (b, l, d) with ``weight`` (d, k)."""
    return 2 * math.prod(x) * weight[1]


def backward_flops(grad_out: Shape, x: Shape, weight: Shape, *_: Any, out_shape: Any = None) -> int:
    """Operations of the gradients of ``x`` and ``weight``."""
    return 2 * forward_flops(x, weight)
