"""Regions: tokens that are predicted together. Rules assign tokens to them; attention masks say who sees whom."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from map_core.errors import UserError, unknown_name
from map_core.masking import TokenMask
from map_core.orders import ScanOrder, block_index, require_block_size, scan_order
from map_core.tokens import GLOBAL_REGION, Regions, Tokens, gather_tokens, reorder_tokens

AttentionMaskKind = Literal["map", "mae", "local_mae", "ar"]
ATTENTION_MASK_KINDS: tuple[str, ...] = get_args(AttentionMaskKind)
GridRegionKind = Literal["row", "column", "block"]


@runtime_checkable
class RegionRule(Protocol):
    """Maps tokens, and the mask where the rule depends on it, to the region of each token."""

    def __call__(self, tokens: Tokens, mask: TokenMask | None = None) -> Regions: ...


@dataclass(frozen=True)
class GridRegions:
    """Regions are the rows, columns or blocks of the grid, predicted in the order of their numbers.

    Blocks are numbered row by row; those at the right and lower edge may be smaller.

    >>> from map_core.testing import toy_tokens
    >>> GridRegions("block", block_size=(2, 2))(toy_tokens(grid=(3, 4))).index.reshape(3, 4)
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3]])

    Attributes:
        kind: ``row``, ``column`` or ``block``.
        block_size: Rows and columns of a block.
    """

    kind: GridRegionKind = "row"
    block_size: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        """Check what needs no tokens.

        Raises:
            UserError: an unknown kind, or a block of no size.
        """
        if self.kind not in get_args(GridRegionKind):
            raise unknown_name("region", self.kind, get_args(GridRegionKind))
        require_block_size("block_size", self.block_size)

    def __call__(self, tokens: Tokens, mask: TokenMask | None = None) -> Regions:
        if tokens.grid is None:
            raise UserError(f"regions by {self.kind} need tokens on a grid; these have none")
        rows, cols = tokens.grid
        cell = tokens.position[:, tokens.num_global :].long()
        row, col = cell.unbind(-1)
        if self.kind == "row":
            return _with_globals(tokens, row, rows, smallest=cols)
        if self.kind == "column":
            return _with_globals(tokens, col, cols, smallest=rows)
        height, width = self.block_size
        blocks_down, blocks_across = -(-rows // height), -(-cols // width)
        index = block_index(cell, cols, self.block_size)
        smallest = (rows - (blocks_down - 1) * height) * (cols - (blocks_across - 1) * width)
        return _with_globals(tokens, index, blocks_down * blocks_across, smallest=smallest)


@dataclass(frozen=True)
class ConsecutiveRegions:
    """Cut the sequence into ``num_regions`` groups of consecutive tokens: ``region(i) = i * n // l``.

    >>> from map_core.testing import toy_tokens
    >>> ConsecutiveRegions(3)(toy_tokens(8)).index
    tensor([[0, 0, 0, 1, 1, 1, 2, 2]])

    Attributes:
        num_regions: Number of regions, n.
        order: Cut along this order instead of the scan order (to show what the mismatch costs).
    """

    num_regions: int
    order: ScanOrder | None = None

    def __call__(self, tokens: Tokens, mask: TokenMask | None = None) -> Regions:
        length = tokens.num_maskable
        _check_number(self.num_regions, length)
        rank = torch.arange(length, device=tokens.embedding.device).unsqueeze(0)
        if self.order is not None:
            rank = self._rank_in_order(tokens, rank)
        index = rank * self.num_regions // length
        return _with_globals(tokens, index, self.num_regions, smallest=length // self.num_regions)

    def _rank_in_order(self, tokens: Tokens, rank: Tensor) -> Tensor:
        """Rank of each token along ``order``, which is applied to the tokens as they were before the scan."""
        assert self.order is not None
        n = tokens.num_global
        origin = rank if tokens.origin is None else tokens.origin[:, n:] - n
        position = gather_tokens(tokens.position[:, n:], origin.argsort(dim=1))
        rank = scan_order(position, self.order, grid=tokens.grid).argsort(dim=1)
        return gather_tokens(rank, origin)


@dataclass(frozen=True)
class RegionsAfterMask:
    """The authors' variant for points: rank visible tokens first, then hidden ones, and cut that ranking.

    At a ratio of one half the first half of the regions has nothing to predict and the rest nothing visible.

    Attributes:
        num_regions: Number of regions.
    """

    num_regions: int

    def __call__(self, tokens: Tokens, mask: TokenMask | None = None) -> Regions:
        if mask is None:
            raise UserError(
                "regions 'after_mask' exist only once tokens are hidden: use mask scope 'all', not 'region'"
            )
        length, n = tokens.num_maskable, tokens.num_global
        _check_number(self.num_regions, length)
        # the global tokens are the first of the visible ones
        rank = torch.cat([mask.keep[:, n:], mask.drop], dim=1).sub(n).argsort(dim=1)
        index = rank * self.num_regions // length
        return _with_globals(tokens, index, self.num_regions, smallest=length // self.num_regions)


def _check_number(num_regions: int, length: int) -> None:
    if not 0 < num_regions <= length:
        raise UserError(f"num_regions ({num_regions}) must lie between 1 and the number of tokens ({length})")


def _with_globals(tokens: Tokens, index: Int[Tensor, "#b m"], count: int, *, smallest: int) -> Regions:
    """Put the region of the global tokens in front of those of the other tokens."""
    if tokens.num_global:
        front = index.new_full((index.shape[0], tokens.num_global), GLOBAL_REGION)
        index = torch.cat([front, index], dim=1)
    return Regions(index, count, smallest)


def order_by_region(tokens: Tokens, regions: Regions) -> tuple[Tokens, Regions]:
    """Put tokens, and the region of each, into the order of prediction, so that a scan reads no later region.

    Global tokens stay in front, and each region keeps its scan order; the tokens' ``origin`` leads back to the order
    before the scan.
    """
    index = torch.argsort(regions.index, dim=1, stable=True)
    return reorder_tokens(tokens, index), replace(regions, index=gather_tokens(regions.index, index))


def region_attention_mask(region: Int[Tensor, "*b l"], kind: AttentionMaskKind) -> Bool[Tensor, "*b l l"]:
    """Build the decoder's attention mask; entry (i, j) is True where query i may attend to key j.

    ``map``: j's region is i's or an earlier one. ``local_mae``: the same region. ``mae``: always. ``ar``: j
    is in an earlier region, or in the same one and not after i in the sequence. Global tokens (region -1)
    are seen by every query. Source: paper, section 4 and Figure 6.

    Raises:
        UserError: ``kind`` is none of these four.
    """
    query, key = region.unsqueeze(-1), region.unsqueeze(-2)
    if kind == "mae":
        allowed = torch.ones_like(query == key)
    elif kind == "local_mae":
        allowed = query == key
    elif kind == "map":
        allowed = key <= query
    elif kind == "ar":
        index = torch.arange(region.shape[-1], device=region.device)
        not_after = index.unsqueeze(-2) <= index.unsqueeze(-1)
        allowed = (key < query) | ((key == query) & not_after)
    else:
        raise unknown_name("attention mask kind", kind, ATTENTION_MASK_KINDS)
    return allowed | (key == GLOBAL_REGION)
