"""The convolution by PyTorch's own operator, which ONNX has too: channels first, zeros beyond the sequence."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def padded_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    activation: str | None,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_conv`` defines, for programs that run without this package."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    padding = weight.shape[1] - 1
    channels_first = F.pad(x.to(dtype).transpose(1, 2), (0, padding) if reverse else (padding, 0))
    taps = (weight.flip(1) if reverse else weight).to(dtype).unsqueeze(1)  # (d, k) -> (d, 1, k)
    y = F.conv1d(
        channels_first, taps, None if bias is None else bias.to(dtype), groups=weight.shape[0]
    ).transpose(1, 2)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)
