"""How many operations attention takes, for PyTorch's FlopCounterMode.

Counted are the products of matrices, as PyTorch counts those of its attention on GPUs; what a mask hides counts too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

Shape = Sequence[int]


def attention_flops(q: Shape, keys: int) -> int:
    """Operations of both matrix products: of the queries (..., d) with ``keys`` keys, and with as many values."""
    return 4 * math.prod(q) * keys


def gradient_flops(q: Shape, keys: int) -> int:
    """Operations of the gradients: the scores once more, and two products for each of forward's two."""
    return 5 * attention_flops(q, keys) // 2


def forward_flops(q: Shape, k: Shape, *_: Any, out_shape: Any = None) -> int:
    """Operations for queries (b, q, h, d) and keys (b, l, h, d)."""
    return attention_flops(q, k[1])


def backward_flops(
    grad_out: Shape, out: Shape, log_sum: Shape, q: Shape, k: Shape, *_: Any, out_shape: Any = None
) -> int:
    """Operations of the gradients of queries (b, q, h, d), keys and values (b, l, h, d)."""
    return gradient_flops(q, k[1])


# For PyTorch's operator on CPUs, (b, h, l, d); its counter only knows those on GPUs.
ON_A_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: attention_flops(
        q, k[2]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad_out, q, k, *_, **__: gradient_flops(q, k[2])
    ),
}
