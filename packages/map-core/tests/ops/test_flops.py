"""What the counters count for scans and convolutions, against programs that count every number they combine."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from map_core.ops import (
    ScanInputs,
    bidirectional_selective_scan,
    conv_backends,
    depthwise_causal_conv1d,
    depthwise_conv1d,
    jit_flop_handles,
    scan_backends,
    selective_scan,
)

SCANS = [s.name for s in scan_backends() if s.available and s.name != "reference"]
CONVOLUTIONS = [s.name for s in conv_backends() if s.available and s.name != "reference"]
BATCH, LENGTH, CHANNELS, STATE = 2, 5, 3, 4


class Counted:
    """A number that counts how often numbers are combined."""

    total = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __add__(self, other: "Counted") -> "Counted":
        Counted.total += 1
        return Counted(self.value + other.value)

    def __mul__(self, other: "Counted") -> "Counted":
        Counted.total += 1
        return Counted(self.value * other.value)

    def exp(self) -> "Counted":
        Counted.total += 1
        return Counted(math.exp(self.value))


def count_by_hand(values: dict[str, Tensor], gradients: bool) -> tuple[int, Tensor]:
    """Count a scan without softplus, and its gradients if requested, channel by channel; also return its y."""
    numbers = {name: [Counted(x) for x in tensor.flatten().tolist()] for name, tensor in values.items()}
    Counted.total, outputs = 0, []
    for b in range(BATCH):
        for d in range(CHANNELS):
            outputs.append(_count_channel(numbers, b, d, gradients))
    return Counted.total, torch.tensor(outputs).view(BATCH, CHANNELS, LENGTH).transpose(1, 2)


def _count_channel(numbers: dict[str, list[Counted]], b: int, d: int, gradients: bool) -> list[float]:
    states = [[Counted(0.0) for _ in range(STATE)]]
    outputs = []
    sequence = [(b * LENGTH + t) * CHANNELS + d for t in range(LENGTH)]
    projection = [[(b * LENGTH + t) * STATE + n for n in range(STATE)] for t in range(LENGTH)]
    A = numbers["A"][d * STATE : (d + 1) * STATE]
    decays = []
    for at, places in zip(sequence, projection, strict=True):
        delta, u = numbers["delta"][at], numbers["u"][at]
        drive, y = delta * u, Counted(0.0)
        decays.append([(delta * a).exp() for a in A])
        states.append(
            [k * h + drive * numbers["B"][p] for k, h, p in zip(decays[-1], states[-1], places, strict=True)]
        )
        for h, p in zip(states[-1], places, strict=True):
            y = y + numbers["C"][p] * h
        if "D" in numbers:
            y = y + numbers["D"][d] * u
        outputs.append(y.value)
    if gradients:
        if "z" not in numbers:  # the states are computed again, y only for a gate
            Counted.total -= LENGTH * (2 * STATE + (2 if "D" in numbers else 0))
        _count_gradients(numbers, sequence, projection, A, d, states, decays)
    return outputs


def _count_gradients(
    numbers: dict[str, list[Counted]],
    sequence: list[int],
    projection: list[list[int]],
    A: list[Counted],
    d: int,
    states: list[list[Counted]],
    decays: list[list[Counted]],
) -> None:
    carry = [Counted(0.0) for _ in range(STATE)]
    total = Counted(0.0)  # stands for any sum: of a gradient over channels, steps or samples
    for t in reversed(range(LENGTH)):
        u, delta, grad_y = numbers["u"][sequence[t]], numbers["delta"][sequence[t]], Counted(1.0)
        drive = Counted(delta.value * u.value)  # counted with the states
        grad_drive, grad_delta = Counted(0.0), Counted(0.0)
        for n, p in enumerate(projection[t]):
            total + grad_y * states[t + 1][n]  # C
            carry[n] = carry[n] + grad_y * numbers["C"][p]
            total + carry[n] * drive  # B
            grad_drive = grad_drive + carry[n] * numbers["B"][p]
            carry[n] = carry[n] * decays[t][n]
            exponent = carry[n] * states[t][n]
            total + exponent * delta  # A
            grad_delta = grad_delta + exponent * A[n]
        grad_u = grad_drive * delta
        grad_delta + grad_drive * u
        if "D" in numbers:
            grad_u + grad_y * numbers["D"][d]
            total + grad_y * u  # D


@pytest.fixture(params=[(), ("D",), ("z",), ("D", "z")], ids=lambda names: "+".join(names) or "bare")
def values(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    sequence, projection = (BATCH, LENGTH, CHANNELS), (BATCH, LENGTH, STATE)
    shapes = {"u": sequence, "delta": sequence, "A": (CHANNELS, STATE), "B": projection, "C": projection}
    optional = {"D": (CHANNELS,), "z": sequence}
    shapes |= {name: optional[name] for name in request.param}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("backend", SCANS)
def test_a_scan_is_counted_as_by_hand(values: dict[str, Tensor], backend: str) -> None:
    by_hand, y = count_by_hand(values, gradients=False)
    leaves = {name: x.requires_grad_() for name, x in values.items()}
    ungated = {name: x for name, x in leaves.items() if name != "z"}
    torch.testing.assert_close(selective_scan(**ungated, backend=backend), y)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        out = selective_scan(**leaves, backend=backend)  # type: ignore[arg-type]
    assert counter.get_total_flops() == by_hand
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == count_by_hand(values, gradients=True)[0]


@pytest.mark.parametrize("backend", SCANS)
def test_two_directions_cost_twice_as_much(values: dict[str, Tensor], backend: str) -> None:
    z = values.pop("z", None)
    inputs = ScanInputs(**values, delta_softplus=False)
    with FlopCounterMode(display=False) as counter:
        bidirectional_selective_scan(inputs, inputs, z, backend=backend)
    assert counter.get_total_flops() == 2 * count_by_hand(values, gradients=False)[0]


@pytest.mark.parametrize("backend", CONVOLUTIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution_is_counted_as_pytorchs(biased: bool, backend: str) -> None:
    x, weight = torch.randn(2, 9, 6, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    bias = torch.randn(6, requires_grad=True) if biased else None
    pytorch_conv = nn.Conv1d(6, 6, 4, groups=6)
    counts = []
    for convolve in (
        lambda: depthwise_causal_conv1d(x, weight, bias, "silu", backend=backend),
        lambda: pytorch_conv(nn.functional.pad(x, (0, 0, 3, 0)).mT),
    ):
        with FlopCounterMode(display=False) as counter:
            y = convolve()
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counts.append((counter.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == (2 * x.numel() * 4, 4 * x.numel() * 4)
    assert counts[0][0] == counts[1][0]


def test_counters_of_jit_traces_count_half() -> None:
    """Those of fvcore and mmengine count a multiplication with its addition as one operation."""

    def run(u: Tensor, A: Tensor, B: Tensor, weight: Tensor) -> Tensor:
        x = depthwise_conv1d(u, weight)
        inputs = ScanInputs(x, u, A, B, B)
        y = bidirectional_selective_scan(inputs, inputs, u)
        return y + selective_scan(x, u, A, B, B, D=A[:, 0], backend="torch")

    arguments = (torch.randn(2, 9, 6), -torch.rand(6, 4), torch.randn(2, 9, 4), torch.randn(6, 3))
    graph, _ = torch.jit._get_trace_graph(run, arguments)
    handles: dict[str, Any] = jit_flop_handles()
    counts = {
        node.kind(): handles[node.kind()](list(node.inputs()), list(node.outputs()))
        for node in graph.nodes()
        if node.kind() in handles
    }
    with FlopCounterMode(display=False) as counter:
        run(*arguments)
    expected = {
        str(op).replace(".", "::"): count // 2 for op, count in counter.get_flop_counts()["Global"].items()
    }
    assert counts == expected
    assert len(counts) == 3
