"""Every implementation of the scan computes what the definition says: outputs and every gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from map_core.ops import ScanInputs, bidirectional_selective_scan, scan_backends, selective_scan
from map_core.ops.registry import Request
from map_core.ops.scan.interface import REGISTRY

FAST = [
    status.name
    for status in scan_backends()
    if status.available
    and status.name != "reference"
    and REGISTRY[status.name].unfit(Request("cpu", torch.float32, 16)) is None
]
FLOAT32_TOLERANCE = 2e-5  # docs/numerics.md
BFLOAT16_TOLERANCE = 8e-3
Tool = Callable[..., Any]


def scan(backend: str, **options: Any) -> Callable[..., Tensor]:
    return partial(selective_scan, backend=backend, **options)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 196, 1000])
def test_equals_the_definition_at_every_length(
    length: int,
    reverse: bool,
    backend: str,
    scan_arguments: Tool,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    arguments = scan_arguments(length)
    options = {"reverse": reverse, "delta_softplus": True}
    actual = output_and_gradients(scan(backend, **options), arguments)
    assert_same(actual, output_and_gradients(scan("reference", **options), arguments), FLOAT32_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("channels", "state"), [(1, 16), (16, 16), (70, 16), (130, 1), (9, 40)])
def test_equals_the_definition_at_every_width(
    channels: int,
    state: int,
    backend: str,
    scan_arguments: Tool,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    arguments = scan_arguments(150, channels=channels, state=state)
    actual = output_and_gradients(scan(backend, delta_softplus=True), arguments)
    expected = output_and_gradients(scan("reference", delta_softplus=True), arguments)
    assert_same(actual, expected, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",), ("D", "z")])
def test_equals_the_definition_without_optional_arguments(
    present: tuple[str, ...],
    softplus: bool,
    backend: str,
    scan_arguments: Tool,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    arguments = scan_arguments(20, state=16)
    for name in {"D", "z", "delta_bias"} - set(present):
        del arguments[name]
    if not softplus:
        arguments["delta"] = arguments["delta"].abs()
    actual = output_and_gradients(scan(backend, delta_softplus=softplus), arguments)
    expected = output_and_gradients(scan("reference", delta_softplus=softplus), arguments)
    assert_same(actual, expected, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
def test_bfloat16_inputs_are_widened_and_gradients_come_back_in_their_dtype(
    reverse: bool, backend: str, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    arguments = scan_arguments(196, dtype=torch.bfloat16)
    options = {"reverse": reverse, "delta_softplus": True}
    actual = output_and_gradients(scan(backend, **options), arguments)
    assert actual["output"].dtype == torch.bfloat16
    assert actual["gradient of A"].dtype == torch.float32
    expected = output_and_gradients(scan("reference", **options), arguments)
    assert_same(actual, expected, BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
def test_strided_inputs_are_read_as_they_lie(
    reverse: bool, backend: str, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    dense = scan_arguments(33)
    strided = dict(dense)
    strided["u"], strided["z"] = torch.cat([dense["u"], dense["z"]], -1).chunk(2, -1)
    strided["delta"] = dense["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    strided["B"] = dense["B"].transpose(0, 1).contiguous().transpose(0, 1)
    strided["A"] = dense["A"].t().contiguous().t()
    strided["D"] = torch.stack([dense["D"], dense["D"]], 1)[:, 0]
    options = {"reverse": reverse, "delta_softplus": True}
    actual = output_and_gradients(scan(backend, **options), strided)
    assert_same(actual, output_and_gradients(scan("reference", **options), dense), FLOAT32_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
def test_an_expanded_cotangent_is_accepted(backend: str, scan_arguments: Tool) -> None:
    arguments = scan_arguments(9)
    grads = []
    for name in (backend, "reference"):
        u = arguments["u"].clone().requires_grad_()
        selective_scan(**(arguments | {"u": u}), backend=name).sum().backward()
        grads.append(u.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("batch", "length"), [(0, 12), (2, 0)])
def test_nothing_to_scan_gives_empty_outputs_and_zero_gradients(
    batch: int, length: int, backend: str, scan_arguments: Tool, output_and_gradients: Tool
) -> None:
    results = output_and_gradients(scan(backend), scan_arguments(length, batch=batch))
    assert results["output"].shape == (batch, length, 20)
    for name in ("A", "D", "delta_bias"):
        assert torch.count_nonzero(results[f"gradient of {name}"]) == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_float64_gradients_agree_with_finite_differences(
    backend: str, reverse: bool, scan_arguments: Tool
) -> None:
    arguments = scan_arguments(10, channels=2, state=3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in arguments.values()]
    options = {"delta_softplus": True, "reverse": reverse, "backend": backend}

    def function(*values: Tensor) -> Tensor:
        return selective_scan(**dict(zip(arguments, values, strict=True)), **options)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", ["auto", *FAST])
def test_transformations_of_torch_func_see_the_definition(
    backend: str, scan_arguments: Tool, assert_transformed: Tool
) -> None:
    arguments = scan_arguments(7, dtype=torch.float64)
    u = arguments.pop("u")
    run, definition = (partial(selective_scan, **arguments, backend=name) for name in (backend, "reference"))
    assert_transformed(run, definition, u)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_reverse_equals_flipping_every_sequence(backend: str, scan_arguments: Tool) -> None:
    arguments = scan_arguments(21)
    flipped = {name: x.flip(1) if x.ndim == 3 else x for name, x in arguments.items()}
    expected = selective_scan(**flipped, delta_softplus=True, backend=backend).flip(1)
    actual = selective_scan(**arguments, delta_softplus=True, reverse=True, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_both_directions_are_averaged_and_gated(
    backend: str, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    forward, backward = scan_arguments(45, state=16), scan_arguments(46, state=16)
    arguments = {name: x for name, x in forward.items() if name != "z"}
    # The second direction reads other weights, and no D.
    arguments |= {
        f"{name}_2": x[:, :45] if x.ndim == 3 else x for name, x in backward.items() if name not in ("z", "D")
    }
    arguments["z"] = forward["z"]

    def split(values: dict[str, Tensor]) -> tuple[ScanInputs, ScanInputs]:
        first = {name: x for name, x in values.items() if not name.endswith("_2")}
        second = {name.removesuffix("_2"): x for name, x in values.items() if name.endswith("_2")}
        return ScanInputs(**first), ScanInputs(**second)

    def fused(z: Tensor, **values: Tensor) -> Tensor:
        return bidirectional_selective_scan(*split(values), z, backend=backend)

    def definition(z: Tensor, **values: Tensor) -> Tensor:
        y = [
            selective_scan(
                s.u, s.delta, s.A, s.B, s.C, s.D, None, s.delta_bias, True, reverse, backend="reference"
            )
            for s, reverse in zip(split(values), (False, True), strict=True)
        ]
        return 0.5 * (y[0] + y[1]) * torch.nn.functional.silu(z)

    actual = output_and_gradients(fused, arguments)
    assert_same(actual, output_and_gradients(definition, arguments), FLOAT32_TOLERANCE)


@pytest.mark.parametrize("backend", FAST)
def test_both_directions_without_a_gate(backend: str, scan_arguments: Tool) -> None:
    arguments = scan_arguments(12)
    inputs = ScanInputs(**{name: x for name, x in arguments.items() if name != "z"})
    gated = bidirectional_selective_scan(inputs, inputs, arguments["z"], backend=backend)
    plain = bidirectional_selective_scan(inputs, inputs, None, backend=backend)
    torch.testing.assert_close(gated, plain * torch.nn.functional.silu(arguments["z"]))


@pytest.mark.parametrize("backend", FAST)
def test_autocast_changes_nothing(
    backend: str, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    arguments = scan_arguments(30)
    expected = output_and_gradients(scan(backend, delta_softplus=True), arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = output_and_gradients(scan(backend, delta_softplus=True), arguments)
    assert_same(actual, expected, 0.0)


@pytest.mark.parametrize("backend", FAST)
def test_activation_checkpointing_changes_nothing(
    backend: str, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    arguments = scan_arguments(30)

    def checkpointed(**leaves: Tensor) -> Tensor:
        result = checkpoint(scan(backend, delta_softplus=True), **leaves, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result

    expected = output_and_gradients(scan(backend, delta_softplus=True), arguments)
    assert_same(output_and_gradients(checkpointed, arguments), expected, 0.0)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_non_finite_input_shows_in_the_output(backend: str, scan_arguments: Tool) -> None:
    arguments = scan_arguments(10, state=16)
    for name in ("u", "delta", "A", "z"):
        poisoned = dict(arguments)
        poisoned[name] = arguments[name].clone()
        poisoned[name].view(-1)[0] = torch.nan
        y = selective_scan(**poisoned, delta_softplus=True, backend=backend)
        assert torch.isnan(y).any(), name


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_extreme_steps_stay_finite(backend: str, scan_arguments: Tool) -> None:
    arguments = scan_arguments(10, state=16)
    arguments["delta"] = torch.linspace(-150, 150, arguments["delta"].numel()).view_as(arguments["delta"])
    arguments["z"] = -arguments["delta"]
    y = selective_scan(**arguments, delta_softplus=True, backend=backend)
    expected = selective_scan(**arguments, delta_softplus=True, backend="reference")
    torch.testing.assert_close(y, expected, rtol=2e-5, atol=1e-4)


def test_the_pytorch_operator_passes_pytorchs_own_checks(scan_arguments: Tool) -> None:
    values = {name: x.requires_grad_() for name, x in scan_arguments(9).items()}
    sequence = [values[name] for name in ("u", "delta", "A", "B", "C")]
    operator = torch.ops.map_core.chunked_selective_scan.default
    torch.library.opcheck(
        operator, (*sequence, values["D"], values["delta_bias"], True, values["z"], True, True)
    )
    torch.library.opcheck(operator, (*sequence, None, None, False, None, False, True))


def live_bytes_at_peak(backend: str, arguments: dict[str, Tensor]) -> int:
    """Return the peak of memory beside inputs, output and gradients."""
    leaves = [x.requires_grad_() for x in arguments.values()]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        y = selective_scan(**arguments, delta_softplus=True, backend=backend)
        grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    expected = sum(x.numel() * 4 for x in (y, y, *grads))  # the cotangent is a y too
    return peak - expected


def test_memory_beside_gradients_grows_far_slower_than_the_length(scan_arguments: Tool) -> None:
    short, long = (
        live_bytes_at_peak("torch", scan_arguments(length, batch=1, state=16)) for length in (256, 4096)
    )
    assert short > 0
    assert long < 4 * short
    one_state_per_step = 4096 * 20 * 16 * 4
    assert long < one_state_per_step / 8
