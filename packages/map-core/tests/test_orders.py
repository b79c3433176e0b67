"""Scan orders: permutations that follow the path they are named after, on grids and point sets alike."""

import itertools
from typing import get_args

import pytest
import torch

from map_core import GridRegions, UserError, scan_order
from map_core.orders import BITS, ScanOrder, hilbert_code, quantize, z_code
from map_core.testing import toy_tokens
from map_core.tokens import gather_tokens

ORDERS = get_args(ScanOrder)
CURVES = ["z_order", "hilbert"]
NEED_A_GRID = ["row", "column", "snake", "block"]


def cells(rows, cols):
    """Coordinates of a grid's cells, row by row."""
    return toy_tokens(grid=(rows, cols)).position


def walk(grid, order, **options):
    """The cells in the order in which they are visited."""
    position = cells(*grid)
    return gather_tokens(position, scan_order(position, order, grid=grid, **options))[0].int().tolist()


def assert_permutation(index, length):
    assert torch.equal(index.sort(dim=1).values, torch.arange(length).expand(len(index), -1))


# ---- every order


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (3, 1), (7, 6)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_visits_each_cell_of_a_grid_once(order, grid):
    assert sorted(walk(grid, order)) == [list(cell) for cell in itertools.product(*map(range, grid))]


@pytest.mark.parametrize("order", sorted(set(ORDERS) - set(NEED_A_GRID)))
def test_every_order_of_points_is_a_permutation_and_deterministic(order):
    position = torch.randn(3, 64, 3)
    index = scan_order(position, order).expand(3, -1)
    assert_permutation(index, 64)
    torch.rand(3)  # no global generator may matter
    assert torch.equal(index, scan_order(position, order).expand(3, -1))


def test_given_keeps_the_order():
    assert scan_order(torch.randn(2, 5, 3), "given").tolist() == [[0, 1, 2, 3, 4]] * 2


def test_random_shuffles_all_samples_alike_and_other_lengths_otherwise():
    index = scan_order(torch.randn(2, 50, 3), "random")
    assert torch.equal(index[0], index[1])
    assert index[0].tolist() != list(range(50))
    longer = scan_order(torch.randn(1, 51, 3), "random")[0].tolist()
    assert [i for i in longer if i < 50] != index[0].tolist()


# ---- along a grid


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("row", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("column", [0, 3, 6, 1, 4, 7, 2, 5, 8]),
        ("snake", [0, 1, 2, 5, 4, 3, 6, 7, 8]),
        ("block", [0, 1, 3, 4, 2, 5, 6, 7, 8]),
    ],
)
def test_a_grid_of_three_by_three_is_read_as_its_name_says(order, expected):
    """Cells are 0 1 2 / 3 4 5 / 6 7 8; blocks are two by two, smaller at the right and lower edge."""
    assert scan_order(cells(3, 3), order, grid=(3, 3), block_size=(2, 2)).tolist() == [expected]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6), (6, 1)])
def test_the_snake_never_jumps(grid):
    steps = torch.tensor(walk(grid, "snake")).diff(dim=0).abs().sum(-1)
    assert (steps == 1).all()


@pytest.mark.parametrize("block_size", [(1, 1), (2, 2), (2, 3), (4, 4), (9, 9)])
@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (8, 6)])
def test_block_order_finishes_each_block_of_the_block_regions_before_the_next(grid, block_size):
    """So a region is consecutive, in the order of the regions; inside it cells go row by row."""
    tokens = toy_tokens(grid=grid)
    index = scan_order(tokens.position, "block", grid=grid, block_size=block_size)
    region = gather_tokens(GridRegions("block", block_size)(tokens).index, index)[0].tolist()
    assert region == sorted(region)
    for _, members in itertools.groupby(zip(region, walk(grid, "block", block_size=block_size), strict=True)):
        inside = [cell for _, cell in members]
        assert inside == sorted(inside)


@pytest.mark.parametrize("order", [*NEED_A_GRID, *CURVES])
def test_orders_of_a_grid_follow_the_coordinates_not_the_sequence(order):
    """Shuffled cells are visited in the same order."""
    position, shuffle = cells(4, 6), torch.randperm(24)
    shuffled = position[:, shuffle]
    visited = gather_tokens(shuffled, scan_order(shuffled, order, grid=(4, 6)))[0].int().tolist()
    assert visited == walk((4, 6), order)


# ---- space-filling curves


