"""The definition: a padded sum of products, readable by eye. Tests compare with it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def reference_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    activation: str | None,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """Compute ``y_t = bias + sum_j weight[:, k-1-j] x_{t-j}`` (``x_{t+j}`` in reverse) and activate it."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        source = x.to(dtype).flip(1) if reverse else x.to(dtype)
        padded = F.pad(source, (0, 0, weight.shape[1] - 1, 0))
        y = sum(padded[:, j : j + x.shape[1]] * w for j, w in enumerate(weight.to(dtype).unbind(1)))
        assert isinstance(y, Tensor)
        if bias is not None:
            y = y + bias.to(dtype)
        if activation == "silu":
            y = F.silu(y)
    return (y.flip(1) if reverse else y).to(x.dtype)
