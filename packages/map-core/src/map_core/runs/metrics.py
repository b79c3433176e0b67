"""metrics.jsonl, TensorBoard, and the means between two lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from map_core.errors import UserError, reason
from map_core.float64 import to_double
from map_core.json_values import finite_or_null, is_count, is_number
from map_core.reading import read_small
from map_core.runs.files import naming_file, save_text
from map_core.runs.trackers import Trackers

FILE = "metrics.jsonl"
LARGEST_FILE = 2**30  # bytes
MeanOverProcesses = Callable[[dict[str, Tensor]], dict[str, float]]


class Window:
    """Sums of scalars since the last line of metrics; a checkpoint keeps them, so that no mean loses steps.

    The sums stay on the scalars' device: reading them would wait for it.

    Args:
        sums, counts: As :meth:`state` returned them.
    """

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self._sums: dict[str, Tensor] = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in (sums or {}).items()
        }
        self._counts: dict[str, int] = dict(counts or {})

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            value = to_double(value)
            total = self._sums.get(name)
            self._sums[name] = value if total is None else total.to(value.device, value.dtype) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, mean: MeanOverProcesses) -> dict[str, float]:
        """Return the means and start a new window."""
        means = {name: total / self._counts[name] for name, total in mean(self._sums).items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self, mean: MeanOverProcesses) -> dict[str, Any]:
        """Return what the constructor takes."""
        return {"sums": mean(self._sums), "counts": self._counts}


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, without a last one that a kill cut short.

    Raises:
        UserError: any other line is broken, or the file cannot be read.
    """
    path = directory / FILE
    try:
        texts = read_small(path, LARGEST_FILE).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy the file again") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(parse_line(text))
        except (ValueError, RecursionError) as error:
            if number < len(texts):
                raise UserError(
                    f"{path} is broken in line {number} ({reason(error)}); repair or remove that line"
                ) from error
    return lines


def parse_line(text: str) -> dict[str, Any]:
    """Read one line of metrics.

    Raises:
        ValueError: it is not a valid one.
    """
    line = json.loads(text)
    is_complete = isinstance(line, dict) and is_count(line.get("step")) and isinstance(line.get("kind"), str)
    values = {name: value for name, value in line.items() if name != "kind"} if is_complete else {}
    if values.get("epoch") is None or not all(value is None or is_number(value) for value in values.values()):
        raise ValueError("no line of metrics")
    return line


def truncate_metrics(directory: Path, step: int, *, evaluated: bool) -> None:
    """Drop what was logged after the checkpoint of ``step``, so that a resumed run repeats nothing.

    ``evaluated`` says whether the checkpoint was written after the evaluation at ``step``.
    """

    def precedes_checkpoint(line: dict[str, Any]) -> bool:
        return line["step"] < step or (line["step"] == step and (line["kind"] == "train" or evaluated))

    lines = [json.dumps(line) + "\n" for line in read_metrics(directory) if precedes_checkpoint(line)]
    save_text(directory / FILE, "".join(lines))


class MetricsLog:
    """Appends lines of metrics to a run directory.

    Args:
        directory: the run directory.
        tensorboard: also write TensorBoard events.
        step: the step to continue from.
        trackers: receive the metrics as well.
    """

    def __init__(
        self, directory: Path, *, tensorboard: bool, step: int, trackers: Trackers | None = None
    ) -> None:
        self._trackers = trackers
        self._path, self._events_folder = directory / FILE, directory / "tensorboard"
        self._file = self._path.open("a", buffering=1)
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # its import takes a second

            self._events = SummaryWriter(str(self._events_folder), purge_step=step + 1)

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Write one line; ``kind`` is 'train' or 'evaluation'."""
        line = finite_or_null({"kind": kind, "step": step, "epoch": epoch, **values})
        with naming_file(self._path):
            self._file.write(json.dumps(line) + "\n")
        if self._events is not None:
            with naming_file(self._events_folder):
                for name, value in values.items():
                    self._events.add_scalar(f"{kind}/{name}", value, step)
        if self._trackers is not None:
            self._trackers.write(kind, step, {"epoch": epoch, **values})

    def close(self) -> None:
        """Close the files."""
        with naming_file(self._path):
            self._file.close()
        if self._events is not None:
            with naming_file(self._events_folder):
                self._events.close()
        if self._trackers is not None:
            self._trackers.close()
