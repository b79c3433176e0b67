"""The operators' counts for counters that read JIT traces, such as those of fvcore and of mmengine."""

from collections.abc import Callable
from functools import partial
from typing import Any

from map_core.ops.operator import FLOPS


def _argument(value: Any) -> Any:
    """Return what a formula is passed for a value of the traced graph: the shape of a tensor, a list, or the value."""
    if value.node().kind() == "prim::ListConstruct":
        return [_argument(item) for item in value.node().inputs()]
    return value.type().sizes() if value.isCompleteTensor() else value.toIValue()


def _count(flops: Callable[..., int], inputs: list[Any], outputs: list[Any]) -> int:
    return flops(*(_argument(value) for value in inputs)) // 2


def jit_flop_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Return a handle for each operator, to be passed to ``set_op_handle`` of a ``FlopCountAnalysis``.

    Those counters count a multiplication with its addition as one operation, so the handles return half of what
    PyTorch's FlopCounterMode counts.
    """
    return {f"map_core::{name}": partial(_count, flops) for name, flops in FLOPS.items()}
