"""Farthest-point sampling against its slow definition, ties included."""

from functools import partial

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_points.patches.sampling import farthest_point_sample


def slow_fps(cloud, count, start, distance):
    indices = [start]
    nearest = [np.float32(np.inf)] * len(cloud)
    while len(indices) < count:
        nearest = [
            min(old, distance(point, cloud[indices[-1]])) for old, point in zip(nearest, cloud, strict=True)
        ]
        indices.append(max(range(len(cloud)), key=lambda i: (nearest[i], -i)))
    return indices


def test_farthest_point_sampling_equals_the_slow_reference(make_clouds, slow_distance):
    points, start = make_clouds(3, 50), torch.tensor([0, 7, 49])
    indices = farthest_point_sample(points, 20, start=start)
    for cloud, first, row in zip(points.numpy(), start.tolist(), indices.tolist(), strict=True):
        assert row == slow_fps(cloud, 20, first, slow_distance)


@pytest.mark.parametrize("count", [0, 21])
def test_a_count_that_the_cloud_cannot_give_is_refused(count):
    with pytest.raises(UserError, match=f"cannot pick {count} farthest points of a cloud of 20"):
        farthest_point_sample(torch.randn(1, 20, 3), count)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([0, 20], r"start must lie in 0 to 19, the indices of a cloud's points; got 0, 20"),
        ([-1, 0], r"start must lie in 0 to 19, .* got -1, 0"),
        ([0], r"start has shape \(1,\); it must have \(2,\), one index for each cloud"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_start_that_is_no_point_of_each_cloud_is_refused(start, message):
    with pytest.raises(UserError, match=message):
        farthest_point_sample(torch.randn(2, 20, 3), 4, start=torch.tensor(start))


@pytest.mark.usefixtures("unchecked")
def test_starts_are_traced(make_clouds):
    points, start = make_clouds(2, 20), torch.tensor([3, 7])
    sample = torch.compile(partial(farthest_point_sample, count=4), backend="eager", fullgraph=True)
    assert torch.equal(sample(points, start=start), farthest_point_sample(points, 4, start=start))


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_are_no_coordinates():
    with pytest.raises(UserError, match=r"points have dtype torch.int64; .* take points.float\(\)"):
        farthest_point_sample(torch.zeros(1, 20, 3, dtype=torch.long), 4)


def test_no_centre_is_near_the_origin_where_that_is_asked_for(slow_distance):
    points = torch.randn(1, 50, 3)
    points[:, [4, 9]] *= 0.03 / points[:, [4, 9]].norm(dim=-1, keepdim=True)  # inside sqrt(1e-3)
    points[:, 5] *= 0.033 / points[:, 5].norm(dim=-1, keepdim=True)  # outside
    allowed = [i for i in range(50) if i not in (4, 9)]
    indices = farthest_point_sample(points, 48, skip_origin=True)[0].tolist()
    assert indices == [allowed[i] for i in slow_fps(points[0, allowed].numpy(), 48, 0, slow_distance)]
    assert sorted(farthest_point_sample(points, 50)[0].tolist()) == list(range(50))


def test_a_cloud_at_the_origin_is_its_first_point_where_that_is_skipped():
    points = torch.randn(1, 20, 3) * 1e-3
    assert farthest_point_sample(points, 3, skip_origin=True).tolist() == [[0, 0, 0]]
