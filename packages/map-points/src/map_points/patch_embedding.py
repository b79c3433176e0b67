"""Embeddings of what a patch holds (mini-PointNet) and of where it lies."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """A mini-PointNet: points of a patch to one vector, whatever their order.

    Two shared layers, the patch's maximum joined to every point, two more, and the maximum again. Its batch
    normalisation sees all patches of the batch, hidden ones too, as in Point-BERT and its successors.

    Source: Point-BERT (arXiv 2111.14819, section 3.1).

    Args:
        embed_dim: Width of the result.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(3, 128), nn.BatchNorm1d(128), nn.ReLU(inplace=True), nn.Linear(128, 256)
        )
        self.second = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, embed_dim)
        )

    def forward(self, points: Float[Tensor, "b l k 3"]) -> Float[Tensor, "b l d"]:
        shape = points.shape[:3]
        x = self.first(points.reshape(-1, 3)).unflatten(0, shape)
        x = torch.cat([x.amax(dim=2, keepdim=True).expand_as(x), x], dim=-1)  # (b, l, k, 2 * 256)
        return self.second(x.flatten(0, 2)).unflatten(0, shape).amax(dim=2)


class CoordinatePosition(nn.Module):
    """Position embedding: an MLP of the centre's coordinates.

    Args:
        embed_dim: Width of the result.
        hidden_dim: Width of the hidden layer.
    """

    def __init__(self, embed_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, embed_dim))

    def forward(
        self, position: Float[Tensor, "b l 3"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "b l d"]:
        return self.mlp(position)
