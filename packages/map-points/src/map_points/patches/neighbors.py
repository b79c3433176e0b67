"""k nearest neighbours with an exact tie rule."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_core.ops.exporting import exporting
from map_core.tracing import kept_whole
from map_points.patches.sampling import squared_distance

INDEX_BITS = 31
CACHED = 2**17  # distances at once on a CPU, so that they stay in its cache


@kept_whole
def nearest_neighbors(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"], k: int
) -> Int[Tensor, "b m {k}"]:
    """Indices of the ``k`` points nearest to each query, nearest first; ties go to the lower index.

    ``topk`` on distances breaks ties as it likes. A non-negative float32 orders like its bits, so a key of
    those bits above the index has no ties and orders exactly as asked.

    Raises:
        UserError: there are fewer than ``k`` points.
    """
    n = points.shape[1]
    require_points(n, k)
    queries, points = queries.detach().float(), points.detach().float()
    if exporting():
        # no bits to read, no parts: any batch size
        distance = squared_distance(queries.unsqueeze(2), points.unsqueeze(1))
        nearest = distance.sort(dim=-1, stable=True).indices
        return nearest[..., :k]
    clouds = max(1, CACHED // (queries.shape[1] * n)) if points.device.type == "cpu" else len(points)
    parts = zip(queries.split(clouds), points.split(clouds), strict=True)
    return torch.cat([_nearest(part, cloud, k) for part, cloud in parts])


def require_points(n: int, k: int) -> None:
    """Check that ``n`` points have ``k`` nearest.

    Raises:
        UserError: there are fewer, or none is asked for.
    """
    if not 0 < k <= n:
        raise UserError(
            f"cannot find {k} nearest neighbours among {n} points; lower k (patch_size, neighbors) or use "
            "more points (for the blocks: hide fewer patches)"
        )


def _nearest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    distance = squared_distance(queries.unsqueeze(2), points.unsqueeze(1))  # (b, m, n)
    bits = distance.view(torch.int32).long()
    key = (bits << INDEX_BITS) | torch.arange(points.shape[1], device=points.device)
    smallest = key.topk(k, dim=-1, largest=False, sorted=True).values
    return smallest & ((1 << INDEX_BITS) - 1)
