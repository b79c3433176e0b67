"""The training loop: every optimizer step of a run, from the first or from a checkpoint's, in plain sight."""

import contextlib
import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from map_core.errors import UserError
from map_core.randomness import derive_seed
from map_core.training.checkpoint import Checkpoints, write_json
from map_core.training.config import REFERENCE_BATCH, TrainingConfig
from map_core.training.interruption import Interruption
from map_core.training.learner import Learner
from map_core.training.loading import training_batches
from map_core.training.optimizer import set_learning_rate
from map_core.training.plots import plot_curves
from map_core.training.processes import build_accelerator, mean_over_processes, on_main_process
from map_core.training.recorder import Recorder
from map_core.training.run_directory import STATE, open_run, read_state, rewind, run_settings
from map_core.training.sampling import RunPlan, seed_everything
from map_core.training.schedule import Schedule
from map_core.training.summary import (
    commit,
    device_name,
    peak_memory_bytes,
    versions,
    write_config,
    write_summary,
)
from map_core.training.task import Task


def train(
    task: Task, config: TrainingConfig, out: Path, *, resume: str | None = None, run_config: Any = None
) -> dict[str, Any]:
    """Train ``task.model`` and return the summary that is also written to ``out/summary.json``.

    Args:
        task: what is trained, on what data, with what loss.
        config: how it is trained.
        out: the run directory; without ``resume`` it must be empty or absent.
        resume: 'auto' (the newest usable checkpoint in ``out``) or a checkpoint's directory.
        run_config: the whole configuration, for config.yaml; its model and objective sections may not
            change when the run is resumed.

    Raises:
        UserError: whatever the user can cure, from settings that contradict each other to a full disk.
    """
    config.validate()
    accelerator = build_accelerator(config)
    plan = RunPlan.of(config, len(task.train_data), accelerator.num_processes, accelerator.process_index)
    settings = run_settings(task.name, plan, config, run_config)
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    with Interruption() as interruption, full_disk_told(out):
        checkpoint = on_main_process(accelerator, lambda: open_run(out, checkpoints, resume))
        state: dict[str, Any] = {"step": 0, "recorder": {}}
        if checkpoint:
            state = read_state(checkpoint, settings)
        learner = Learner(task, config, accelerator)
        if checkpoint:
            learner.load(checkpoint)
            on_main_process(accelerator, lambda: rewind(out, checkpoints, state))
        on_main_process(accelerator, lambda: write_config(out, run_config or {"training": config}))
        recorder = Recorder(
            out,
            config,
            plan,
            start=state["step"],
            state=state["recorder"],
            writes=accelerator.is_main_process,
        )
        run = Run(
            task, config, plan, out, settings, checkpoints, accelerator, learner, recorder, interruption
        )
        try:
            return run.from_step(state["step"])
        finally:
            recorder.close()


