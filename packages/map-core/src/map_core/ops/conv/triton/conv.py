"""The Triton convolution as an operator."""

from typing import Any

import torch
from torch import Tensor

from map_core.ops.conv.flops import backward_flops, forward_flops
from map_core.ops.conv.triton.loading import kernels
from map_core.ops.operator import register_operator

# Never timed. A tile is so many steps of so many channels, a program of four warps; backward sums over spans.
TIME = 16
BLOCK = 64
SPAN = 64


def _rows(x: Tensor) -> Tensor:
    """``x`` with neighbouring channels side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, dtype: torch.dtype
) -> Tensor:
    batch, length, channels = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    x = _rows(x)
    grid = batch * -(-length // TIME), -(-channels // BLOCK)
    with torch.cuda.device_of(x):
        kernels().convolve_kernel[grid](
            x, weight.contiguous(), None if bias is None else bias.contiguous(), out,
            x.stride(0), x.stride(1), length, channels,
            TAPS=weight.shape[1], SILU=silu, REVERSE=reverse, TIME=TIME, BLOCK=BLOCK,
        )  # fmt: skip
    return out


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return _convolve(x, weight, bias, silu, reverse, x.dtype)


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> list[Tensor]:
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if grad_out.numel() == 0:
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in inputs]
    batch, length, channels = x.shape
    taps, programs = weight.shape[1], batch * -(-length // SPAN)
    x, grad = _rows(x), _rows(grad_out)
    sums = torch.empty((programs, taps + 1, channels), device=x.device)
    before = torch.empty(x.shape, device=x.device) if silu else None
    with torch.cuda.device_of(x):
        kernels().gradient_kernel[programs, -(-channels // BLOCK)](
            grad, x, weight.contiguous(), None if bias is None else bias.contiguous(), before, sums,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), length, channels, SPAN,
            TAPS=taps, SILU=silu, REVERSE=reverse, TIME=TIME, BLOCK=BLOCK, ROWS=1 << taps.bit_length(),
        )  # fmt: skip
    # what is seen k steps back is reached k steps ahead
    grad_x = _convolve(grad if before is None else before, weight, None, False, not reverse, x.dtype)
    total = sums.sum(0)
    grads = [grad_x, total[:taps].t().contiguous().to(weight.dtype)]
    return grads if bias is None else [*grads, total[taps].to(bias.dtype)]


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
