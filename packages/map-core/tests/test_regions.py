"""Regions of tokens, and the four decoder masks entry by entry, against their definitions."""

from dataclasses import replace

import pytest
import torch

from map_core import (
    ConsecutiveRegions,
    GridRegions,
    RegionsAfterMask,
    UserError,
    region_attention_mask,
    sample_mask,
    scan_order,
)
from map_core.testing import toy_tokens
from map_core.tokens import gather_tokens


def may_attend(kind, region, i, j):
    """The definition of each mask for query i and key j of one sequence."""
    if region[j] == -1:
        return True
    if kind == "map":
        return region[j] <= region[i]
    if kind == "local_mae":
        return region[j] == region[i]
    if kind == "mae":
        return True
    return (region[j], j) <= (region[i], i)  # ar


SEQUENCES = {
    "rows": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unordered": [2, 0, 1, 1, 2, 0, 1, 0, 2],
    "single tokens": [3, 1, 0, 2],
    "one region": [0, 0, 0],
    "global in front": [-1, 0, 0, 1, 1],
    "global within": [1, 0, -1, 1, 0, -1],
}


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_every_entry_follows_the_definition(name, kind):
    region = SEQUENCES[name]
    length = range(len(region))
    expected = torch.tensor([[may_attend(kind, region, i, j) for j in length] for i in length])
    actual = region_attention_mask(torch.tensor(region), kind)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_samples_of_a_batch_have_their_own_masks(kind):
    region = torch.stack(
        [torch.tensor([-1, *torch.randperm(6).div(2, rounding_mode="floor")]) for _ in range(4)]
    )
    batched = region_attention_mask(region, kind)
    assert batched.shape == (4, 7, 7)
    for sample, mask in zip(region, batched, strict=True):
        assert torch.equal(mask, region_attention_mask(sample, kind))


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_every_token_may_attend_to_itself(kind):
    """A row without any True would be NaN after the softmax."""
    mask = region_attention_mask(torch.randint(-1, 4, (3, 20)), kind)
    assert mask.diagonal(dim1=-2, dim2=-1).all()


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_depth_adds_no_reach(kind):
    """Two layers reach no more than one does: otherwise depth would leak later regions."""
    mask = region_attention_mask(torch.randint(-1, 4, (12,)), kind).int()
    assert torch.equal((mask @ mask) > 0, mask > 0)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_names_its_near_matches():
    with pytest.raises(
        UserError, match=r"attention mask kind 'local-mae' is unknown; did you mean local_mae"
    ):
        region_attention_mask(torch.zeros(3, dtype=torch.long), "local-mae")


# ---- which token lies in which region


def scanned(tokens, order):
    """The same tokens in another order, with their ``origin``."""
    index = scan_order(tokens.position, order, grid=tokens.grid)
    return replace(
        tokens,
        embedding=gather_tokens(tokens.embedding, index),
        position=gather_tokens(tokens.position, index),
        origin=index,
    )


def with_global(tokens, n):
    """The same tokens behind ``n`` global ones."""
    batch, length, width = tokens.embedding.shape
    front = tokens.position.new_full((len(tokens.position), n, tokens.position.shape[2]), -1)
    origin = torch.arange(length).unsqueeze(0) if tokens.origin is None else tokens.origin
    return replace(
        tokens,
        embedding=torch.randn(batch, n + length, width),
        position=torch.cat([front, tokens.position], dim=1),
        origin=torch.cat([torch.arange(n).expand(len(origin), -1), origin + n], dim=1),
        num_global=n,
    )


def cloud(length=20, batch=3):
    """Points without a grid."""
    return replace(toy_tokens(length, batch=batch), position=torch.randn(batch, length, 3))


def region_of_cell(kind, block_size, grid, row, col):
    """Rows, columns or blocks, counted as a reader counts them."""
    (height, width), (_, cols) = block_size, grid
    blocks_across = (cols + width - 1) // width
    return {"row": row, "column": col, "block": row // height * blocks_across + col // width}[kind]


@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("order", ["row", "column", "random"])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 6)])
@pytest.mark.parametrize(
    ("kind", "block_size"), [("row", (4, 4)), ("column", (4, 4)), ("block", (2, 3)), ("block", (8, 8))]
)
def test_regions_of_a_grid_follow_the_coordinates(kind, block_size, grid, order, num_global):
    """Whatever the scan order; number and smallest size are those found by counting."""
    plain = scanned(toy_tokens(grid=grid), order)
    regions = GridRegions(kind, block_size)(with_global(plain, num_global))
    cells = plain.position[0].int().tolist()
    expected = [region_of_cell(kind, block_size, grid, row, col) for row, col in cells]
    assert regions.index.tolist() == [[-1] * num_global + expected]
    assert sorted(set(expected)) == list(range(regions.count))
    assert regions.smallest == min(expected.count(region) for region in range(regions.count))