@pytest.mark.parametrize(("size", "dimensions"), [(2, 2), (4, 2), (16, 2), (2**BITS, 2), (2, 3), (8, 3)])
def test_hilbert_visits_every_cell_by_steps_to_a_neighbour(size, dimensions):
    """Up to the largest grid that a code has bits for."""
    cell = torch.cartesian_prod(*[torch.arange(size)] * dimensions)
    code = hilbert_code(cell)
    assert torch.equal(code.sort().values, torch.arange(size**dimensions))
    steps = cell[code.argsort()].diff(dim=0).abs().sum(-1)
    assert (steps == 1).all()


@pytest.mark.parametrize("order", ["z_order", "hilbert"])
def test_a_grid_that_has_more_cells_than_bits_is_refused(order):
    with pytest.raises(
        UserError, match=rf"scan order '{order}' is for grids of up to 1024 .*; got \(1025, 1\)"
    ):
        scan_order(torch.zeros(1, 1025, 2), order, grid=(1025, 1))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_hilbert_order_of_a_grid_never_jumps(size):
    steps = torch.tensor(walk((size, size), "hilbert")).diff(dim=0).abs().sum(-1)
    assert (steps == 1).all()


@pytest.mark.parametrize(
    ("cell", "code"),
    [([1, 0, 0], 0b100), ([0, 1, 3], 0b001011), ([1, 2], 0b0110), ([5, 3], 0b100111)],
)
def test_z_codes_interleave_bits(cell, code):
    assert z_code(torch.tensor(cell)) == code


@pytest.mark.parametrize("order", CURVES)
def test_points_on_a_grid_are_ordered_as_the_grid_is(order):
    """One function for both: the corner cells of the bounding square are those of a grid of the same size."""
    size = 2**BITS
    position = torch.randint(size, (1, 200, 2)).float()
    position[0, 0], position[0, 1] = 0.0, size - 1.0  # the bounding square is the grid
    assert torch.equal(scan_order(position, order), scan_order(position, order, grid=(size, size)))


@pytest.mark.parametrize("order", CURVES)
def test_curves_do_not_depend_on_the_order_of_the_points(order):
    position, shuffle = torch.randn(1, 64, 3), torch.randperm(64)
    shuffled = position[:, shuffle]
    expected, actual = (gather_tokens(p, scan_order(p, order)) for p in (position, shuffled))
    assert torch.equal(expected, actual)


@pytest.mark.parametrize("order", CURVES)
def test_curves_do_not_depend_on_where_points_lie_or_on_their_scale(order):
    position = torch.randn(2, 64, 3)
    assert torch.equal(scan_order(position, order), scan_order(4 * position + 8, order))


@pytest.mark.parametrize("order", CURVES)
def test_coinciding_points_keep_their_order(order):
    assert scan_order(torch.zeros(1, 5, 3), order).tolist() == [[0, 1, 2, 3, 4]]


def test_cells_span_the_longest_side_of_the_bounding_cube():
    position = torch.tensor([[[0.0, 5.0], [8.0, 7.0], [4.0, 5.0]]])
    last = 2**BITS - 1
    assert quantize(position).tolist() == [[[0, 0], [last, round(last / 4)], [round(last / 2), 0]]]


@pytest.mark.parametrize("order", CURVES)
def test_neighbours_along_a_curve_are_close(order):
    position = torch.randn(8, 64, 3)
    curve = gather_tokens(position, scan_order(position, order)).diff(dim=1).norm(dim=-1).mean()
    assert curve < 0.75 * position.diff(dim=1).norm(dim=-1).mean()


# ---- refusals


@pytest.mark.parametrize("order", NEED_A_GRID)
def test_orders_along_a_grid_are_refused_to_points(order):
    with pytest.raises(
        UserError, match=rf"scan order '{order}' needs tokens on a grid; these have none: use 'hilbert'"
    ):
        scan_order(torch.randn(1, 8, 3), order)


def test_blocks_of_no_size_are_refused():
    position = toy_tokens(grid=(2, 2)).position
    with pytest.raises(UserError, match="block_size must be at least 1x1; got 0x1"):
        scan_order(position, "block", grid=(2, 2), block_size=(0, 1))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_order_names_its_near_matches():
    with pytest.raises(UserError, match=r"scan order 'hilbrt' is unknown; did you mean hilbert\?"):
        scan_order(torch.zeros(1, 5, 3), "hilbrt")
