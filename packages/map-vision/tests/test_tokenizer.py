"""Images to tokens: the scan order gives each patch its place, and all that belongs to the patch moves with it."""

import json
from typing import get_args

import pytest
import torch

from map_core import GridRegions, UserError, scan_order
from map_core.orders import ScanOrder
from map_core.positions import PositionKind
from map_core.tasks.weights import save_weights
from map_core.tokens import undo_scan
from map_vision.factory import MODELS, ModelConfig, create_backbone, read_model_config
from map_vision.patches import PatchEmbed, patchify
from map_vision.tokenizer import grid_position, tokenize_images

GRIDS = [(4, 4), (2, 5), (3, 1)]
ORDERS = get_args(ScanOrder)


@pytest.fixture
def embed():
    torch.manual_seed(0)
    return PatchEmbed((4, 4), 3, 16)


def images(grid, batch=2):
    return torch.randn(batch, 3, 4 * grid[0], 4 * grid[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_position_is_row_and_column_in_raster_order(grid):
    expected = [[float(row), float(col)] for row in range(grid[0]) for col in range(grid[1])]
    assert grid_position(grid)[0].tolist() == expected


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_what_a_patch_is_travels_with_it(embed, grid, order):
    batch = images(grid)
    tokens = tokenize_images(batch, embed, order=order, block_size=(2, 2), targets=True)
    pixels, embedding = patchify(batch, (4, 4)), embed(batch)
    assert tokens.grid == grid
    assert tokens.num_global == 0
    places = (tokens.position[0] @ torch.tensor([float(grid[1]), 1.0])).long()  # row, column -> raster index
    assert sorted(places.tolist()) == list(range(grid[0] * grid[1]))
    assert torch.equal(tokens.target, pixels[:, places])
    assert torch.equal(tokens.embedding, embedding[:, places])
    if tokens.origin is not None:
        assert torch.equal(tokens.origin[0], places)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_tokens_stand_in_the_scan_order_of_their_name(embed, grid, order):
    tokens = tokenize_images(images(grid), embed, order=order, block_size=(2, 2))
    raster = grid_position(grid)
    expected = scan_order(raster, order, grid=grid, block_size=(2, 2))[0]
    assert torch.equal(tokens.position[0], raster[0, expected])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_undoing_the_scan_gives_raster_order(embed, grid, order):
    batch = images(grid)
    tokens = tokenize_images(batch, embed, order=order, block_size=(2, 2), targets=True)
    assert torch.equal(undo_scan(tokens.target, tokens), patchify(batch, (4, 4)))
    assert torch.equal(undo_scan(tokens.embedding, tokens), embed(batch))


def test_block_order_reads_block_after_block(embed):
    """Block 1 is two columns wide, block 2 one: the rest of the grid at the right and below."""
    tokens = tokenize_images(images((3, 3)), embed, order="block", block_size=(2, 2))
    assert tokens.position[0].int().tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [1, 2]),
        *([2, 0], [2, 1]),
        [2, 2],
    ]
    region = GridRegions("block", (2, 2))(tokens).index[0]
    assert region.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("order", ["row", "column", "block"])
def test_tokens_of_a_classifier_have_no_targets(embed, order):
    assert tokenize_images(images((2, 2)), embed, order=order).target is None


def test_sizes_are_those_of_the_images(embed):
    assert tokenize_images(images((5, 2)), embed, order="snake").grid == (5, 2)
    with pytest.raises(UserError, match=r"image size 18x16 does not fit patch size 4x4"):
        tokenize_images(torch.randn(1, 3, 18, 16), embed)


@pytest.mark.usefixtures("unchecked")
def test_unknown_order_is_answered_with_near_ones(make_tiny):
    with pytest.raises(UserError, match=r"scan order 'columns' is unknown; did you mean column\?"):
        make_tiny(order="columns")(torch.randn(1, 3, 32, 32))


class TestPositions:
    """A patch gets the embedding of its own position, whatever the scan order."""

    @pytest.mark.parametrize("kind", get_args(PositionKind))
    @pytest.mark.parametrize("order", ["row", "column", "block", "hilbert"])
    def test_of_a_model_follow_the_patches(self, make_tiny, kind, order):
        model = make_tiny(position=kind, order=order, block_size=(2, 2), img_size=(32, 48))
        tokens = model.tokenize(torch.randn(1, 3, 32, 48))
        raster = model.encoder.position(grid_position((4, 6)), (4, 6))
        in_order = model.encoder.position(tokens.position, tokens.grid)
        torch.testing.assert_close(undo_scan(in_order, tokens), raster)

    @pytest.mark.usefixtures("unchecked")
    def test_of_an_unknown_kind_are_answered_with_near_ones(self, make_tiny):
        with pytest.raises(UserError, match=r"position embedding 'sincoss' is unknown; did you mean sincos"):
            make_tiny(position="sincoss")

    def test_by_sines_need_a_width_that_is_a_multiple_of_four(self, make_tiny):
        with pytest.raises(
            UserError, match=r"embed_dim \(18\) must be a multiple of 4 for sin-cos positions"
        ):
            make_tiny(position="sincos", embed_dim=18, layout="M")


def test_order_and_block_size_survive_the_description(tmp_path):
    config = ModelConfig(
        "hybridnet_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, layout="M", order="block"
    )
    config.block_size = (2, 1)
    save_weights(
        tmp_path / "model.safetensors", create_backbone(config).state_dict(), MODELS.describe(config)
    )
    written = json.loads((tmp_path / "model.json").read_text())["arguments"]
    assert (written["order"], written["block_size"]) == ("block", [2, 1])
    assert read_model_config(tmp_path) == config
