"""The Triton convolution as an operator."""

from typing import Any

import torch
from torch import Tensor

from map_core.ops.conv.flops import backward_flops, forward_flops
from map_core.ops.conv.shapes import check_shapes
from map_core.ops.conv.triton.loading import kernels
from map_core.ops.operator import register_operator

# Of the cuts timed on an H200 (docs/performance.md) the fastest over six shapes. A program is one warp, a thread has
# four channels; time is cut into stretches until there are PROGRAMS programs.
BLOCK = 128
AHEAD = 8  # steps that are loaded at once
PROGRAMS = 2048
MIN_SPAN = 16


def _rows(x: Tensor) -> Tensor:
    """``x`` with neighbouring channels side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _span(batch: int, length: int, channels: int) -> int:
    """Steps per program."""
    stretches = -(-PROGRAMS // (batch * -(-channels // BLOCK)))
    return max(MIN_SPAN, -(-length // stretches))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    check_shapes(x, weight, bias)
    batch, length, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x, span = _rows(x), _span(batch, length, channels)
    with torch.cuda.device_of(x):
        kernels().convolve_kernel[batch * -(-length // span), -(-channels // BLOCK)](
            x, weight.contiguous(), None if bias is None else bias.contiguous(), out,
            x.stride(0), x.stride(1), length, channels, span,
            TAPS=weight.shape[1], SILU=silu, REVERSE=reverse, AHEAD=AHEAD, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
    return out


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> list[Tensor]:
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if grad_out.numel() == 0:
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in inputs]
    batch, length, channels = x.shape
    x, grad, span = _rows(x), _rows(grad_out), _span(batch, length, channels)
    taps, programs = weight.shape[1], batch * -(-length // span)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty((programs, taps + 1, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        kernels().gradient_kernel[programs, -(-channels // BLOCK)](
            grad, x, weight.contiguous(), None if bias is None else bias.contiguous(), grad_x, sums,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), length, channels, span,
            TAPS=taps, SILU=silu, REVERSE=reverse, AHEAD=AHEAD, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
    total = sums.sum(0)
    # copies: an operator's results must share no memory, as views of the sums would with one channel or one tap
    grad_weight = total[:taps].t().to(weight.dtype, memory_format=torch.contiguous_format, copy=True)
    return (
        [grad_x, grad_weight]
        if bias is None
        else [grad_x, grad_weight, total[taps].to(bias.dtype, copy=True)]
    )


_operator: Any = register_operator(
    "triton_causal_conv1d",
    _forward,
    _backward,
    devices=("cpu", "cuda"),
    flops=forward_flops,
    backward_flops=backward_flops,
)


def triton_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool
) -> Tensor:
    """Compute what ``reference_conv`` defines with the Triton kernels."""
    return _operator(x, weight, bias, activation == "silu", reverse)
