"""What commands that only run a model share: the device, its arithmetic, the time it takes, what is installed."""

import time
from typing import Any

import torch

from map_core.errors import UserError
from map_core.ops import conv_backends, scan_backends
from map_core.training.summary import commit, device_name, peak_memory_bytes, versions


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        UserError: an unknown name, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no GPU; use --evaluation.device cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 where ``precision`` is bf16, else to nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Stopwatch:
    """Wall time, speed and memory of a block, for summary.json."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Stopwatch":
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self.start

    def report(self, samples: int) -> dict[str, Any]:
        """What summary.json says of a block that ran over so many samples."""
        return {
            "seconds": self.seconds,
            "samples_per_second": samples / self.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "versions": versions(),
            "commit": commit(),
            "device": device_name(self.device),
        }


def describe_environment() -> str:
    """Versions, devices, and the implementations of scan and convolution with the reason of each refusal."""
    lines = ["versions", *(f"  {name:14} {version}" for name, version in versions().items())]
    lines += ["devices", f"  {device_name(torch.device('cpu'))}"]
    lines += [f"  cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    for title, statuses in (("selective scan", scan_backends()), ("causal conv1d", conv_backends())):
        lines.append(title)
        for status in statuses:
            state = "available" if status.available else f"refused: {status.reason}"
            lines.append(f"  {status.name:14} {state}")
    return "\n".join(lines)
