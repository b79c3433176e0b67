"""Every implementation of the depthwise causal convolution computes what the definition says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from map_core.errors import UserError
from map_core.ops import conv_backends, depthwise_causal_conv1d, depthwise_conv1d

FAST = [status.name for status in conv_backends() if status.available and status.name != "reference"]
ALL = [*FAST, "reference"]
Tool = Callable[..., Any]


def conv(backend: str, **options: Any) -> Callable[..., Tensor]:
    return partial(depthwise_causal_conv1d, backend=backend, **options)


def arguments(
    length: int, *, batch: int = 2, channels: int = 21, taps: int = 4, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    torch.manual_seed(length + taps)
    x, weight, bias = torch.randn(batch, length, channels), torch.randn(channels, taps), torch.randn(channels)
    if dtype == torch.float64:
        weight, bias = weight.double(), bias.double()
    return {"x": x.to(dtype), "weight": weight, "bias": bias}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 4), (3, 4), (64, 4), (65, 3), (196, 1), (50, 7)])
def test_outputs_and_gradients_equal_the_definition(
    length: int,
    taps: int,
    activation: str | None,
    reverse: bool,
    backend: str,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    values = arguments(length, taps=taps)
    options = {"activation": activation, "reverse": reverse}
    for present in (values, {"x": values["x"], "weight": values["weight"]}):
        actual = output_and_gradients(conv(backend, **options), present)
        assert_same(actual, output_and_gradients(conv("reference", **options), present), 5e-6)


def test_the_definition_is_pytorchs_padded_convolution() -> None:
    values = arguments(30)
    x = F.pad(values["x"].transpose(1, 2), (3, 0))
    expected = F.conv1d(x, values["weight"][:, None], values["bias"], groups=21).transpose(1, 2)
    torch.testing.assert_close(depthwise_causal_conv1d(**values, backend="reference"), expected)


@pytest.mark.parametrize("op", [depthwise_causal_conv1d, depthwise_conv1d])
@pytest.mark.parametrize("backend", ["auto", *FAST])
def test_transformations_of_torch_func_see_the_definition(
    backend: str, op: Callable[..., Tensor], assert_transformed: Tool
) -> None:
    values = {name: value.double() for name, value in arguments(7).items()}
    x, options = values.pop("x"), {"activation": "silu"}
    run, definition = (partial(op, **values, **options, backend=name) for name in (backend, "reference"))
    assert_transformed(run, definition, x)


@pytest.mark.parametrize("backend", ALL)
def test_reverse_equals_flipping(backend: str) -> None:
    values = arguments(17)
    flipped = values | {"x": values["x"].flip(1)}
    expected = depthwise_causal_conv1d(**flipped, activation="silu", backend=backend).flip(1)
    actual = depthwise_causal_conv1d(**values, activation="silu", reverse=True, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_no_step_sees_the_wrong_side(backend: str, reverse: bool) -> None:
    values = arguments(12)
    values["x"].requires_grad_()
    y = depthwise_causal_conv1d(**values, reverse=reverse, backend=backend)
    (grad,) = torch.autograd.grad(y[:, 6].sum(), values["x"])
    has_gradient = grad.abs().sum((0, 2)) > 0
    assert has_gradient.nonzero().flatten().tolist() == ([6, 7, 8, 9] if reverse else [3, 4, 5, 6])


@pytest.mark.parametrize("backend", FAST)
def test_bfloat16_is_summed_in_float32(backend: str, output_and_gradients: Tool, assert_same: Tool) -> None:
    values = arguments(40, dtype=torch.bfloat16)
    actual = output_and_gradients(conv(backend, activation="silu"), values)
    assert actual["output"].dtype == torch.bfloat16
    assert actual["gradient of weight"].dtype == torch.float32
    assert_same(actual, output_and_gradients(conv("reference", activation="silu"), values), 8e-3)


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs_and_empty_batches(
    backend: str, output_and_gradients: Tool, assert_same: Tool
) -> None:
    dense = arguments(25)
    strided = dict(dense)
    strided["x"] = torch.cat([dense["x"], dense["x"]], -1)[..., :21]
    strided["weight"] = dense["weight"].t().contiguous().t()
    actual = output_and_gradients(conv(backend, activation="silu"), strided)
    assert_same(actual, output_and_gradients(conv("reference", activation="silu"), dense), 5e-6)
    strided["x"] = dense["x"].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(
        depthwise_causal_conv1d(**strided, backend=backend), depthwise_causal_conv1d(**dense, backend=backend)
    )
    empty = output_and_gradients(conv(backend), arguments(25, batch=0))
    assert empty["output"].shape == (0, 25, 21)
    assert torch.count_nonzero(empty["gradient of weight"]) == 0


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_float64_gradients_agree_with_finite_differences(backend: str) -> None:
    values = arguments(6, channels=2, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in values.values()]
    assert torch.autograd.gradcheck(
        lambda *v: depthwise_causal_conv1d(*v, activation="silu", backend=backend), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(20, 4)}, r"weight's axis 0 \(channels\) has size 20 but x's axis 2 has 21"),
        ({"weight": torch.ones(21, 1, 4)}, r"weight has shape \(21, 1, 4\); it must have 2 axes"),
        ({"weight": torch.ones(21, 0)}, r"weight's axis 1 \(taps\) has size 0; it must be at least 1"),
        ({"bias": torch.ones(3)}, r"bias's axis 0 \(channels\) has size 3 but x's axis 2 has 21"),
        ({"x": torch.ones(5, 21)}, r"x has shape \(5, 21\); it must have 3 axes"),
        ({"x": torch.ones(2, 5, 21).int()}, r"x has dtype torch.int32; it must be real floating point"),
        ({"weight": torch.ones(21, 4, device="meta")}, r"weight is on meta but x is on cpu"),
        ({"activation": "relu"}, r"unknown activation='relu'; it must be None or 'silu'"),
        ({"backend": "torhc"}, r"unknown backend='torhc'; did you mean torch\?"),
        (
            {"backend": "causal_conv1d"},
            r"backend='causal_conv1d' cannot serve this call: causal_conv1d is not installed;",
        ),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="depthwise_causal_conv1d: " + message):
        depthwise_causal_conv1d(**(arguments(5) | change))


def padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """PyTorch's own convolution of both sides."""
    y = F.conv1d(x.mT, weight[:, None], bias, padding="same", groups=x.shape[2]).mT
    return F.silu(y) if activation else y


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("length", "taps"), [(1, 3), (2, 3), (49, 3), (20, 4), (7, 1), (5, 7)])
def test_the_convolution_of_both_sides_is_pytorchs(
    length: int,
    taps: int,
    activation: str | None,
    biased: bool,
    backend: str,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    values = arguments(length, taps=taps)
    if not biased:
        del values["bias"]
    actual = output_and_gradients(partial(depthwise_conv1d, activation=activation, backend=backend), values)
    expected = output_and_gradients(partial(padded_conv, activation=activation), values)
    assert_same(actual, expected, 5e-6)


@pytest.mark.parametrize("backend", FAST)
def test_the_convolution_of_both_sides_in_bfloat16(
    backend: str, output_and_gradients: Tool, assert_same: Tool
) -> None:
    values = arguments(40, taps=3, dtype=torch.bfloat16)
    actual = output_and_gradients(partial(depthwise_conv1d, activation="silu", backend=backend), values)
    expected = output_and_gradients(
        lambda x, **rest: padded_conv(x.float(), **rest, activation="silu").bfloat16(), values
    )
    assert_same(actual, expected, 8e-3)


def test_the_convolution_of_both_sides_names_itself() -> None:
    with pytest.raises(
        UserError, match=r"depthwise_conv1d: weight's axis 0 \(channels\) has size 20 but x's"
    ):
        depthwise_conv1d(torch.ones(2, 5, 21), torch.ones(20, 3))
