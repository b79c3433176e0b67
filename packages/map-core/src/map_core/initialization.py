"""Initial weights: one rule for all our models."""

import math

import torch
from torch import Tensor, nn


def init_weights(module: nn.Module) -> None:
    """Give a Linear layer truncated-normal weights (std .02) and a zero bias; use with ``model.apply``.

    Layers marked by :func:`keep_init` keep their weights: a general rule must not wipe Mamba's initial time steps.
    """
    if isinstance(module, nn.Linear) and not getattr(module, "_keep_init", False):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def keep_init(module: nn.Module) -> None:
    """Exempt a layer from :func:`init_weights`."""
    module._keep_init = True  # type: ignore[assignment]


def undecayed_parameters(module: nn.Module) -> set[str]:
    """Names of parameters exempt from weight decay: Mamba's A, position tables, registers, mask tokens.

    Vectors (biases, norms, D) are not decayed either; timm's parameter groups take care of those.
    """
    tables = ("position.table", "global_position", "registers.", "mask_token", "A_log")
    return {name for name, _ in module.named_parameters() if any(table in name for table in tables)}


def inverse_softplus(value: Tensor) -> Tensor:
    """Return x with softplus(x) = value, for value > 0."""
    return value + torch.log(-torch.expm1(-value))


def init_time_step_(weight: Tensor, bias: Tensor, *, low: float = 1e-3, high: float = 0.1) -> None:
    """Initialise Mamba's time-step projection so that softplus(bias) is log-uniform in [low, high].

    Source: Mamba (arXiv 2312.00752), section 3.6; ``weight`` (d, r) is uniform within ``r ** -0.5``.
    """
    bound = weight.shape[1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    with torch.no_grad():
        step = torch.exp(torch.empty_like(bias).uniform_(math.log(low), math.log(high)))
        bias.copy_(inverse_softplus(step))
