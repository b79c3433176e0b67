"""How many multiply-adds a program takes, counted while it runs, scans and attention on a CPU included."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
KINDS = {"scan": "scans", "conv": "convolutions", "bmm": "attention", "attention": "attention"}


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Operations of the two products of attention over queries (b, h, l, d)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_gradient_flops(
    grad_out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    """Operations of attention's gradients: the scores once more, and two products for each of forward's two."""
    return 5 * attention_flops(query, key, value) // 2


# PyTorch knows those of GPUs alone
ON_A_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_gradient_flops,
}


def count_multiply_adds(run: Callable[[], Any]) -> Counter[str]:
    """Multiply-adds of ``run`` by kind: linear layers, scans, convolutions, attention.

    A multiply-add is one multiplication with its addition; papers call their number FLOPs. PyTorch's counter counts
    two operations for it, and each operation of a scan alone (docs/numerics.md), so a scan's are its operations halved.

    Args:
        run: What to count; no gradients are taken.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        run()
    counts: Counter[str] = Counter()
    for operation, flops in counter.get_flop_counts()["Global"].items():
        counts[kind_of(str(operation))] += flops // 2
    return counts


def kind_of(operation: str) -> str:
    """The kind of an operation by its name, such as ``aten.addmm``; products of matrices are linear layers'."""
    return next((kind for part, kind in KINDS.items() if part in operation), "linear layers")
