"""What a run writes beside its weights: config.yaml, and summary.json with what ran where."""

import dataclasses
import functools
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

from map_core.cpu import cpu_name
from map_core.errors import UserError
from map_core.json_values import finite_or_null
from map_core.reading import read_small
from map_core.runs.files import save_json, save_text

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "map-core", "map-vision", "map-points", "map-dense")
CONFIG_FILE, SUMMARY_FILE = "config.yaml", "summary.json"


def to_serializable(value: Any) -> Any:
    """Convert dataclasses, paths, tuples and enumerations to values that YAML and JSON can represent."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: to_serializable(getattr(value, entry.name)) for entry in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): to_serializable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_serializable(entry) for entry in value]
    if isinstance(value, Enum):
        return to_serializable(value.value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_config(directory: Path, config: Any) -> None:
    """Write config.yaml, the resolved configuration without ``resume``, which is of this start alone."""
    values = {name: value for name, value in to_serializable(config).items() if name != "resume"}
    save_text(directory / CONFIG_FILE, yaml.safe_dump(values, sort_keys=False))


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, with null for numbers that are not finite."""
    save_json(directory / SUMMARY_FILE, finite_or_null(to_serializable(summary)))


def finished_summary(directory: Path) -> dict[str, Any]:
    """The summary that a run wrote when it finished; empty where there is none."""
    summary = any_summary(directory)
    return summary if summary.get("interrupted") is False else {}


def any_summary(directory: Path) -> dict[str, Any]:
    """The summary of a run or of an evaluation; empty where there is none that can be read."""
    try:
        summary = json.loads(read_small(directory / SUMMARY_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def refuse_training_run(out: Path, *, replaced: str) -> None:
    """Keep a command from writing over the directory of a training run.

    Args:
        out: Where the command would write.
        replaced: What it would replace there.

    Raises:
        UserError: ``out`` holds checkpoints with their configuration, or the summary of anything but an evaluation.
    """
    has_checkpoints = (out / "checkpoints").is_dir() and (out / CONFIG_FILE).exists()
    if has_checkpoints or any_summary(out).get("task") not in (None, "evaluate"):
        raise UserError(f"{out} is a training run, whose {replaced} would be replaced; choose another --out")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that a result depends on and of ``more``, where installed."""
    result = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


@functools.cache  # the code that is loaded stays the same whatever is committed while it runs
def commit() -> str | None:
    """Return the commit of the checkout that this code runs from (``-dirty`` if modified), or None."""
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
    """Return the peak memory so far: on a CUDA device that allocated by torch, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """The device's name for a reader."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{device.type} ({cpu_name()}, {count} thread{'s' if count > 1 else ''})"


def describe_run(device: torch.device) -> dict[str, Any]:
    """What ran where: memory, versions, commit and device, for a summary."""
    return {
        "peak_memory_bytes": peak_memory_bytes(device),
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
    }
