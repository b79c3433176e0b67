"""Keeps account of a run: means, times, progress, and the state of them that a checkpoint holds."""

import time
from pathlib import Path
from typing import Any

from map_core.training.config import TrainingConfig
from map_core.training.metrics import MetricsLog, Window
from map_core.training.progress import Progress
from map_core.training.sampling import RunPlan


class Recorder:
    """The account of one run; every process keeps it, the main process writes it.

    Args:
        out: the run directory.
        config: the training section.
        plan: the run's plan.
        start: the step to go on from.
        state: what :meth:`state` returned when the checkpoint of ``start`` was written.
        writes: whether this is the main process.
    """

    def __init__(
        self,
        out: Path,
        config: TrainingConfig,
        plan: RunPlan,
        *,
        start: int,
        state: dict[str, Any],
        writes: bool,
    ) -> None:
        self._plan = plan
        self._log = MetricsLog(out, tensorboard=config.tensorboard, step=start) if writes else None
        self.progress = Progress(plan.total_steps, start, shown=config.progress and writes)
        self._window = Window(**state.get("window", {}))
        self.last: dict[str, float] = state.get("last", {})
        self.evaluation: dict[str, float] | None = state.get("evaluation")
        self._seconds_before: float = state.get("seconds", 0.0)
        self._began = self._mark = time.perf_counter()
        self._window_steps, self._window_seconds = 0, 0.0
        self._steps, self._step_seconds = 0, 0.0

    def start_step(self) -> None:
        """Note the time; what lies between steps (evaluation, checkpoints) is not training time."""
        self._mark = time.perf_counter()

    def end_step(self, values: dict[str, float]) -> None:
        """Account for one optimizer step and its scalars."""
        seconds = time.perf_counter() - self._mark
        self._window_steps, self._window_seconds = self._window_steps + 1, self._window_seconds + seconds
        self._steps, self._step_seconds = self._steps + 1, self._step_seconds + seconds
        self._window.add(values)
        self.evaluation = None
        self.progress.advance(values["loss"], self._rate(self._window_steps, self._window_seconds))

    def write_line(self, step: int, lr: float) -> None:
        """Write the means since the last line, as of ``step`` steps done."""
        self.last = {**self._window.take(), "lr": lr}
        timing = {
            "samples_per_second": self._rate(self._window_steps, self._window_seconds),
            "seconds": self.seconds,
        }
        self._window_steps, self._window_seconds = 0, 0.0
        if self._log is not None:
            self._log.write("train", step, step / self._plan.steps_per_epoch, {**self.last, **timing})

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation after ``step`` steps."""
        self.evaluation = metrics
        if self._log is not None and metrics:
            epoch = step / self._plan.steps_per_epoch
            self._log.write("evaluation", step, epoch, {**metrics, "seconds": self.seconds})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.progress.say(f"epoch {epoch:g}: {shown}")

    def say(self, message: str) -> None:
        """Print a message, once for all processes."""
        if self._log is not None:
            self.progress.say(message)

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, those before the last resume included."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def samples_per_second(self) -> float:
        """Training samples per second since the run was started or resumed."""
        return self._rate(self._steps, self._step_seconds)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "window": self._window.state(),
            "last": self.last,
            "evaluation": self.evaluation,
            "seconds": self.seconds,
        }

    def close(self) -> None:
        """Close bar and files."""
        self.progress.close()
        if self._log is not None:
            self._log.close()

    def _rate(self, steps: int, seconds: float) -> float:
        return steps * self._plan.batch_size / seconds if seconds else 0.0
