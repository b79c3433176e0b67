"""Normalisation layers by name."""

from typing import Literal

from torch import nn

from map_core.errors import UserError, near_matches

NormKind = Literal["rms", "layer"]


def make_norm(kind: NormKind, dim: int, eps: float = 1e-5) -> nn.Module:
    """Return an RMSNorm (weight only) or a LayerNorm (weight and bias) over the last axis.

    Raises:
        UserError: ``kind`` is unknown.
    """
    makers = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
    if kind not in makers:
        raise UserError(f"norm {kind!r} is unknown; {near_matches(kind, makers)}")
    return makers[kind](dim, eps=eps)
