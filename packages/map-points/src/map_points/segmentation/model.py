"""The part segmenter: features of several layers, interpolated to every point of a cloud."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.errors import UserError
from map_points.model import HybridNet3D
from map_points.patches.neighbors import gather_neighbors, nearest_neighbors
from map_points.patches.sampling import squared_distance

NEIGHBORS = 3


def interpolate_features(
    features: Float[Tensor, "b l d"],
    center: Float[Tensor, "b l 3"],
    points: Float[Tensor, "b n 3"],
    *,
    neighbors: int = NEIGHBORS,
    eps: float = 1e-8,
) -> Float[Tensor, "b n d"]:
    """Interpolate features of patches at points: means over the nearest centres, weighted by inverse squared distance.

    Source: PointNet++ (arXiv 1706.02413, equation 2, with p = 2 and k = 3).
    """
    # the definition: among so few centres a faster implementation gains little
    index = nearest_neighbors(points, center, neighbors)  # (b, n, k)
    near_centers = gather_neighbors(center, index)
    weight = 1 / (squared_distance(near_centers, points.unsqueeze(2).expand_as(near_centers)) + eps)
    weight = weight / weight.sum(dim=-1, keepdim=True)
    near_features = gather_neighbors(features, index)
    return (weight.to(near_features.dtype).unsqueeze(-1) * near_features).sum(dim=2)


def feature_layers(depth: int) -> tuple[int, ...]:
    """The layers a third, two thirds and all the way up, counted from 1: 4, 8 and 12 of 12."""
    return tuple(sorted({-(-depth * i // 3) for i in (1, 2, 3)}))


class PointMLP(nn.Sequential):
    """Linear layers shared by all points, each with batch normalisation and ReLU.

    They keep PyTorch's initial values: smaller ones would leave the batch norms with variances near their eps.

    Args:
        widths: Widths of the input and of each layer.
        dropout: Dropout rate after the first layer.
        slope: Slope of the activation below 0.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0, slope: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), activation]
            if i == 0 and dropout > 0:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)

    def forward(self, x: Float[Tensor, "*s d"]) -> Float[Tensor, "*s f"]:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class PartSegmenter(nn.Module):
    """Scores the parts of every point of a cloud whose category is known.

    Normalised features of several layers are joined; their maximum and mean over patches and an embedding of
    the category describe the cloud; interpolated to the points and joined to their coordinates they describe
    each point, whose further channels only the backbone reads. Source: the segmentation head of Point-BERT and
    Point-MAE (arXiv 2203.06604, section 4.2).

    Args:
        backbone: A model without head and class token.
        num_categories: Number of object categories.
        num_parts: Number of parts of all categories together.
        layers: Layers whose features are used, counted from 1; :func:`feature_layers` when None.
        hidden_dim: Width of a point's features; the layers before the scores have half and a quarter of it.
        propagate_dim: Width of the layer before those features; when None, the larger of hidden_dim and that
            of the joined layers.
        category_dim: Width of the category's embedding.
        category_slope: Slope of its activation below 0; Point-MAE's is .2.
        drop_rate: Dropout rate before the scores.

    Raises:
        UserError: a layer is not in the backbone or named twice, there is a class token, or there are fewer patches
            than are interpolated.
    """

    def __init__(
        self,
        backbone: HybridNet3D,
        num_categories: int,
        num_parts: int,
        *,
        layers: tuple[int, ...] | None = None,
        hidden_dim: int = 1024,
        propagate_dim: int | None = None,
        category_dim: int = 64,
        category_slope: float = 0.0,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        depth = len(backbone.encoder.blocks)
        layers = layers or feature_layers(depth)
        if not all(0 < layer <= depth for layer in layers):
            raise UserError(f"layers {layers} must lie in 1..{depth}, the layers of the backbone")
        if len(set(layers)) < len(layers):
            raise UserError(f"layers {layers} name a layer twice: name each once")
        if backbone.encoder.registers is not None:
            raise UserError("segmentation has no class token: create the model with class_token=False")
        if backbone.num_patches < NEIGHBORS:
            raise UserError(f"model.num_patches ({backbone.num_patches}) must be at least {NEIGHBORS}")
        for block in backbone.encoder.blocks[max(layers) :]:
            block.requires_grad_(False)  # unread layers get no gradient, and processes would wait for one
        self.backbone, self.layers = backbone, layers
        self.num_categories, self.num_parts = num_categories, num_parts
        width = len(layers) * backbone.embed_dim
        self.category_slope = category_slope
        self.category = PointMLP([num_categories, category_dim], slope=category_slope)
        self.propagate = PointMLP([width + 3, propagate_dim or max(width, hidden_dim), hidden_dim])
        joined = hidden_dim + 2 * width + category_dim
        self.head = nn.Sequential(
            PointMLP([joined, hidden_dim // 2, hidden_dim // 4], drop_rate),
            nn.Linear(hidden_dim // 4, num_parts),
        )

    def forward(self, points: Float[Tensor, "b n c"], category: Int[Tensor, " b"]) -> Float[Tensor, "b n p"]:
        tokens = self.backbone.tokenize(points)
        encoder = self.backbone.encoder
        # later layers are not run
        outputs = itertools.islice(encoder.layer_outputs(tokens), max(self.layers))
        stages = [
            encoder.normalize(output).patches.embedding
            for i, output in enumerate(outputs, start=1)
            if i in self.layers
        ]
        patches = torch.cat(stages, dim=-1)  # (b, l, layers * d)
        one_hot = F.one_hot(category, self.num_categories).to(patches.dtype)
        cloud = torch.cat([patches.amax(dim=1), patches.mean(dim=1), self.category(one_hot)], dim=-1)
        xyz = points[..., :3]
        interpolated = interpolate_features(patches, tokens.position, xyz)
        point_features = self.propagate(torch.cat([interpolated, xyz.to(interpolated.dtype)], dim=-1))
        return self.head(
            torch.cat([point_features, cloud.unsqueeze(1).expand(-1, point_features.shape[1], -1)], dim=-1)
        )

    @property
    def invisible_settings(self) -> dict[str, Any]:
        """Settings that change what the weights compute and that no shape shows."""
        return {
            **self.backbone.invisible_settings,
            "category_slope": self.category_slope,
            "layers": sorted(self.layers),
        }

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups in the order of layer decay: those of the backbone; all new layers learn at the full rate."""
        return {
            "stem": r"^backbone\.(?:patch_embed|order_scale|encoder\.position)",
            "blocks": [(r"^backbone\.encoder\.blocks\.(\d+)", None), (r"^backbone\.encoder\.norm", (99999,))],
        }
