"""Attention within square windows of patches, for maps whose global attention is too expensive."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.blocks import Attention, TransformerBlock


def window_slots(position: Int[Tensor, "l 2"], window_size: int) -> tuple[Int[Tensor, " l"], int]:
    """Place of each token among windows of ``window_size`` x ``window_size`` places, window by window.

    Args:
        position: Row and column of each token, in any order.
        window_size: Rows and columns of a window.

    Returns:
        The place of each token, and the number of windows; places that no token has lie beyond the border.
    """
    row, col = position.unbind(-1)
    across = int(col.max()) // window_size + 1
    down = int(row.max()) // window_size + 1
    window = (row // window_size) * across + col // window_size
    within = (row % window_size) * window_size + col % window_size
    return window * window_size**2 + within, down * across


def windowed_attention(
    attention: Attention, x: Float[Tensor, "b l d"], position: Int[Tensor, "l 2"], window_size: int
) -> Float[Tensor, "b l d"]:
    """Attend within windows: equal to ``attention`` under a mask that is True for tokens of one window."""
    b, _, d = x.shape
    slots, windows = window_slots(position, window_size)
    area = window_size**2
    filled = torch.zeros(windows * area, dtype=torch.bool, device=x.device)
    filled[slots] = True
    grouped = x.new_zeros(b, windows * area, d).index_copy(1, slots, x).reshape(b * windows, area, d)
    mask = None
    if len(slots) < windows * area:  # (windows, area) -> (b * windows, 1, area), over the keys
        mask = filled.reshape(1, windows, 1, area).expand(b, -1, -1, -1).flatten(0, 1)
    attended = attention(grouped, mask=mask)
    return attended.reshape(b, windows * area, d).index_select(1, slots)


class WindowedTransformerBlock(nn.Module):
    """A Transformer block that attends within windows of patches; it takes over another's parameters and names.

    Args:
        block: The block with global attention.
        window_size: Rows and columns of patches of a window; the last windows of a row or column may be cut off.
    """

    def __init__(self, block: TransformerBlock, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1, self.attn, self.drop_path = block.norm1, block.attn, block.drop_path
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(self, x: Float[Tensor, "b l d"], position: Float[Tensor, "1 l 2"]) -> Float[Tensor, "b l d"]:
        place = position[0].long()
        x = x + self.drop_path(windowed_attention(self.attn, self.norm1(x), place, self.window_size))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
