"""Images to tokens: patches in scan order, with their positions, regions and pixels."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from map_core.tokens import Tokens
from map_vision.patches import PatchEmbed, patchify
from map_vision.scan_orders import RegionKind, ScanOrder, grid_position, grid_region, scan_order


class ImageTokenizer(nn.Module):
    """Embed the patches of images and lay them out in scan order.

    Args:
        patch_embed: Shared with the model that is pretrained.
        order: Order of the sequence.
        region: What the objective predicts at once.
        block_size: Rows and columns of patches of a block region.
        targets: Attach the pixels of each patch as target.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        *,
        order: ScanOrder = "row",
        region: RegionKind = "row",
        block_size: tuple[int, int] = (4, 4),
        targets: bool = True,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.order: ScanOrder = order
        self.region: RegionKind = region
        self.block_size, self.targets = block_size, targets

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tokens:
        grid = self.patch_embed.grid(images)
        order = scan_order(grid, self.order)
        place = grid_position(grid)[order].unsqueeze(0).to(images.device)
        region = grid_region(grid, self.region, self.block_size)[order].unsqueeze(0).to(images.device)

        def scanned(patches: Tensor) -> Tensor:
            return patches if self.order == "row" else patches.index_select(1, order.to(patches.device))

        target: Any = scanned(patchify(images, self.patch_embed.patch_size)) if self.targets else None
        return Tokens(
            embedding=scanned(self.patch_embed(images)),
            position=place,
            region=region,
            target=target,
            grid=grid,
        )