@pytest.mark.parametrize(("num_regions", "length"), [(1, 5), (4, 16), (3, 16), (7, 20), (20, 20)])
def test_consecutive_regions_cut_the_sequence_evenly(num_regions, length):
    regions = ConsecutiveRegions(num_regions)(toy_tokens(length))
    index = regions.index[0].tolist()
    sizes = [index.count(region) for region in range(num_regions)]
    assert index == sorted(index)
    assert (sum(sizes), regions.count, regions.smallest) == (length, num_regions, min(sizes))
    assert max(sizes) - min(sizes) <= 1


def test_consecutive_regions_leave_global_tokens_out():
    regions = ConsecutiveRegions(2)(toy_tokens(4, num_global=3))
    assert regions.index.tolist() == [[-1, -1, -1, 0, 0, 1, 1]]


@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("scan", ["hilbert", "random", "given"])
@pytest.mark.parametrize("order", ["hilbert", "z_order", "given", "random"])
def test_regions_along_another_order_belong_to_the_token_not_to_its_place(scan, order, num_global):
    """A point's region comes from cutting ``order``, wherever the scan puts the point."""
    before = cloud()
    tokens = before if scan == "given" else scanned(before, scan)
    along = scan_order(before.position, order).expand(3, -1)
    origin = torch.arange(20).expand(3, -1) if tokens.origin is None else tokens.origin.expand(3, -1)
    index = ConsecutiveRegions(4, order)(with_global(tokens, num_global)).index.expand(3, -1)
    assert (index[:, :num_global] == -1).all()
    for b in range(3):
        expected = {point: place * 4 // 20 for place, point in enumerate(along[b].tolist())}
        assert index[b, num_global:].tolist() == [expected[point] for point in origin[b].tolist()]


@pytest.mark.parametrize("num_global", [0, 1])
def test_after_the_mask_visible_tokens_are_ranked_before_hidden_ones(num_global):
    tokens = toy_tokens(12, batch=3, num_global=num_global)
    mask = sample_mask(tokens, 0.5)
    regions = RegionsAfterMask(4)(tokens, mask)
    for b, hidden in enumerate(mask.hidden[:, num_global:].tolist()):
        ranking = sorted(range(12), key=lambda i: (hidden[i], i))
        expected = [ranking.index(i) * 4 // 12 for i in range(12)]
        assert regions.index[b].tolist() == [-1] * num_global + expected
    assert (regions.count, regions.smallest) == (4, 3)


@pytest.mark.parametrize("rule", [ConsecutiveRegions(0), ConsecutiveRegions(17), ConsecutiveRegions(-1)])
def test_a_number_of_regions_that_tokens_cannot_fill_is_refused(rule):
    with pytest.raises(
        UserError, match=rf"num_regions \({rule.num_regions}\) must lie between 1 and .* \(16\)"
    ):
        rule(toy_tokens(16))


def test_after_the_mask_needs_a_mask():
    with pytest.raises(
        UserError, match=r"'after_mask' exist only once tokens are hidden: use mask scope 'all'"
    ):
        RegionsAfterMask(4)(toy_tokens(16))


def test_regions_of_a_grid_need_one():
    with pytest.raises(UserError, match="regions by row need tokens on a grid; these have none"):
        GridRegions("row")(toy_tokens(16))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_region_names_its_near_matches():
    with pytest.raises(UserError, match=r"region 'blocks' is unknown; did you mean block\?"):
        GridRegions("blocks")


@pytest.mark.parametrize("block_size", [(0, 2), (-2, 2), (2, 0)])
def test_blocks_of_no_size_are_refused(block_size):
    with pytest.raises(
        UserError, match=rf"block_size must be at least 1x1; got {block_size[0]}x{block_size[1]}"
    ):
        GridRegions("block", block_size)
