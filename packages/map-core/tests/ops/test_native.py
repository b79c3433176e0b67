"""The native kernels: instruction sets, threads, operators, and installations without them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from map_core.ops import (
    ScanInputs,
    attention,
    attention_backends,
    bidirectional_selective_scan,
    conv_backends,
    depthwise_causal_conv1d,
    linear,
    scan_backends,
    selective_scan,
)
from map_core.ops.attention.interface import REGISTRY as ATTENTION_REGISTRY
from map_core.ops.conv.interface import REGISTRY as CONV_REGISTRY
from map_core.ops.conv.native import native_conv
from map_core.ops.conv.triton.conv import triton_conv
from map_core.ops.linear.transpose import transposed_copy
from map_core.ops.native import library
from map_core.ops.scan.interface import REGISTRY as SCAN_REGISTRY
from map_core.ops.scan.native import native_scan
from map_core.ops.scan.triton.scan import triton_scan
from map_core.regions import region_attention_mask

Tool = Callable[..., Any]
INSTRUCTION_SETS = ("avx512", "avx2", "portable")
REGISTRIES = (SCAN_REGISTRY, CONV_REGISTRY, ATTENTION_REGISTRY)
BUILT = library.native_missing() is None
needs_kernels = pytest.mark.skipif(not BUILT, reason=library.native_missing() or "")


def clear_caches() -> None:
    library.kernels.cache_clear()
    library.native_missing.cache_clear()


def run_scan(backend: str = "native", **arguments: Tensor) -> Tensor:
    return selective_scan(**arguments, delta_softplus=True, backend=backend)  # type: ignore[arg-type]


def run_conv(backend: str = "native", **arguments: Tensor) -> Tensor:
    return depthwise_causal_conv1d(**arguments, activation="silu", backend=backend)  # type: ignore[arg-type]


def scan_both_ways(z: Tensor, backend: str = "native", **arguments: Tensor) -> Tensor:
    """The gated average of two scans of inputs that differ."""
    backward = {name: x.flip(0) if name in ("u", "delta", "B", "C") else x for name, x in arguments.items()}
    return bidirectional_selective_scan(
        ScanInputs(**arguments),
        ScanInputs(**backward),
        z,
        backend,  # type: ignore[arg-type]
    )


def conv_arguments(length: int) -> dict[str, Tensor]:
    torch.manual_seed(length)
    return {"x": torch.randn(3, length, 150), "weight": torch.randn(150, 4), "bias": torch.randn(150)}


def run_attention(backend: str = "native", **arguments: Tensor) -> Tensor:
    return attention(**arguments, mask=REGIONS, backend=backend)


def attention_arguments() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(2, 5, 150, 13) for name in ("q", "k", "v")}


REGIONS = region_attention_mask(torch.arange(150).div(11, rounding_mode="floor")[None], "map")


def instruction_sets() -> tuple[str, ...]:
    """Names in the order of the library's list, which on other processors has only the portable one."""
    first = library.kernels().map_ops_use_instruction_set(0)
    return INSTRUCTION_SETS if first != b"portable" else ("portable",)


@pytest.fixture(params=INSTRUCTION_SETS)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each in turn, skipped where this processor does not have it."""
    places, use = instruction_sets(), library.kernels().map_ops_use_instruction_set
    if request.param not in places or use(places.index(request.param)) is None:
        pytest.skip(f"this processor has no {request.param}")
    yield
    next(place for place in range(len(places)) if use(place) is not None)  # the best one, as before


@needs_kernels
@pytest.mark.usefixtures("_instruction_set")
def test_every_instruction_set_computes_the_definition(
    scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    for run, arguments in (
        (run_scan, scan_arguments(300, channels=75, state=16)),
        (run_scan, scan_arguments(300, channels=75, state=3)),
        (run_conv, conv_arguments(31)),
        (run_attention, attention_arguments()),
    ):
        expected = output_and_gradients(partial(run, backend="reference"), arguments)
        assert_same(output_and_gradients(run, arguments), expected, 2e-5)
    huge = torch.tensor([0.0, 1.0, 150.0, 1e10, 1e30, 3e38])
    x = torch.cat([huge, -huge]).reshape(1, -1, 1).expand(1, -1, 75)
    y = depthwise_causal_conv1d(x, torch.ones(75, 1), activation="silu", backend="native")
    torch.testing.assert_close(y, F.silu(x))
    for rows, columns in ((1, 1), (16, 64), (31, 150), (200, 5)):
        matrix = torch.randn(rows, columns + 3)[:, :columns]
        assert torch.equal(transposed_copy(matrix), matrix.t())


@needs_kernels
@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize(
    "bits", [0x7FFFFFFF, 0x7FC00000, 0x7FC00001, -1], ids=["a GPU's", "PyTorch's", "1", "-1"]
)
def test_nan_of_any_bits_reaches_the_output(bits: int, scan_arguments: Tool) -> None:
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    for run, names, make in (
        (run_scan, ("u", "delta", "A", "B", "z"), partial(scan_arguments, 10, channels=75, state=16)),
        (run_attention, "qkv", attention_arguments),
    ):
        for name in names:
            poisoned = make()
            poisoned[name].view(-1)[0] = nan
            assert run(**poisoned).isnan().any(), name


def halved(arguments: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The arguments with these in bfloat16, as mixed precision has them."""
    return {name: x.bfloat16() if name in names else x for name, x in arguments.items()}


