"""Normalisation layers by name."""

from typing import Literal

from torch import nn

from map_core.errors import unknown_name

NormKind = Literal["rms", "layer"]


def make_norm(kind: NormKind, dim: int, eps: float = 1e-5) -> nn.Module:
    """Return an RMSNorm (weight only) or a LayerNorm (weight and bias) over the last axis.

    Raises:
        UserError: ``kind`` is unknown.
    """
    makers = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
    if kind not in makers:
        raise unknown_name("norm", kind, makers)
    return makers[kind](dim, eps=eps)
