"""Tokens of clouds: what stands where, and which region it belongs to."""

import pytest
import torch
from map_points.grouping import group_points
from map_points.patch_embedding import CoordinatePosition, PatchEmbedding

from map_core import sample_mask
from map_core.errors import UserError
from map_points.tokenizer import PointTokenizer, consecutive_regions, regions_after_mask


def make(**changes):
    torch.manual_seed(0)
    return PointTokenizer(PatchEmbedding(8), **{"num_patches": 16, "patch_size": 4, **changes}).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_paper():
    assert count(PatchEmbedding(384)) == 494_464
    assert count(CoordinatePosition(384)) == 50_048


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


def test_patches_do_not_mix():
    embed = PatchEmbedding(8).eval()
    points = torch.randn(2, 3, 6, 3, requires_grad=True)
    embed(points)[0, 1].sum().backward()
    touched = points.grad.abs().sum(dim=(2, 3)) > 0
    assert touched.tolist() == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize("order", ["fps", "z_order", "hilbert", "random"])
def test_tokens_hold_the_same_patches_in_every_order(order):
    points = torch.randn(2, 64, 3)
    tokens = make(order=order)(points)
    patches = group_points(points, num_patches=16, patch_size=4)
    for sample in range(2):
        ours = {tuple(c): t.tolist() for c, t in zip(tokens.position[sample].tolist(), tokens.target[sample])}  # noqa: B905
        assert ours == {
            tuple(c): t.tolist()
            for c, t in zip(patches.center[sample].tolist(), patches.points[sample], strict=True)
        }
    torch.testing.assert_close(tokens.embedding, make().patch_embed(tokens.target))


def test_regions_are_consecutive_groups_of_the_sequence():
    assert consecutive_regions(64, 8, torch.device("cpu"))[0].tolist() == [i // 8 for i in range(64)]
    assert consecutive_regions(10, 4, torch.device("cpu"))[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    tokens = make(order="hilbert")(torch.randn(2, 64, 3))
    assert tokens.region.tolist() == [[i // 2 for i in range(16)]]


def test_regions_of_another_order_are_the_groups_of_that_order():
    points = torch.randn(2, 64, 3)
    mismatched = make(order="fps", region_order="hilbert", num_regions=4)(points)
    matched = make(order="hilbert", num_regions=4)(points)
    for sample in range(2):

        def region_of(tokens, sample=sample):
            region = tokens.region.expand(2, -1)[sample].tolist()
            return dict(zip(map(tuple, tokens.position[sample].tolist()), region, strict=True))

        assert region_of(mismatched) == region_of(matched)
    assert not torch.equal(mismatched.region, matched.region.expand(2, -1))
    assert make(region_order="fps")(points).region.shape == (1, 16)


def test_after_mask_ranks_visible_tokens_before_hidden_ones():
    tokens = make(num_regions=8)(torch.randn(3, 64, 3))
    mask = sample_mask(tokens, 0.5)
    region = regions_after_mask(tokens, mask)
    for row, hidden in zip(region, mask.hidden, strict=True):
        assert row[~hidden].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert row[hidden].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]


def test_more_regions_than_patches_are_refused():
    with pytest.raises(UserError, match=r"num_regions \(17\) must lie between 1 and the number of patches"):
        make(num_regions=17)
