"""Position embeddings of patches on a grid."""

import logging
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from map_core.errors import UserError, near_matches

PositionKind = Literal["learned", "sincos"]
log = logging.getLogger(__name__)


def make_grid_position(kind: PositionKind, grid: tuple[int, int], embed_dim: int) -> nn.Module:
    """Return a learned or fixed sin-cos position embedding.

    Raises:
        UserError: an unknown kind, or a width that sin-cos positions cannot have.
    """
    if kind == "learned":
        return LearnedGridPosition(grid, embed_dim)
    if kind == "sincos":
        return SinCosGridPosition(embed_dim)
    raise UserError(f"position embedding {kind!r} is unknown; {near_matches(kind, get_args(PositionKind))}")


def resize_table(table: Float[Tensor, "rows cols d"], grid: tuple[int, int]) -> Tensor:
    """Resample a table of positions to another grid (bicubic, antialiased, in float32)."""
    if tuple(table.shape[:2]) == grid:
        return table
    resized = F.interpolate(table.float().permute(2, 0, 1)[None], size=grid, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).to(table.dtype)


def look_up(
    table: Float[Tensor, "rows cols d"], position: Float[Tensor, "#b l 2"]
) -> Float[Tensor, "#b l d"]:
    """Pick the entries at (row, column) positions."""
    row, col = position.long().unbind(-1)
    return F.embedding(row * table.shape[1] + col, table.flatten(0, 1))


class LearnedGridPosition(nn.Module):
    """A learned table over the grid; resampled for another grid, at run time and when weights are loaded.

    Args:
        grid: Rows and columns of patches.
        embed_dim: Width.
    """

    def __init__(self, grid: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, position: Float[Tensor, "#b l 2"], grid: tuple[int, int]) -> Float[Tensor, "#b l d"]:
        return look_up(resize_table(self.table, grid), position)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "table"
        source, own = state_dict.get(key), tuple(self.table.shape)
        if (
            source is not None
            and source.ndim == 3
            and source.shape[2] == own[2]
            and tuple(source.shape) != own
        ):
            log.warning("%s: positions resampled from %dx%d to %dx%d", key, *source.shape[:2], *own[:2])
            state_dict[key] = resize_table(source, (own[0], own[1]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SinCosGridPosition(nn.Module):
    """Fixed two-dimensional sin-cos positions of any grid.

    Args:
        embed_dim: Width; a multiple of 4.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        if embed_dim % 4:
            raise UserError(
                f"embed_dim ({embed_dim}) must be a multiple of 4 for sin-cos positions; use 'learned'"
            )
        self.embed_dim = embed_dim

    def forward(self, position: Float[Tensor, "#b l 2"], grid: tuple[int, int]) -> Float[Tensor, "#b l d"]:
        table = build_sincos2d_pos_embed(list(grid), self.embed_dim, device=position.device)
        return look_up(table.reshape(*grid, self.embed_dim), position)
