"""The Triton scan on a GPU, or on the CPU in Triton's interpreter: test_triton.py runs this file in its own process.

TRITON_INTERPRET=1 python -m pytest -o addopts=--import-mode=importlib packages/map-core/tests/ops/triton_cases.py
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from map_core.ops import ScanInputs, bidirectional_selective_scan, selective_scan
from map_core.ops.scan.interface import REGISTRY
from map_core.ops.scan.triton import grid as triton_grid

FLOAT32_TOLERANCE = 2e-5  # docs/numerics.md
BFLOAT16_TOLERANCE = 8e-3
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
CHUNK_OF_A_GPU = triton_grid.CHUNK
if DEVICE == "cpu":
    # the interpreter needs a tenth of a second for a step, and backward runs all steps of a chunk
    triton_grid.CHUNK = 3
CHUNK = triton_grid.CHUNK
LENGTHS = [1, CHUNK - 1, CHUNK, 2 * CHUNK + 1]
Tool = Callable[..., Any]
Compare = Callable[..., None]


@pytest.fixture
def scan_arguments(scan_arguments: Tool) -> Tool:
    def make(length: int, **sizes: Any) -> dict[str, Tensor]:
        return {name: x.to(DEVICE) for name, x in scan_arguments(length, **sizes).items()}

    return make


@pytest.fixture
def compare(output_and_gradients: Tool, assert_same: Tool) -> Compare:
    """Compare one direction, outputs and every gradient, with the definition."""

    def run(
        arguments: dict[str, Tensor],
        tolerance: float = FLOAT32_TOLERANCE,
        softplus: bool = True,
        **options: Any,
    ) -> None:
        results = [
            output_and_gradients(
                partial(selective_scan, backend=name, delta_softplus=softplus, **options), arguments
            )
            for name in ("triton", "reference")
        ]
        assert_same(*results, tolerance)

    return run


@pytest.fixture
def compare_both(output_and_gradients: Tool, assert_same: Tool) -> Compare:
    """Compare the average of two directions with that of two definitions; names ending in _2 are the second's."""

    def run(arguments: dict[str, Tensor], tolerance: float = FLOAT32_TOLERANCE) -> None:
        def average(backend: str, z: Tensor | None = None, **values: Tensor) -> Tensor:
            first = {name: x for name, x in values.items() if not name.endswith("_2")}
            second = {name.removesuffix("_2"): x for name, x in values.items() if name.endswith("_2")}
            directions = ScanInputs(**first), ScanInputs(**second, delta_softplus=False)
            if backend == "triton":
                return bidirectional_selective_scan(*directions, z, backend=backend)
            # In float32 throughout: the average must be rounded once, like the kernel's.
            wide = [
                ScanInputs(**{k: v.float() if isinstance(v, Tensor) else v for k, v in vars(d).items()})
                for d in directions
            ]
            y = bidirectional_selective_scan(*wide, None if z is None else z.float(), backend=backend)
            return y.to(values["u"].dtype)

        results = [
            output_and_gradients(partial(average, name), arguments) for name in ("triton", "reference")
        ]
        assert_same(*results, tolerance)

    return run


def two_directions(make: Tool, length: int, **sizes: Any) -> dict[str, Tensor]:
    """Arguments of two directions that share z; the second has no D and a step size without softplus."""
    first = make(length, **sizes)
    second = {name: x.flip(0) for name, x in make(length, **sizes).items() if name not in ("z", "D")}
    second["delta"] = 0.3 * second["delta"].abs()
    return first | {f"{name}_2": x for name, x in second.items()}


@pytest.mark.parametrize(("length", "reverse"), [*zip(LENGTHS, [False, True, False, True], strict=True)])
def test_one_direction(length: int, reverse: bool, scan_arguments: Tool, compare: Compare) -> None:
    compare(scan_arguments(length, batch=1, channels=5, state=3), reverse=reverse)


@pytest.mark.parametrize("length", LENGTHS)
def test_both_directions(length: int, scan_arguments: Tool, compare_both: Compare) -> None:
    compare_both(two_directions(scan_arguments, length, batch=1, channels=5, state=3))


