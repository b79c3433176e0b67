"""Targets coarser than a patch: its neighbourhood, pooled to the patch size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_core.tokens import Tokens, gather_tokens


@dataclass(frozen=True)
class Neighborhoods:
    """Squares of patches around each patch, averaged to the size of one patch; edges repeat the outermost pixels.

    Attributes:
        patch_size: Height and width of a patch.
        scales: Patches on a side of each square, odd.

    Raises:
        UserError: an even number.
    """

    patch_size: tuple[int, int]
    scales: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(scale % 2 == 0 for scale in self.scales):
            raise UserError(
                f"objective.target_scales of images are odd, so that a patch has a middle; got {list(self.scales)}"
            )

    def __call__(self, inputs: Float[Tensor, "b c h w"], tokens: Tokens) -> Sequence[Tensor]:
        n = tokens.num_global  # they come first and have no neighbourhood
        return [
            self._in_scan_order(F.pad(self.pooled(inputs, scale), (0, 0, n, 0)), tokens)
            for scale in self.scales
        ]

    def pooled(self, images: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b l t"]:
        """The neighbourhood of each patch in raster order; values are ordered row, column, channel."""
        (height, width), reach = self.patch_size, scale // 2
        padded = F.pad(
            images, (reach * width, reach * width, reach * height, reach * height), mode="replicate"
        )
        squares = F.unfold(padded, (scale * height, scale * width), stride=self.patch_size)
        squares = squares.unflatten(1, (images.shape[1], height, scale, width, scale))
        return squares.mean((3, 5)).permute(0, 4, 2, 3, 1).flatten(2)  # (b, c, h, w, l) -> (b, l, h * w * c)

    def _in_scan_order(self, values: Tensor, tokens: Tokens) -> Tensor:
        return values if tokens.origin is None else gather_tokens(values, tokens.origin)
