"""The optional CUDA packages: called as they ask, on CUDA devices only, and never instead of another name."""

import sys
import types

import pytest
import torch

from map_core.errors import UserError
from map_points.patches import dispatch, group_points
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
    for registry in (dispatch.SAMPLING, dispatch.NEIGHBORS):
        registry.forget()
    yield calls
    for registry in (dispatch.SAMPLING, dispatch.NEIGHBORS):
        registry.forget()


def test_the_cuda_packages_are_called_as_they_ask(stand_ins):
    points = torch.randn(3, 2, 64).permute(1, 2, 0)  # (b, n, 3), not contiguous
    centers = dispatch.pointnet2_sample(points, 8)
    assert torch.equal(centers, farthest_point_sample(points, 8))
    queries = torch.randn(3, 2, 5).permute(1, 2, 0)
    index = dispatch.knn_cuda_neighbors(queries, points, 4)
    assert torch.equal(index, nearest_neighbors(queries, points, 4))
    assert stand_ins == ["pointnet2_ops", "knn_cuda"]
    assert centers.dtype == index.dtype == torch.long


def test_too_few_points_are_refused_before_a_cuda_package_is_called(stand_ins):
    points = torch.randn(1, 20, 3)
    with pytest.raises(UserError, match="cannot pick 21 farthest points of a cloud of 20"):
        dispatch.pointnet2_sample(points, 21)
    with pytest.raises(UserError, match="cannot find 21 nearest neighbours among 20 points"):
        dispatch.knn_cuda_neighbors(points, points, 21)
    assert stand_ins == []


@pytest.mark.parametrize("registry", [dispatch.SAMPLING, dispatch.NEIGHBORS], ids=lambda r: r.op)
def test_installed_cuda_packages_serve_cuda_devices_alone(registry, stand_ins):
    assert [str(status) for status in registry.statuses()] == ["available", "available"]
    assert registry.choose("auto", "cuda", torch.float32, 8, "skip_origin") == "cuda"
    assert registry.choose("auto", "cpu", torch.float32, 8) == "torch"
    with pytest.raises(UserError, match=r"backend='cuda' cannot serve this call: it runs on CUDA tensors"):
        registry.choose("cuda", "cpu", torch.float32, 8)


def test_clouds_on_the_cpu_never_load_the_cuda_packages(stand_ins, monkeypatch):
    monkeypatch.setattr(dispatch.importlib, "import_module", stand_ins.append)
    group_points(torch.randn(1, 64, 3), num_patches=8, patch_size=4)
    assert stand_ins == []


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "backend='cuda' cannot serve this call: pointnet2_ops is not inst"),
        ("fast", "farthest_point_sampling: unknown backend='fast'"),
    ],
)
def test_a_backend_asked_for_by_name_is_never_replaced(backend, message):
    with pytest.raises(UserError, match=message):
        group_points(torch.randn(1, 64, 3), num_patches=8, patch_size=4, backend=backend)


def test_info_names_the_package_that_is_not_there():
    assert dispatch.describe_backends() == [
        "farthest points",
        "  cuda           pointnet2_ops is not installed",
        "  torch          available",
        "nearest neighbours",
        "  cuda           knn_cuda is not installed",
        "  torch          available",
    ]


def test_origins_are_passed_over_only_where_asked_for(stand_ins):
    class OnCuda(torch.Tensor):
        device = torch.device("cuda")  # as far as the choice of a backend can see

    points = torch.randn(1, 64, 3)
    dispatch.sample_centers(points.as_subclass(OnCuda), 8, skip_origin=True)
    assert stand_ins == ["pointnet2_ops"]
    dispatch.sample_centers(points.as_subclass(OnCuda), 8, skip_origin=False)
    assert stand_ins == ["pointnet2_ops"]
    with pytest.raises(UserError, match="passes over points near the origin, and skip_origin is false"):
        dispatch.sample_centers(points.as_subclass(OnCuda), 8, backend="cuda")