@pytest.fixture
def _cut_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a large GPU, where even short sequences are cut into segments."""
    monkeypatch.setattr(triton_grid, "processors_of", lambda device: 1000)
    monkeypatch.setattr(triton_grid, "MIN_SPAN", CHUNK)


@pytest.mark.usefixtures("_cut_time")
@pytest.mark.parametrize(
    ("length", "reverse"), [(3 * CHUNK, False), (3 * CHUNK + 1, False), (5 * CHUNK - 1, True)]
)
def test_one_direction_cut_into_segments(
    length: int, reverse: bool, scan_arguments: Tool, compare: Compare
) -> None:
    assert triton_grid.segments_of(length, 1, 1000) > 2
    compare(scan_arguments(length, batch=1, channels=5, state=3), reverse=reverse)


@pytest.mark.usefixtures("_cut_time")
@pytest.mark.parametrize(("length", "gated"), [(3 * CHUNK + 1, True), (3 * CHUNK, False)])
def test_both_directions_cut_into_segments(
    length: int, gated: bool, scan_arguments: Tool, compare_both: Compare
) -> None:
    arguments = two_directions(scan_arguments, length, batch=1, channels=5, state=3)
    if not gated:
        del arguments["z"]
    compare_both(arguments)


@pytest.mark.usefixtures("_cut_time")
def test_segments_without_options_and_in_bfloat16(scan_arguments: Tool, compare: Compare) -> None:
    arguments = scan_arguments(4 * CHUNK - 1, batch=1, channels=6, dtype=torch.bfloat16)
    compare({name: arguments[name] for name in ("u", "delta", "A", "B", "C")}, BFLOAT16_TOLERANCE)


def test_the_chunk_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, scan_arguments: Tool, compare_both: Compare
) -> None:
    monkeypatch.setattr(triton_grid, "CHUNK", CHUNK_OF_A_GPU)
    compare_both(two_directions(scan_arguments, CHUNK_OF_A_GPU + 1, batch=1, channels=3, state=3))


def test_a_length_of_several_tiles(scan_arguments: Tool, compare_both: Compare) -> None:
    length = 196 if DEVICE == "cuda" else 4 * CHUNK + 2
    compare_both(two_directions(scan_arguments, length, batch=1, channels=3, state=3))


@pytest.mark.parametrize(("channels", "state"), [(1, 16), (33, 16), (40, 1), (9, 40), (32, 3)])
def test_widths_and_states(channels: int, state: int, scan_arguments: Tool, compare_both: Compare) -> None:
    compare_both(two_directions(scan_arguments, 3, batch=2, channels=channels, state=state))


def test_directions_of_different_state_sizes(scan_arguments: Tool, compare_both: Compare) -> None:
    arguments = two_directions(scan_arguments, 5, batch=1, channels=6, state=4)
    for name in ("A_2", "B_2", "C_2"):
        arguments[name] = arguments[name][..., :3]
    compare_both(arguments)


@pytest.mark.parametrize(
    ("present", "softplus"),
    [
        ((), False),
        (("D",), True),
        (("z",), False),
        (("delta_bias",), False),
        (("delta_bias",), True),
        (("D", "z"), True),
    ],
)
def test_without_optional_arguments(
    present: tuple[str, ...], softplus: bool, scan_arguments: Tool, compare: Compare
) -> None:
    arguments = scan_arguments(CHUNK + 1, batch=1, channels=6)
    for name in {"D", "z", "delta_bias"} - set(present):
        del arguments[name]
    if not softplus:
        arguments["delta"] = arguments["delta"].abs()
    compare(arguments, softplus=softplus)


@pytest.mark.parametrize("length", [CHUNK, CHUNK + 1])
def test_both_directions_without_a_gate(length: int, scan_arguments: Tool, compare_both: Compare) -> None:
    arguments = two_directions(scan_arguments, length, batch=1, channels=6)
    del arguments["z"]
    compare_both(arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(
    dtype: torch.dtype, scan_arguments: Tool, compare: Compare, compare_both: Compare
) -> None:
    compare(scan_arguments(CHUNK + 1, batch=1, channels=6, dtype=dtype), BFLOAT16_TOLERANCE, reverse=True)
    arguments = two_directions(scan_arguments, CHUNK + 2, batch=1, channels=6)
    weights = ("A", "D", "delta_bias")
    narrow = {k: v if k.removesuffix("_2") in weights else v.to(dtype) for k, v in arguments.items()}
    compare_both(narrow, BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("reverse", [False, True])
def test_strided_inputs(
    reverse: bool, scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    dense = scan_arguments(CHUNK + 1, channels=6)
    strided = dict(dense)
    strided["u"], strided["z"] = torch.cat([dense["u"], dense["z"]], -1).chunk(2, -1)
    strided["delta"] = dense["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    strided["B"] = dense["B"].transpose(0, 1).contiguous().transpose(0, 1)
    strided["A"] = dense["A"].t().contiguous().t()
    strided["D"] = torch.stack([dense["D"], dense["D"]], 1)[:, 0]
    options: dict[str, Any] = {"reverse": reverse, "delta_softplus": True}
    actual = output_and_gradients(partial(selective_scan, backend="triton", **options), strided)
    expected = output_and_gradients(partial(selective_scan, backend="reference", **options), dense)
    assert_same(actual, expected, FLOAT32_TOLERANCE)


def test_an_expanded_cotangent(scan_arguments: Tool) -> None:
    arguments = scan_arguments(CHUNK + 1, batch=1)
    grads = []
    for name in ("triton", "reference"):
        u = arguments["u"].clone().requires_grad_()
        selective_scan(**(arguments | {"u": u}), backend=name).sum().backward()
        grads.append(u.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(0, 12), (2, 0)])
def test_nothing_to_scan(batch: int, length: int, scan_arguments: Tool, output_and_gradients: Tool) -> None:
    arguments = scan_arguments(length, batch=batch)
    results = output_and_gradients(partial(selective_scan, backend="triton"), arguments)
    assert results["output"].shape == (batch, length, 20)
    for name in ("A", "D", "delta_bias"):
        assert torch.count_nonzero(results[f"gradient of {name}"]) == 0


def test_a_non_finite_input_shows_in_the_output(scan_arguments: Tool) -> None:
    arguments = scan_arguments(3, batch=1)
    for name in ("u", "delta", "A", "z"):
        poisoned = dict(arguments)
        poisoned[name] = arguments[name].clone()
        poisoned[name].view(-1)[0] = torch.nan
        assert torch.isnan(selective_scan(**poisoned, delta_softplus=True, backend="triton")).any(), name


def test_extreme_steps_stay_finite(scan_arguments: Tool, compare: Compare) -> None:
    arguments = scan_arguments(CHUNK + 2)
    arguments["delta"] = torch.linspace(-150, 150, 40 * (CHUNK + 2), device=DEVICE).view(2, -1, 20)
    arguments["z"] = -arguments["delta"]
    compare(arguments)


def test_gradients_repeat_bit_for_bit(scan_arguments: Tool, output_and_gradients: Tool) -> None:
    arguments = scan_arguments(CHUNK + 1, batch=1, channels=6)
    call = partial(selective_scan, backend="triton", delta_softplus=True)
    first, again = (output_and_gradients(call, arguments) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_auto_does_not_pick_the_interpreter() -> None:
    assert REGISTRY.choose("auto", "cpu", torch.float32, 16) != "triton"


def test_operator_passes_pytorchs_own_checks(scan_arguments: Tool) -> None:
    arguments = {name: x.requires_grad_() for name, x in scan_arguments(3, batch=1, channels=4).items()}
    tensors = [arguments[name] for name in ("u", "delta", "A", "B", "C", "D")]
    scan = torch.ops.map_core.triton_selective_scan.default
    torch.library.opcheck(scan, (tensors, arguments["z"], [1] * 6 + [0], [1], [1]))


def test_compiles_to_one_graph_and_exports(scan_arguments: Tool) -> None:
    class Scan(torch.nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            z, *fields = values
            inputs = ScanInputs(*fields)
            return bidirectional_selective_scan(inputs, inputs, z, backend="triton")

    arguments = scan_arguments(3, batch=1, channels=4)
    values = (arguments.pop("z"), *arguments.values())
    expected = Scan()(*values)
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*values), expected)
    program = torch.export.export(Scan(), values)
    torch.testing.assert_close(program.module()(*values), expected)
    names = {str(node.target) for node in program.graph.nodes}
    assert "map_core.triton_selective_scan.default" in names
