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


def test_a_far_cloud_in_double_precision_has_the_patches_of_a_near_one():
    """As a survey's coordinates are: float32 would keep half metres of the northing."""
    near = torch.randint(0, 2**20, (2, 200, 3)).double() / 2**20  # whose sums with the shift are exact
    far = near + torch.tensor([450_000.0, 5_400_000.0, 300.0], dtype=torch.float64)
    expected, patches = (group_points(points, num_patches=16, patch_size=8) for points in (near, far))
    assert torch.equal(patches.index, expected.index)
    assert torch.equal(patches.points, expected.points)
    single = group_points(near.float(), num_patches=16, patch_size=8)
    assert torch.equal(patches.index, single.index)


def test_patches_hold_points_relative_to_their_centre():
    points = torch.randint(-512, 512, (2, 100, 3)).float() / 512
    patches = group_points(points, num_patches=10, patch_size=6)
    for sample in range(2):
        rebuilt = patches.points[sample] + patches.center[sample].unsqueeze(1)
        assert torch.equal(rebuilt, points[sample][patches.index[sample]])


@pytest.mark.usefixtures("unchecked")
def test_points_without_a_batch_are_refused():
    with pytest.raises(UserError, match=r"points have shape \(20, 3\); they must be a batch of clouds"):
        group_points(torch.randn(20, 3), num_patches=4, patch_size=4)


@pytest.mark.parametrize(("num_patches", "patch_size"), [(32, 8), (8, 32)])
def test_clouds_that_are_too_small_are_refused(num_patches, patch_size):
    message = f"cloud of 20 points cannot give {num_patches} patches of {patch_size} points; raise data"
    with pytest.raises(UserError, match=message):
        group_points(torch.randn(1, 20, 3), num_patches=num_patches, patch_size=patch_size)
