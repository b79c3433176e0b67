"""Sampling, neighbours and patches against slow definitions, ties included."""

import sys
import types

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_points.patches import accelerators
from map_points.patches.grouping import group_points
from map_points.patches.neighbors import nearest_neighbors
from map_points.patches.sampling import farthest_point_sample


def slow_distance(a, b):
    x, y, z = (np.float32(u) - np.float32(v) for u, v in zip(a, b, strict=True))
    return np.float32(np.float32(x * x + y * y) + z * z)


def slow_fps(cloud, count, start=0):
    picked = [start]
    nearest = [np.float32(np.inf)] * len(cloud)
    while len(picked) < count:
        nearest = [
            min(old, slow_distance(point, cloud[picked[-1]]))
            for old, point in zip(nearest, cloud, strict=True)
        ]
        picked.append(max(range(len(cloud)), key=lambda i: (nearest[i], -i)))
    return picked


def slow_knn(queries, cloud, k):
    return [sorted(range(len(cloud)), key=lambda i: (slow_distance(q, cloud[i]), i))[:k] for q in queries]


def lattice(batch, n, side=4):
    """Clouds on a coarse grid: full of ties and of points that coincide."""
    return torch.randint(0, side, (batch, n, 3)).float() / side


CLOUDS = [torch.randn, lambda b, n, _: lattice(b, n)]


@pytest.mark.parametrize("make", CLOUDS, ids=["free", "ties"])
def test_farthest_point_sampling_equals_the_slow_reference(make):
    points, start = make(3, 50, 3), torch.tensor([0, 7, 49])
    found = farthest_point_sample(points, 20, start=start)
    for cloud, first, row in zip(points.numpy(), start.tolist(), found.tolist(), strict=True):
        assert row == slow_fps(cloud, 20, first)


@pytest.mark.parametrize("make", CLOUDS, ids=["free", "ties"])
def test_nearest_neighbors_equal_the_slow_reference(make):
    points = make(2, 60, 3)
    found = nearest_neighbors(points[:, :11], points, 9)
    for cloud, rows in zip(points.numpy(), found.tolist(), strict=True):
        assert rows == slow_knn(cloud[:11], cloud, 9)


def test_a_permuted_cloud_gives_the_same_set_of_patches():
    points, order = torch.randn(1, 200, 3), torch.cat([torch.zeros(1).long(), 1 + torch.randperm(199)])

    def members(cloud):
        grouped = group_points(cloud, num_patches=16, patch_size=8)
        return {frozenset(map(tuple, cloud[0][index].tolist())) for index in grouped.index[0]}

    assert members(points) == members(points[:, order])


def test_a_dyadic_shift_leaves_patches_unchanged():
    points = torch.randint(-512, 512, (2, 128, 3)).float() / 512
    before = group_points(points, num_patches=16, patch_size=8)
    after = group_points(points + torch.tensor([0.5, -0.25, 2.0]), num_patches=16, patch_size=8)
    assert torch.equal(before.index, after.index)
    assert torch.equal(before.points, after.points)


def test_patches_hold_points_relative_to_their_centre():
    points = torch.randint(-512, 512, (2, 100, 3)).float() / 512
    patches = group_points(points, num_patches=10, patch_size=6)
    for sample in range(2):
        rebuilt = patches.points[sample] + patches.center[sample].unsqueeze(1)
        assert torch.equal(rebuilt, points[sample][patches.index[sample]])


def test_clouds_that_are_too_small_are_refused():
    points = torch.randn(1, 20, 3)
    with pytest.raises(UserError, match="cloud of 20 points cannot give 32 patches of 8 points; raise data"):
        group_points(points, num_patches=32, patch_size=8)
    with pytest.raises(UserError, match="cannot pick 21 farthest points of a cloud of 20"):
        farthest_point_sample(points, 21)
    with pytest.raises(UserError, match="cannot find 21 nearest neighbours among 20 points"):
        nearest_neighbors(points, points, 21)


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
    for registry in (accelerators.SAMPLING, accelerators.NEIGHBORS):
        registry.forget()
    yield calls
    for registry in (accelerators.SAMPLING, accelerators.NEIGHBORS):
        registry.forget()


def test_the_cuda_packages_are_called_as_they_ask(stand_ins):
    points = torch.randn(3, 2, 64).permute(1, 2, 0)  # (b, n, 3), not contiguous
    centers = accelerators.pointnet2_sample(points, 8)
    assert torch.equal(centers, farthest_point_sample(points, 8))
    queries = torch.randn(3, 2, 5).permute(1, 2, 0)
    index = accelerators.knn_cuda_neighbors(queries, points, 4)
    assert torch.equal(index, nearest_neighbors(queries, points, 4))
    assert stand_ins == ["pointnet2_ops", "knn_cuda"]
    assert centers.dtype == index.dtype == torch.long


def test_too_few_points_are_refused_before_a_cuda_package_is_called(stand_ins):
    points = torch.randn(1, 20, 3)
    with pytest.raises(UserError, match="cannot pick 21 farthest points of a cloud of 20"):
        accelerators.pointnet2_sample(points, 21)
    with pytest.raises(UserError, match="cannot find 21 nearest neighbours among 20 points"):
        accelerators.knn_cuda_neighbors(points, points, 21)
    assert stand_ins == []


@pytest.mark.parametrize("registry", [accelerators.SAMPLING, accelerators.NEIGHBORS], ids=lambda r: r.op)
def test_installed_cuda_packages_serve_cuda_devices_alone(registry, stand_ins):
    assert [str(status) for status in registry.statuses()] == ["available", "available"]
    assert registry.choose("auto", "cuda", torch.float32, 8) == "cuda"
    assert registry.choose("auto", "cpu", torch.float32, 8) == "torch"
    with pytest.raises(UserError, match=r"backend='cuda' cannot serve this call: it runs on CUDA tensors"):
        registry.choose("cuda", "cpu", torch.float32, 8)


def test_clouds_on_the_cpu_never_load_the_cuda_packages(stand_ins, monkeypatch):
    monkeypatch.setattr(accelerators.importlib, "import_module", stand_ins.append)
    group_points(torch.randn(1, 64, 3), num_patches=8, patch_size=4)
    assert stand_ins == []


def test_a_backend_asked_for_by_name_is_never_replaced():
    points = torch.randn(1, 64, 3)
    with pytest.raises(UserError, match="backend='cuda' cannot serve this call: pointnet2_ops is not inst"):
        group_points(points, num_patches=8, patch_size=4, backend="cuda")
    with pytest.raises(UserError, match="farthest_point_sampling: unknown backend='fast'"):
        group_points(points, num_patches=8, patch_size=4, backend="fast")


def test_info_names_the_package_that_is_not_there():
    assert accelerators.describe_backends() == [
        "farthest points",
        "  cuda           pointnet2_ops is not installed",
        "  torch          available",
        "nearest neighbours",
        "  cuda           knn_cuda is not installed",
        "  torch          available",
    ]
