"""How fast PyTorch's own product and oneDNN multiply here: measured once for a processor, and kept in the user's cache.

No rule by the maker of the processor holds: MKL, PyTorch's library for float32 on x86, leaves the 512-bit units of some
processors idle and not those of others (docs/performance.md has numbers of both kinds).
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

from map_core.paths import cache_folder
from map_core.processor import processor_name

SHAPE = (
    784,
    192,
    768,
)  # rows, inputs, outputs: four images in an MLP of the smallest width that is trained in earnest
SECONDS, LEAST_ROUNDS = 0.1, 10  # at most two or three times as long, on the slowest processors
MARGIN = 1.15  # less is not worth other bits than everybody's, and would not be measured alike twice
# Time that this thread had a core, so that other programs do not decide; Windows counts it too coarsely.
CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time


@dataclass(frozen=True)
class Rates:
    """Billions of floating-point operations a second."""

    onednn: float
    torch: float

    @property
    def onednn_pays(self) -> bool:
        """Whether oneDNN is faster by more than a measurement errs."""
        return self.onednn >= MARGIN * self.torch

    def __str__(self) -> str:
        return f"oneDNN {self.onednn:.0f} GFLOP/s, PyTorch {self.torch:.0f}"


@functools.cache
def kept_rates() -> Rates | None:
    """The rates that the cache keeps for this processor and PyTorch, measured now if it keeps none.

    Whoever keeps them first decides for all: the processes of a run, and the run that resumes. None where they cannot
    be kept, because then nothing would hold the next process to the same choice.
    """
    path = rates_file()
    known = read_rates(path)
    return known or keep_rates(path, measured_rates())


def rates_file() -> Path:
    """Where the rates are kept; its name tells one processor and one PyTorch from others that share a home."""
    about = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return cache_folder() / "linear" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def read_rates(path: Path) -> Rates | None:
    """The rates in a file; None where there is none, or what it holds is none."""
    try:
        values = json.loads(path.read_text())
        rates = Rates(float(values["onednn"]), float(values["torch"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rates if 0 < rates.onednn < float("inf") and 0 < rates.torch < float("inf") else None


def keep_rates(path: Path, rates: Rates) -> Rates | None:
    """Write rates unless another process was faster; return what is kept, None where nothing can be."""
    partial = path.with_name(f".unfinished_{path.name}_{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {"processor": processor_name(), "pytorch": torch.__version__, **asdict(rates)}
        partial.write_text(json.dumps(text) + "\n")
        try:
            os.link(partial, path)  # fails where there is one
        except OSError:
            if read_rates(path) is None:  # a broken file, or a file system without links
                os.replace(partial, path)
        partial.unlink(missing_ok=True)
    except OSError:
        return None
    return read_rates(path)


def measured_rates() -> Rates:
    """Multiply by turns for a moment, and count the fastest of each.

    In a thread of its own: modes of PyTorch (autocast, counters of operations, recording) are a thread's.
    """
    found: list[Rates] = []
    thread = threading.Thread(target=lambda: found.append(_by_turns()), name="rates")
    thread.start()
    thread.join()
    return found[0]


def _by_turns() -> Rates:
    rows, inputs, outputs = SHAPE
    x, weight, bias = (
        torch.full(size, 0.5, dtype=torch.float32, device="cpu")
        for size in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    onednn: list[float] = []
    pytorch: list[float] = []
    with torch.no_grad():
        start = CLOCK()
        while len(pytorch) < LEAST_ROUNDS or CLOCK() - start < SECONDS:
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