@dataclass(frozen=True)
class Run:
    """A run whose parts are all set up."""

    task: Task
    config: TrainingConfig
    plan: RunPlan
    out: Path
    settings: dict[str, Any]
    checkpoints: Checkpoints
    accelerator: Accelerator
    learner: Learner
    recorder: Recorder
    interruption: Interruption

    @property
    def schedule(self) -> Schedule:
        """The learning rate by step."""
        return Schedule.of(self.config, self.plan.steps_per_epoch)

    @property
    def stop(self) -> int:
        """The step to stop at."""
        return min(self.plan.total_steps, self.config.max_steps or self.plan.total_steps)

    def from_step(self, start: int) -> dict[str, Any]:
        """Train from optimizer step ``start`` to the last, then export; return the summary."""
        config, recorder, learner, schedule = self.config, self.recorder, self.learner, self.schedule
        self.announce(start)
        if start and recorder.evaluation is None and self.evaluates(start):
            self.evaluate(start)  # the run was stopped before it could
        batches = training_batches(
            self.task,
            self.plan,
            start=start,
            stop=self.stop,
            workers=config.workers,
            device=self.accelerator.device,
        )
        learner.model.train()
        for index in range(start, self.stop):
            recorder.start_step()
            lr = schedule(index)
            set_learning_rate(learner.optimizer, lr)
            scalars = learner.accumulate(batches, self.plan, index)
            scalars["_stop"] = float(self.interruption.requested)
            values = mean_over_processes(self.accelerator, scalars)
            stopping = values.pop("_stop") > 0
            self.require_finite(index, lr, values)
            learner.update()
            recorder.end_step(values)

            done = index + 1
            if done % config.log_steps == 0 or done == self.stop:
                recorder.write_line(done, lr)
            if self.evaluates(done) and not stopping:
                self.evaluate(done)
            if stopping or self.saves(done):
                self.save(done)
            if stopping:
                return self.interrupted(done)
        return self.finish()

    def evaluates(self, done: int) -> bool:
        """Say whether an evaluation follows ``done`` steps."""
        return done == self.stop or done % (self.config.evaluate_epochs * self.plan.steps_per_epoch) == 0

    def saves(self, done: int) -> bool:
        """Say whether a checkpoint follows ``done`` steps."""
        by_steps = self.config.checkpoint_steps is not None and done % self.config.checkpoint_steps == 0
        by_epochs = done % (self.config.checkpoint_epochs * self.plan.steps_per_epoch) == 0
        return done == self.stop or by_steps or by_epochs

    def announce(self, start: int) -> None:
        """Print what is about to run."""
        config, plan, peak = self.config, self.plan, self.schedule.peak
        origin = (
            ""
            if config.lr is not None
            else f" = {config.base_lr:g} * {config.batch_size} / {REFERENCE_BATCH}"
        )
        self.recorder.say(
            f"{self.task.name}: {plan.samples} samples, {config.epochs} epochs of {plan.steps_per_epoch} "
            f"steps, batch {config.batch_size} on {plan.processes} process(es) ({self.accelerator.device}, "
            f"{config.precision}), learning rate {peak:g}{origin}"
            + (f"; going on after step {start}" if start else "")
        )

    def require_finite(self, index: int, lr: float, values: dict[str, float]) -> None:
        """Stop the run, on every process alike, before a broken gradient reaches the weights."""
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            return
        raise UserError(
            f"the loss is not finite at step {index + 1} (loss {values['loss']}, gradient norm "
            f"{values['grad_norm']}, learning rate {lr:g}); the last checkpoint is from before it; try a "
            "lower --training.base_lr, a longer --training.warmup_epochs, a smaller --training.clip_grad or "
            "--training.precision fp32, and look at the samples of this step"
        )

    @torch.no_grad()
    def evaluate(self, done: int) -> None:
        """Evaluate all sets of weights after ``done`` steps."""
        metrics: dict[str, float] = {}
        for weights, model in self.learner.weights().items():
            prefix = "ema_" if weights == "ema" else ""
            model.eval()
            seed_everything(derive_seed(self.plan.seed, "evaluate", done, self.plan.process))
            with self.accelerator.autocast():
                found = self.task.evaluate(model, self.accelerator)
            metrics |= {prefix + name: float(value) for name, value in found.items()}
        self.learner.model.train()
        self.recorder.write_evaluation(done, metrics)

    def save(self, done: int) -> None:
        """Write the checkpoint of ``done`` steps."""
        files = self.learner.writers()
        state = {"step": done, "settings": self.settings, "recorder": self.recorder.state()}
        files[STATE] = write_json(state)
        on_main_process(self.accelerator, lambda: self.checkpoints.write(done, files))

    def interrupted(self, done: int) -> dict[str, Any]:
        """Tell how to go on."""
        self.recorder.say(
            f"stopped after step {done} of {self.stop}; the checkpoint is in {self.checkpoints.directory}; "
            "continue with the same command and --resume auto"
        )
        return on_main_process(self.accelerator, lambda: self.summarize(interrupted=True))

    def finish(self) -> dict[str, Any]:
        """Export the weights and draw the pictures."""
        models = self.learner.whole_weights()

        def write() -> dict[str, Any]:
            for weights, model in models.items():
                model.eval()
                self.task.export(model, self.out, weights)
            summary = self.summarize(interrupted=False)
            self.task.finish(models["raw"], self.out, summary)
            write_summary(self.out, summary)
            return summary

        return on_main_process(self.accelerator, write)

    def summarize(self, *, interrupted: bool) -> dict[str, Any]:
        """Write curves.png and summary.json."""
        plot_curves(self.out)
        device = self.accelerator.device
        summary: dict[str, Any] = {
            "task": self.task.name,
            **self.recorder.last,
            **(self.recorder.evaluation or {}),
            "seconds": self.recorder.seconds,
            "samples_per_second": self.recorder.samples_per_second,
            "peak_memory_bytes": peak_memory_bytes(device),
            "versions": versions(),
            "commit": commit(),
            "device": device_name(device),
            "processes": self.plan.processes,
            "interrupted": interrupted,
        }
        write_summary(self.out, summary)
        return summary


@contextlib.contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """Turn a full disk into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full ({error}) while writing the run in {out}; its checkpoints are unharmed; "
            "make room, then continue with --resume auto"
        ) from error
