"""The Chamfer distance against a loop."""

import pytest
import torch

from map_core.errors import UserError
from map_points.losses import chamfer_distance, masked_chamfer


def slow_chamfer(a, b, kind):
    def one_way(p, q):
        nearest = [min(((x - y) ** 2).sum() for y in q) for x in p]
        return sum(d if kind == "l2" else d.sqrt() for d in nearest) / len(nearest)

    total = one_way(a, b) + one_way(b, a)
    return total if kind == "l2" else total / 2


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_chamfer_equals_a_loop(kind):
    a, b = torch.randn(2, 3, 7, 3), torch.randn(2, 3, 40, 3)
    found = chamfer_distance(a, b, kind)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], slow_chamfer(a[i, j], b[i, j], kind))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_chamfer_ignores_the_order_of_points_and_is_symmetric(kind):
    a, b = torch.randn(32, 3), torch.randn(32, 3)
    expected = chamfer_distance(a, b, kind)
    torch.testing.assert_close(chamfer_distance(a[torch.randperm(32)], b, kind), expected)
    torch.testing.assert_close(chamfer_distance(b, a, kind), expected)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_perfect_prediction_costs_nothing_and_has_no_gradient(kind):
    a = torch.randn(4, 32, 3, requires_grad=True)
    loss = chamfer_distance(a, a.detach(), kind).sum()
    loss.backward()
    assert loss < 1e-5
    assert (a.grad == 0).all()  # where the plain root of l1 would give NaN


def test_near_points_keep_their_precision():
    a = torch.randn(64, 3) * 100
    shift = torch.tensor([1e-2, 0.0, 0.0])
    moved = a + shift
    torch.testing.assert_close(
        chamfer_distance(a, moved), 2 * ((moved - a) ** 2).sum(-1).mean(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_objective_loss_is_the_mean_over_hidden_patches(kind):
    prediction, target = torch.randn(2, 3, 24), torch.randn(2, 3, 8, 3)
    expected = sum(
        slow_chamfer(prediction[i, j].reshape(8, 3), target[i, j], kind) for i in range(2) for j in range(3)
    )
    torch.testing.assert_close(masked_chamfer(prediction, target, kind=kind), expected / 6)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="chamfer distance must be 'l1' or 'l2'; got 'l3'"):
        chamfer_distance(torch.randn(4, 3), torch.randn(4, 3), "l3")
