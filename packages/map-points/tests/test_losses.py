"""Distances of point sets against loops over points and over assignments."""

from itertools import permutations

import pytest
import torch

from map_core.errors import UserError
from map_points.losses import chamfer_distance, masked_distance, transport_distance, transport_plan


def slow_chamfer(a, b, kind):
    def one_way(p, q):
        nearest = [min(((x - y) ** 2).sum() for y in q) for x in p]
        return sum(d if kind == "l2" else d.sqrt() for d in nearest) / len(nearest)

    total = one_way(a, b) + one_way(b, a)
    return total if kind == "l2" else total / 2


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_chamfer_equals_a_loop(kind):
    a, b = torch.randn(2, 3, 7, 3), torch.randn(2, 3, 40, 3)
    distance = chamfer_distance(a, b, kind)
    assert distance.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(distance[i, j], slow_chamfer(a[i, j], b[i, j], kind))


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
    torch.testing.assert_close(masked_distance(prediction, target, kind=kind), expected / 6)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="a distance of points must be 'l1' or 'l2'; got 'l3'"):
        chamfer_distance(torch.randn(4, 3), torch.randn(4, 3), "l3")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_matching_is_refused():
    with pytest.raises(UserError, match=r"matching 'chamfer' is unknown; .*nearest"):
        masked_distance(torch.randn(2, 3, 12), torch.randn(2, 3, 4, 3), matching="chamfer")


@pytest.mark.parametrize("distance", [chamfer_distance, transport_distance])
@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0)])
def test_a_set_without_points_is_refused(distance, n, m):
    with pytest.raises(UserError, match=f"between sets that have points; got {n} and {m} points"):
        distance(torch.randn(2, n, 3), torch.randn(2, m, 3))


def test_a_prediction_that_is_no_number_of_points_is_refused():
    with pytest.raises(UserError, match=r"a multiple of 3 values; got 13: give the head 3 \* patch_size"):
        masked_distance(torch.randn(2, 3, 13), torch.randn(2, 3, 4, 3))


def best_assignment(a, b, kind):
    """The cheapest of all ways to give each point of a one of b."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    cost = squared if kind == "l2" else squared.sqrt()
    places = range(len(a))
    cheapest = min(
        sum(cost[i, j] for i, j in zip(places, order, strict=True)) for order in permutations(places)
    )
    return cheapest / len(a) * (2 if kind == "l2" else 1)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_transport_is_close_to_the_best_assignment(kind):
    a, b = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    expected = torch.stack([best_assignment(x, y, kind) for x, y in zip(a, b, strict=True)])
    distance = transport_distance(a, b, kind)
    torch.testing.assert_close(distance, expected, rtol=0.05, atol=0)
    assert (distance >= chamfer_distance(a, b, kind) * 0.99).all()


@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 24)])
def test_a_plan_moves_every_point_its_share(n, m):
    plan = transport_plan(torch.rand(3, n, m))
    torch.testing.assert_close(plan.sum(-2), torch.full((3, m), 1 / m), rtol=1e-3, atol=0)
    torch.testing.assert_close(plan.sum(-1), torch.full((3, n), 1 / n), rtol=0.6, atol=0)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_transport_knows_no_order_of_points_and_its_gradient_is_finite_on_the_target(kind):
    a, b = torch.randn(32, 3), torch.randn(32, 3)
    expected = transport_distance(a, b, kind)
    torch.testing.assert_close(
        transport_distance(a[torch.randperm(32)], b, kind), expected, rtol=1e-4, atol=0
    )
    same = b.clone().requires_grad_()
    transport_distance(same, b, kind).backward()
    assert torch.isfinite(same.grad).all()


def test_points_that_do_not_know_the_surface_spread_only_under_transport():
    """One prediction for patches whose surface is turned at random: Chamfer bunches it, transport does not."""
    disc = torch.rand(64, 32, 2).sub(0.5).mul(2)
    turn = torch.linalg.qr(torch.randn(64, 3, 3)).Q
    target = torch.cat([disc, torch.zeros(64, 32, 1)], -1) @ turn

    def radius_learned(distance):
        points = (0.1 * torch.randn(32, 3)).requires_grad_()
        optimizer = torch.optim.Adam([points], lr=0.03)
        for _ in range(150):
            optimizer.zero_grad()
            distance(points.expand(64, -1, -1), target).mean().backward()
            optimizer.step()
        return points.detach().pow(2).sum(-1).mean().sqrt() / target.pow(2).sum(-1).mean().sqrt()

    assert radius_learned(chamfer_distance) < 0.6 < radius_learned(transport_distance)
