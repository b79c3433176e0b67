"""Every implementation of the selective scan: correct or not, and how fast.

Both directions of a base block (1536 channels, 16 states), as training runs them.
"""

import sys
from functools import partial

import scan
import torch
from report import Part
from timing import median_seconds_within, peak_megabytes
from torch import Tensor

from map_core.ops import scan_backends
from map_core.ops.registry import Request
from map_core.ops.scan.interface import REGISTRY

LENGTHS = {49: 128, 98: 128, 196: 128, 1024: 8, 4096: 1}  # length: batch size
REFERENCE_STEPS = 1024  # it launches kernels for every step
DTYPE = torch.bfloat16
PASSES = ("forward", "both")


def error(backend: str, device: str) -> float:
    """The largest error of the output or a gradient, each relative to its largest value, at a small size."""
    values = scan.arguments(2, 130, 72, 16, device, DTYPE)
    leaves = list(values.values())
    results = []
    for name in (backend, "reference"):
        y = scan.scan(name, True, values)
        cotangent = torch.ones_like(y)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, cotangent)])
    pairs = zip(*results, strict=True)
    errors = [(a.double() - b.double()).abs().max() / b.double().abs().max() for a, b in pairs]
    return float(torch.stack(errors).max())  # unlike Python's max, NaN if one is


def measure(backend: str, values: dict[str, Tensor], device: str, budget: float) -> dict[str, float]:
    """Milliseconds of each pass, and megabytes on top of the inputs."""
    leaves = list(values.values())
    run = partial(scan.scan, backend, True, values)
    cotangent = torch.ones_like(run())

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(), leaves, cotangent)

    durations = {
        name: median_seconds_within(call, budget, device)
        for name, call in zip(PASSES, (forward, both), strict=True)
    }
    row = {f"{name} ms": seconds * 1e3 for name, seconds in durations.items()}
    return row | {"MB": peak_megabytes(both, device)}


def main() -> int:
    part = Part(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    channels, lengths = (8, {7: 1}) if part.quick else (1536, LENGTHS)
    budget = 0.001 if part.quick else 0.25
    request = Request(device, DTYPE, 16, named=True)
    available = [status.name for status in scan_backends() if status.available]
    names = [name for name in available if REGISTRY[name].unfit(request) is None]
    correct = []
    for name in names:
        try:
            deviation = error(name, device)
        except Exception as problem:
            part.fail(f"{name}: {type(problem).__name__}: {problem}")
            continue
        part.add(implementation=name, length=130, batch=2, error=deviation)
        if deviation <= scan.TOLERANCE[DTYPE]:
            correct.append(name)
        else:
            part.fail(f"{name} is off by {deviation:.1e} of the largest value")
    for length, batch in lengths.items():
        values = scan.arguments(batch, length, channels, 16, device, DTYPE)
        for name in correct:
            if name == "reference" and length > REFERENCE_STEPS:
                continue
            if part.is_over:
                part.add(implementation=name, length=length, batch=batch, failed="not reached")
                part.fail(f"{name} at {length} was not reached")
                continue
            try:
                part.add(
                    implementation=name, length=length, batch=batch, **measure(name, values, device, budget)
                )
            except Exception as problem:  # out of memory, say: the others go on
                part.add(implementation=name, length=length, batch=batch, failed=type(problem).__name__)
                part.fail(f"{name} at {length}: {problem}")
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
