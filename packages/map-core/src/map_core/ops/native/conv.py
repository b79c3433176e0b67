"""The native depthwise causal convolution as an operator."""

from typing import Any

import torch
from torch import Tensor

from map_core.ops.native.library import ConvCall, address, rows, run, widen


def _call(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[ConvCall, list[Tensor | None]]:
    """Describe a convolution, and return the widened tensors that must live until it has run."""
    wide = widen(x)
    taps = widen(weight).t().contiguous()  # (d, k) -> (k, d), as the kernel reads them
    shift = None if bias is None else widen(bias).contiguous()
    batch, length, channels = x.shape
    call = ConvCall(
        batch=batch,
        length=length,
        channels=channels,
        taps=weight.shape[1],
        silu=silu,
        reverse=reverse,
        threads=torch.get_num_threads(),
        x=rows(wide),
        weight=address(taps),
        bias=address(shift),
    )
    return call, [wide, taps, shift]


@torch.library.custom_op("map_core::depthwise_causal_conv1d", mutates_args=(), device_types="cpu")
def conv_operator(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Convolve ``x`` (b, l, d) with ``weight`` (d, k)."""
    call, kept = _call(x, weight, bias, silu, reverse)
    out = torch.empty(x.shape, dtype=torch.float32)
    call.out = out.data_ptr()
    run("map_ops_conv_forward", call)
    del kept
    return out.to(x.dtype)


@torch.library.custom_op("map_core::depthwise_causal_conv1d_backward", mutates_args=(), device_types="cpu")
def backward_operator(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``weight`` and ``bias``; an absent bias has an empty one."""
    call, kept = _call(x, weight, bias, silu, reverse)
    grad = widen(grad_out)
    call.grad_out = rows(grad)
    grad_x = torch.empty(x.shape, dtype=torch.float32)
    grad_weight = torch.empty((weight.shape[1], weight.shape[0]), dtype=torch.float32)
    grad_bias = torch.empty(0 if bias is None else bias.shape[0], dtype=torch.float32)
    call.grad_x, call.grad_weight, call.grad_bias = (g.data_ptr() for g in (grad_x, grad_weight, grad_bias))
    run("map_ops_conv_backward", call)
    del kept
    bias_dtype = torch.float32 if bias is None else bias.dtype
    return (
        grad_x.to(x.dtype),
        grad_weight.t().contiguous().to(weight.dtype),
        grad_bias.to(bias_dtype),
    )


@conv_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@backward_operator.register_fake
def _(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = x.new_empty(0, dtype=torch.float32) if bias is None else torch.empty_like(bias)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device),
        grad_bias,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grads = backward_operator(grad_out, x, weight, bias, ctx.silu, ctx.reverse)
    return grads[0], grads[1], None if bias is None else grads[2], None, None


conv_operator.register_autograd(_backward, setup_context=_keep)


def native_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool
) -> Tensor:
    """Compute what ``reference_conv`` defines with the native kernel."""
    return conv_operator(x, weight, bias, activation == "silu", reverse)
