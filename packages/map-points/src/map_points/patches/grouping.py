"""Patches of a cloud: the nearest neighbours of farthest-point centres."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_core.tokens import gather_tokens
from map_core.tracing import fx_leaf
from map_points.patches.dispatch import find_neighbors, sample_centers
from map_points.patches.neighbors import gather_neighbors


@dataclass(frozen=True)
class Patches:
    """Patches in the order in which their centres were sampled.

    Attributes:
        points: Points of each patch relative to its centre, nearest first.
        center: Coordinates of the centres.
        index: Index of each point in its cloud.
    """

    points: Float[Tensor, "b l k 3"]
    center: Float[Tensor, "b l 3"]
    index: Int[Tensor, "b l k"]


def require_clouds(points: Tensor) -> None:
    """Check that points come as a batch of clouds.

    Raises:
        UserError: they have another number of axes.
    """
    if points.ndim != 3:
        raise UserError(
            f"points have shape {tuple(points.shape)}; they must be a batch of clouds (b, n, c): a single cloud is "
            "points[None]"
        )


@fx_leaf
def group_points(
    points: Float[Tensor, "b n 3"],
    *,
    num_patches: int,
    patch_size: int,
    skip_origin: bool = False,
    backend: str = "auto",
) -> Patches:
    """Cut clouds into overlapping patches of ``patch_size`` points; the first centre is point 0.

    With ``skip_origin`` no other centre lies within sqrt(1e-3) of the origin.

    Raises:
        UserError: points are no batch of clouds, or these are too small for the number of patches or their size.
    """
    require_clouds(points)
    n = points.shape[1]
    if n < max(num_patches, patch_size):
        raise UserError(
            f"a cloud of {n} points cannot give {num_patches} patches of {patch_size} points; raise "
            "data.num_points, or lower model.num_patches and model.patch_size"
        )
    centers = sample_centers(points, num_patches, skip_origin=skip_origin, backend=backend)
    center = gather_tokens(points, centers)
    index = find_neighbors(center, points, patch_size, backend=backend)
    members = gather_neighbors(points, index)
    return Patches(points=members - center.unsqueeze(2), center=center, index=index)
