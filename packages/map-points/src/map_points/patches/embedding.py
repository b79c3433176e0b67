"""Embedding of the points of a patch."""

from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.initialization import keep_init
from map_core.ops import Linear, linear


class PatchEmbedding(nn.Module):
    """A mini-PointNet: maps the points of a patch to one vector, whatever their order.

    Two shared layers, the patch's maximum joined to every point, two more, and the maximum again. Its batch
    normalisation sees all patches of the batch, hidden ones too, as in Point-BERT and its successors.

    Source: Point-BERT (arXiv 2111.14819, section 3.1).

    Args:
        embed_dim: Width of the result.
        hidden_dim: Width between the two halves; their inner layers have half and twice that width.
        in_chans: Values of a point: its coordinates in the patch, then its further channels.

    Raises:
        UserError: ``hidden_dim`` is below 2, or ``in_chans`` below 3.
    """

    def __init__(self, embed_dim: int, hidden_dim: int = 256, in_chans: int = 3) -> None:
        super().__init__()
        if hidden_dim < 2:
            raise UserError(
                f"patch_hidden_dim must be at least 2, as a layer inside has half of it; got {hidden_dim}"
            )
        if in_chans < 3:
            raise UserError(f"in_chans must be at least 3, for x, y and z; got {in_chans}")
        narrow, wide = hidden_dim // 2, 2 * hidden_dim
        self.hidden_dim, self.in_chans = hidden_dim, in_chans
        self.lift = nn.Sequential(
            Linear(in_chans, narrow),
            nn.BatchNorm1d(narrow),
            nn.ReLU(inplace=True),
            Linear(narrow, hidden_dim),
        )
        self.join = Linear(wide, wide)  # reads the patch's maximum, then the point
        self.project = nn.Sequential(nn.BatchNorm1d(wide), nn.ReLU(inplace=True), Linear(wide, embed_dim))

        for layer in self.modules():
            keep_init(layer)  # a smaller spread would leave the batch norms with variances near their eps

    def forward(self, points: Float[Tensor, "b l k c"]) -> Float[Tensor, "b l d"]:
        shape = points.shape[:3]
        x = self.lift(points.reshape(-1, self.in_chans)).unflatten(0, shape)
        patch_weight, point_weight = self.join.weight.split(self.hidden_dim, dim=1)
        # the maximum is the same for all points of a patch, so multiply it once
        patch_part = linear(x.amax(dim=2, keepdim=True), patch_weight, self.join.bias)  # (b, l, 1, 2h)
        x = linear(x, point_weight) + patch_part
        return self.project(x.flatten(0, 2)).unflatten(0, shape).amax(dim=2)
