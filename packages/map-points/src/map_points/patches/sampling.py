"""Farthest-point sampling: centres that cover a cloud evenly."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError, abbreviate
from map_core.ops.exporting import exporting, loop
from map_core.ops.tracing_state import is_transformed

NEAR_ORIGIN = 1e-3  # squared distance


def squared_distance(a: Float[Tensor, "*#s 3"], b: Float[Tensor, "*#s 3"]) -> Float[Tensor, "*s"]:
    """Sum of squared differences, added in the order x, y, z so that every path rounds alike."""
    x, y, z = (p.contiguous() - q.contiguous() for p, q in zip(a.unbind(-1), b.unbind(-1), strict=True))
    return x * x + y * y + z * z


def farthest_point_sample(
    points: Float[Tensor, "b n 3"],
    count: int,
    *,
    start: Int[Tensor, " b"] | None = None,
    skip_origin: bool = False,
) -> Int[Tensor, "b {count}"]:
    """Pick ``count`` points, each the farthest from those picked before; ties go to the lower index.

    Args:
        points: Clouds of one size.
        count: Points to pick.
        start: Index of the first point of each cloud; 0 when None.
        skip_origin: Except for the first, pick no point within sqrt(1e-3) of the origin, as ``pointnet2_ops``; with no
            others left, repeat the first.

    Raises:
        UserError: a cloud has fewer than ``count`` points, its coordinates are whole numbers, or ``start`` is not the
            index of a point for each cloud.

    Source: Eldar et al. 1997; the sampling of PointNet++ (arXiv 1706.02413, section 3.2).
    """
    batch, n, _ = points.shape
    if not 0 < count <= n:
        raise UserError(
            f"cannot pick {count} farthest points of a cloud of {n}; lower the number of points or patches, "
            "or use denser clouds"
        )
    if not points.is_floating_point():
        raise UserError(f"points have dtype {points.dtype}; they must be floating point: take points.float()")
    if start is not None:
        _check_start(start, batch, n)
    coordinates = points.permute(2, 0, 1).contiguous()  # (b, n, 3) -> (3, b, n)
    current = points.new_zeros(batch, dtype=torch.long) if start is None else start.to(points.device).long()
    nearest = points.new_full((batch, n), torch.inf)
    if skip_origin:
        # below every distance; where all points are near the origin, point 0 wins as the first of equals
        nearest = nearest.masked_fill(coordinates.square().sum(dim=0) <= NEAR_ORIGIN, -1.0)
    if exporting() and count > 1:
        steps = points.new_zeros(count - 1)
        *_, picks = loop(_pick, [current, nearest], [steps], [coordinates])  # (count - 1, b)
        return torch.cat([current.unsqueeze(1), picks.t()], dim=1)
    indices = [current]
    for _ in range(count - 1):
        current, nearest = _pick_farthest(current, nearest, coordinates)
        indices.append(current)
    return torch.stack(indices, dim=1)


def _check_start(start: Int[Tensor, " _"], batch: int, n: int) -> None:
    if start.shape != (batch,):
        raise UserError(
            f"start has shape {tuple(start.shape)}; it must have {(batch,)}, one index for each cloud"
        )
    # elsewhere the check would wait for the device, and a trace has no values
    has_values = start.device.type == "cpu" and not (exporting() or is_transformed())
    if has_values and batch and not 0 <= int(start.min()) <= int(start.max()) < n:
        given = abbreviate([str(index) for index in start.tolist()])
        raise UserError(f"start must lie in 0 to {n - 1}, the indices of a cloud's points; got {given}")


def _pick_farthest(
    current: Int[Tensor, " b"], nearest: Float[Tensor, "b n"], coordinates: Float[Tensor, "3 b n"]
) -> tuple[Tensor, Tensor]:
    """The point farthest from those picked so far, and the distance of every point to the nearest of these."""
    x, y, z = coordinates - coordinates.gather(2, current.expand(3, -1).unsqueeze(-1))
    nearest = torch.minimum(nearest, x * x + y * y + z * z)
    return nearest.argmax(dim=1), nearest


def _pick(
    current: Tensor, nearest: Tensor, step: Tensor, coordinates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the exported loop, whose results are the picks."""
    current, nearest = _pick_farthest(current, nearest, coordinates)
    return current, nearest, current.clone()
