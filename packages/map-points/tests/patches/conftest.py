"""Clouds and the squared distance that the slow definitions of this folder share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch


def lattice(batch, n):
    """Clouds on a coarse grid: full of ties and of points that coincide."""
    return torch.randint(0, 4, (batch, n, 3)).float() / 4


@pytest.fixture(params=["free", "ties"])
def make_clouds(request) -> Callable[[int, int], torch.Tensor]:
    """Random clouds of a batch size and a number of points, without ties or full of them."""
    return {"free": lambda batch, n: torch.randn(batch, n, 3), "ties": lattice}[request.param]


@pytest.fixture
def slow_distance() -> Callable[[np.ndarray, np.ndarray], np.float32]:
    """Squared distance of two points, rounded after every operation."""

    def distance(a, b):
        x, y, z = (np.float32(u) - np.float32(v) for u, v in zip(a, b, strict=True))
        return np.float32(np.float32(x * x + y * y) + z * z)

    return distance
