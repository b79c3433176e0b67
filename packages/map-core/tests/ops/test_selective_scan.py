"""Every implementation of the scan computes what the definition says, outputs and gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from map_core.ops import scan_backends, selective_scan

FAST = [status.name for status in scan_backends() if status.available and status.name != "reference"]
LENGTHS = [1, 7, 63, 64, 65, 196, 1000]
OPTIONAL = ("D", "z", "delta_bias")


def random_arguments(
    length: int, *, batch: int = 2, channels: int = 20, state: int = 5, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    arguments = {
        "u": normal(batch, length, channels),
        "delta": 0.5 * normal(batch, length, channels) - 1,
        "A": -torch.exp(0.5 * normal(channels, state)),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": 0.1 * normal(channels),
    }
    # Parameters stay float32 under bf16 inputs, as in mixed precision training.
    wide = torch.promote_types(dtype, torch.float32)
    return {name: x.to(wide if name in {"A", "D", "delta_bias"} else dtype) for name, x in arguments.items()}


def run(arguments: dict[str, Tensor], **options: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and the gradient of every argument under a fixed random cotangent."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    y = selective_scan(**leaves, **options)  # type: ignore[arg-type]
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        y.dtype
    )
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
    return y.detach(), dict(zip(leaves, grads, strict=True))


def assert_same(actual: Tensor, expected: Tensor, name: str, relative: float) -> None:
    """Compare up to ``relative`` of the largest expected value."""
    assert actual.dtype == expected.dtype, name
    assert actual.shape == expected.shape, name
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * scale, msg=lambda m: f"{name}: {m}")


def assert_equals_reference(
    arguments: dict[str, Tensor], backend: str, relative: float, **options: object
) -> None:
    y, grads = run(arguments, backend=backend, **options)
    expected, expected_grads = run(arguments, backend="reference", **options)
    assert_same(y, expected, "output", relative)
    for name, grad in expected_grads.items():
        assert_same(grads[name], grad, f"gradient of {name}", relative)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill every torch.empty with NaN: a kernel that reads what it did not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_and_gradients_equal_the_definition(length: int, reverse: bool, backend: str) -> None:
    arguments = random_arguments(length)
    assert_equals_reference(arguments, backend, 2e-5, reverse=reverse, delta_softplus=True)
