"""Images to tokens: patches in scan order, with their positions and pixels."""

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_core.orders import ScanOrder, scan_order
from map_core.tokens import Tokens, gather_tokens
from map_core.tracing import fx_leaf
from map_vision.patches import PatchEmbed, patchify


def tokenize_images(
    images: Float[Tensor, "b c h w"],
    patch_embed: PatchEmbed,
    *,
    order: ScanOrder = "row",
    block_size: tuple[int, int] = (4, 4),
    targets: bool = False,
) -> Tokens:
    """Embed the patches of images and lay them out in scan order.

    Args:
        images: Images of any size that the patches tile.
        patch_embed: Embeds the patches.
        order: Order of the sequence.
        block_size: Rows and columns of patches in a block, for order ``block``.
        targets: Attach the pixels of each patch as target.

    Raises:
        UserError: targets for overlapping patches: visible patches would show the pixels of hidden ones.
    """
    if targets:
        refuse_overlap(patch_embed)
    grid = patch_embed.grid(images)
    embedding, position = patch_embed(images), grid_position(grid, images.device)
    target = patchify(images, patch_embed.patch_size) if targets else None
    if order == "row":  # patches are made row by row
        return Tokens(embedding, position, target, grid)
    origin = scan_order(position, order, grid=grid, block_size=block_size)
    return Tokens(
        embedding=gather_tokens(embedding, origin),
        position=gather_tokens(position, origin),
        target=None if target is None else gather_tokens(target, origin),
        grid=grid,
        origin=origin,
    )


def refuse_overlap(patch_embed: PatchEmbed) -> None:
    """Check that no patch shows pixels of another.

    Raises:
        UserError: patches overlap.
    """
    if patch_embed.stride != patch_embed.patch_size:
        raise UserError(
            f"patches of {patch_embed.patch_size} pixels every {patch_embed.stride} overlap, so visible ones show what "
            "hidden ones hold: pretrain with patch_stride equal to patch_size (leave --model.patch_stride out)"
        )


@fx_leaf
def grid_position(grid: tuple[int, int], device: torch.device | None = None) -> Float[Tensor, "1 l 2"]:
    """Row and column of every patch, in raster order."""
    row, col = (torch.arange(side, device=device) for side in grid)
    positions = torch.stack([row.unsqueeze(1).expand(grid), col.expand(grid)], dim=-1)  # (rows, cols, 2)
    return positions.float().flatten(0, 1).unsqueeze(0)
