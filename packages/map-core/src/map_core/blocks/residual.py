"""The precision of the residual stream, to which blocks add."""

import torch
from torch import Tensor

from map_core.ops.tracing_state import is_autocast_enabled
from map_core.tracing import fx_leaf


@fx_leaf
def residual_stream(x: Tensor) -> Tensor:
    """Return x in float32 under autocast, so that the small updates of many layers are not rounded away.

    Without autocast x is returned as it is: a model cast to bf16 as a whole computes in bf16.
    """
    if is_autocast_enabled(x.device.type):
        return x.to(torch.promote_types(x.dtype, torch.float32))
    return x
