"""Adapter to the CUDA kernel of the causal-conv1d package, through its public function only."""

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.ops.registry import Request, optional_import

TAPS = (2, 3, 4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNEL_MULTIPLE = 8  # for the kernel that reads (b, l, d) memory as it is


def _load() -> None:
    importlib.import_module("causal_conv1d_cuda")
    if not callable(importlib.import_module("causal_conv1d").causal_conv1d_fn):
        raise TypeError("causal_conv1d.causal_conv1d_fn is not a function")


def causal_conv1d_missing() -> str | None:
    """Why the package's kernel cannot run on this installation, or None."""
    return optional_import("causal_conv1d", _load)


def causal_conv1d_unfit(request: Request) -> str | None:
    """Why the package's kernel cannot serve this request, or None."""
    if request.device != "cuda":
        return f"it runs on CUDA tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if request.size not in TAPS:
        return f"it takes 2 to 4 taps, weight has {request.size}"
    return None


def causal_conv1d_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    activation: str | None,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """Convolve with ``causal_conv1d_fn``; a reverse convolution flips its input and its result."""
    if x.numel() == 0:
        return x * weight[:, -1].to(x.dtype)  # the kernel cannot be launched over nothing
    x = (x.flip(1) if reverse else x).contiguous().transpose(1, 2)  # (b, l, d) -> (b, d, l)
    if x.shape[1] % CHANNEL_MULTIPLE:
        x = x.contiguous()
    weight = weight.contiguous()
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn
    y = function(x, weight, None if bias is None else bias.to(weight.dtype), activation=activation)
    y = y.transpose(1, 2)
    return y.flip(1) if reverse else y
