"""Optional CUDA packages behind the project's own functions, imported at the first call that could use them.

``pointnet2_ops`` starts at point 0 and passes over points within sqrt(1e-3) of the origin, and ``knn_cuda``
breaks ties as it likes: both are faster, neither is exactly the definition in ``sampling`` and ``neighbors``.
"""

import functools
import importlib
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_points.patches.neighbors import nearest_neighbors
from map_points.patches.sampling import farthest_point_sample

KNOWN = ("auto", "torch", "cuda")


@functools.cache
def load(name: str) -> ModuleType | None:
    """Import a package, or return None whatever its import fails with."""
    try:
        return importlib.import_module(name)
    except Exception:  # a broken extension raises ImportError, OSError, RuntimeError and more
        return None


def _wants_cuda(backend: str, device: torch.device, name: str) -> ModuleType | None:
    if backend not in KNOWN:
        raise UserError(f"backend {backend!r} is unknown; known names: {', '.join(KNOWN)}")
    module = load(name) if backend == "cuda" or (backend == "auto" and device.type == "cuda") else None
    if backend == "cuda" and module is None:
        raise UserError(
            f"backend 'cuda' needs the package {name.split('.')[0]}, which cannot be imported; install it or "
            "use backend 'torch'"
        )
    return module


def sample_centers(
    points: Float[Tensor, "b n 3"], count: int, *, backend: str = "auto"
) -> Int[Tensor, "b {count}"]:
    """Farthest-point sampling from point 0, by ``pointnet2_ops`` where it can serve.

    Raises:
        UserError: an unknown backend, or 'cuda' without the package.
    """
    module = _wants_cuda(backend, points.device, "pointnet2_ops.pointnet2_utils")
    if module is None or count > points.shape[1]:
        return farthest_point_sample(points, count)
    return module.furthest_point_sample(points.float().contiguous(), count).long()


def find_neighbors(
    queries: Float[Tensor, "b m 3"], points: Float[Tensor, "b n 3"], k: int, *, backend: str = "auto"
) -> Int[Tensor, "b m {k}"]:
    """k nearest neighbours, by ``knn_cuda`` where it can serve.

    Raises:
        UserError: an unknown backend, or 'cuda' without the package.
    """
    module = _wants_cuda(backend, points.device, "knn_cuda")
    if module is None or k > points.shape[1]:
        return nearest_neighbors(queries, points, k)
    search = module.KNN(k=k, transpose_mode=True)
    _, index = search(points.float().contiguous(), queries.float().contiguous())
    return index.long()


def describe_backends() -> list[str]:
    """Lines of ``map-points info``: which packages serve sampling and neighbours."""
    lines = ["sampling and neighbours"]
    for package, module in (("pointnet2_ops", "pointnet2_ops.pointnet2_utils"), ("knn_cuda", "knn_cuda")):
        state = "used on CUDA devices" if load(module) is not None else "not installed: plain PyTorch"
        lines.append(f"  {package:14} {state}")
    return lines
