"""The Triton kernels: what they serve, and what they compute in Triton's interpreter, in a separate process."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

from map_core.errors import UserError
from map_core.ops import scan_backends, selective_scan
from map_core.ops.conv.interface import REGISTRY as CONV
from map_core.ops.conv.triton import loading as conv_loading
from map_core.ops.registry import Request
from map_core.ops.scan.interface import REGISTRY
from map_core.ops.scan.triton import grid as triton_grid
from map_core.ops.scan.triton import loading

Tool = Callable[..., Any]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture
def _fresh_registry() -> Iterator[None]:
    REGISTRY.forget()
    yield
    REGISTRY.forget()


def run(*command: str, **environment: str) -> None:
    """Run Python with one thread; on failure show what it printed."""
    process = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("where", ["interpreter", "cuda"])
def test_equals_the_definition(where: str) -> None:
    """Without the runtime shape checker, whose decorators Triton cannot compile."""
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    cases = [str(Path(__file__).with_name(name)) for name in ("triton_cases.py", "triton_conv_cases.py")]
    options = ("-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider")
    run("-m", "pytest", *options, *cases, TRITON_INTERPRET="1" if where == "interpreter" else "0")


@needs_triton
def test_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_triton.py")
    run(str(script), "80", "90", "--chunk=2", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def test_kernels_are_not_loaded_before_they_are_asked_to_run() -> None:
    warm.run(
        "-c",
        "import sys, torch\n"
        "from map_core.ops import depthwise_causal_conv1d, selective_scan\n"
        "x = torch.ones(1, 2, 3)\n"
        "selective_scan(x, x, -torch.ones(3, 2), x[..., :2], x[..., :2])\n"
        "depthwise_causal_conv1d(x, torch.ones(3, 4))\n"
        "assert not {f'map_core.ops.{op}.triton.kernels' for op in ('scan', 'conv')} & sys.modules.keys()\n",
    )


@pytest.mark.usefixtures("_fresh_registry")
def test_is_refused_on_a_cpu_with_the_reason(scan_arguments: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = {status.name: status for status in scan_backends()}["triton"]
    assert status.reason == "PyTorch sees no CUDA device"
    with pytest.raises(
        UserError, match="backend='triton' cannot serve this call: PyTorch sees no CUDA device"
    ):
        selective_scan(**scan_arguments(3), backend="triton")


@pytest.mark.usefixtures("_fresh_registry")
@pytest.mark.parametrize(("failure", "served_by"), [(None, "triton"), ("ImportError: no triton", "torch")])
def test_serves_cuda_before_pytorch_if_triton_imports(
    failure: str | None, served_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "optional_import", lambda package, load: failure)
    assert REGISTRY.choose("auto", "cuda", torch.bfloat16, 16) == served_by
    assert REGISTRY.choose("auto", "cuda", torch.float64, 16) == "torch"
    assert REGISTRY.choose("auto", "cpu", torch.float32, 16) != "triton"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cpu", torch.float32, 16, named=True), "CUDA tensors only, these are on cpu"),
        (Request("cuda", torch.float64, 16), "not torch.float64"),
        (Request("cuda", torch.float32, 257), "1 to 256 states per channel, A has 257"),
        (Request("cuda", torch.float32, 0), "A has 0"),
        (Request("cuda", torch.float16, 1), None),
    ],
)
def test_limits(request_: Request, reason: str | None) -> None:
    refusal = loading.triton_unfit(request_)
    assert refusal is None if reason is None else reason in (refusal or "")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cpu", torch.float32, 4, named=True), "CUDA tensors only, these are on cpu"),
        (Request("cuda", torch.float64, 4), "not torch.float64"),
        (Request("cuda", torch.bfloat16, 17), "up to 16 taps, weight has 17"),
        (Request("cuda", torch.bfloat16, 4), None),
    ],
)
def test_limits_of_the_convolution(request_: Request, reason: str | None) -> None:
    refusal = conv_loading.triton_unfit(request_)
    assert refusal is None if reason is None else reason in (refusal or "")


@pytest.mark.parametrize(("failure", "served_by"), [(None, "triton"), ("ImportError: no triton", "torch")])
def test_the_convolution_serves_cuda_before_pytorch_if_triton_imports(
    failure: str | None, served_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(conv_loading, "optional_import", lambda package, load: failure)
    CONV.forget()
    try:
        assert CONV.choose("auto", "cuda", torch.bfloat16, 4) == served_by
        assert CONV.choose("auto", "cuda", torch.float64, 4) == "torch"
    finally:
        CONV.forget()


@pytest.mark.parametrize("state", [1, 3, 16, 40, 256])
@pytest.mark.parametrize("channels", [1, 31, 1536])
def test_programs_cover_every_channel_and_hold_the_states_asked_for(channels: int, state: int) -> None:
    grid = triton_grid.Grid(2, 9, channels, state, triton_grid.BACKWARD_VALUES)
    assert grid.blocks * grid.block >= channels > (grid.blocks - 1) * grid.block
    assert state <= grid.padded_state < 2 * state or state == grid.padded_state == 1
    assert grid.block * grid.padded_state <= 32 * triton_grid.BACKWARD_VALUES
    assert (grid.chunks - 1) * triton_grid.CHUNK < 9 <= grid.chunks * triton_grid.CHUNK


@pytest.mark.parametrize(
    ("length", "programs", "processors", "segments"),
    [
        (196, 6144, 132, 1),  # base width at batch 128: enough programs
        (4096, 48, 132, 44),  # a single sequence of base width
        (196, 48, 132, 3),  # no segment is shorter than 64 steps
        (128, 1, 132, 1),  # two segments would gain nothing
        (16384, 1, 132, 256),
        (1000, 400, 132, 5),
        (1000, 800, 132, 1),
        (0, 0, 132, 1),
    ],
)
def test_time_is_cut_where_there_would_be_too_few_programs(
    length: int, programs: int, processors: int, segments: int
) -> None:
    assert triton_grid.segments_of(length, programs, processors) == segments


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 196, 1000])
def test_segments_cover_every_step_in_whole_chunks(length: int, cut: int) -> None:
    grid = triton_grid.Grid(2, length, 31, 16, triton_grid.BACKWARD_VALUES, cut)
    assert grid.segments <= cut
    assert (grid.segments - 1) * grid.span < length <= grid.segments * grid.span
    assert grid.span % triton_grid.CHUNK == 0
