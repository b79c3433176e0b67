"""The MLPs between mean features and the vectors that are compared."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from map_core.ops import Linear


def plain_projector(embed_dim: int, hidden_dim: int, out_dim: int) -> nn.Module:
    """MoCo v2's: one hidden layer (arXiv 2003.04297)."""
    return nn.Sequential(Linear(embed_dim, hidden_dim), nn.ReLU(), Linear(hidden_dim, out_dim))


def normalized_mlp(widths: tuple[int, ...]) -> nn.Module:
    """MoCo v3's projector and predictor: layers without bias, batch normalisation after each (arXiv 2104.02057).

    Args:
        widths: Widths of the input, the hidden layers and the output, whose normalisation has no scale and shift.
    """
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths[:-1]):
        layers += [Linear(width, next_width, bias=False), nn.BatchNorm1d(next_width), nn.ReLU()]
    last = [Linear(widths[-2], widths[-1], bias=False), nn.BatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers, *last)


def direction(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """The vectors scaled to length 1, in float32."""
    return F.normalize(x.float(), dim=-1)
