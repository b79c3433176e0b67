"""Scan orders of the centres of patches: permutations, and curves that stay near."""

import itertools

import pytest
import torch

from map_core import orders
from map_core.orders import hilbert_code, z_code
from map_points.tokenizer import order_patches


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr(orders, "BITS", 3)
    return torch.tensor(list(itertools.product(range(8), repeat=3)))


def test_hilbert_visits_every_cell_by_unit_steps(small_grid):
    code = hilbert_code(small_grid)
    assert sorted(code.tolist()) == list(range(512))
    walk = small_grid[code.argsort()]
    assert (walk.diff(dim=0).abs().sum(-1) == 1).all()


def test_z_order_interleaves_bits(small_grid):
    assert sorted(z_code(small_grid).tolist()) == list(range(512))
    assert z_code(torch.tensor([1, 0, 0])) == 4
    assert z_code(torch.tensor([0, 1, 3])) == 0b001011


@pytest.mark.parametrize("order", ["fps", "z_order", "hilbert", "random"])
def test_every_order_is_a_permutation_and_deterministic(order):
    center = torch.randn(3, 64, 3)
    indices = order_patches(center, order)
    assert torch.equal(indices.sort(dim=1).values, torch.arange(64).expand(3, -1))
    assert torch.equal(indices, order_patches(center, order))


@pytest.mark.parametrize("order", ["z_order", "hilbert"])
def test_curves_do_not_depend_on_the_order_of_sampling(order):
    center, shuffle = torch.randn(1, 64, 3), torch.randperm(64)
    shuffled = center[:, shuffle]
    walk, again = center[0, order_patches(center, order)[0]], shuffled[0, order_patches(shuffled, order)[0]]
    assert torch.equal(walk, again)


@pytest.mark.parametrize("order", ["z_order", "hilbert", "hilbert_cells", "hilbert_cells_swapped"])
def test_far_centres_in_double_precision_are_ordered_as_near_ones(order):
    near = torch.randint(0, 2**20, (2, 64, 3)).double() / 2**20  # whose sums with the shift are exact
    far = near + torch.tensor([450_000.0, 5_400_000.0, 300.0], dtype=torch.float64)
    assert torch.equal(order_patches(far, order), order_patches(near, order))


@pytest.mark.parametrize("order", ["fps", "z_order", "hilbert"])
def test_coinciding_centres_keep_their_order(order):
    assert order_patches(torch.zeros(1, 5, 3), order).tolist() == [[0, 1, 2, 3, 4]]


def test_fps_keeps_the_order_of_sampling():
    assert order_patches(torch.randn(2, 5, 3), "fps").tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_random_order_is_one_for_each_number_of_patches():
    assert torch.equal(
        order_patches(torch.randn(1, 64, 3), "random"), order_patches(torch.randn(1, 64, 3), "random")
    )
    assert order_patches(torch.randn(1, 64, 3), "random").tolist() != [list(range(64))]


def test_hilbert_neighbours_are_closer_than_fps_neighbours():
    center = torch.randn(8, 64, 3)

    def step(order):
        walk = torch.stack([c[o] for c, o in zip(center, order_patches(center, order), strict=True)])
        return walk.diff(dim=1).norm(dim=-1).mean()

    assert step("hilbert") < 0.7 * step("fps")
