"""Nearest neighbours against their slow definition, ties included, and the values gathered for them."""

import itertools

import pytest
import torch

from map_core.errors import UserError
from map_points.patches import neighbors
from map_points.patches.neighbors import gather_neighbors, nearest_neighbors


def slow_knn(queries, cloud, k, distance):
    return [sorted(range(len(cloud)), key=lambda i: (distance(q, cloud[i]), i))[:k] for q in queries]


def test_nearest_neighbors_equal_the_slow_reference(make_clouds, slow_distance):
    points = make_clouds(2, 60)
    index = nearest_neighbors(points[:, :11], points, 9)
    for cloud, rows in zip(points.numpy(), index.tolist(), strict=True):
        assert rows == slow_knn(cloud[:11], cloud, 9, slow_distance)


def test_a_batch_taken_in_parts_has_the_same_neighbours(make_clouds, monkeypatch):
    points = make_clouds(5, 30)
    whole = nearest_neighbors(points, points, 4)
    monkeypatch.setattr(neighbors, "CACHED_DISTANCES", 2 * 30 * 30)  # two clouds at once
    assert torch.equal(nearest_neighbors(points, points, 4), whole)


@pytest.mark.parametrize("tail", [(), (3,), (2, 5)])
def test_gathered_values_are_those_of_the_neighbours(make_clouds, tail):
    points, values = make_clouds(2, 30), torch.randn(2, 30, *tail)
    index = nearest_neighbors(points[:, :7], points, 4)
    gathered = gather_neighbors(values, index)
    assert gathered.shape == (2, 7, 4, *tail)
    for b, query, k in itertools.product(range(2), range(7), range(4)):
        assert torch.equal(gathered[b, query, k], values[b, index[b, query, k]])


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 7), (0, 0)])
def test_no_queries_have_no_neighbours(batch, queries):
    points = torch.randn(batch, 20, 3)
    index = nearest_neighbors(points[:, :queries], points, 4)
    assert index.shape == (batch, queries, 4)
    assert gather_neighbors(points, index).shape == (batch, queries, 4, 3)


@pytest.mark.parametrize("k", [0, 21])
def test_a_number_that_the_cloud_cannot_give_is_refused(k):
    points = torch.randn(1, 20, 3)
    with pytest.raises(UserError, match=f"cannot find {k} nearest neighbours among 20 points"):
        nearest_neighbors(points, points, k)
