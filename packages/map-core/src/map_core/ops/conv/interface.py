"""Depthwise convolutions in the layout (batch, length, channels) that projections produce."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from map_core.errors import UserError
from map_core.ops.conv.causal_conv1d import causal_conv1d_conv, causal_conv1d_missing, causal_conv1d_unfit
from map_core.ops.conv.native import native_conv
from map_core.ops.conv.padded import padded_conv
from map_core.ops.conv.reference import reference_conv
from map_core.ops.conv.shifted import shifted_conv
from map_core.ops.conv.triton.conv import triton_conv
from map_core.ops.conv.triton.loading import triton_missing, triton_unfit
from map_core.ops.native.library import native_missing, native_unfit
from map_core.ops.registry import BackendStatus, Implementation, Registry
from map_core.ops.tracing_state import is_functionally_transformed

REGISTRY = Registry(
    "depthwise_causal_conv1d",
    (
        Implementation(
            "causal_conv1d", causal_conv1d_conv, missing=causal_conv1d_missing, unfit=causal_conv1d_unfit
        ),
        Implementation("native", native_conv, missing=native_missing, unfit=native_unfit),
        # Behind causal_conv1d, whose kernels have run on GPUs for years: these are tested in Triton's interpreter.
        Implementation("triton", triton_conv, missing=triton_missing, unfit=triton_unfit),
        Implementation("torch", shifted_conv),
        Implementation("reference", reference_conv, automatic=False),
    ),
    exported=Implementation("padded", padded_conv),
)


@torch.compiler.assume_constant_result
def _choose(backend: str, device: str, dtype: torch.dtype, taps: int) -> str:
    return REGISTRY.choose(backend, device, dtype, taps)


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Refuse arguments that do not fit.

    Raises:
        UserError: It names the argument, the axis and both sizes.
    """
    if torch.jit.is_tracing():
        return  # sizes are traced tensors
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


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool, backend: str
) -> Tensor:
    if is_functionally_transformed():
        REGISTRY.check_name(backend)
        return reference_conv(x, weight, bias, activation, reverse)  # the others have hand-written gradients
    name = _choose(backend, x.device.type, x.dtype, int(weight.shape[1]))
    return REGISTRY[name].run(x, weight, bias, activation, reverse)


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
        backend: 'auto', or the name of one implementation (``conv_backends`` lists them); transformations of
            torch.func and forward-mode differentiation always use the definition, but inside ``torch.compile`` need
            'reference', as gradients of gradients do everywhere.

    Returns:
        (b, l, d) in the dtype of ``x``; sums are float32, or float64 where ``x`` is.

    Raises:
        UserError: Shapes, devices or dtypes do not agree, or an option is unknown or cannot be served.
    """
    if has_torch_function_unary(x):  # torch.fx keeps the call whole
        return handle_torch_function(
            depthwise_causal_conv1d, (x,), x, weight, bias, activation, reverse, backend
        )
    _check("depthwise_causal_conv1d", x, weight, bias, activation)
    return _run(x, weight, bias, activation, reverse, backend)


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel with its own few taps around each step, with zeros beyond both ends of the sequence.

    Args:
        x: Input (b, l, e).
        weight: Taps (e, k); the middle one multiplies the present step, or the left of the middle two.
        bias: Added to the result (e,).
        activation: None or 'silu', applied last.
        backend: As for :func:`depthwise_causal_conv1d`, whose implementations serve here too.

    Returns:
        (b, l, e) in the dtype of ``x``; sums are float32, or float64 where ``x`` is.

    Raises:
        UserError: Shapes, devices or dtypes do not agree, or an option is unknown or cannot be served.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(depthwise_conv1d, (x,), x, weight, bias, activation, backend)
    _check("depthwise_conv1d", x, weight, bias, activation)
    ahead = weight.shape[1] // 2
    # The result at t is that of a causal convolution at t + ahead.
    padded = F.pad(x, (0, 0, 0, ahead))
    return _run(padded, weight, bias, activation, False, backend)[:, ahead:]


def conv_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of the convolution, best first, with the reason where one cannot run here."""
    return REGISTRY.statuses()
