"""Tokens of clouds: what stands where in the sequence, and which region it belongs to."""

import pytest
import torch

from map_core import ConsecutiveRegions, RegionsAfterMask, sample_mask
from map_core.errors import UserError
from map_core.orders import scan_order
from map_core.tokens import gather_tokens, undo_scan
from map_points.patches import PatchEmbedding, group_points
from map_points.pretraining import PointObjectiveConfig
from map_points.tokenizer import SCAN_ORDERS, order_of_centers, tokenize_clouds

ORDERS = ["fps", "z_order", "hilbert", "random"]


def tokenize(points, **changes):
    torch.manual_seed(0)
    settings = {"num_patches": 16, "patch_size": 4, "targets": True}
    return tokenize_clouds(points, PatchEmbedding(8).eval(), **(settings | changes))


def rows(tensor):
    """Centres of one cloud, as keys."""
    return [tuple(row) for row in tensor.tolist()]


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_hold_the_same_patches_in_every_order(order):
    points = torch.randn(2, 64, 3)
    tokens = tokenize(points, order=order)
    patches = group_points(points, num_patches=16, patch_size=4)
    for sample in range(2):
        ours = dict(zip(rows(tokens.position[sample]), tokens.target[sample].tolist(), strict=True))
        assert ours == dict(zip(rows(patches.center[sample]), patches.points[sample].tolist(), strict=True))
    torch.manual_seed(0)
    torch.testing.assert_close(tokens.embedding, PatchEmbedding(8).eval()(tokens.target))


@pytest.mark.parametrize("order", ORDERS)
def test_the_scan_can_be_undone(order):
    points = torch.randn(2, 64, 3)
    tokens = tokenize(points, order=order)
    patches = group_points(points, num_patches=16, patch_size=4)
    assert torch.equal(undo_scan(tokens.position, tokens), patches.center)
    assert torch.equal(undo_scan(tokens.target, tokens), patches.points)


def test_targets_are_attached_when_asked_for():
    points = torch.randn(2, 64, 3)
    with_targets, without = tokenize(points), tokenize(points, targets=False)
    assert without.target is None
    assert torch.equal(without.embedding, with_targets.embedding)


def test_regions_are_consecutive_groups_of_the_sequence():
    tokens = tokenize(torch.randn(2, 64, 3), order="hilbert")
    regions = ConsecutiveRegions(8)(tokens)
    assert regions.index.tolist() == [[i // 2 for i in range(16)]]
    assert (regions.count, regions.smallest) == (8, 2)


def test_a_number_that_does_not_divide_gives_regions_of_two_sizes():
    tokens = tokenize(torch.randn(1, 64, 3), num_patches=10)
    regions = ConsecutiveRegions(4)(tokens)
    assert regions.index.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 3, 3]]
    assert (regions.count, regions.smallest) == (4, 2)


@pytest.mark.parametrize("region_order", ORDERS)
@pytest.mark.parametrize("order", ORDERS)
def test_regions_along_another_order_are_ranks_in_it_gathered_by_the_scan(order, region_order):
    points = torch.randn(3, 64, 3)
    tokens = tokenize(points, order=order)
    regions = PointObjectiveConfig(num_regions=5, region_order=region_order).region_rule(order)(tokens)
    centers = group_points(points, num_patches=16, patch_size=4).center
    rank = scan_order(centers, SCAN_ORDERS[region_order]).argsort(dim=1)
    expected = gather_tokens(rank * 5 // 16, scan_order(centers, SCAN_ORDERS[order]))
    assert torch.equal(regions.index.expand(3, -1), expected)
    assert (regions.count, regions.smallest) == (5, 3)


def test_regions_are_not_cut_along_an_order_that_only_models_have():
    assert PointObjectiveConfig(region_order="hilbert_cells").region_rule("hilbert_cells").order is None
    with pytest.raises(UserError, match=r"order 'hilbert_cells' is a model's alone: .*\(model.order\)"):
        PointObjectiveConfig(region_order="hilbert_cells").region_rule("fps")


@pytest.mark.parametrize("region_order", [order for order in ORDERS if order != "fps"])
def test_regions_along_another_order_group_what_that_order_groups(region_order):
    points = torch.randn(2, 64, 3)
    scanned, along = tokenize(points, order="fps"), tokenize(points, order=region_order)
    mismatched = PointObjectiveConfig(num_regions=4, region_order=region_order).region_rule("fps")(scanned)
    matched = ConsecutiveRegions(4)(along)

    def region_of(tokens, regions, sample):
        return dict(
            zip(rows(tokens.position[sample]), regions.index.expand(2, -1)[sample].tolist(), strict=True)
        )

    for sample in range(2):
        assert region_of(scanned, mismatched, sample) == region_of(along, matched, sample)
    assert not torch.equal(mismatched.index, matched.index.expand_as(mismatched.index))


@pytest.mark.parametrize("order", ORDERS)
def test_regions_along_the_order_of_the_scan_are_shared_by_the_batch(order):
    tokens = tokenize(torch.randn(2, 64, 3), order=order)
    rule = PointObjectiveConfig(region_order=order).region_rule(order)
    assert rule(tokens).index.shape == (1, 16)


def test_after_mask_ranks_visible_tokens_before_hidden_ones():
    tokens = tokenize(torch.randn(3, 64, 3))
    mask = sample_mask(tokens, 0.5)
    regions = RegionsAfterMask(8)(tokens, mask)
    assert (regions.count, regions.smallest) == (8, 2)
    for row, hidden in zip(regions.index, mask.hidden, strict=True):
        assert row[~hidden].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert row[hidden].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize("rule", [ConsecutiveRegions(17), RegionsAfterMask(17)], ids=["scan", "after_mask"])
def test_more_regions_than_patches_are_refused(rule):
    tokens = tokenize(torch.randn(2, 64, 3))
    with pytest.raises(
        UserError, match=r"num_regions \(17\) must lie between 1 and the number of tokens \(16\)"
    ):
        rule(tokens, sample_mask(tokens, 0.5))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="order 'hilbrt' is unknown; did you mean hilbert"):
        order_of_centers("hilbrt")