@needs_kernels
@pytest.mark.usefixtures("_instruction_set")
def test_every_instruction_set_rounds_to_bfloat16_as_pytorch_does() -> None:
    # all numbers of bfloat16, NaN and infinities too
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = numbers[: 6 * 10_922].view(1, -1, 6)  # a width that fills no vector
    for weight in (1.0, 1.5, 1.0009765625, -3.1415927):  # 1.5 makes ties
        y = depthwise_causal_conv1d(x, torch.full((6, 1), weight), backend="native")
        assert torch.equal(y.nan_to_num(7.0), (x.float() * weight).bfloat16().nan_to_num(7.0))


@needs_kernels
@pytest.mark.usefixtures("_instruction_set")
def test_every_instruction_set_computes_bfloat16_in_float32(
    scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    scanned = halved(scan_arguments(300, channels=75, state=16), "u", "delta", "B", "C", "z")
    for run, arguments in (
        (run_scan, scanned),
        (scan_both_ways, scanned),
        (run_conv, halved(conv_arguments(31), "x")),
        (run_attention, halved(attention_arguments(), "q", "k", "v")),
    ):
        wide = {key: x.float() for key, x in arguments.items()}
        actual = output_and_gradients(run, arguments)
        assert actual["output"].dtype == torch.bfloat16
        expected = output_and_gradients(partial(run, backend="reference"), wide)
        assert_same({key: x.float() for key, x in actual.items()}, expected, 8e-3)


@needs_kernels
@pytest.mark.parametrize("names", [("u",), ("delta", "z"), ("u", "delta"), ("z",), ("B",)])
def test_a_scan_of_several_dtypes_is_computed_in_float32(
    names: tuple[str, ...], scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    arguments = halved(scan_arguments(30, channels=75, state=16), *names)
    actual = output_and_gradients(run_scan, arguments)
    for name, x in arguments.items():
        assert actual[f"gradient of {name}"].dtype == x.dtype
    assert actual["output"].dtype == arguments["u"].dtype
    assert_same(actual, output_and_gradients(partial(run_scan, backend="reference"), arguments), 8e-3)


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads(
    scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            (
                output_and_gradients(run_scan, scan_arguments(70, batch=5, channels=200, state=16)),
                output_and_gradients(run_conv, conv_arguments(40)),
                output_and_gradients(run_attention, attention_arguments()),
            )
        )
    for other in results[1:]:
        assert_same(other[0], results[0][0], 0.0)
        assert_same(other[1], results[0][1], 0.0)
        assert_same(other[2], results[0][2], 0.0)


@needs_kernels
def test_threads_of_its_own_serve_without_openmp(
    scan_arguments: Tool, output_and_gradients: Tool, assert_same: Tool
) -> None:
    arguments = scan_arguments(70, channels=200, state=16)
    torch.set_num_threads(2)
    expected = output_and_gradients(run_scan, arguments)
    library.kernels().map_ops_use_openmp(None)
    try:
        assert_same(output_and_gradients(run_scan, arguments), expected, 0.0)
    finally:
        library.kernels().map_ops_use_openmp(library._openmp_entry())


@needs_kernels
def test_operators_pass_pytorchs_own_checks(scan_arguments: Tool) -> None:
    arguments = {name: x.requires_grad_() for name, x in scan_arguments(9).items()}
    tensors = [arguments[name] for name in ("u", "delta", "A", "B", "C", "D")]
    scan = torch.ops.map_core.selective_scan.default
    torch.library.opcheck(scan, (tensors, arguments["z"], [1] * 6 + [0], [1], [1]))
    torch.library.opcheck(scan, (tensors[:5], None, [1] * 5 + [0] * 2, [0], [0]))
    conv = torch.ops.map_core.depthwise_causal_conv1d.default
    x, weight, bias = (value.requires_grad_() for value in conv_arguments(5).values())
    torch.library.opcheck(conv, (x, weight, bias, True, False))
    torch.library.opcheck(conv, (x, weight, None, False, True))
    operator = torch.ops.map_core.attention.default
    q, k, v = (torch.randn(2, 7, 3, 4, requires_grad=True) for _ in range(3))
    torch.library.opcheck(operator, (q, k, v, torch.rand(1, 7, 7) > 0.2))
    torch.library.opcheck(operator, (q, k, v, None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": (1, 9, 4)}, r"B must have shape \(1, 30, 4\); got \(1, 9, 4\)"),
        ({"C": (2, 30, 4)}, r"C must have shape \(1, 30, 4\); got \(2, 30, 4\)"),
        ({"delta": (1, 30, 1)}, r"delta must have shape \(1, 30, 8\)"),
        ({"A": (7, 4)}, r"A must have shape \(8, 4\)"),
        ({"D": (1,)}, r"D must have shape \(8,\)"),
        ({"delta_bias": (9,)}, r"bias must have shape \(8,\)"),
        ({"z": (1, 29, 8)}, r"z must have shape \(1, 30, 8\); got \(1, 29, 8\)"),
    ],
)
@pytest.mark.parametrize("scan", [pytest.param(native_scan, marks=needs_kernels), triton_scan])
def test_kernels_of_the_scan_read_no_memory_that_is_not_there(
    scan: Tool, changes: dict[str, tuple[int, ...]], message: str
) -> None:
    """As in a traced model, where no shape is checked before the call."""
    shapes = {"u": (1, 30, 8), "delta": (1, 30, 8), "A": (8, 4), "B": (1, 30, 4), "C": (1, 30, 4)}
    shapes |= {"D": (8,), "delta_bias": (8,), "z": (1, 30, 8)} | changes
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    z = tensors.pop("z")
    with pytest.raises(ValueError, match=message):
        scan(ScanInputs(**tensors), z, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((8, 4), None, r"weight must have shape \(800, 1 or more\); got \(8, 4\)"),
        ((800, 0), None, r"weight must have shape \(800, 1 or more\); got \(800, 0\)"),
        ((800, 1, 4), None, r"weight must have shape .*; got \(800, 1, 4\)"),
        ((800, 4), (8,), r"bias must have shape \(800,\); got \(8,\)"),
    ],
)
@pytest.mark.parametrize("conv", [pytest.param(native_conv, marks=needs_kernels), triton_conv])
def test_kernels_of_the_convolution_read_no_memory_that_is_not_there(
    conv: Tool, weight: tuple[int, ...], bias: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conv(
            torch.randn(1, 9, 800),
            torch.randn(weight),
            None if bias is None else torch.randn(bias),
            None,
            False,
        )


def test_without_the_library_pytorch_serves_and_the_reason_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scan_arguments: Tool
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "_kernels.so")
    for registry in REGISTRIES:
        registry.forget()
    clear_caches()
    try:
        for statuses in (scan_backends(), conv_backends(), attention_backends()):
            native = {status.name: status for status in statuses}["native"]
            assert native.reason.startswith("not built: no C++ compiler at install time")
        assert SCAN_REGISTRY.choose("auto", "cpu", torch.float32, 16) == "torch"
        assert selective_scan(**scan_arguments(3)).shape == (2, 3, 20)
        x, weight = torch.randn(300, 128), torch.randn(128, 128, requires_grad=True)
        (grad,) = torch.autograd.grad(linear(x, weight).sum(), weight)
        torch.testing.assert_close(grad, x.sum(0).expand(128, 128))
    finally:
        monkeypatch.undo()
        clear_caches()
        for registry in REGISTRIES:
            registry.forget()


def test_a_library_that_cannot_be_loaded_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_text("no library")
    monkeypatch.setattr(library, "PATH", broken)
    clear_caches()
    try:
        assert "_kernels.so" in (library.native_missing() or "")
    finally:
        monkeypatch.undo()
        clear_caches()


@needs_kernels
def test_auto_prefers_the_native_kernels_on_a_cpu() -> None:
    for registry in REGISTRIES:
        assert registry.choose("auto", "cpu", torch.bfloat16, 4) == "native"
        assert registry.choose("auto", "cpu", torch.float64, 4) == "torch"
