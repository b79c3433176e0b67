"""Scan orders: the sequence in which tokens are read, as a function of their coordinates.

One module serves patches on a grid (row, column) and sets of points (x, y, z): a space-filling curve needs
nothing but coordinates.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError, unknown_name
from map_core.float64 import at_least_float32
from map_core.randomness import copy_to_device, keyed_generator
from map_core.tracing import fx_leaf

ScanOrder = Literal["given", "row", "column", "snake", "block", "z_order", "hilbert", "random"]
BITS = 10  # a cloud's bounding cube has 2 ** BITS cells along each axis


@fx_leaf
def scan_order(
    position: Float[Tensor, "#b l p"],
    order: ScanOrder,
    *,
    grid: tuple[int, int] | None = None,
    block_size: tuple[int, int] = (4, 4),
) -> Int[Tensor, "#b l"]:
    """Indices that rearrange tokens from their input order into scan order.

    ``given`` keeps the input order. ``row`` reads row by row, ``column`` column by column, ``snake`` row by row
    with every second row backwards, ``block`` block by block, each row by row: these need a grid. ``z_order``
    and ``hilbert`` follow space-filling curves over the grid's cells or a cloud's bounding cube; tokens in
    the same cell keep their order. ``random`` is one fixed permutation for each number of tokens, so that it
    needs no generator at evaluation.

    >>> from map_core.testing import toy_tokens
    >>> scan_order(toy_tokens(grid=(2, 3)).position, "snake", grid=(2, 3))
    tensor([[0, 1, 2, 5, 4, 3]])

    Args:
        position: Raw coordinates.
        order: Name of the order.
        grid: Rows and columns where the tokens tile a grid; their coordinates are then whole numbers.
        block_size: Rows and columns of a block.

    Raises:
        UserError: the order is unknown, needs a grid that the tokens do not have, or has blocks of no size.
    """
    batch, length, _ = position.shape
    if order == "given":
        return torch.arange(length, device=position.device).expand(batch, -1)
    if order == "random":
        permutation = torch.randperm(length, generator=keyed_generator(0, "patch order", length))
        return copy_to_device(permutation, position.device).expand(batch, -1)
    curves: dict[str, Callable[[Tensor], Tensor]] = {"z_order": z_code, "hilbert": hilbert_code}
    if order in curves:
        if grid is not None and max(grid) > 2**BITS:
            raise UserError(
                f"scan order {order!r} is for grids of up to {2**BITS} rows and columns; got {grid}"
            )
        cell = quantize(position) if grid is None else position.long()
        return torch.argsort(curves[order](cell), dim=1, stable=True)
    if order not in get_args(ScanOrder):
        raise unknown_name("scan order", order, get_args(ScanOrder))
    if grid is None:
        raise UserError(f"scan order {order!r} needs tokens on a grid; these have none: use 'hilbert'")
    return torch.argsort(_grid_code(position.long(), order, grid, block_size), dim=1, stable=True)


def _grid_code(
    cell: Int[Tensor, "#b l 2"], order: str, grid: tuple[int, int], block_size: tuple[int, int]
) -> Int[Tensor, "#b l"]:
    """A number for each cell that increases along the order."""
    rows, cols = grid
    row, col = cell.unbind(-1)
    if order == "row":
        return row * cols + col
    if order == "column":
        return col * rows + row
    if order == "snake":
        return row * cols + torch.where(row % 2 == 1, cols - 1 - col, col)
    require_block_size("block_size", block_size)
    height, width = block_size
    return (block_index(cell, cols, block_size) * height + row % height) * width + col % width


def require_block_size(name: str, block_size: tuple[int, int]) -> None:
    """Check the rows and columns of a block; ``name`` is the setting's, for the message.

    Raises:
        UserError: one is below 1.
    """
    if min(block_size) < 1:
        rows, cols = block_size
        raise UserError(f"{name} must be at least 1x1; got {rows}x{cols}")


def block_index(cell: Int[Tensor, "#b l 2"], cols: int, block_size: tuple[int, int]) -> Int[Tensor, "#b l"]:
    """The number of each cell's block, counted row by row in a grid of ``cols`` columns."""
    row, col = cell.unbind(-1)
    height, width = block_size
    return row // height * -(-cols // width) + col // width


def quantize(position: Float[Tensor, "b l p"]) -> Int[Tensor, "b l p"]:
    """Cells of points in a grid over their bounding cube."""
    position = at_least_float32(position.detach())
    # the differences of float64 coordinates, not these, are rounded to float32: points may lie far from the origin
    offset = (position - position.amin(dim=1, keepdim=True)).float()
    extent = offset.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (offset / extent * (2**BITS - 1)).round().long()


def z_code(cell: Int[Tensor, "*s p"]) -> Int[Tensor, "*s"]:
    """Interleave the bits of a cell, the first axis highest (Morton 1966)."""
    return _interleave(list(cell.unbind(-1)), BITS)


def hilbert_code(cell: Int[Tensor, "*s p"], bits: int | None = None) -> Int[Tensor, "*s"]:
    """Distance of a cell along the Hilbert curve (Skilling 2004, "Programming the Hilbert curve").

    Args:
        cell: Whole numbers from 0.
        bits: The curve has 2 ** bits cells along each axis; BITS when None.
    """
    bits = BITS if bits is None else bits
    axes = list(cell.unbind(-1))
    # undo the excess work of the curve's rotations, from the highest bit down
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1
        for i in range(len(axes)):
            upper = (axes[i] >> bit) & 1 == 1
            swapped = torch.where(upper, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = axes[0] ^ torch.where(upper, low, swapped)
            axes[i] = axes[i] ^ swapped if i else axes[i]
    # Gray encode
    for i in range(1, len(axes)):
        axes[i] = axes[i] ^ axes[i - 1]
    flips = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        flips = flips ^ torch.where((axes[-1] >> bit) & 1 == 1, (1 << bit) - 1, 0)
    return _interleave([axis ^ flips for axis in axes], bits)


def _interleave(axes: list[Tensor], bits: int) -> Tensor:
    code = torch.zeros_like(axes[0])
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            code = (code << 1) | ((axis >> bit) & 1)
    return code
