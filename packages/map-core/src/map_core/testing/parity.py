"""How far computed arrays are off those that published code, or a plain definition of it, computed."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from map_core.testing.published import State, gradients

TOLERANCE, GRADIENT_TOLERANCE = 5e-5, 1e-4  # of each array's maximum


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an NPZ file as tensors."""
    return {name: torch.from_numpy(value) for name, value in np.load(path).items()}


def assert_same_arrays(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str]
) -> None:
    """Compare arrays, each relative to its maximum.

    Raises:
        AssertionError: one is too far off, or shows nothing as it is zero.
    """
    for name in names:
        assert expected[name].abs().max() > 0, f"{name} shows nothing"
        off = deviation(found[name].detach(), expected[name].detach())
        assert off <= TOLERANCE, f"{name} is off by {off:.1e} of its maximum"


def assert_same_gradients(state: State, found: Tensor, expected: Tensor) -> None:
    """Compare the gradients of two losses with respect to every learnable tensor of a state dict.

    Raises:
        AssertionError: one is too far off, or only one of the losses depends on a tensor.
    """
    ours, theirs = gradients(state, found), gradients(state, expected)
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max() for value in theirs.values())
    for name, grad in theirs.items():
        # the smallest gradients are differences of large terms
        scale = max(grad.abs().max(), 1e-3 * largest)
        off = float((ours[name] - grad).abs().max() / scale)
        assert off <= GRADIENT_TOLERANCE, f"the gradient of {name} is off by {off:.1e}"


def print_deviations(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], title: str = "") -> int:
    """Print how far each array of ``found`` that is expected is off; return how many are too far.

    Args:
        found: What was computed here.
        expected: What was computed there; gradients have names that begin with ``grad``.
        title: Before every line.
    """
    far = 0
    for name in (name for name in found if name in expected):
        limit = GRADIENT_TOLERANCE if name.startswith("grad") else TOLERANCE
        off = deviation(found[name].detach(), expected[name])
        far += off > limit
        print(f"{title}{name:48} {off:.1e}  {'equal' if off <= limit else 'DIFFERS'}")
    return far


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite for other shapes, or other whole numbers."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found.to(expected.dtype), expected) else float("inf")
    return float((found - expected).abs().max() / expected.abs().max())
