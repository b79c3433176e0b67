"""Deviations of our arrays from those computed by published code, or by a plain version of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from map_core.testing.published import State, gradients

TOLERANCE, GRADIENT_TOLERANCE = 5e-5, 1e-4  # relative to each array's maximum


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an NPZ file as tensors."""
    return {name: torch.from_numpy(value) for name, value in np.load(path).items()}


def assert_same_arrays(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str]
) -> None:
    """Compare arrays, each relative to its maximum.

    Raises:
        AssertionError: an array is too far off, or is all zeros, which proves nothing.
    """
    for name in names:
        assert expected[name].abs().max() > 0, f"{name} is all zeros, which proves nothing"
        error = deviation(actual[name].detach(), expected[name].detach())
        assert error <= TOLERANCE, f"{name} is off by {error:.1e} of its maximum"


def assert_same_gradients(state: State, actual: Tensor, expected: Tensor) -> None:
    """Compare the gradients of two losses with respect to every learnable tensor of a state dict.

    Raises:
        AssertionError: a gradient is too far off, or only one of the losses depends on a tensor.
    """
    ours, theirs = gradients(state, actual), gradients(state, expected)
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max() for value in theirs.values())
    for name, grad in theirs.items():
        # the smallest gradients are differences of large terms
        scale = max(grad.abs().max(), 1e-3 * largest)
        error = float((ours[name] - grad).abs().max() / scale)
        assert error <= GRADIENT_TOLERANCE, f"the gradient of {name} is off by {error:.1e}"


def print_deviations(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], title: str = "") -> int:
    """Print the deviation of each array that both mappings have; return how many are too far off.

    Args:
        actual: Arrays of our code.
        expected: Arrays of the published code; the names of gradients begin with ``grad``.
        title: Prefix of every line.
    """
    failures = 0
    for name in (name for name in actual if name in expected):
        limit = GRADIENT_TOLERANCE if name.startswith("grad") else TOLERANCE
        error = deviation(actual[name].detach(), expected[name])
        failures += error > limit
        print(f"{title}{name:48} {error:.1e}  {'equal' if error <= limit else 'DIFFERS'}")
    return failures


def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite if shapes or whole numbers differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual.to(expected.dtype), expected) else float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())
