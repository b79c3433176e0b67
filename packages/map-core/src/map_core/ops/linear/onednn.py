"""The linear layer by oneDNN, for processors that PyTorch's own choice of library leaves half idle.

For float32 on an x86 processor PyTorch multiplies with MKL, which leaves the 512-bit units of some idle; oneDNN, which
the same PyTorch contains, uses them. Which is faster is measured (``rates.py``). The operator is PyTorch's and
has no gradient; it is wrapped in a function of autograd here, because its gradients are such products too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from map_core.ops.linear.rates import cached_rates
from map_core.ops.linear.transpose import transposed_copy
from map_core.ops.native.library import native_missing
from map_core.ops.registry import Request
from map_core.ops.tracing_state import is_transformed

MEASURED_CAPABILITIES = ("AVX2", "AVX512")
MIN_MULTIPLICATIONS = 2**21  # from here on oneDNN is faster although calling it takes longer


def onednn_missing() -> str | None:
    """Why oneDNN's product cannot be called from this PyTorch, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    private = (
        (torch.ops.mkldnn, "_linear_pointwise"),
        (torch._C, "_are_functorch_transforms_active"),
        (forward_ad, "_current_level"),
    )
    for owner, name in private:
        if not hasattr(owner, name):
            return f"torch {torch.__version__} has no {name}"
    return None


def onednn_unfit(request: Request) -> str | None:
    """Why oneDNN cannot, or by 'auto' should not, serve this request, or None."""
    if request.device != "cpu":
        return f"it runs on CPU tensors only, these are on {request.device}"
    if request.dtype != torch.float32:
        return f"it takes float32, not {request.dtype}"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is switched off"
    if request.named:
        return None
    if request.size < MIN_MULTIPLICATIONS:
        return f"{request.size} multiplications take less time than calling it"
    if torch.backends.cpu.get_cpu_capability() not in MEASURED_CAPABILITIES:
        return "only x86 processors with AVX2 or AVX-512 are measured"
    if onednn_missing():
        return "there is none"
    rates = cached_rates()
    if rates is None:
        return "how fast it is cannot be kept in the cache, so that another process might choose otherwise"
    return None if rates.onednn_pays else f"it is not worth it here ({rates})"


def describe_choice() -> str:
    """What serves large float32 products on a CPU by 'auto', and why."""
    refusal = onednn_missing() or onednn_unfit(Request("cpu", torch.float32, MIN_MULTIPLICATIONS))
    return f"torch; oneDNN: {refusal}" if refusal else f"onednn: {cached_rates()}"


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is a plain float32 array in CPU memory."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not x.is_neg()
    )


def _multiply(
    x: Float[Tensor, "m k"], weight: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None
) -> Float[Tensor, "m n"]:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN has no kernel for other strides, only a slow definition
    if not x.is_contiguous() and x.t().is_contiguous() and native_missing() is None:
        x = transposed_copy(x.t())  # the operator would copy too, slower
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Differentiable any number of times: its gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_grad_x, needs_grad_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_grad_weight else None, weight if needs_grad_x else None)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = None if weight is None else _product(grad, weight.t(), None)
        grad_weight = None if x is None else _weight_gradient(grad, x)
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.t() + bias`` of two matrices, by PyTorch where its transformations do not know oneDNN's operator."""
    if is_transformed():
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _multiply(x, weight, bias)


def _weight_gradient(grad: Float[Tensor, "m n"], x: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    # The first factor is copied into rows, so the narrower one comes first.
    if grad.shape[1] > x.shape[1]:
        return _product(x.t(), grad.t(), None).t()
    return _product(grad.t(), x.t(), None)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``F.linear`` with oneDNN; empty, mismatched and unusual tensors are left to PyTorch."""
    shapes_fit = x.ndim >= 2 and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and x.numel() > 0
    bias_fits = bias is None or (bias.shape == weight.shape[:1] and _is_plain(bias))
    if not (shapes_fit and bias_fits and _is_plain(x) and _is_plain(weight)):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    return _product(rows, weight, bias).unflatten(0, x.shape[:-1])


if onednn_missing() is None:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * x_shape[0] * x_shape[1] * weight_shape[0]
