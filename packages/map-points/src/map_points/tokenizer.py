"""Clouds to tokens: patches in scan order, with their centres, regions and points."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.masking import TokenMask
from map_core.tokens import Tokens, gather_tokens
from map_points.grouping import group_points
from map_points.orders import PointOrder, order_patches
from map_points.patch_embedding import PatchEmbedding


class PointTokenizer(nn.Module):
    """Cut clouds into patches, embed them and lay them out in scan order.

    Args:
        patch_embed: Shared with the model that is pretrained.
        num_patches, patch_size: How many patches of how many points.
        order: Order of the sequence.
        num_regions: Groups of consecutive patches that are predicted together.
        region_order: Order whose groups are predicted one after the other; that of the sequence when None,
            as the paper asks.
        targets: Attach the points of each patch, relative to its centre, as target.

    Raises:
        UserError: more regions than patches.
    """

    def __init__(
        self,
        patch_embed: PatchEmbedding,
        *,
        num_patches: int = 64,
        patch_size: int = 32,
        order: PointOrder = "fps",
        num_regions: int = 8,
        region_order: PointOrder | None = None,
        targets: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < num_regions <= num_patches:
            raise UserError(
                f"num_regions ({num_regions}) must lie between 1 and the number of patches ({num_patches})"
            )
        self.patch_embed = patch_embed
        self.num_patches, self.patch_size, self.num_regions = num_patches, patch_size, num_regions
        self.order: PointOrder = order
        self.region_order: PointOrder | None = region_order
        self.targets = targets

    def forward(self, points: Float[Tensor, "b n 3"]) -> Tokens:
        patches = group_points(points, num_patches=self.num_patches, patch_size=self.patch_size)
        order = order_patches(patches.center, self.order)
        region = consecutive_regions(order.shape[1], self.num_regions, points.device)
        if self.region_order is not None and self.region_order != self.order:
            rank = order_patches(patches.center, self.region_order).argsort(dim=1)
            region = (rank * self.num_regions // self.num_patches).gather(1, order)
        scanned = gather_tokens(patches.points, order)
        return Tokens(
            embedding=self.patch_embed(scanned),
            position=gather_tokens(patches.center, order),
            region=region,
            target=scanned if self.targets else None,
        )


def consecutive_regions(length: int, num_regions: int, device: torch.device) -> Int[Tensor, "1 l"]:
    """Cut a sequence into groups of consecutive tokens: ``region(i) = i * num_regions // length``."""
    return (torch.arange(length, device=device) * num_regions // length).unsqueeze(0)


def regions_after_mask(tokens: Tokens, mask: TokenMask) -> Int[Tensor, "b l"]:
    """The authors' variant: rank visible tokens first, then hidden ones, and cut that ranking into regions.

    A region rule for the objective; the number of regions is that of ``tokens``. At a ratio of one half the
    first half of the regions has nothing to predict and the rest nothing visible.
    """
    rank = torch.cat([mask.keep, mask.drop], dim=1).argsort(dim=1)
    return rank * (int(tokens.region.max()) + 1) // tokens.length
