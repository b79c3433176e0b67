"""The optional CUDA packages: called as they ask, on CUDA devices only, and never instead of another name."""

import sys
import types

import pytest
import torch

from map_core.errors import UserError
from map_points.patches import accelerators, group_points
from map_points.patches.neighbors import nearest_neighbors
from map_points.patches.sampling import farthest_point_sample


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules with the interfaces of pointnet2_ops and knn_cuda, which check what they are given."""
    calls = []

    def furthest_point_sample(xyz, npoint):
        assert xyz.is_contiguous()
        assert xyz.dtype == torch.float32
        calls.append("pointnet2_ops")
        return farthest_point_sample(xyz, npoint).int()

    class KNN:
        def __init__(self, k, transpose_mode=False):
            assert transpose_mode, "clouds are (b, n, 3)"
            self.k = k

        def __call__(self, ref, query):
            assert ref.is_contiguous()
            assert query.is_contiguous()
            calls.append("knn_cuda")
            index = nearest_neighbors(query, ref, self.k)
            return torch.zeros(index.shape), index

    utils = types.ModuleType("pointnet2_ops.pointnet2_utils")
    utils.furthest_point_sample = furthest_point_sample
    knn = types.ModuleType("knn_cuda")
    knn.KNN = KNN
    monkeypatch.setitem(sys.modules, "pointnet2_ops", types.ModuleType("pointnet2_ops"))
    monkeypatch.setitem(sys.modules, "pointnet2_ops.pointnet2_utils", utils)
    monkeypatch.setitem(sys.modules, "knn_cuda", knn)
    accelerators.load.cache_clear()
    yield calls
    accelerators.load.cache_clear()


def test_the_cuda_packages_are_called_as_they_ask(stand_ins):
    points = torch.randn(3, 2, 64).permute(1, 2, 0)  # (b, n, 3), not contiguous
    theirs = group_points(points, num_patches=8, patch_size=4, backend="cuda")
    ours = group_points(points, num_patches=8, patch_size=4, backend="torch")
    assert stand_ins == ["pointnet2_ops", "knn_cuda"]
    assert torch.equal(theirs.index, ours.index)
    assert theirs.index.dtype == torch.long


def test_clouds_on_the_cpu_never_load_the_cuda_packages(stand_ins):
    group_points(torch.randn(1, 64, 3), num_patches=8, patch_size=4)
    assert stand_ins == []


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "backend 'cuda' needs the package pointnet2_ops"),
        ("fast", "backend 'fast' is unknown; known names: auto, torch, cuda"),
    ],
)
def test_a_backend_asked_for_by_name_is_never_replaced(backend, message):
    accelerators.load.cache_clear()
    with pytest.raises(UserError, match=message):
        group_points(torch.randn(1, 64, 3), num_patches=8, patch_size=4, backend=backend)


@pytest.mark.parametrize("installed", [False, True])
def test_info_says_which_packages_serve(installed, request):
    accelerators.load.cache_clear()
    if installed:
        request.getfixturevalue("stand_ins")
    state = "used on CUDA devices" if installed else "not installed: plain PyTorch"
    assert accelerators.describe_backends() == [
        "sampling and neighbours",
        f"  pointnet2_ops  {state}",
        f"  knn_cuda       {state}",
    ]
