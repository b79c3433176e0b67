"""Farthest-point sampling against its slow definition, ties included."""

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_points.patches.sampling import farthest_point_sample


def slow_fps(cloud, count, start, distance):
    picked = [start]
    nearest = [np.float32(np.inf)] * len(cloud)
    while len(picked) < count:
        nearest = [
            min(old, distance(point, cloud[picked[-1]])) for old, point in zip(nearest, cloud, strict=True)
        ]
        picked.append(max(range(len(cloud)), key=lambda i: (nearest[i], -i)))
    return picked


def test_farthest_point_sampling_equals_the_slow_reference(make_clouds, slow_distance):
    points, start = make_clouds(3, 50), torch.tensor([0, 7, 49])
    found = farthest_point_sample(points, 20, start=start)
    for cloud, first, row in zip(points.numpy(), start.tolist(), found.tolist(), strict=True):
        assert row == slow_fps(cloud, 20, first, slow_distance)


@pytest.mark.parametrize("count", [0, 21])
def test_a_count_that_the_cloud_cannot_give_is_refused(count):
    with pytest.raises(UserError, match=f"cannot pick {count} farthest points of a cloud of 20"):
        farthest_point_sample(torch.randn(1, 20, 3), count)
