"""Depthwise causal convolution in the layout (batch, length, channels) that projections produce."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from map_core.errors import UserError
from map_core.ops.causal_conv1d_cuda import (
    causal_conv1d_conv,
    causal_conv1d_missing,
    causal_conv1d_unfit,
)
from map_core.ops.native.conv import native_conv
from map_core.ops.native.library import native_missing, native_unfit
from map_core.ops.registry import BackendStatus, Implementation, Registry


def _shifts(length: int, taps: int, reverse: bool) -> list[tuple[int, slice, slice]]:
    """Return (tap, outputs, inputs) for every tap that reaches into the sequence."""
    found = []
    for back in range(min(taps, max(length, 1))):
        late, early = slice(back, None), slice(0, length - back)
        found.append((taps - 1 - back, early, late) if reverse else (taps - 1 - back, late, early))
    return found


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


class _ShiftedSum(torch.autograd.Function):
    """Adds shifted products in place: the layout stays, and nothing but the inputs is kept for backward."""

    @staticmethod
    def _before_activation(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
        y = x * weight[:, -1]
        if bias is not None:
            y += bias
        for tap, outputs, sources in _shifts(x.shape[1], weight.shape[1], reverse)[1:]:
            y[:, outputs].addcmul_(x[:, sources], weight[:, tap])
        return y

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "b l d"],
        weight: Float[Tensor, "d k"],
        bias: Float[Tensor, " d"] | None,
        activation: str | None,
        reverse: bool,
    ) -> Float[Tensor, "b l d"]:
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (activation, reverse)
        wide = torch.promote_types(x.dtype, torch.float32)
        wide_bias = None if bias is None else bias.to(wide)
        y = _ShiftedSum._before_activation(x.to(wide), weight.to(wide), wide_bias, reverse)
        return (F.silu(y, inplace=True) if activation == "silu" else y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        activation, reverse = ctx.options
        wide = torch.promote_types(x.dtype, torch.float32)
        wide_x, wide_weight, grad = x.to(wide), weight.to(wide), grad.to(wide)
        if activation == "silu":
            wide_bias = None if bias is None else bias.to(wide)
            y = _ShiftedSum._before_activation(wide_x, wide_weight, wide_bias, reverse)
            grad = torch.ops.aten.silu_backward(grad, y)
        grad_x = grad * wide_weight[:, -1]
        grad_weight = torch.zeros_like(wide_weight)
        for tap, outputs, sources in _shifts(x.shape[1], weight.shape[1], reverse):
            if tap != weight.shape[1] - 1:
                grad_x[:, sources].addcmul_(grad[:, outputs], wide_weight[:, tap])
            grad_weight[:, tap] = (grad[:, outputs] * wide_x[:, sources]).sum((0, 1))
        grad_bias = None if bias is None else grad.sum((0, 1)).to(bias.dtype)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias, None, None


def shifted_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    activation: str | None,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_conv`` defines, without padding, transposes or flips."""
    return _ShiftedSum.apply(x, weight, bias, activation, reverse)


REGISTRY = Registry(
    "depthwise_causal_conv1d",
    (
        Implementation(
            "causal_conv1d", causal_conv1d_conv, missing=causal_conv1d_missing, unfit=causal_conv1d_unfit
        ),
        Implementation("native", native_conv, missing=native_missing, unfit=native_unfit),
        Implementation("torch", shifted_conv),
        Implementation("reference", reference_conv, automatic=False),
    ),
)


@torch.compiler.assume_constant_result
def _choose(backend: str, device: str, dtype: torch.dtype, taps: int) -> str:
    return REGISTRY.choose(backend, device, dtype, taps)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    op = "depthwise_causal_conv1d"
    expected = {"x": (x, 3, 2), "weight": (weight, 2, 0)}
    if bias is not None:
        expected["bias"] = (bias, 1, 0)
    for name, (tensor, rank, channel_axis) in expected.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{op}: {name} has dtype {tensor.dtype}; it must be real floating point, cast it first"
            )
        if tensor.ndim != rank:
            raise UserError(f"{op}: {name} has shape {tuple(tensor.shape)}; it must have {rank} axes")
        if tensor.device != x.device:
            raise UserError(
                f"{op}: {name} is on {tensor.device} but x is on {x.device}; move them to one device"
            )
        if tensor.shape[channel_axis] != x.shape[2]:
            raise UserError(
                f"{op}: {name}'s axis {channel_axis} (channels) has size {tensor.shape[channel_axis]} but "
                f"x's axis 2 has {x.shape[2]}; they must be equal"
            )
    if weight.shape[1] < 1:
        raise UserError(f"{op}: weight's axis 1 (taps) has size 0; it must be at least 1")
    if activation not in (None, "silu"):
        raise UserError(f"{op}: unknown activation={activation!r}; it must be None or 'silu'")


def depthwise_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel with its own few taps, looking only at the past.

    Args:
        x: Input (b, l, d).
        weight: Taps (d, k); the last one multiplies the present step.
        bias: Added to the result (d,).
        activation: None or 'silu', applied last.
        reverse: Look only at the future; equal to flipping ``x`` and the result along the sequence.
        backend: 'auto', or the name of one implementation (``conv_backends`` lists them).

    Returns:
        (b, l, d) in the dtype of ``x``; sums are float32.

    Raises:
        UserError: Shapes, devices or dtypes do not agree, or an option is unknown or cannot be served.
    """
    _check(x, weight, bias, activation)
    name = _choose(backend, x.device.type, x.dtype, weight.shape[1])
    return REGISTRY[name].run(x, weight, bias, activation, reverse)


def conv_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of the convolution, best first, and why it cannot run here, if so."""
    return REGISTRY.statuses()
