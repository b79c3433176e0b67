"""Farthest-point sampling and nearest neighbours by the fastest implementation that fits.

The definitions are in ``sampling`` and ``neighbors``. ``pointnet2_ops`` starts at point 0 and always skips points
within sqrt(1e-3) of the origin, and ``knn_cuda`` breaks ties in no defined order: both are faster, and neither matches
its definition exactly. Each is imported at the first call that could use it.
"""

import importlib
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from map_core.ops.registry import Implementation, Registry, Request, optional_import
from map_points.patches.neighbors import in_float32, nearest_neighbors
from map_points.patches.sampling import farthest_point_sample


def _needs_cuda(request: Request) -> str | None:
    return (
        None if request.device == "cuda" else f"it runs on CUDA tensors only, these are on {request.device}"
    )


def _needs_skip_origin(request: Request) -> str | None:
    return _needs_cuda(request) or (
        None
        if "skip_origin" in request.facts
        else "it passes over points near the origin, and skip_origin is false"
    )


def _pointnet2() -> Any:
    return importlib.import_module("pointnet2_ops.pointnet2_utils").furthest_point_sample


def _knn() -> Any:
    return importlib.import_module("knn_cuda").KNN


def pointnet2_sample(
    points: Float[Tensor, "b n 3"], count: int, *, skip_origin: bool = True
) -> Int[Tensor, "b {count}"]:
    """Sample with ``pointnet2_ops``, which skips points near the origin."""
    if not 0 < count <= points.shape[1]:
        return farthest_point_sample(points, count)  # which raises the error
    return _pointnet2()(points.float().contiguous(), count).long()


def knn_cuda_neighbors(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"], k: int
) -> Int[Tensor, "b m {k}"]:
    """Find neighbours with ``knn_cuda``."""
    if not 0 < k <= points.shape[1]:
        return nearest_neighbors(queries, points, k)  # which raises the error
    queries, points = in_float32(queries, points)
    _, index = _knn()(k=k, transpose_mode=True)(points.contiguous(), queries.contiguous())
    return index.long()


# One name, "cuda", serves both, because one ``backend`` chooses how patches are made; models leave it at "auto".
SAMPLING = Registry(
    "farthest_point_sampling",
    (
        Implementation(
            "cuda",
            pointnet2_sample,
            missing=lambda: optional_import("pointnet2_ops", _pointnet2),
            unfit=_needs_skip_origin,
        ),
        Implementation("torch", farthest_point_sample),
    ),
)
NEIGHBORS = Registry(
    "nearest_neighbors",
    (
        Implementation(
            "cuda", knn_cuda_neighbors, missing=lambda: optional_import("knn_cuda", _knn), unfit=_needs_cuda
        ),
        Implementation("torch", nearest_neighbors),
    ),
)


def sample_centers(
    points: Float[Tensor, "b n 3"], count: int, *, skip_origin: bool = False, backend: str = "auto"
) -> Int[Tensor, "b {count}"]:
    """Farthest-point sampling from point 0, by ``pointnet2_ops`` where it can serve.

    Raises:
        UserError: ``backend`` is unknown or cannot serve this call, or a cloud has too few points.
    """
    facts = ("skip_origin",) if skip_origin else ()
    name = SAMPLING.choose(backend, points.device.type, points.dtype, count, *facts)
    return SAMPLING[name].run(points, count, skip_origin=skip_origin)


def find_neighbors(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"], k: int, *, backend: str = "auto"
) -> Int[Tensor, "b m {k}"]:
    """k nearest neighbours, by ``knn_cuda`` where it can serve.

    Raises:
        UserError: ``backend`` is unknown or cannot serve this call, or there are fewer than ``k`` points.
    """
    name = NEIGHBORS.choose(backend, points.device.type, points.dtype, k)
    return NEIGHBORS[name].run(queries, points, k)


def describe_backends() -> list[str]:
    """Lines of ``map-points info``: the implementations of sampling and of the neighbour search."""
    return [*SAMPLING.describe("farthest points"), *NEIGHBORS.describe("nearest neighbours")]
