"""How many multiply-adds a program takes, counted while it runs, scans and attention on a CPU included."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from map_core.ops.attention.flops import ON_A_CPU

KINDS = {"scan": "scans", "conv": "convolutions", "bmm": "attention", "attention": "attention"}


def count_multiply_adds(run: Callable[[], Any]) -> Counter[str]:
    """Multiply-adds of ``run`` by kind: linear layers, scans, convolutions, attention.

    A multiply-add is one multiplication with its addition; papers call their number FLOPs. PyTorch's counter counts
    two operations for each, and the operations of a scan one by one (docs/numerics.md), so those of a scan are halved.

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
    """The kind of an operation by its name, such as ``aten.addmm``; matrix products count as linear layers."""
    return next((kind for part, kind in KINDS.items() if part in operation), "linear layers")
