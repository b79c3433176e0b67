"""Space-filling curves: bijective, local, and no order without a name."""

import itertools

import pytest
import torch
from map_points.orders import hilbert_code, order_patches, z_code

from map_core.errors import UserError
from map_points import orders


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
    found = order_patches(center, order)
    assert torch.equal(found.sort(dim=1).values, torch.arange(64).expand(3, -1))
    assert torch.equal(found, order_patches(center, order))


@pytest.mark.parametrize("order", ["z_order", "hilbert"])
def test_curves_do_not_depend_on_the_order_of_sampling(order):
    center, shuffle = torch.randn(1, 64, 3), torch.randperm(64)
    shuffled = center[:, shuffle]
    walk, again = center[0, order_patches(center, order)[0]], shuffled[0, order_patches(shuffled, order)[0]]
    assert torch.equal(walk, again)


def test_coinciding_centres_keep_their_order():
    assert order_patches(torch.zeros(1, 5, 3), "hilbert").tolist() == [[0, 1, 2, 3, 4]]


def test_hilbert_neighbours_are_closer_than_fps_neighbours():
    center = torch.randn(8, 64, 3)

    def step(order):
        walk = torch.stack([c[o] for c, o in zip(center, order_patches(center, order), strict=True)])
        return walk.diff(dim=1).norm(dim=-1).mean()

    assert step("hilbert") < 0.7 * step("fps")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="order 'hilbrt' is unknown; did you mean hilbert"):
        order_patches(torch.zeros(1, 5, 3), "hilbrt")
