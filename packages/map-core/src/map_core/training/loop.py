"""The training loop: every optimizer step of a run, from the first or from a checkpoint's, in plain sight."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator

from map_core.errors import visible
from map_core.paths import expanded
from map_core.randomness import derive_seed
from map_core.runs import best
from map_core.runs.account import STATE, read_state
from map_core.runs.checkpoint import Checkpoints, write_json
from map_core.runs.lock import RunLock
from map_core.runs.plots import plot_curves
from map_core.runs.recorder import Recorder
from map_core.runs.run_directory import disk_faults_told, open_run, rewind
from map_core.runs.summary import describe_run, finished_summary, to_plain, write_config, write_summary
from map_core.runs.trackers import Trackers, check_trackers
from map_core.training.config import TrainingConfig
from map_core.training.finite import FiniteGuard
from map_core.training.interruption import BrokenOff, Interruption
from map_core.training.loading import training_batches
from map_core.training.optimizer import clip_gradients, set_learning_rate
from map_core.training.processes import (
    build_accelerator,
    mean_over_processes,
    on_main_process,
    share_buffers,
    signal_of_any_process,
)
from map_core.training.sampling import RunPlan, seed_everything, single_samples_told
from map_core.training.schedule import Schedule
from map_core.training.settings import default_settings, run_settings
from map_core.training.state import TrainingState
from map_core.training.task import Task, refuse_other_data_sets


def train(
    task: Task,
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: str | Path | None = None,
    run_config: Any = None,
) -> dict[str, Any]:
    """Train ``task.model`` and return the summary that is also written to ``out/summary.json``.

    Its ``stopped_by`` names the signal that arrived, if any; ``interrupted`` says whether it ended the run early.

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
    check_trackers(config.trackers)
    refuse_other_data_sets(task.train_data)
    out, resume = expanded(out), None if resume is None else str(resume)
    accelerator = build_accelerator(config)
    config = config.fitted(len(task.train_data), processes=accelerator.num_processes, pairs=task.mixes_pairs)
    plan = RunPlan.of(
        config,
        len(task.train_data),
        accelerator.num_processes,
        accelerator.process_index,
        getattr(task.train_data, "shuffled", None),
    )
    settings = run_settings(task.name, plan, config, run_config, task.data_settings(), task.starts_from())
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    with (
        Interruption() as interruption,
        RunLock(out) as lock,
        disk_faults_told(out, lock),
        single_samples_told(plan),
    ):
        checkpoint = on_main_process(accelerator, lambda: open_run(out, checkpoints, resume, lock))
        saved: dict[str, Any] = {"step": 0, "recorder": {}}
        if checkpoint:
            defaults = default_settings(run_config)
            saved = read_state(checkpoint, settings, total_steps=plan.total_steps, defaults=defaults)
        state = TrainingState(task, config, accelerator)
        if checkpoint:
            state.load(checkpoint)
            saved["recorder"] = on_main_process(
                accelerator, lambda: rewind(out, checkpoints, checkpoint, saved)
            )
        on_main_process(accelerator, lambda: write_config(out, run_config or {"training": config}))
        recorder = Recorder(
            out,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=plan.batch_size,
            start=saved["step"],
            state=saved["recorder"],
            mean=lambda values: mean_over_processes(accelerator, values),
            writes=accelerator.is_main_process,
            progress=config.progress,
            tensorboard=config.tensorboard,
            trackers=open_trackers(config, out, run_config) if accelerator.is_main_process else None,
        )
        run = Run(
            task=task,
            config=config,
            plan=plan,
            out=out,
            lock=lock,
            settings=settings,
            checkpoints=checkpoints,
            accelerator=accelerator,
            state=state,
            recorder=recorder,
            interruption=interruption,
        )
        try:
            return run.from_step(saved["step"])
        finally:
            recorder.close()


