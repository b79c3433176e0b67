"""The mini-PointNet of a patch: its definition, its size, and what must not matter."""

import pytest
import torch

from map_core import UserError
from map_points import create_point_model
from map_points.patches import PatchEmbedding


def test_parameters_are_those_of_the_paper():
    assert sum(p.numel() for p in PatchEmbedding(384).parameters()) == 494_464


def test_an_embedding_does_not_depend_on_the_order_of_points():
    embed = PatchEmbedding(8).eval()
    points = torch.randn(2, 3, 6, 3)
    torch.testing.assert_close(embed(points), embed(points[:, :, torch.randperm(6)]))


def test_the_joined_layer_equals_its_definition():
    embed = PatchEmbedding(8, 16).eval()
    points = torch.randn(2, 3, 6, 3)
    x = embed.lift(points.reshape(-1, 3)).reshape(2, 3, 6, 16)
    joined = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], dim=-1)
    expected = embed.project(embed.join(joined).flatten(0, 2)).reshape(2, 3, 6, 8).amax(2)
    torch.testing.assert_close(embed(points), expected)


@pytest.mark.parametrize("hidden_dim", [1, 0])
def test_a_width_whose_half_is_nothing_is_refused(hidden_dim):
    with pytest.raises(UserError, match=f"patch_hidden_dim must be at least 2, .*; got {hidden_dim}"):
        PatchEmbedding(8, hidden_dim)


def test_points_without_three_coordinates_are_refused():
    with pytest.raises(UserError, match="in_chans must be at least 3, for x, y and z; got 2"):
        create_point_model("hybridnet3d_nano", in_chans=2)


def test_patches_do_not_mix():
    embed = PatchEmbedding(8).eval()
    points = torch.randn(2, 3, 6, 3, requires_grad=True)
    embed(points)[0, 1].sum().backward()
    has_gradient = points.grad.abs().sum(dim=(2, 3)) > 0
    assert has_gradient.tolist() == [[False, True, False], [False, False, False]]
