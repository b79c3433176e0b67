"""Every test starts from the same random numbers."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from map_points.data import write_part_shapes


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the type checks of the test run off, to see our own message about a value of the wrong kind."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def two_part_shapes(tmp_path_factory) -> Path:
    """A small set of two-part shapes in ShapeNetPart's layout."""
    pytest.importorskip("trimesh")
    root = tmp_path_factory.mktemp("part_shapes") / "set"
    write_part_shapes(root, train=3, val=1, test=2, points=200)
    return root
