"""Position embeddings: looked up by place, resampled for other grids."""

import pytest
import torch
from map_vision.positions import LearnedGridPosition, SinCosGridPosition, make_grid_position
from map_vision.scan_orders import grid_position, scan_order
from timm.layers import resample_abs_pos_embed

from map_core import UserError


def flat(table):
    """A table (rows, cols, d) as timm keeps it: (1, l, d)."""
    return table.detach().flatten(0, 1).unsqueeze(0)


@pytest.mark.parametrize("kind", ["learned", "sincos"])
@pytest.mark.parametrize("order", ["row", "column"])
def test_token_gets_the_entry_of_its_own_place(kind, order):
    grid, position = (3, 5), make_grid_position(kind, (3, 5), 16)
    places = grid_position(grid)
    whole = position(places.unsqueeze(0), grid)
    in_order = scan_order(grid, order)
    assert torch.equal(position(places[in_order].unsqueeze(0), grid), whole[:, in_order])
    some = torch.tensor([[7, 2, 2], [0, 14, 9]])  # other tokens in every sample
    assert torch.equal(position(places[some], grid), whole[0, some])


def test_learned_positions_are_the_table():
    position = LearnedGridPosition((3, 5), 8)
    assert torch.equal(position(grid_position((3, 5)).unsqueeze(0), (3, 5)), flat(position.table))


@pytest.mark.parametrize("grid", [(6, 6), (2, 3), (5, 8)])
def test_learned_positions_are_resampled_as_timm_does(grid):
    position = LearnedGridPosition((4, 4), 8)
    expected = resample_abs_pos_embed(flat(position.table), grid, old_size=[4, 4], num_prefix_tokens=0)
    at_run_time = position(grid_position(grid).unsqueeze(0), grid)
    torch.testing.assert_close(at_run_time, expected)

    loaded = LearnedGridPosition(grid, 8)
    state = position.state_dict()
    loaded.load_state_dict(state)
    torch.testing.assert_close(flat(loaded.table), expected)
    assert state["table"].shape == (4, 4, 8)  # the state that was given is not touched


def test_table_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for table"):
        LearnedGridPosition((4, 4), 8).load_state_dict(LearnedGridPosition((4, 4), 12).state_dict())


def test_gradient_reaches_the_table_through_resampling():
    position = LearnedGridPosition((2, 2), 4)
    position(grid_position((4, 4)).unsqueeze(0), (4, 4)).sum().backward()
    assert bool((position.table.grad != 0).all())


def test_sincos_encodes_row_and_column_apart():
    table = SinCosGridPosition(16)(grid_position((3, 5)).unsqueeze(0), (3, 5)).reshape(3, 5, 16)
    same_in_a_row = [bool((table[:, :, i] == table[:, :1, i]).all()) for i in range(16)]
    same_in_a_column = [bool((table[:, :, i] == table[:1, :, i]).all()) for i in range(16)]
    assert sum(same_in_a_row) == sum(same_in_a_column) == 8
    assert all(a != b for a, b in zip(same_in_a_row, same_in_a_column, strict=True))
    assert len({tuple(entry.tolist()) for entry in table.flatten(0, 1)}) == 15
    assert not SinCosGridPosition(16).state_dict()


def test_sincos_width_must_be_a_multiple_of_four():
    with pytest.raises(UserError, match=r"embed_dim \(18\) must be a multiple of 4 for sin-cos positions"):
        make_grid_position("sincos", (2, 2), 18)


@pytest.mark.usefixtures("unchecked")
def test_unknown_kind_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"position embedding 'sincoss' is unknown; did you mean sincos\?"):
        make_grid_position("sincoss", (2, 2), 16)
