"""The linear layer computes what PyTorch's does, whichever library multiplies."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from map_core.errors import UserError
from map_core.ops import Linear, linear, linear_backends
from map_core.ops.linear.interface import REGISTRY

Tool = Callable[..., Any]
AVAILABLE = [status.name for status in linear_backends() if status.available]
TOLERANCE = 2e-6  # of the largest value: both add float32 products, each in its own order


def arguments(rows: tuple[int, ...], inputs: int, outputs: int) -> dict[str, Tensor]:
    torch.manual_seed(inputs)
    return {
        "x": torch.randn(*rows, inputs),
        "weight": torch.randn(outputs, inputs),
        "bias": torch.randn(outputs),
    }


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        ((1,), 1, 1),
        ((7,), 3, 65),
        ((2, 98), 12, 384),
        ((2, 49), 384, 44),
        ((2, 3, 5), 64, 17),
        ((0, 4), 8, 3),
    ],
)
def test_outputs_and_gradients_equal_pytorchs(
    rows: tuple[int, ...],
    inputs: int,
    outputs: int,
    backend: str,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    values = arguments(rows, inputs, outputs)
    for present in (values, {"x": values["x"], "weight": values["weight"]}):
        actual = output_and_gradients(partial(linear, backend=backend), present)
        assert_same(actual, output_and_gradients(F.linear, present), TOLERANCE)


def columns(x: Tensor) -> Tensor:
    """The same values, as the first half of rows twice as wide."""
    return torch.cat([x, x.new_full(x.shape, torch.nan)], dim=-1)[..., : x.shape[-1]]


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize(
    "strided", [columns, lambda x: x.t().contiguous().t()], ids=["columns", "transposed"]
)
@pytest.mark.parametrize("strided_name", ["x", "weight"])
def test_strides_do_not_matter(
    strided_name: str, strided: Tool, backend: str, output_and_gradients: Tool, assert_same: Tool
) -> None:
    values = arguments((50,), 24, 40)

    def through_strides(**tensors: Tensor) -> Tensor:
        return linear(**tensors | {strided_name: strided(tensors[strided_name])}, backend=backend)

    actual = output_and_gradients(through_strides, values)
    assert_same(actual, output_and_gradients(F.linear, values), TOLERANCE)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_a_gradient_that_is_one_expanded_number(backend: str) -> None:
    values = arguments((30,), 20, 50)
    x, weight = (values[name].requires_grad_() for name in ("x", "weight"))
    actual = torch.autograd.grad(linear(x, weight, backend=backend).sum(), [x, weight])
    torch.testing.assert_close(actual, torch.autograd.grad(F.linear(x, weight).sum(), [x, weight]))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_only_wanted_gradients_are_computed(backend: str) -> None:
    values = arguments((30,), 20, 50)
    weight = values["weight"].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        linear(values["x"], weight, backend=backend).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 30 * 20 * 50)  # forward and one gradient
    torch.testing.assert_close(weight.grad, values["x"].sum(0).expand(50, 20))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_second_derivatives_equal_pytorchs(backend: str) -> None:
    values = arguments((9,), 5, 6)
    leaves = [x.requires_grad_() for x in values.values()]

    def second(function: Tool) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    torch.testing.assert_close(second(partial(linear, backend=backend)), second(F.linear))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_floating_point_operations_are_counted(backend: str) -> None:
    values = arguments((3, 10), 20, 50)
    leaves = [x.requires_grad_() for x in values.values()]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(linear(*leaves, backend=backend).sum(), leaves)
    assert counter.get_total_flops() == 3 * 2 * 30 * 20 * 50


@pytest.mark.parametrize("backend", ["auto", *AVAILABLE])
def test_autocast_decides_the_precision(backend: str) -> None:
    values = arguments((256,), 128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        if backend == "onednn":
            with pytest.raises(
                UserError, match=r"'onednn' cannot serve this call: it takes float32, not torch.bf"
            ):
                linear(**values, backend=backend)
            return
        y = linear(**values, backend=backend)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, F.linear(**values))


def test_compilers_exporters_and_tracers_see_pytorchs_operator() -> None:
    layer = Linear(128, 256)
    x = torch.randn(256, 128)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,))
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert operators == {"aten.linear.default"}
    traced: Any = torch.jit.trace(layer, (x,))
    assert "aten::linear" in str(traced.graph)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.usefixtures("unchecked")  # dynamo does not look into the checks of types
def test_an_unknown_backend_is_refused_where_pytorchs_operator_serves() -> None:
    values = arguments((4,), 3, 5)
    x = values.pop("x")

    def misspelt(x: Tensor) -> Tensor:
        return linear(x, **values, backend="onednm")

    compiled = torch.compile(misspelt, backend="eager")
    for run in (compiled, torch.func.vmap(misspelt), lambda x: torch.jit.trace(misspelt, x)):
        with pytest.raises(UserError, match=r"linear: unknown backend='onednm'; did you mean onednn\?"):
            run(x)


def test_transformations_of_torch_func_see_pytorchs_operator() -> None:
    values = arguments((256,), 128, 128)
    x, weight = values["x"], values["weight"]

    def loss(weight: Tensor, x: Tensor, function: Tool) -> Tensor:
        return function(x, weight).square().sum()

    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f), (None, 0, None))):
        actual = transform(loss)(weight, x[None], linear)
        torch.testing.assert_close(actual, transform(loss)(weight, x[None], F.linear))
    for record in (True, False):  # forward mode under no_grad must not drop the tangent
        with torch.set_grad_enabled(record):
            _, tangent = torch.func.jvp(lambda x: linear(x, weight), (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
    with forward_ad.dual_level(), torch.no_grad():
        dual = linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, F.linear(torch.ones_like(x), weight))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_gradients_of_many_cotangents_at_once(backend: str) -> None:
    values = arguments((9,), 5, 6)
    x, cotangents = values["x"].requires_grad_(), torch.randn(3, 9, 6)
    y = linear(x, values["weight"], backend=backend)
    (actual,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True)
    torch.testing.assert_close(actual, cotangents @ values["weight"])


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("rows", [(9,), (3, 3)])
def test_the_result_may_be_changed_in_place(rows: tuple[int, ...], backend: str) -> None:
    values = arguments(rows, 5, 6)
    leaves = [x.requires_grad_() for x in values.values()]
    actual = torch.autograd.grad(linear(*leaves, backend=backend).relu_().sum(), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(F.linear(*leaves).relu().sum(), leaves))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_frozen_weights_keep_no_activations(backend: str) -> None:
    values = arguments((9,), 5, 6)
    x = values["x"].requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        h = x * 2
        linear(h, values["weight"], backend=backend).sum()
    assert not any(tensor.shape == h.shape for tensor in saved)


def test_other_devices_and_layouts_are_pytorchs() -> None:
    values = arguments((256,), 128, 128)
    x, weight = values["x"], values["weight"]
    assert linear(x.to("meta"), weight.to("meta")).shape == (256, 128)
    torch.testing.assert_close(linear(x, weight.to_sparse_csr()), F.linear(x, weight))
    by_columns = x.t().contiguous().t()
    torch.set_default_device("meta")
    try:
        y = linear(by_columns, weight)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(y, F.linear(x, weight))


def test_what_cannot_serve_says_why() -> None:
    values = {name: x.double() for name, x in arguments((4,), 3, 5).items()}
    torch.testing.assert_close(linear(**values), F.linear(**values))
    with pytest.raises(UserError, match=r"linear: unknown backend='onednm'; did you mean onednn\?"):
        linear(**values, backend="onednm")
    with pytest.raises(
        UserError, match=r"'onednn' cannot serve this call: it takes float32, not torch\.float64"
    ):
        linear(**values, backend="onednn")


@pytest.mark.parametrize("backend", ["auto", *AVAILABLE])
def test_bad_shapes_and_types_are_pytorchs_errors(backend: str) -> None:
    values = arguments((4,), 3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(values["x"], torch.randn(5, 4), backend=backend)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(values["x"], values["weight"].double(), backend=backend)


def test_without_the_operator_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    REGISTRY.forget()
    try:
        assert {s.name: s.reason for s in linear_backends()}[
            "onednn"
        ] == "this PyTorch was built without oneDNN"
        values = arguments((256,), 128, 128)
        assert torch.equal(linear(**values), F.linear(**values))
    finally:
        monkeypatch.undo()
        REGISTRY.forget()
