"""Fixtures of the tests of the ops: random arguments, gradients, comparison, poisoned memory."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

Arguments = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill every torch.empty with NaN, so that a kernel that reads what it did not write is exposed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def scan_arguments() -> Callable[..., Arguments]:
    """Random arguments of a scan; under narrow inputs weights stay float32, as in mixed precision."""

    def make(
        length: int, *, batch: int = 2, channels: int = 20, state: int = 5, dtype: torch.dtype = torch.float32
    ) -> Arguments:
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
        weight_dtype = torch.promote_types(dtype, torch.float32)
        weights = {"A", "D", "delta_bias"}
        return {name: x.to(weight_dtype if name in weights else dtype) for name, x in arguments.items()}

    return make


@pytest.fixture
def output_and_gradients() -> Callable[..., dict[str, Tensor]]:
    """Run ``function(**arguments)`` and differentiate it along a fixed random cotangent."""

    def run(function: Callable[..., Tensor], arguments: Arguments) -> dict[str, Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
        y = function(**leaves)
        generator = torch.Generator().manual_seed(1)
        cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
        grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
        return {"output": y.detach()} | {
            f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)
        }

    return run


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compare named tensors up to ``relative`` of the largest expected value of each."""

    def check(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
        assert actual.keys() == expected.keys()
        for name, reference in expected.items():
            value = actual[name]
            assert (value.dtype, value.shape) == (reference.dtype, reference.shape), name
            atol = relative * float(reference.abs().max()) if reference.numel() else 0.0
            torch.testing.assert_close(
                value, reference, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
            )

    return check


@pytest.fixture
def assert_transformed() -> Callable[..., None]:
    """Compare torch.func's jvp and gradient of ``run(x)`` with differences and the gradient of ``definition(x)``."""

    def check(run: Callable[[Tensor], Tensor], definition: Callable[[Tensor], Tensor], x: Tensor) -> None:
        direction, small = torch.randn_like(x), 1e-6
        _, slope = torch.func.jvp(run, (x,), (direction,))
        expected = (definition(x + small * direction) - definition(x - small * direction)) / (2 * small)
        assert expected.norm() > 0.1
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)
        gradient = torch.func.grad(lambda x: run(x).square().sum())(x)
        x.requires_grad_()
        definition(x).square().sum().backward()
        torch.testing.assert_close(gradient, x.grad)

    return check
