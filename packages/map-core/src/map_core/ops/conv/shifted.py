"""The convolution in plain PyTorch: shifted products added in place, without a change of layout."""

import torch
import torch.nn.functional as F
from torch import Tensor

from map_core.ops.conv.flops import backward_flops, forward_flops
from map_core.ops.operator import register_operator


def _shifts(length: int, taps: int, reverse: bool) -> list[tuple[int, slice, slice]]:
    """Return (tap, outputs, inputs) for every tap that reaches into the sequence."""
    shifts = []
    for back in range(min(taps, max(length, 1))):
        late, early = slice(back, None), slice(0, length - back)
        shifts.append((taps - 1 - back, early, late) if reverse else (taps - 1 - back, late, early))
    return shifts


def _widen(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast to the dtype of the sums."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _before_activation(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    y = x * weight[:, -1]
    if bias is not None:
        y += bias
    for tap, outputs, sources in _shifts(x.shape[1], weight.shape[1], reverse)[1:]:
        y[:, outputs].addcmul_(x[:, sources], weight[:, tap])
    return y


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    y = _before_activation(*_widen(x, weight, bias), reverse)
    return (F.silu(y, inplace=True) if silu else y).to(x.dtype)


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> list[Tensor]:
    wide_x, wide_weight, wide_bias = _widen(x, weight, bias)
    grad = grad_out.to(wide_x.dtype)
    if silu:
        y = _before_activation(wide_x, wide_weight, wide_bias, reverse)
        grad = torch.ops.aten.silu_backward(grad, y)
    grad_x = grad * wide_weight[:, -1]
    grad_weight = torch.zeros_like(wide_weight)
    for tap, outputs, sources in _shifts(x.shape[1], weight.shape[1], reverse):
        if tap != weight.shape[1] - 1:
            grad_x[:, sources].addcmul_(grad[:, outputs], wide_weight[:, tap])
        grad_weight[:, tap] = (grad[:, outputs] * wide_x[:, sources]).sum((0, 1))
    grads = [grad_x.to(x.dtype), grad_weight.to(weight.dtype)]
    return grads if bias is None else [*grads, grad.sum((0, 1)).to(bias.dtype)]


_operator = register_operator(
    "shifted_causal_conv1d", _forward, _backward, flops=forward_flops, backward_flops=backward_flops
)


def shifted_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool
) -> Tensor:
    """Compute what ``reference_conv`` defines, without padding, transposes or flips."""
    return _operator(x, weight, bias, activation == "silu", reverse)
