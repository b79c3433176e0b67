"""The order in which the patches of a grid are scanned, and the region that each belongs to."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError, near_matches

ScanOrder = Literal["row", "column"]
RegionKind = Literal["row", "column", "block"]


def scan_order(grid: tuple[int, int], order: ScanOrder = "row") -> Int[Tensor, " l"]:
    """Raster index of the patch at each place of the sequence: row by row, or column by column.

    Raises:
        UserError: an unknown order.
    """
    rows, cols = grid
    raster = torch.arange(rows * cols)
    if order == "row":
        return raster
    if order == "column":
        return raster.reshape(rows, cols).T.flatten()
    raise UserError(f"scan order {order!r} is unknown; {near_matches(order, get_args(ScanOrder))}")


def raster_order(order: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
    """Place in the sequence of each raster index: the inverse of a scan order."""
    return torch.argsort(order)


def grid_position(grid: tuple[int, int]) -> Float[Tensor, "l 2"]:
    """Row and column of every patch, in raster order."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([rows.flatten(), cols.flatten()], dim=-1).float()


def grid_region(
    grid: tuple[int, int], kind: RegionKind = "row", block_size: tuple[int, int] = (4, 4)
) -> Int[Tensor, " l"]:
    """Region of every patch, in raster order: its row, its column, or its block of ``block_size``.

    Blocks are counted row by row; those at the right and lower edge may be smaller.

    Raises:
        UserError: an unknown kind.
    """
    row, col = grid_position(grid).long().unbind(-1)
    if kind == "row":
        return row
    if kind == "column":
        return col
    if kind == "block":
        blocks_in_row = -(-grid[1] // block_size[1])
        return row // block_size[0] * blocks_in_row + col // block_size[1]
    raise UserError(f"region {kind!r} is unknown; {near_matches(kind, get_args(RegionKind))}")
