"""Linear layers that choose their library, as scans and convolutions choose theirs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from map_core.ops.linear.onednn import onednn_linear, onednn_missing, onednn_unfit
from map_core.ops.registry import BackendStatus, Implementation, Registry
from map_core.ops.tracing_state import is_autocast_enabled, is_transformed

REGISTRY = Registry(
    "linear",
    (
        Implementation("onednn", onednn_linear, missing=onednn_missing, unfit=onednn_unfit),
        Implementation("torch", F.linear),
    ),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Compute ``x @ weight.t() + bias``, as ``torch.nn.functional.linear`` does.

    Args:
        x: Input (..., k).
        weight: Matrix (n, k).
        bias: Added to the result (n,).
        backend: 'auto', or the name of one implementation (``linear_backends`` lists them). Compilers, tracers and
            the transformations of torch.func always get PyTorch's own operator, whatever the name.

    Returns:
        (..., n) in the dtype of ``x``, or of autocast where that is enabled.

    Raises:
        UserError: ``backend`` is unknown or cannot serve this call.
    """
    if type(x) not in (Tensor, nn.Parameter) or x.is_nested or is_transformed():
        REGISTRY.check_name(backend)
        return F.linear(x, weight, bias)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if is_autocast_enabled(device) else x.dtype
    multiplications = x.numel() * weight.shape[0]
    return REGISTRY[REGISTRY.choose(backend, device, dtype, multiplications)].run(x, weight, bias)


def linear_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of the linear layer, best first, with the reason where one cannot run here."""
    return REGISTRY.statuses()


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`linear`; ``backend`` names the implementation; set it to measure one.

    Tools that test for the exact type ``nn.Linear`` (dynamic quantisation) instead of for instances do not find it.
    """

    backend = "auto"

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.backend)
