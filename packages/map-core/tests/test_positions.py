"""Position embeddings: functions of coordinates, the same for grids and point sets."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from map_core import UserError, make_position
from map_core.positions import FourierPosition, LearnedPosition, MlpPosition, SinCosPosition
from map_core.testing import toy_tokens

KINDS = ["learned", "sincos", "fourier", "mlp"]
WITHOUT_A_TABLE = ["sincos", "fourier", "mlp"]


def cells(grid):
    return toy_tokens(grid=grid).position


def flat(table):
    """A table (rows, cols, d) as timm keeps it: (1, l, d)."""
    return table.detach().flatten(0, 1).unsqueeze(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_gets_the_embedding_of_its_place_wherever_it_stands(kind):
    grid = (3, 5)
    position, places = make_position(kind, 16, grid=grid), cells(grid)
    whole = position(places, grid)
    assert whole.shape == (1, 15, 16)
    index = torch.tensor([[7, 2, 2], [0, 14, 9]])  # other tokens in every sample
    torch.testing.assert_close(position(places[0, index], grid), whole[0, index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_cast_as_a_whole_compute_in_that_type(kind, dtype):
    grid = (3, 5)
    position = make_position(kind, 16, grid=grid)
    expected = position(cells(grid), grid)
    actual = position.to(dtype)(cells(grid), grid)
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_other_places_have_other_embeddings(kind):
    grid = (3, 5)
    whole = make_position(kind, 16, grid=grid)(cells(grid), grid)[0]
    assert torch.pdist(whole).min() > 1e-4


@pytest.mark.parametrize("coordinates", [1, 2, 3])
@pytest.mark.parametrize("kind", WITHOUT_A_TABLE)
def test_points_of_any_dimension_are_embedded_one_by_one(kind, coordinates):
    position = make_position(kind, 24, coordinates=coordinates)
    points = torch.randn(2, 7, coordinates)
    whole = position(points, None)
    assert whole.shape == (2, 7, 24)
    torch.testing.assert_close(whole[:, 3:4], position(points[:, 3:4], None))


# ---- tables


def test_learned_positions_are_the_table():
    position = LearnedPosition((3, 5), 8)
    assert torch.equal(position(cells((3, 5)), (3, 5)), flat(position.table))


@pytest.mark.parametrize("grid", [(6, 6), (2, 3), (5, 8)])
def test_a_table_is_resampled_at_run_time_as_timm_does(grid):
    position = LearnedPosition((4, 4), 8)
    expected = resample_abs_pos_embed(flat(position.table), grid, old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(position(cells(grid), grid), expected)


@pytest.mark.parametrize("grid", [(6, 6), (2, 3), (5, 8)])
def test_a_table_is_resampled_on_loading_with_a_note(grid, caplog):
    source, loaded = LearnedPosition((4, 4), 8), LearnedPosition(grid, 8)
    expected = resample_abs_pos_embed(flat(source.table), grid, old_size=[4, 4], num_prefix_tokens=0)
    state = source.state_dict()
    with caplog.at_level(logging.WARNING):
        loaded.load_state_dict(state)
    torch.testing.assert_close(flat(loaded.table), expected)
    assert state["table"].shape == (4, 4, 8), "the caller's state was changed"
    assert caplog.messages == [f"table: positions resampled from 4x4 to {grid[0]}x{grid[1]}"]


def test_a_table_that_is_assigned_on_loading_can_be_saved(tmp_path):
    loaded = LearnedPosition((2, 3), 8)
    loaded.load_state_dict(LearnedPosition((4, 4), 8).state_dict(), assign=True)
    save_file(loaded.state_dict(), tmp_path / "table.safetensors")
    assert torch.equal(load_file(tmp_path / "table.safetensors")["table"], loaded.table)


def test_a_table_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for table"):
        LearnedPosition((4, 4), 8).load_state_dict(LearnedPosition((4, 4), 12).state_dict())


def test_a_gradient_reaches_the_table_through_resampling():
    position = LearnedPosition((2, 2), 4)
    position(cells((4, 4)), (4, 4)).sum().backward()
    assert (position.table.grad != 0).all()


# ---- functions of coordinates


@pytest.mark.parametrize("width", [4, 16, 64])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (14, 14), (1, 7)])
def test_sincos_on_a_grid_is_timms(grid, width):
    expected = build_sincos2d_pos_embed(list(grid), dim=width)
    torch.testing.assert_close(SinCosPosition(width)(cells(grid), grid)[0], expected)


def test_sincos_of_points_is_its_definition():
    points = 3 * torch.randn(2, 5, 3)
    embedded = SinCosPosition(24, 3)(points)
    for band in range(4):
        angle = points / 10000 ** (band / 4)
        for axis in range(3):
            torch.testing.assert_close(embedded[..., 4 * axis + band], angle[..., axis].sin())
            torch.testing.assert_close(embedded[..., 12 + 4 * axis + band], angle[..., axis].cos())


def test_fourier_features_are_linear_in_sines_and_cosines_at_octaves():
    points = torch.rand(2, 5, 3) * 2 - 1
    position = FourierPosition(8, 3, octaves=4)
    waves = [
        f(math.pi / 2 * 2**o * points[..., p])
        for f in (torch.sin, torch.cos)
        for p in range(3)
        for o in range(4)
    ]
    expected = torch.stack(waves, -1) @ position.project.weight.T + position.project.bias
    torch.testing.assert_close(position(points), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FourierPosition, MlpPosition])
def test_a_grid_is_the_unit_square_for_functions_of_coordinates(kind):
    """A cell is embedded as the point at its centre, so that grids of any size share the learned function."""
    position = kind(8, coordinates=2)
    centres = torch.tensor(
        [[[-2 / 3, -0.5], [-2 / 3, 0.5], [0, -0.5], [0, 0.5], [2 / 3, -0.5], [2 / 3, 0.5]]]
    )
    torch.testing.assert_close(position(cells((3, 2)), (3, 2)), position(centres))


@pytest.mark.parametrize("kind", ["learned", "fourier", "mlp"])
def test_learned_embeddings_learn_from_every_place(kind):
    position = make_position(kind, 8, grid=(2, 3))
    position(cells((2, 3)), (2, 3)).square().sum().backward()
    for name, parameter in position.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_sincos_learns_nothing():
    assert not SinCosPosition(16).state_dict()


# ---- refusals


@pytest.mark.parametrize(("width", "coordinates", "unit"), [(18, 2, 4), (16, 3, 6)])
def test_sincos_asks_for_a_width_that_it_can_split(width, coordinates, unit):
    with pytest.raises(
        UserError,
        match=rf"embed_dim \({width}\) must be a multiple of {unit} for sin-cos positions; use 'lea",
    ):
        make_position("sincos", width, coordinates=coordinates)


def test_a_table_needs_a_grid():
    with pytest.raises(UserError, match="learned positions need tokens on a grid; use 'mlp', 'fourier' or"):
        make_position("learned", 8)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_names_its_near_matches():
    with pytest.raises(UserError, match=r"position embedding 'sincoss' is unknown; did you mean sincos\?"):
        make_position("sincoss", 16)


def test_the_mlp_has_the_activation_asked_for():
    position, coordinates = MlpPosition(8, activation="silu"), torch.randn(1, 5, 3)
    first, _, last = position.mlp
    hidden = first(coordinates)
    torch.testing.assert_close(position(coordinates), last(hidden * hidden.sigmoid()))
    plain = MlpPosition(8)
    plain.load_state_dict(position.state_dict())
    assert not torch.allclose(plain(coordinates), position(coordinates), rtol=1e-3)
