"""The Mamba3D block: local norm and pooling over neighbours, then a selective scan."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from map_core.blocks import MambaMixer, make_norm
from map_core.errors import UserError
from map_core.ops import Linear, selective_scan
from map_points.patches.neighbors import gather_neighbors, in_float32, nearest_neighbors, require_points
from map_points.patches.sampling import squared_distance

ScanKind = Literal["both", "forward", "channel_flip"]
SpreadKind = Literal["variance", "deviation"]


class LocalNormPool(nn.Module):
    """Describe each patch by its neighbours' features.

    Features of the ``neighbors`` nearest patches (the patch itself is one) minus its own, divided by their
    standard deviation over the whole cloud; joined to its own; scaled and shifted; pooled over neighbours
    with their own softmax as weights; normalised; projected.

    Source: Mamba3D (arXiv 2404.14966, section 3.3). The deviation is taken over one cloud, not over the
    batch, so that a cloud's result does not depend on the rest of its batch.

    Args:
        embed_dim: Width.
        neighbors: How many patches are pooled, the nearest by distance of centres.
        eps: Added to the variance, or to the deviation.
        spread: ``variance`` divides by the root of the biased variance plus eps; ``deviation``, as the original, by
            the unbiased deviation plus eps.
    """

    def __init__(
        self, embed_dim: int, *, neighbors: int = 4, eps: float = 1e-5, spread: SpreadKind = "variance"
    ) -> None:
        super().__init__()
        if spread not in ("variance", "deviation"):
            raise UserError(f"local_spread must be 'variance' or 'deviation'; got {spread!r}")
        self.neighbors, self.eps, self.spread = neighbors, eps, spread
        self.scale = nn.Parameter(torch.ones(2 * embed_dim))
        self.shift = nn.Parameter(torch.zeros(2 * embed_dim))
        self.norm = make_norm("layer", 2 * embed_dim)
        self.project = Linear(2 * embed_dim, embed_dim)  # the 1x1 convolution

    def forward(
        self,
        x: Float[Tensor, "b m d"],
        position: Float[Tensor, "b m 3"],
        attention_mask: Bool[Tensor, "#b m m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Describe all patches; with ``attention_mask``, each only by the patches that it may read."""
        index = self._nearest(position, attention_mask)  # (b, m, k)
        neighbor_features = gather_neighbors(x, index)  # (b, m, k, d)
        relative = (neighbor_features - x.unsqueeze(2)).float()
        if attention_mask is None:
            variance = relative.var(dim=(1, 2, 3), correction=0, keepdim=True)
            count: Tensor | int = relative.shape[1:].numel()
        else:
            variance = variance_of_readable(relative, attention_mask)
            count = attention_mask.sum(-1)[..., None, None] * relative.shape[2:].numel()
        relative_scale, patch_scale = self.scale.chunk(2)
        relative_shift, patch_shift = self.shift.chunk(2)
        relative = torch.addcmul(
            relative_shift, relative, relative_scale * self._inverse_spread(variance, count)
        )
        pooled = (relative * relative.softmax(dim=2)).sum(dim=2).to(x.dtype)
        patch = x * patch_scale + patch_shift  # the same for all neighbours, so pooling leaves it unchanged
        return F.silu(self.project(self.norm(torch.cat([pooled, patch], dim=-1))))

    def _inverse_spread(self, variance: Tensor, count: Tensor | int) -> Tensor:
        """One over the spread of ``count`` numbers with this biased variance."""
        if self.spread == "variance":
            return (variance + self.eps).rsqrt()
        unbiased = variance * (count / (count - 1))
        return 1 / (unbiased.clamp(min=1e-12).sqrt() + self.eps)  # the root's slope is infinite at 0

    def _nearest(
        self, position: Float[Tensor, "b m 3"], attention_mask: Bool[Tensor, "#b m m"] | None
    ) -> Int[Tensor, "b m k"]:
        """The nearest patches; a patch itself replaces neighbours that it may not read.

        Raises:
            UserError: there are fewer patches than neighbours.
        """
        if attention_mask is None:
            # the definition: among so few patches a faster implementation gains little
            return nearest_neighbors(position, position, self.neighbors)
        require_points(position.shape[1], self.neighbors)
        _, points = in_float32(position, position)
        distance = squared_distance(points.unsqueeze(2), points.unsqueeze(1))
        nearest = distance.masked_fill(~attention_mask, math.inf).topk(self.neighbors, largest=False)
        self_index = torch.arange(points.shape[1], device=points.device).unsqueeze(-1)
        return torch.where(nearest.values.isinf(), self_index, nearest.indices)


