"""How fast PyTorch's own product and oneDNN multiply here: measured once for a processor, then cached for the user.

The maker of the processor does not settle it: MKL, PyTorch's library for float32 on x86, leaves the 512-bit units of
some processors idle and not those of others (docs/performance.md has numbers of both kinds).
"""

import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from map_core.cpu import cpu_name
from map_core.errors import UserError
from map_core.paths import cache_folder

# Rows, inputs and outputs: four images in an MLP of the smallest width that is trained in earnest.
SHAPE = (784, 192, 768)
SECONDS, MIN_ROUNDS = 0.1, 10  # the slowest processors take two or three times as long for these rounds
MARGIN = 1.15  # a smaller gain is not worth results with other bits, nor would two measurements agree on it
# The time that this thread spent on a core, so that other programs do not distort it; Windows counts it too coarsely.
CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time


@dataclass(frozen=True)
class Rates:
    """Billions of floating-point operations a second."""

    onednn: float
    torch: float

    @property
    def onednn_pays(self) -> bool:
        """Whether oneDNN is faster by more than the error of a measurement."""
        return self.onednn >= MARGIN * self.torch

    def __str__(self) -> str:
        return f"oneDNN {self.onednn:.0f} GFLOP/s, PyTorch {self.torch:.0f}"


@functools.cache
def cached_rates() -> Rates | None:
    """The cached rates of this processor and PyTorch, measured now if there are none.

    The first process to store them decides for all: for the others of a run, and for a run that resumes. None where
    they cannot be stored, because then nothing would hold the next process to the same choice.
    """
    try:
        path = rates_file()
    except UserError:  # no cache folder
        return None
    rates = read_rates(path)
    return rates or store_rates(path, measured_rates())


def rates_file() -> Path:
    """Where the rates are stored, under a name for each processor and PyTorch that share a home folder.

    Raises:
        UserError: As :func:`~map_core.paths.cache_folder` does.
    """
    key = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return cache_folder() / "linear" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def read_rates(path: Path) -> Rates | None:
    """The rates in a file; None where there is no file, or it holds no rates."""
    try:
        values = json.loads(path.read_text())
        rates = Rates(float(values["onednn"]), float(values["torch"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rates if 0 < rates.onednn < float("inf") and 0 < rates.torch < float("inf") else None


def store_rates(path: Path, rates: Rates) -> Rates | None:
    """Write the rates unless another process was first; return the stored ones, or None where none can be stored."""
    partial = path.with_name(f".unfinished_{path.name}_{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {"processor": cpu_name(), "pytorch": torch.__version__, **asdict(rates)}
        partial.write_text(json.dumps(text) + "\n")
        try:
            _create(path, partial)
        except FileExistsError:
            if read_rates(path) is None:  # a broken file
                os.replace(partial, path)
        partial.unlink(missing_ok=True)
    except OSError:
        return None
    return read_rates(path)


def _create(path: Path, partial: Path) -> None:
    """Give a file a second name; on a file system without links, copy it.

    Raises:
        FileExistsError: There is a file of that name.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("x") as file:
            file.write(partial.read_text())


def measured_rates() -> Rates:
    """Time both libraries in turn for a moment, and take the fastest product of each.

    Runs in its own thread, because PyTorch's modes (autocast, operation counters, recording) belong to a thread.
    """
    results: list[Rates] = []
    thread = threading.Thread(target=lambda: results.append(_measure_in_turn()), name="rates")
    thread.start()
    thread.join()
    return results[0]


def _measure_in_turn() -> Rates:
    rows, inputs, outputs = SHAPE
    x, weight, bias = (
        torch.full(size, 0.5, dtype=torch.float32, device="cpu")
        for size in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    onednn: list[float] = []
    pytorch: list[float] = []
    with torch.no_grad():
        start = CLOCK()
        while len(pytorch) < MIN_ROUNDS or CLOCK() - start < SECONDS:
            onednn.append(_seconds(_onednn, x, weight, bias))
            pytorch.append(_seconds(F.linear, x, weight, bias))
    operations = 2e-9 * rows * inputs * outputs
    return Rates(round(operations / min(onednn), 1), round(operations / min(pytorch), 1))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _seconds(multiply: Callable[[Tensor, Tensor, Tensor], Tensor], *factors: Tensor) -> float:
    start = CLOCK()
    multiply(*factors)
    return CLOCK() - start
