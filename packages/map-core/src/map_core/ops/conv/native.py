"""The native depthwise causal convolution as an operator."""

import torch
from torch import Tensor

from map_core.ops.conv.flops import backward_flops, forward_flops
from map_core.ops.conv.shapes import check_shapes
from map_core.ops.native.calls import ConvCall, address, common_dtype, readable, rows
from map_core.ops.native.library import run
from map_core.ops.operator import register_operator


def _call(
    dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[ConvCall, list[Tensor | None]]:
    """Describe a convolution of a dtype, and return the tensors that must live until it has run.

    Raises:
        ValueError: shapes that do not match.
    """
    check_shapes(x, weight, bias)
    read_x = readable(x, dtype)
    read_taps = readable(weight).t().contiguous()  # (d, k) -> (k, d), as the kernel reads them
    read_bias = None if bias is None else readable(bias).contiguous()
    batch, length, channels = x.shape
    call = ConvCall(
        batch=batch,
        length=length,
        channels=channels,
        taps=weight.shape[1],
        silu=silu,
        reverse=reverse,
        half=dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        x=rows(read_x),
        weight=address(read_taps),
        bias=address(read_bias),
    )
    return call, [read_x, read_taps, read_bias]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    dtype = common_dtype(x)
    call, keep_alive = _call(dtype, x, weight, bias, silu, reverse)
    out = torch.empty(x.shape, dtype=dtype)
    call.out = out.data_ptr()
    run("map_ops_conv_forward", call)
    del keep_alive
    return out.to(x.dtype)


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> list[Tensor]:
    dtype = common_dtype(x, grad_out)
    call, keep_alive = _call(dtype, x, weight, bias, silu, reverse)
    grad = readable(grad_out, dtype)
    call.grad_out = rows(grad)
    grad_x = torch.empty(x.shape, dtype=dtype)
    grad_weight = torch.empty((weight.shape[1], weight.shape[0]), dtype=torch.float32)
    grad_bias = torch.empty(0 if bias is None else bias.shape[0], dtype=torch.float32)
    call.grad_x, call.grad_weight, call.grad_bias = (g.data_ptr() for g in (grad_x, grad_weight, grad_bias))
    run("map_ops_conv_backward", call)
    del keep_alive
    grads = [grad_x.to(x.dtype), grad_weight.t().contiguous().to(weight.dtype)]
    return grads if bias is None else [*grads, grad_bias.to(bias.dtype)]


_operator = register_operator(
    "depthwise_causal_conv1d",
    _forward,
    _backward,
    devices="cpu",
    flops=forward_flops,
    backward_flops=backward_flops,
)


def native_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool
) -> Tensor:
    """Compute what ``reference_conv`` defines with the native kernel."""
    return _operator(x, weight, bias, activation == "silu", reverse)
