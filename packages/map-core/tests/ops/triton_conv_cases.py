"""The Triton convolution on a GPU, or in Triton's interpreter: test_triton.py runs this file in its own process.

TRITON_INTERPRET=1 python -m pytest -o addopts=--import-mode=importlib packages/map-core/tests/ops/triton_conv_cases.py
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from map_core.ops import depthwise_causal_conv1d, depthwise_conv1d
from map_core.ops.conv.interface import REGISTRY
from map_core.ops.conv.triton import conv

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
CUT_OF_A_GPU = {"MIN_SPAN": conv.MIN_SPAN, "AHEAD": conv.AHEAD}
if DEVICE == "cpu":
    conv.MIN_SPAN, conv.AHEAD = 4, 2  # the interpreter needs milliseconds for an operation
SPAN = conv.MIN_SPAN
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 5e-6, 8e-3  # of the largest value
Tool = Callable[..., Any]


def arguments(length: int, *, batch: int = 2, channels: int = 5, taps: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length + taps)
    shapes = {"x": (batch, length, channels), "weight": (channels, taps), "bias": (channels,)}
    return {name: torch.randn(shape, generator=generator).to(DEVICE) for name, shape in shapes.items()}


@pytest.fixture
def compare(output_and_gradients: Tool, assert_same: Tool) -> Callable[..., None]:
    """Compare output and every gradient with the definition."""

    def run(values: dict[str, Tensor], tolerance: float = FLOAT32_TOLERANCE, **options: Any) -> None:
        results = [
            output_and_gradients(partial(depthwise_causal_conv1d, backend=name, **options), values)
            for name in ("triton", "reference")
        ]
        assert_same(*results, tolerance)

    return run


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("length", [1, 3, 2 * SPAN + 1])
def test_lengths_up_to_and_beyond_a_stretch(
    length: int, activation: str | None, reverse: bool, compare: Callable[..., None]
) -> None:
    compare(arguments(length, batch=1), activation=activation, reverse=reverse)


def test_sums_are_float32_whatever_new_tensors_are_by_default(compare: Callable[..., None]) -> None:
    values = arguments(3, batch=1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        compare(values)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_cut_of_a_gpu(monkeypatch: pytest.MonkeyPatch, compare: Callable[..., None]) -> None:
    for name, value in CUT_OF_A_GPU.items():
        monkeypatch.setattr(conv, name, value)
    compare(arguments(CUT_OF_A_GPU["MIN_SPAN"] + 1, batch=1), activation="silu")


@pytest.mark.parametrize(("taps", "channels"), [(1, 1), (3, 65), (7, 3), (4, 128)])
def test_taps_and_widths_without_a_bias(taps: int, channels: int, compare: Callable[..., None]) -> None:
    values = arguments(5, batch=1, channels=channels, taps=taps)
    del values["bias"]
    compare(values, activation="silu")


@pytest.mark.parametrize(("taps", "channels"), [(1, 3), (4, 1), (1, 1)])
def test_a_single_tap_and_a_single_channel_with_a_bias(
    taps: int, channels: int, compare: Callable[..., None]
) -> None:
    compare(arguments(3, batch=1, channels=channels, taps=taps))


def test_as_many_taps_as_there_may_be_reach_over_a_stretch(compare: Callable[..., None]) -> None:
    compare(arguments(SPAN + 2, batch=1, channels=2, taps=16), reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32(dtype: torch.dtype, compare: Callable[..., None]) -> None:
    values = arguments(SPAN + 4)
    compare(values | {"x": values["x"].to(dtype)}, BFLOAT16_TOLERANCE, activation="silu")


def test_strided_inputs(output_and_gradients: Tool, assert_same: Tool) -> None:
    dense = arguments(SPAN + 1)
    expected = output_and_gradients(partial(depthwise_causal_conv1d, backend="reference"), dense)
    for x in (
        torch.cat([dense["x"], dense["x"]], -1)[..., :5],
        dense["x"].transpose(0, 1).contiguous().transpose(0, 1),
        dense["x"].transpose(1, 2).contiguous().transpose(1, 2),
    ):
        strided = dense | {"x": x, "weight": dense["weight"].t().contiguous().t()}
        actual = output_and_gradients(partial(depthwise_causal_conv1d, backend="triton"), strided)
        assert_same(actual, expected, FLOAT32_TOLERANCE)


def test_an_expanded_cotangent_and_nothing_to_convolve() -> None:
    grads = []
    for name in ("triton", "reference"):
        x = arguments(9)["x"].requires_grad_()
        depthwise_causal_conv1d(**(arguments(9) | {"x": x}), backend=name).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
    empty = arguments(4, batch=0)
    weight = empty["weight"].requires_grad_()
    y = depthwise_causal_conv1d(**empty, activation="silu", backend="triton")
    y.sum().backward()
    assert y.shape == (0, 4, 5)
    assert torch.count_nonzero(weight.grad) == 0


def test_the_convolution_of_both_sides() -> None:
    values = arguments(6, taps=3)
    actual, expected = (
        depthwise_conv1d(**values, activation="silu", backend=b) for b in ("triton", "reference")
    )
    torch.testing.assert_close(actual, expected)


def test_gradients_repeat_bit_for_bit(output_and_gradients: Tool) -> None:
    call = partial(depthwise_causal_conv1d, backend="triton", activation="silu")
    first, again = (output_and_gradients(call, arguments(2 * SPAN + 1, batch=1)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_operator_passes_pytorchs_own_checks() -> None:
    tensors = [x.requires_grad_() for x in arguments(3).values()]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    convolve = torch.ops.map_core.triton_causal_conv1d.default
    torch.library.opcheck(convolve, (*tensors, True, False), test_utils=tests)


def test_auto_does_not_pick_the_interpreter() -> None:
    assert REGISTRY.choose("auto", "cpu", torch.float32, 4) != "triton"
