"""The training loop: every optimizer step of a run, from the first or from a checkpoint's, in plain sight."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator

from map_core.errors import UserError, visible
from map_core.paths import expand_user
from map_core.randomness import derive_seed
from map_core.runs import best
from map_core.runs.checkpoint import Checkpoints, write_json
from map_core.runs.lock import RunLock
from map_core.runs.plots import plot_curves
from map_core.runs.recorder import Recorder
from map_core.runs.run_directory import disk_errors_as_user_errors, open_run, rewind
from map_core.runs.saved_state import START, STATE, read_state
from map_core.runs.summary import (
    commit,
    describe_run,
    finished_summary,
    to_serializable,
    write_config,
    write_summary,
)
from map_core.runs.trackers import Trackers, check_trackers
from map_core.training.config import TrainingConfig
from map_core.training.finite import FiniteGuard
from map_core.training.identity import default_settings, run_settings
from map_core.training.interruption import Aborted, Interruption
from map_core.training.loading import training_batches
from map_core.training.optimizer import clip_gradients, set_learning_rate
from map_core.training.plan import RunPlan, explain_single_samples
from map_core.training.processes import (
    build_accelerator,
    mean_over_processes,
    on_main_process,
    share_buffers,
    signal_of_any_process,
)
from map_core.training.sampling import seed_everything
from map_core.training.schedule import Schedule
from map_core.training.state import TrainingState
from map_core.training.task import Task, require_map_style


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
    require_map_style(task.train_data)
    commit()  # read now and kept, as the files of the code may change while the run lasts
    out, resume = expand_user(out), None if resume is None else str(resume)
    accelerator = build_accelerator(config)
    config = config.resolved_for(
        len(task.train_data), processes=accelerator.num_processes, pairs=task.mixes_pairs
    )
    plan = RunPlan.of(
        config,
        len(task.train_data),
        accelerator.num_processes,
        accelerator.process_index,
        getattr(task.train_data, "shuffled", None),
    )
    stop = plan.last_step(config.max_steps)
    settings = run_settings(task.name, plan, config, run_config, task.data_settings(), task.init_identity())
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    with (
        Interruption() as interruption,
        RunLock(out) as lock,
        disk_errors_as_user_errors(out, lock),
        explain_single_samples(plan),
    ):
        checkpoint = on_main_process(accelerator, lambda: open_run(out, checkpoints, resume, lock))
        saved: dict[str, Any] = {"step": 0, "recorder": {}}
        if checkpoint:
            defaults = default_settings(run_config)
            saved = read_state(
                checkpoint,
                settings,
                total_steps=plan.total_steps,
                max_steps=config.max_steps,
                defaults=defaults,
            )
        state = TrainingState(task, config, accelerator)
        if checkpoint:
            state.load(checkpoint)
            saved["recorder"] = on_main_process(
                accelerator, lambda: rewind(out, checkpoints, checkpoint, saved, stop=stop)
            )
        on_main_process(accelerator, lambda: write_config(out, run_config or {"training": config}))
        recorder = Recorder(
            out,
            last_step=stop,
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
            return run.train_from(saved["step"])
        finally:
            recorder.close()


def open_trackers(config: TrainingConfig, out: Path, run_config: Any) -> Trackers | None:
    """Return the trackers that receive the run's metrics, or None."""
    return (
        Trackers(config.trackers, out, to_serializable(run_config or {"training": config}))
        if config.trackers
        else None
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with all its parts set up."""

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
        """The learning rate as a function of the step."""
        return Schedule.of(self.config, self.plan.steps_per_epoch)

    @property
    def stop(self) -> int:
        """The step at which the run stops."""
        return self.plan.last_step(self.config.max_steps)

    def train_from(self, start: int) -> dict[str, Any]:
        """Train from optimizer step ``start`` to the last, then export; return the summary."""
        config, plan, state, recorder = self.config, self.plan, self.state, self.recorder
        accelerator, micro_steps = self.accelerator, self.plan.accumulation_steps
        if description := self.task.data_description():
            recorder.say(visible(description))
        recorder.say(self.plan.describe(self.task.name, config, accelerator.device, start))
        if start and recorder.evaluation is None and self.should_evaluate(start):
            self.evaluate(start)  # the run stopped before this evaluation
            if stopped_by := self.stopped_by():
                # with the evaluation, if there was time for it; another --out has no checkpoint yet
                self.save(start)
                return self.report_interruption(start, stopped_by)
        batches = training_batches(
            self.task, plan, start=start, stop=self.stop, workers=config.workers, device=accelerator.device
        )
        guard = FiniteGuard(accelerator, state.optimizer, rate=config.rate_setting)
        state.model.train()
        for step in range(start, self.stop):
            recorder.start_step()
            lr = self.schedule(step)
            set_learning_rate(state.optimizer, lr)

            # sum the gradients of the micro-batches; processes exchange them after the last one
            state.optimizer.zero_grad(set_to_none=True)
            scalars: dict[str, Any] = {}
            for micro in range(micro_steps):
                batch = next(batches)
                seed_everything(plan.step_seed(step, micro))
                last = micro == micro_steps - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(state.model):
                    with accelerator.autocast():
                        output = self.task.loss(state.model, batch, plan.draw(step, micro))
                    accelerator.backward(output.loss.float() / micro_steps)
                for name, value in {"loss": output.loss, **output.scalars}.items():
                    scalars[name] = scalars.get(name, 0) + value.detach().float() / micro_steps
            scalars["grad_norm"] = clip_gradients(accelerator, state.model, config.clip_grad)

            # update the weights, unless the gradient is broken: then the run stops
            guard.watch(step, lr, scalars)
            state.optimizer.step()
            state.update_average()
            recorder.end_step(scalars, wait=guard.waits)

            # what follows reads the device: a line, an evaluation, a checkpoint
            steps_done = step + 1
            should_log = steps_done % config.log_steps == 0 or steps_done == self.stop
            if not (
                guard.waits
                or should_log
                or self.should_evaluate(steps_done)
                or self.should_save(steps_done)
                or self.signal_received
            ):
                continue
            guard.raise_if_broken()
            recorder.add_waiting_time()
            stopped_by = self.stopped_by()
            if should_log:
                self.lock.check()
                recorder.write_line(steps_done, lr)
            if self.should_evaluate(steps_done) and not stopped_by:
                self.evaluate(steps_done)
                stopped_by = self.stopped_by()
            if stopped_by or self.should_save(steps_done):
                self.save(steps_done)
            if stopped_by:
                return self.report_interruption(steps_done, stopped_by)
        return self.finish()

    @property
    def signal_received(self) -> bool:
        """Whether a signal asks a run of one process to stop; several must agree, for which all read the device."""
        return self.accelerator.num_processes == 1 and self.interruption.requested

    def stopped_by(self) -> Signals | None:
        """The signal that asks the run to stop, if any process received one."""
        return signal_of_any_process(self.accelerator, self.interruption.signal)

    def should_evaluate(self, steps_done: int) -> bool:
        """Return whether an evaluation follows ``steps_done`` steps."""
        interval = self.config.evaluate_epochs * self.plan.steps_per_epoch
        return steps_done == self.stop or steps_done % interval == 0

    def should_save(self, steps_done: int) -> bool:
        """Return whether a checkpoint follows ``steps_done`` steps."""
        due_by_steps = (
            self.config.checkpoint_steps is not None and steps_done % self.config.checkpoint_steps == 0
        )
        due_by_epochs = steps_done % (self.config.checkpoint_epochs * self.plan.steps_per_epoch) == 0
        return steps_done == self.stop or due_by_steps or due_by_epochs

    def evaluate(self, steps_done: int) -> None:
        """Evaluate all sets of weights after ``steps_done`` steps; if a signal aborts it, the resumed run does it.

        Several processes always finish it, because each waits for the others.

        Raises:
            UserError: it fails, such as on a file that cannot be read; one process alone first saves what it trained.
        """
        try:
            with self.interruption.abortable(self.accelerator.num_processes == 1):
                metrics = self.measure(steps_done)
        except Aborted:
            return
        except UserError:
            if self.recorder.steps and self.accelerator.num_processes == 1:
                self.save(steps_done)  # without an evaluation, so that the resumed run makes it
                self.recorder.say(
                    f"the evaluation after step {steps_done} of {self.stop} failed; the checkpoint is in "
                    f"{self.checkpoints.directory}; fix that, then continue with the same command and --resume auto"
                )
            raise
        self.recorder.write_evaluation(steps_done, metrics)
        name = self.task.keep_best
        if name is not None and self.recorder.improved(name, steps_done):
            self.export_best(steps_done, name, metrics[name])

    def export_best(self, steps_done: int, name: str, value: float) -> None:
        """Export the weights after ``steps_done`` steps as the best so far by the metric ``name``."""
        model = self.state.whole_weights()["raw"]

        def write() -> None:
            self.lock.check()
            best.write_record(self.out, steps_done, name, value)
            self.task.export(model, self.out, "best")

        on_main_process(self.accelerator, write)

    @torch.no_grad()
    def measure(self, steps_done: int) -> dict[str, float]:
        """Return the metrics of all sets of weights; all processes get the main one's, and so decide alike."""
        metrics: dict[str, float] = {}
        for weights, model in self.state.weights().items():
            prefix = "ema_" if weights == "ema" else ""
            share_buffers(self.accelerator, model)
            model.eval()
            seed_everything(derive_seed(self.plan.seed, "evaluate", steps_done, self.plan.rank))
            with self.accelerator.autocast():
                scores = self.task.evaluate(model, self.accelerator)
            metrics |= {prefix + name: float(value) for name, value in scores.items()}
        self.state.model.train()
        return on_main_process(self.accelerator, lambda: metrics)

    def save(self, steps_done: int) -> None:
        """Write the checkpoint after ``steps_done`` steps."""
        files = self.state.writers()
        run_state = {"step": steps_done, "settings": self.settings, "recorder": self.recorder.state()}
        files[STATE] = write_json(run_state)

        def write() -> None:
            self.lock.check()
            self.checkpoints.write(steps_done, files)

        on_main_process(self.accelerator, write)

    def report_interruption(self, steps_done: int, stopped_by: Signals) -> dict[str, Any]:
        """Say how to continue the run, and return its summary."""
        self.recorder.say(
            f"stopped by {stopped_by.name} after step {steps_done} of {self.stop}; the checkpoint is in "
            f"{self.checkpoints.directory}; continue with the same command and --resume auto"
        )
        return on_main_process(self.accelerator, lambda: self.summarize(stopped_by))

    def finish(self) -> dict[str, Any]:
        """Export the weights and draw the pictures; a signal meanwhile stops what would follow, not this."""
        self.accelerator.unwrap_model(self.state.model, keep_fp32_wrapper=False)  # training is over
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
        record = self.recorder.summary()
        measurements = {
            "seconds": record.pop("seconds"),
            "samples_per_second": record.pop("samples_per_second"),
            **describe_run(self.accelerator.device),
            "processes": self.plan.num_processes,
        }
        previous = finished_summary(self.out)
        if not self.recorder.steps and previous.get("samples") == record["samples"]:  # no step was trained
            measurements |= {name: previous[name] for name in measurements if name in previous}
        summary = {
            "task": self.task.name,
            "init_identity": self.settings[START],
            **record,
            **measurements,
            "interrupted": stopped_by is not None,
            "stopped_by": stopped_by and stopped_by.name,
        }
        write_summary(self.out, summary)
        return summary
