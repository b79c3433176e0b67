"""Scan orders, regions, and what travels with a token."""

import pytest
import torch
from map_vision.scan_orders import grid_position, grid_region, raster_order, scan_order

from map_core import UserError
from map_vision.patches import PatchEmbed, patchify
from map_vision.tokenizer import ImageTokenizer

GRIDS = [(4, 4), (2, 5), (3, 1)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["row", "column"])
def test_raster_order_undoes_the_scan(grid, order):
    scanned = scan_order(grid, order)
    values = torch.randn(grid[0] * grid[1])
    assert torch.equal(values[scanned][raster_order(scanned)], values)


def test_scans_go_along_their_name():
    raster = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert scan_order((2, 3), "row").tolist() == raster.flatten().tolist()
    assert scan_order((2, 3), "column").tolist() == [0, 3, 1, 4, 2, 5]


def test_regions():
    def region(kind, block_size=(4, 4)):
        return grid_region((3, 5), kind, block_size).reshape(3, 5).tolist()

    assert region("row") == [[0] * 5, [1] * 5, [2] * 5]
    assert region("column") == [[0, 1, 2, 3, 4]] * 3
    assert region("block", (2, 2)) == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert region("block", (8, 8)) == [[0] * 5] * 3


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("kind", "block_size"), [("row", (4, 4)), ("column", (4, 4)), ("block", (2, 3))])
def test_regions_are_counted_without_gaps(grid, kind, block_size):
    found = grid_region(grid, kind, block_size).unique().tolist()
    assert found == list(range(len(found)))


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(UserError, match=r"scan order 'columns' is unknown; did you mean column\?"):
        scan_order((2, 2), "columns")
    with pytest.raises(UserError, match=r"region 'blocks' is unknown; did you mean block"):
        grid_region((2, 2), "blocks")


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("region", ["row", "column", "block"])
def test_what_a_token_is_travels_with_it(order, region):
    images, grid = torch.randn(2, 3, 8, 12), (2, 3)
    embed = PatchEmbed((4, 4), 3, 16)
    tokens = ImageTokenizer(embed, order=order, region=region, block_size=(1, 2))(images)
    pixels, embedding = patchify(images, (4, 4)), embed(images)
    regions = grid_region(grid, region, (1, 2))
    assert tokens.grid == grid
    for place in range(6):
        row, col = tokens.position[0, place].int().tolist()
        patch = row * 3 + col
        assert torch.equal(tokens.target[:, place], pixels[:, patch])
        assert torch.equal(tokens.embedding[:, place], embedding[:, patch])
        assert tokens.region[0, place] == regions[patch]
    assert torch.equal(grid_position(grid)[scan_order(grid, order)], tokens.position[0])


def test_tokens_of_a_classifier_have_no_targets():
    tokens = ImageTokenizer(PatchEmbed((4, 4), 3, 16), targets=False)(torch.randn(1, 3, 8, 8))
    assert tokens.target is None
