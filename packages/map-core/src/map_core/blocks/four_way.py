"""The block of ARM's finetuned encoders: selective scans along rows and columns in both directions, and a SwiGLU."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from map_core.blocks.mamba import ScanDirection
from map_core.blocks.norm import make_norm
from map_core.ops import Linear, bidirectional_selective_scan
from map_core.tokens import gather_tokens
from map_core.tracing import fx_leaf


@fx_leaf
def column_order(position: Float[Tensor, "#b m 2"], length: int) -> Int[Tensor, "#b {length}"]:
    """Sequence indices of the tokens column by column; registers, spread among them, stay where they are.

    >>> grid = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])
    >>> column_order(grid, 5)                     # the register stands at index 2
    tensor([[0, 3, 2, 1, 4]])

    Args:
        position: Row and column of the tokens that are not registers.
        length: Length of the sequence, registers included.
    """
    batch, num_tokens = position.shape[:2]
    index = torch.arange(length, device=position.device)
    is_register = torch.zeros_like(index)
    gap = num_tokens // (length - num_tokens + 1)
    is_register[gap :: gap + 1][: length - num_tokens] = 1  # where spread_places puts them
    place = is_register.argsort(stable=True)[:num_tokens]
    row, column = position.unbind(-1)
    by_row = row.argsort(dim=1, stable=True)
    order = by_row.gather(1, column.gather(1, by_row).argsort(dim=1, stable=True))
    by_column = index.repeat(batch, 1)
    by_column[:, place] = place[order]
    return by_column


class FourWayMixer(nn.Module):
    """Gated selective scans along rows and along columns, forward and backward, averaged.

    Source: ARM (arXiv 2406.07537), the form used for finetuning.

    Args:
        embed_dim: Width, and the number of scanned channels.
        state_dim: States of a channel (mamba_ssm: ``d_state``).
        conv_width: Taps of the depthwise convolutions (``d_conv``).
    """

    def __init__(self, embed_dim: int, *, state_dim: int = 16, conv_width: int = 4) -> None:
        super().__init__()
        rank = math.ceil(embed_dim / 16)

        def direction(reverse: bool) -> ScanDirection:
            return ScanDirection(
                embed_dim, state_dim=state_dim, dt_rank=rank, conv_width=conv_width, reverse=reverse
            )

        self.in_proj = Linear(embed_dim, 2 * embed_dim, bias=False)
        self.row_forward, self.row_backward = direction(reverse=False), direction(reverse=True)
        self.column_forward, self.column_backward = direction(reverse=False), direction(reverse=True)
        self.out_proj = Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "b l d"], by_column: Int[Tensor, "#b l"]) -> Float[Tensor, "b l d"]:
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (b, l, d) -> 2 x (b, l, e)
        rows = bidirectional_selective_scan(self.row_forward(x), self.row_backward(x), z)
        x, z = gather_tokens(x, by_column).contiguous(), gather_tokens(z, by_column).contiguous()
        columns = bidirectional_selective_scan(self.column_forward(x), self.column_backward(x), z)
        return self.out_proj((rows + gather_tokens(columns, by_column.argsort(dim=1))) / 2)


class SwiGlu(nn.Module):
    """``w3(silu(w1 x) * w2 x)``."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1, self.w2 = Linear(embed_dim, hidden_dim), Linear(embed_dim, hidden_dim)
        self.w3 = Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class FourWayBlock(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``, of tokens on a grid.

    Args:
        embed_dim: Width.
        drop_path: Stochastic depth rate of both branches.
    """

    def __init__(self, embed_dim: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm("layer", embed_dim), make_norm("layer", embed_dim)
        self.mixer = FourWayMixer(embed_dim)
        self.mlp = SwiGlu(embed_dim, 4 * embed_dim * 2 // 3)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "b l d"], position: Float[Tensor, "#b m 2"]) -> Float[Tensor, "b l d"]:
        x = x + self.drop_path(self.mixer(self.norm1(x), column_order(position, x.shape[1])))
        return x + self.drop_path(self.mlp(self.norm2(x)))
