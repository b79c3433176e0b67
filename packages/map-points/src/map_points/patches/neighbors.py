"""k nearest neighbours with an exact tie rule, and what belongs to them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_core.ops.exporting import exporting
from map_core.tokens import gather_tokens
from map_core.tracing import fx_leaf
from map_points.patches.sampling import squared_distance

INDEX_BITS = 31
CACHED_DISTANCES = 2**17  # computed at once on a CPU, so that they stay in its cache


@fx_leaf
def nearest_neighbors(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"], k: int
) -> Int[Tensor, "b m {k}"]:
    """Indices of the ``k`` points nearest to each query, nearest first; ties go to the lower index.

    ``topk`` on distances breaks ties in no defined order. Non-negative float32 values order like their bits, so a key
    with those bits above the index has no ties and gives exactly this order.

    Raises:
        UserError: there are fewer than ``k`` points.
    """
    n = points.shape[1]
    require_points(n, k)
    queries, points = in_float32(queries, points)
    if exporting():
        # without bits and parts, for any batch size
        distance = squared_distance(queries.unsqueeze(2), points.unsqueeze(1))
        nearest = distance.sort(dim=-1, stable=True).indices
        return nearest[..., :k]
    clouds_per_part = (
        max(1, CACHED_DISTANCES // max(1, queries.shape[1] * n))
        if points.device.type == "cpu"
        else len(points)
    )
    parts = zip(queries.split(clouds_per_part), points.split(clouds_per_part), strict=True)
    return torch.cat([_nearest(part, cloud, k) for part, cloud in parts])


def in_float32(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"]
) -> tuple[Float[Tensor, "b m 3"], Float[Tensor, "b n 3"]]:
    """Coordinates for float32 distances; float64 ones from the cloud's lowest corner, which may be far away."""
    queries, points = queries.detach(), points.detach()
    if torch.float64 in (queries.dtype, points.dtype):
        corner = points.amin(dim=1, keepdim=True)
        queries, points = queries - corner, points - corner
    return queries.float(), points.float()


def require_points(n: int, k: int) -> None:
    """Check that ``k`` of ``n`` points can be the nearest.

    Raises:
        UserError: ``k`` is above ``n`` or below 1.
    """
    if not 0 < k <= n:
        raise UserError(
            f"cannot find {k} nearest neighbours among {n} points; lower k (patch_size, neighbors) or use "
            "more points (for the blocks: hide fewer patches)"
        )


@fx_leaf
def gather_neighbors(
    values: Float[Tensor, "b n *value"], index: Int[Tensor, "b l k"]
) -> Float[Tensor, "b l k *value"]:
    """The values of the neighbours that ``index``, as :func:`nearest_neighbors` returns it, names."""
    return gather_tokens(values, index.flatten(1)).unflatten(1, index.shape[1:])


def _nearest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    distance = squared_distance(queries.unsqueeze(2), points.unsqueeze(1))  # (b, m, n)
    bits = distance.view(torch.int32).long()
    key = (bits << INDEX_BITS) | torch.arange(points.shape[1], device=points.device)
    smallest = key.topk(k, dim=-1, largest=False, sorted=True).values
    return smallest & ((1 << INDEX_BITS) - 1)
