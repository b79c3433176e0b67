"""The adapters to mamba_ssm and causal_conv1d, against stand-ins that check what the real kernels require."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from map_core.errors import UserError
from map_core.ops import conv_backends, depthwise_causal_conv1d, scan_backends, selective_scan
from map_core.ops.conv.causal_conv1d import causal_conv1d_conv, causal_conv1d_unfit
from map_core.ops.conv.interface import REGISTRY as CONV_REGISTRY
from map_core.ops.registry import Request
from map_core.ops.scan.inputs import ScanInputs
from map_core.ops.scan.interface import REGISTRY as SCAN_REGISTRY
from map_core.ops.scan.mamba_ssm import mamba_ssm_scan, mamba_ssm_unfit

Tool = Callable[..., Any]


def kernel_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Check mamba_ssm's requirements of ``selective_scan_fn``, and compute it with the definition."""
    batch, channels, length = u.shape
    state = A.shape[1]
    assert delta.shape == u.shape
    assert B.shape == C.shape == (batch, state, length)
    for x in (u, delta, B, C, *(() if z is None else (z,))):
        assert x.dtype == u.dtype
        assert x.stride(-1) == 1
        assert x.is_contiguous()
    assert A.shape[0] == channels
    for x in (A, D, delta_bias):
        assert x is None or (x.dtype == torch.float32 and x.is_contiguous())
    sequences = [None if x is None else x.transpose(1, 2) for x in (u, delta, B, C, z)]
    u, delta, B, C, z = sequences  # type: ignore[assignment]
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend="reference")
    return y.transpose(1, 2)


