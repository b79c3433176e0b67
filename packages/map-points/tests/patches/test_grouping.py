"""Patches of clouds: what belongs to one, and what must not matter."""

import pytest
import torch

from map_core.errors import UserError
from map_points.patches import group_points


def test_a_permuted_cloud_gives_the_same_set_of_patches():
    points, order = torch.randn(1, 200, 3), torch.cat([torch.zeros(1).long(), 1 + torch.randperm(199)])

    def members(cloud):
        patches = group_points(cloud, num_patches=16, patch_size=8)
        return {frozenset(map(tuple, cloud[0][index].tolist())) for index in patches.index[0]}

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


@pytest.mark.parametrize(("num_patches", "patch_size"), [(32, 8), (8, 32)])
def test_clouds_that_are_too_small_are_refused(num_patches, patch_size):
    message = f"cloud of 20 points cannot give {num_patches} patches of {patch_size} points; raise data"
    with pytest.raises(UserError, match=message):
        group_points(torch.randn(1, 20, 3), num_patches=num_patches, patch_size=patch_size)
