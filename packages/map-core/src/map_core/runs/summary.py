"""What a run leaves beside its weights: config.yaml, and what ran where, for summary.json."""

import dataclasses
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml

from map_core.processor import processor_name
from map_core.reading import read_small
from map_core.runs.files import save_json, save_text

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "map-core", "map-vision", "map-points", "map-dense")
FILE = "summary.json"


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples and enumerations into what YAML and JSON can say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return to_plain(value.value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_config(directory: Path, config: Any) -> None:
    """Write config.yaml, the resolved configuration."""
    save_text(directory / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False))


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    save_json(directory / FILE, to_plain(summary))


def finished_summary(directory: Path) -> dict[str, Any]:
    """The summary that a run wrote when it finished; empty where there is none."""
    try:
        summary = json.loads(read_small(directory / FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) and summary.get("interrupted") is False else {}


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that a result depends on and of ``more``, where installed."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from (``-dirty`` if changed), or None."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: on a CUDA device what torch allocated, else the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Name the device as a reader would."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{device.type} ({processor_name()}, {count} thread{'s' if count > 1 else ''})"


def describe_run(device: torch.device) -> dict[str, Any]:
    """What ran where: memory, versions, commit and device, for a summary."""
    return {
        "peak_memory_bytes": peak_memory_bytes(device),
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
    }
