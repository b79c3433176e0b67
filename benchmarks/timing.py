"""Durations and memory of calls, as the benchmarks measure them."""

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
WARM_UP_CALLS = 2


def synchronize(device: torch.device | str) -> None:
    """Wait for what a GPU was given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Duration of one call by the clock."""
    start = time.perf_counter()
    result = call()
    synchronize(device)
    duration = time.perf_counter() - start
    del result  # frees a recorded graph outside the measurement
    return duration


def core_seconds(call: Callable[[], Any]) -> float:
    """Time that one call spends on the processor."""
    start = time.process_time()
    call()
    return time.process_time() - start


def median_seconds(call: Callable[[], Any], runs: int, device: torch.device | str = "cpu") -> float:
    """The median duration of ``runs`` calls, after two that warm up."""
    for _ in range(WARM_UP_CALLS):
        seconds(call, device)
    return statistics.median(seconds(call, device) for _ in range(runs))


def median_seconds_within(
    call: Callable[[], Any], budget: float, device: torch.device | str = "cpu"
) -> float:
    """The median duration over about ``budget`` seconds, of at least three calls after one that warms up."""
    seconds(call, device)
    durations: list[float] = []
    while len(durations) < 3 or (sum(durations) < budget and len(durations) < 200):
        durations.append(seconds(call, device))
    return statistics.median(durations)


def peak_megabytes(call: Callable[[], Any], device: str) -> float:
    """The peak memory of a call in MB, results included (NaN where it cannot be measured)."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return with_resident_peak(call)[1]


def with_resident_peak(call: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a call, and the MB by which the peak of the resident set grew in it (NaN off Linux)."""
    gc.collect()
    before = math.nan
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = status_kilobytes("VmRSS")
    result = call()
    return result, math.nan if math.isnan(before) else (status_kilobytes("VmHWM") - before) / 2**10


def status_kilobytes(field: str) -> float:
    """A field of the process's status, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field))
