"""Keeps the record of a run: means, times, progress, and their state for checkpoints."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from map_core.runs.metrics import MeanOverProcesses, MetricsLog, Window
from map_core.runs.progress import Progress
from map_core.runs.trackers import Trackers


class Recorder:
    """The record of one run; every process keeps it, the main process writes it.

    Args:
        out: the run directory.
        last_step: the step at which the run will stop.
        steps_per_epoch, batch_size: optimizer steps in an epoch, and samples in each.
        start: the step to continue from.
        state: what :meth:`state` returned when the checkpoint of ``start`` was written.
        mean: averages scalars over all processes.
        writes: whether this is the main process.
        progress: show it on stderr.
        tensorboard: write its events.
        trackers: receive the metrics as well; only on the main process.
    """

    def __init__(
        self,
        out: Path,
        *,
        last_step: int,
        steps_per_epoch: int,
        batch_size: int,
        start: int,
        state: dict[str, Any],
        mean: MeanOverProcesses,
        writes: bool,
        progress: bool,
        tensorboard: bool,
        trackers: Trackers | None = None,
    ) -> None:
        self._steps_per_epoch, self._batch_size, self._mean = steps_per_epoch, batch_size, mean
        log = partial(MetricsLog, out, tensorboard=tensorboard, step=start, trackers=trackers)
        self._log = log() if writes else None
        self.progress = Progress(last_step, start, enabled=progress and writes)
        self._window = Window(**state.get("window", {}))
        self.last: dict[str, float] = state.get("last", {})
        self.evaluation: dict[str, float] | None = state.get("evaluation")
        self._best: float | None = state.get("best")
        self._best_of: str | None = state.get("best_of")
        self._best_step: int | None = state.get("best_step")
        self._seconds_before: float = state.get("seconds", 0.0)
        self._start_time = self._last_time = time.perf_counter()
        self._window_steps, self._window_seconds = 0, 0.0
        self._start, self._steps, self._step_seconds = start, 0, 0.0

    def start_step(self) -> None:
        """Start timing a step; what happens between steps (evaluation, checkpoints) is not training time."""
        self._last_time = time.perf_counter()

    def end_step(self, scalars: dict[str, Tensor], *, wait: bool) -> None:
        """Record one optimizer step and its scalars; without ``wait`` nothing is read from the device."""
        self._window_steps, self._steps = self._window_steps + 1, self._steps + 1
        self._add_seconds()
        self._window.add(scalars)
        self.evaluation = None
        loss = scalars["loss"].item() if wait else self.last.get("loss")
        self.progress.advance(loss, self._rate(self._window_steps, self._window_seconds))

    def add_waiting_time(self) -> None:
        """Count the time since the last step as training time: the device was still busy with the steps."""
        self._add_seconds()

    def _add_seconds(self) -> None:
        seconds = time.perf_counter() - self._last_time
        self._last_time += seconds
        self._window_seconds += seconds
        self._step_seconds += seconds

    def write_line(self, step: int, lr: float) -> None:
        """Write the means since the last line, after ``step`` steps."""
        self.last = {**self._window.take(self._mean), "lr": lr}
        timing = {
            "samples_per_second": self._rate(self._window_steps, self._window_seconds),
            "seconds": self.seconds,
        }
        self._window_steps, self._window_seconds = 0, 0.0
        if self._log is not None:
            self._log.write("train", step, step / self._steps_per_epoch, {**self.last, **timing})

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation after ``step`` steps."""
        self.evaluation = metrics
        if self._log is not None and metrics:
            epoch = step / self._steps_per_epoch
            self._log.write("evaluation", step, epoch, {**metrics, "seconds": self.seconds})
            scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.progress.say(f"epoch {epoch:g}: {scores}")

    def improved(self, name: str, step: int) -> bool:
        """Whether the evaluation after ``step`` steps is the best so far: lowest for a loss, else highest."""
        value = (self.evaluation or {})[name]
        sign = -1 if name.endswith("loss") else 1
        if math.isnan(value):
            return False
        if self._best_of not in (None, name):  # a resumed run may keep the best by another measure
            self._best = None
        is_best = self._best is None or sign * value > sign * self._best
        self._best_of = name
        if is_best:
            self._best, self._best_step = value, step
        return is_best

    def say(self, message: str) -> None:
        """Print a message, once for all processes."""
        if self._log is not None:
            self.progress.say(message)

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, those before the last resume included."""
        return self._seconds_before + time.perf_counter() - self._start_time

    @property
    def steps(self) -> int:
        """Steps taken since the run was started or resumed."""
        return self._steps

    @property
    def samples_per_second(self) -> float:
        """Training samples per second since the run was started or resumed."""
        return self._rate(self._steps, self._step_seconds)

    def summary(self) -> dict[str, Any]:
        """The last line and evaluation, the whole run's samples and seconds, and the speed since it was resumed.

        There is no speed where it was resumed after its last step.
        """
        return {
            **self.last,
            **(self.evaluation or {}),
            "samples": (self._start + self._steps) * self._batch_size,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second if self._steps else None,
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "window": self._window.state(self._mean),
            "last": self.last,
            "evaluation": self.evaluation,
            "seconds": self.seconds,
            "best": self._best,
            "best_of": self._best_of,
            "best_step": self._best_step,
        }

    def close(self) -> None:
        """Close bar and files."""
        self.progress.close()
        if self._log is not None:
            self._log.close()

    def _rate(self, steps: int, seconds: float) -> float:
        return steps * self._batch_size / seconds if seconds else 0.0