def open_trackers(config: TrainingConfig, out: Path, run_config: Any) -> Trackers | None:
    """Those that the run's metrics go to, or None."""
    return (
        Trackers(config.trackers, out, to_plain(run_config or {"training": config}))
        if config.trackers
        else None
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run whose parts are all set up."""

    task: Task
    config: TrainingConfig
    plan: RunPlan
    out: Path
    lock: RunLock
    settings: dict[str, Any]
    checkpoints: Checkpoints
    accelerator: Accelerator
    state: TrainingState
    recorder: Recorder
    interruption: Interruption

    @cached_property
    def schedule(self) -> Schedule:
        """The learning rate by step."""
        return Schedule.of(self.config, self.plan.steps_per_epoch)

    @property
    def stop(self) -> int:
        """The step to stop at."""
        return self.plan.last_step(self.config.max_steps)

    def from_step(self, start: int) -> dict[str, Any]:
        """Train from optimizer step ``start`` to the last, then export; return the summary."""
        config, plan, state, recorder = self.config, self.plan, self.state, self.recorder
        accelerator, micro_steps = self.accelerator, self.plan.accumulation_steps
        if described := self.task.data_description():
            recorder.say(visible(described))
        recorder.say(self.plan.describe(self.task.name, config, accelerator.device, start))
        if start and recorder.evaluation is None and self.evaluates(start):
            self.evaluate(start)  # the run was stopped before it could
            if stopped_by := self.stopped_by():
                return self.interrupted(start, stopped_by)
        batches = training_batches(
            self.task, plan, start=start, stop=self.stop, workers=config.workers, device=accelerator.device
        )
        guard = FiniteGuard(accelerator, state.optimizer, rate=config.rate_setting)
        state.model.train()
        for step in range(start, self.stop):
            recorder.start_step()
            lr = self.schedule(step)
            set_learning_rate(state.optimizer, lr)

            # sum the gradients of the micro-batches; processes exchange them behind the last
            state.optimizer.zero_grad(set_to_none=True)
            scalars: dict[str, Any] = {}
            for micro in range(micro_steps):
                batch = next(batches)
                seed_everything(derive_seed(plan.seed, "step", step, micro, plan.process))
                last = micro == micro_steps - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(state.model):
                    with accelerator.autocast():
                        terms = self.task.loss(state.model, batch, plan.draw(step, micro))
                    accelerator.backward(terms.loss.float() / micro_steps)
                for name, value in {"loss": terms.loss, **terms.scalars}.items():
                    scalars[name] = scalars.get(name, 0) + value.detach().float() / micro_steps
            scalars["grad_norm"] = clip_gradients(accelerator, state.model, config.clip_grad)

            # update the weights, unless the gradient is broken: then the run stops
            guard.watch(step, lr, scalars)
            state.optimizer.step()
            state.update_average()
            recorder.end_step(scalars, wait=guard.waits)

            # what follows reads the device: a line, an evaluation, a checkpoint
            done = step + 1
            writes_line = done % config.log_steps == 0 or done == self.stop
            if not (
                guard.waits or writes_line or self.evaluates(done) or self.saves(done) or self.hears_a_signal
            ):
                continue
            guard.raise_if_broken()
            recorder.waited()
            stopped_by = self.stopped_by()
            if writes_line:
                self.lock.check()
                recorder.write_line(done, lr)
            if self.evaluates(done) and not stopped_by:
                self.evaluate(done)
                stopped_by = self.stopped_by()
            if stopped_by or self.saves(done):
                self.save(done)
            if stopped_by:
                return self.interrupted(done, stopped_by)
        return self.finish()

    @property
    def hears_a_signal(self) -> bool:
        """Whether one asks a run of one process to stop; several ask each other, for which all must read the device."""
        return self.accelerator.num_processes == 1 and self.interruption.requested

    def stopped_by(self) -> Signals | None:
        """The signal that asks the run to stop, if any process received one."""
        return signal_of_any_process(self.accelerator, self.interruption.signal)

    def evaluates(self, done: int) -> bool:
        """Say whether an evaluation follows ``done`` steps."""
        return done == self.stop or done % (self.config.evaluate_epochs * self.plan.steps_per_epoch) == 0

    def saves(self, done: int) -> bool:
        """Say whether a checkpoint follows ``done`` steps."""
        by_steps = self.config.checkpoint_steps is not None and done % self.config.checkpoint_steps == 0
        by_epochs = done % (self.config.checkpoint_epochs * self.plan.steps_per_epoch) == 0
        return done == self.stop or by_steps or by_epochs

    def evaluate(self, done: int) -> None:
        """Evaluate all sets of weights after ``done`` steps, unless a signal breaks it off: then once resumed.

        Several processes finish it, as each of them waits for the others in it.
        """
        try:
            with self.interruption.breaks_off(self.accelerator.num_processes == 1):
                metrics = self.measure(done)
        except BrokenOff:
            return
        self.recorder.write_evaluation(done, metrics)
        name = self.task.keep_best
        if name is not None and self.recorder.improved(name, done):
            self.export_best(done, name, metrics[name])

    def export_best(self, done: int, name: str, value: float) -> None:
        """Export the weights after ``done`` steps as the best so far, by the measure ``name``."""
        model = self.state.whole_weights()["raw"]

        def write() -> None:
            self.lock.check()
            best.write_record(self.out, done, name, value)
            self.task.export(model, self.out, "best")

        on_main_process(self.accelerator, write)

    @torch.no_grad()
    def measure(self, done: int) -> dict[str, float]:
        """Return the metrics of all sets of weights: those of the main process, on all, as what follows from them."""
        metrics: dict[str, float] = {}
        for weights, model in self.state.weights().items():
            prefix = "ema_" if weights == "ema" else ""
            share_buffers(self.accelerator, model)
            model.eval()
            seed_everything(derive_seed(self.plan.seed, "evaluate", done, self.plan.process))
            with self.accelerator.autocast():
                found = self.task.evaluate(model, self.accelerator)
            metrics |= {prefix + name: float(value) for name, value in found.items()}
        self.state.model.train()
        return on_main_process(self.accelerator, lambda: metrics)

    def save(self, done: int) -> None:
        """Write the checkpoint of ``done`` steps."""
        files = self.state.writers()
        account = {"step": done, "settings": self.settings, "recorder": self.recorder.state()}
        files[STATE] = write_json(account)

        def write() -> None:
            self.lock.check()
            self.checkpoints.write(done, files)

        on_main_process(self.accelerator, write)

    def interrupted(self, done: int, stopped_by: Signals) -> dict[str, Any]:
        """Tell how to go on."""
        self.recorder.say(
            f"stopped by {stopped_by.name} after step {done} of {self.stop}; the checkpoint is in "
            f"{self.checkpoints.directory}; continue with the same command and --resume auto"
        )
        return on_main_process(self.accelerator, lambda: self.summarize(stopped_by))

    def finish(self) -> dict[str, Any]:
        """Export the weights and draw the pictures; a signal meanwhile ends what would follow, not this."""
        self.accelerator.unwrap_model(self.state.model, keep_fp32_wrapper=False)  # nothing trains any more
        models = self.state.whole_weights()

        def write() -> dict[str, Any]:
            self.lock.check()
            for weights, model in models.items():
                model.eval()
                self.task.export(model, self.out, weights)
            summary = self.summarize(None)
            self.task.finish(models["raw"], self.out, summary)
            write_summary(self.out, summary)
            return summary

        summary = on_main_process(self.accelerator, write)
        stopped_by = self.stopped_by()
        return summary | {"stopped_by": stopped_by and stopped_by.name}

    def summarize(self, stopped_by: Signals | None) -> dict[str, Any]:
        """Write curves.png and summary.json."""
        plot_curves(self.out)
        recorded = self.recorder.summary()
        measured = {
            "seconds": recorded.pop("seconds"),
            "samples_per_second": recorded.pop("samples_per_second"),
            **describe_run(self.accelerator.device),
            "processes": self.plan.processes,
        }
        before = finished_summary(self.out)
        if not self.recorder.steps and before.get("samples") == recorded["samples"]:  # nothing was trained
            measured |= {name: before[name] for name in measured if name in before}
        summary = {
            "task": self.task.name,
            **recorded,
            **measured,
            "interrupted": stopped_by is not None,
            "stopped_by": stopped_by and stopped_by.name,
        }
        write_summary(self.out, summary)
        return summary