def variance_of_readable(
    relative: Float[Tensor, "b m k d"], attention_mask: Bool[Tensor, "#b m m"]
) -> Float[Tensor, "b m 1 1"]:
    """For each patch, the variance over all patches that it may read."""
    share = attention_mask.float() / attention_mask.sum(-1, keepdim=True)
    # in bf16 the difference of the moments is mostly rounding
    with torch.autocast(relative.device.type, enabled=False):
        mean, square = (
            share @ moment.unsqueeze(-1) for moment in (relative.mean((2, 3)), relative.square().mean((2, 3)))
        )
    return (square - mean.square()).clamp(min=0).unsqueeze(-1)


class ChannelFlipMixer(MambaMixer):
    """Both scans in sequence order, the second over (x, z) with all their channels reversed.

    The original's second direction does this; reversing the 2e channels also swaps x and z. Kept for
    comparison: it never reads from the last token to the first.

    Args:
        embed_dim: Width.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim)
        assert self.scan_backward is not None
        self.scan_backward.reverse = False

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        assert self.scan_backward is not None
        x, z = self.in_proj(x).chunk(2, dim=-1)
        flipped_x, flipped_z = z.flip(-1), x.flip(-1)
        conv, scan = self.conv_backend, self.scan_backend
        y = selective_scan(**vars(self.scan_forward(x, conv)), z=z, backend=scan)
        flipped_y = selective_scan(**vars(self.scan_backward(flipped_x, conv)), z=flipped_z, backend=scan)
        return self.out_proj(0.5 * (y + flipped_y.flip(-1)))


def make_mixer(kind: ScanKind, embed_dim: int) -> nn.Module:
    """Return a Mamba mixer that scans both ways, forward only, or as the original's channel flip."""
    if kind not in ("both", "forward", "channel_flip"):
        raise UserError(f"scan must be 'both', 'forward' or 'channel_flip'; got {kind!r}")
    if kind == "channel_flip":
        return ChannelFlipMixer(embed_dim)
    return MambaMixer(embed_dim, bidirectional=kind == "both")


class Mamba3DBlock(nn.Module):
    """``x + local(norm(x))``, then ``x + mixer(norm(x))``.

    Prefix tokens, which have no centre (a class token), take no part in the first step.

    Args:
        embed_dim: Width.
        neighbors: See :class:`LocalNormPool`.
        scan: See :func:`make_mixer`.
        drop_path: Stochastic depth rate of both branches.
        spread: See :class:`LocalNormPool`.
        local_class_token: The first step adds the norm of prefix tokens to them, as in the original.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        neighbors: int = 4,
        scan: ScanKind = "both",
        drop_path: float = 0.0,
        spread: SpreadKind = "variance",
        local_class_token: bool = False,
    ) -> None:
        super().__init__()
        self.local_class_token = local_class_token
        self.norm1 = make_norm("layer", embed_dim)
        self.local = LocalNormPool(embed_dim, neighbors=neighbors, spread=spread)
        self.norm2 = make_norm("layer", embed_dim)
        self.mixer = make_mixer(scan, embed_dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        position: Float[Tensor, "b m 3"],
        attention_mask: Bool[Tensor, "#b m m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Mix all tokens; ``attention_mask`` limits the first step only, as the scan has a direction anyway."""
        prefix = x.shape[1] - position.shape[1]
        if self.local_class_token and prefix:
            normal = self.norm1(x)
            step = self.local(normal[:, prefix:], position, attention_mask)
            x = x + self.drop_path(torch.cat([normal[:, :prefix], step], dim=1))
        else:
            patches = x[:, prefix:]
            patches = patches + self.drop_path(self.local(self.norm1(patches), position, attention_mask))
            x = torch.cat([x[:, :prefix], patches], dim=1)
        return x + self.drop_path(self.mixer(self.norm2(x)))
