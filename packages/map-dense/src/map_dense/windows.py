"""Attention within square windows of patches, for maps whose global attention is too expensive."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.blocks import Attention, TransformerBlock


def window_slots(position: Int[Tensor, "l 2"], window_size: int) -> tuple[Int[Tensor, " l"], int]:
    """Slot of each token among windows of ``window_size`` x ``window_size`` slots, window by window.

    Args:
        position: Row and column of each token, in any order.
        window_size: Rows and columns of a window.

    Returns:
        The slot of each token, and the number of windows; slots without a token lie beyond the border.
    """
    row, col = position.unbind(-1)
    windows_per_row = int(col.max()) // window_size + 1
    windows_per_column = int(row.max()) // window_size + 1
    window = (row // window_size) * windows_per_row + col // window_size
    offset = (row % window_size) * window_size + col % window_size
    return window * window_size**2 + offset, windows_per_column * windows_per_row


def windowed_attention(
    attention: Attention, x: Float[Tensor, "b l d"], position: Int[Tensor, "l 2"], window_size: int
) -> Float[Tensor, "b l d"]:
    """Attend within windows: equal to ``attention`` with a mask that is True for tokens of the same window."""
    b, _, d = x.shape
    slots, windows = window_slots(position, window_size)
    area = window_size**2
    occupied = torch.zeros(windows * area, dtype=torch.bool, device=x.device)
    occupied[slots] = True
    windowed = x.new_zeros(b, windows * area, d).index_copy(1, slots, x).reshape(b * windows, area, d)
    mask = None
    if len(slots) < windows * area:  # (windows, area) -> (b * windows, 1, area), over the keys
        mask = occupied.reshape(1, windows, 1, area).expand(b, -1, -1, -1).flatten(0, 1)
    attended = attention(windowed, mask=mask)
    return attended.reshape(b, windows * area, d).index_select(1, slots)


class WindowedTransformerBlock(nn.Module):
    """A Transformer block that attends within windows of patches, with the parameters and names of another block.

    Args:
        block: The block with global attention.
        window_size: Rows and columns of patches in a window; the last windows of a row or column may be smaller.
    """

    def __init__(self, block: TransformerBlock, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1, self.attn, self.drop_path = block.norm1, block.attn, block.drop_path
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(self, x: Float[Tensor, "b l d"], position: Float[Tensor, "1 l 2"]) -> Float[Tensor, "b l d"]:
        grid_position = position[0].long()
        x = x + self.drop_path(windowed_attention(self.attn, self.norm1(x), grid_position, self.window_size))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