def kernel_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Check causal_conv1d's requirements of ``causal_conv1d_fn``, and compute it with the definition."""
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    assert x.stride(2) == 1 or channels_last
    assert not channels_last or x.shape[1] % 8 == 0
    assert weight.shape[0] == x.shape[1]
    assert weight.stride(1) == 1
    assert bias is None or (bias.dtype == weight.dtype and bias.stride(0) == 1)
    assert activation in (None, "silu", "swish")
    x = x.transpose(1, 2)
    return depthwise_causal_conv1d(x, weight, bias, activation, backend="reference").transpose(1, 2)


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = kernel_scan  # type: ignore[attr-defined]
    conv = ModuleType("causal_conv1d")
    conv.causal_conv1d_fn = kernel_conv  # type: ignore[attr-defined]
    for module in (interface, conv):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("mamba_ssm", "mamba_ssm.ops", "selective_scan_cuda", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for registry in (SCAN_REGISTRY, CONV_REGISTRY):
        registry.forget()
    yield
    for registry in (SCAN_REGISTRY, CONV_REGISTRY):
        registry.forget()


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("missing", [(), ("D", "z", "delta_bias")])
def test_scan_through_mamba_ssm(
    missing: tuple[str, ...],
    dtype: torch.dtype,
    tolerance: float,
    reverse: bool,
    scan_arguments: Tool,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    arguments = {k: v for k, v in scan_arguments(13, dtype=dtype).items() if k not in missing}

    def adapted(z: Tensor | None = None, **values: Tensor) -> Tensor:
        return mamba_ssm_scan(ScanInputs(**values), z, reverse)  # type: ignore[arg-type]

    def definition(**values: Tensor) -> Tensor:
        options: dict[str, Any] = {"delta_softplus": True, "reverse": reverse, "backend": "reference"}
        return selective_scan(**values, **options)

    actual = output_and_gradients(adapted, arguments)
    assert_same(actual, output_and_gradients(definition, arguments), tolerance)


@pytest.mark.usefixtures("_stand_ins")
def test_mixed_dtypes_reach_the_kernel_as_it_wants_them(scan_arguments: Tool) -> None:
    arguments = scan_arguments(13, dtype=torch.bfloat16)
    arguments["delta"] = arguments["delta"].float()
    z = arguments.pop("z").float()
    arguments["A"] = arguments["A"].t().contiguous().t()
    assert mamba_ssm_scan(ScanInputs(**arguments), z, False).dtype == torch.bfloat16


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("channels", [16, 21])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_through_causal_conv1d(
    activation: str | None, reverse: bool, channels: int, output_and_gradients: Tool, assert_same: Tool
) -> None:
    torch.manual_seed(0)
    arguments = {
        "x": torch.randn(2, 9, 2 * channels)[..., :channels],
        "weight": torch.randn(4, channels).t(),
        "bias": torch.randn(channels),
    }

    def adapted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d_conv(x, weight, bias, activation, reverse)

    def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_causal_conv1d(x, weight, bias, activation, reverse, backend="reference")

    actual = output_and_gradients(adapted, arguments)
    assert_same(actual, output_and_gradients(definition, arguments), 1e-6)


@pytest.mark.usefixtures("_stand_ins")
def test_nothing_launches_no_kernel(scan_arguments: Tool) -> None:
    arguments = scan_arguments(4, batch=0)
    z = arguments.pop("z")
    assert mamba_ssm_scan(ScanInputs(**arguments), z, False).shape == (0, 4, 20)
    x = torch.zeros(0, 4, 8)
    assert causal_conv1d_conv(x, torch.ones(8, 4), None, None, False).shape == (0, 4, 8)


@pytest.mark.usefixtures("_stand_ins")
def test_installed_packages_are_available_but_serve_cuda_only(scan_arguments: Tool) -> None:
    assert {s.name: s.available for s in scan_backends()}["mamba_ssm"]
    assert {s.name: s.available for s in conv_backends()}["causal_conv1d"]
    assert SCAN_REGISTRY.choose("auto", "cuda", torch.bfloat16, 16) == "mamba_ssm"
    assert SCAN_REGISTRY.choose("auto", "cuda", torch.float64, 16) == "torch"
    assert SCAN_REGISTRY.choose("auto", "cpu", torch.float32, 16) != "mamba_ssm"
    assert CONV_REGISTRY.choose("auto", "cuda", torch.bfloat16, 4) == "causal_conv1d"
    assert CONV_REGISTRY.choose("auto", "cuda", torch.bfloat16, 7) == "torch"
    with pytest.raises(UserError, match="it runs on CUDA tensors only, these are on cpu"):
        selective_scan(**scan_arguments(4), backend="mamba_ssm")


@pytest.mark.parametrize("error", [ImportError, OSError, AttributeError, RuntimeError])
def test_a_package_that_fails_to_import_in_any_way_is_a_reason(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error("undefined symbol: _ZN3c10")

    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, Broken(name))
    for registry, name in ((SCAN_REGISTRY, "mamba_ssm"), (CONV_REGISTRY, "causal_conv1d")):
        registry.forget()
        status = {s.name: s for s in registry.statuses()}[name]
        registry.forget()
        assert not status.available
        assert status.reason == f"{error.__name__}: undefined symbol: _ZN3c10"


def test_mamba_ssm_without_its_scan_kernel_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    SCAN_REGISTRY.forget()
    status = {s.name: s for s in scan_backends()}["mamba_ssm"]
    SCAN_REGISTRY.forget()
    assert "selective_scan_cuda" in status.reason


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cuda", torch.float32, 257), "at most 256 states per channel, A has 257"),
        (Request("cuda", torch.float64, 16), "not torch.float64"),
        (Request("cuda", torch.float32, 16), None),
    ],
)
def test_limits_of_mamba_ssm(request_: Request, reason: str | None) -> None:
    refusal = mamba_ssm_unfit(request_)
    assert refusal is None if reason is None else reason in (refusal or "")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cuda", torch.float32, 5), "it takes 2 to 4 taps, weight has 5"),
        (Request("cuda", torch.float64, 4), "not torch.float64"),
        (Request("cpu", torch.float32, 4), "CUDA tensors only"),
        (Request("cuda", torch.float16, 4), None),
    ],
)
def test_limits_of_causal_conv1d(request_: Request, reason: str | None) -> None:
    refusal = causal_conv1d_unfit(request_)
    assert refusal is None if reason is None else reason in (refusal or "")
