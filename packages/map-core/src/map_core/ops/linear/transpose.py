"""Transposed copies of matrices by the native kernel."""

import torch
from jaxtyping import Float32
from torch import Tensor

from map_core.ops.native.calls import TransposeCall
from map_core.ops.native.library import run


def transposed_copy(x: Float32[Tensor, "m n"]) -> Float32[Tensor, "n m"]:
    """Return ``x.t().contiguous()`` of a CPU matrix whose rows are contiguous, several times faster than PyTorch."""
    rows, columns = x.shape
    result = torch.empty((columns, rows), dtype=torch.float32, device=x.device)
    call = TransposeCall(
        rows=rows,
        columns=columns,
        stride=x.stride(0),
        threads=torch.get_num_threads(),
        from_=x.data_ptr(),
        into=result.data_ptr(),
    )
    run("map_ops_transpose", call)
    return result
