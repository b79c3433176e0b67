"""What the runs of a study cost: operations counted on one batch, seconds timed on this machine."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from map_core.commands.command import OtherSettings, as_defaults
from map_core.commands.parser import load_recipe
from map_core.commands.program import validate
from map_core.commands.standard import (
    configs,
    inherited_settings,
    model_defaults,
    model_of_run,
    model_of_weights,
)
from map_core.errors import RunStopped, UserError
from map_core.ops.attention.flops import ON_A_CPU
from map_core.randomness import Draw
from map_core.runs.progress import track
from map_core.study.definition import LENGTH_SETTINGS, Arm, Study
from map_core.study.location import as_option
from map_core.study.measures import Cost, StudySettings, added_measures, load_measure
from map_core.study.plan import (
    PlannedRun,
    every_run,
    is_finetuning,
    is_trial_of,
    planned_runs,
    stage_settings,
)
from map_core.study.results import Result
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.domain import Domain
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.probe import LinearProbe
from map_core.training import Task
from map_core.training.loop import train
from map_core.training.plan import RunPlan

TIMED_STEPS = 5
# settings on which the number of operations does not depend
IRRELEVANT_TO_COST = ("training.seed", "data.subset_seed", "training.lr")


class StepsOnly(Task):
    """A task without anything that follows its steps."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        return {}

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        pass

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        pass


class PretrainSteps(StepsOnly, PretrainTask):
    """The steps of a pretraining."""


class FinetuneSteps(StepsOnly, FinetuneTask):
    """The steps of a finetuning."""


class ProbeSteps(StepsOnly, LinearProbeTask):
    """The steps of a probe; where its weights do not exist yet, a new model takes the same operations."""

    def build_model(self) -> nn.Module:
        if self.config.init is not None:
            return super().build_model()
        return LinearProbe(self.domain.models.create_backbone(self.config.model), len(self.data.classes))


@contextlib.contextmanager
def naming_study(study: Study, stage: str) -> Iterator[None]:
    """Let errors about the options of a run, which its command would take, name the study that sets them."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"study {study.name}, {stage}: {error}; this run's settings come from the study's file"
        ) from error


def configuration(
    domain: Domain, run: PlannedRun, out: Path, prepared: Mapping[str, Any] | None = None
) -> Any:
    """The configuration of a training run of a study, as its command will resolve it, but not validate it yet.

    Args:
        domain: Domain of the study.
        run: The run.
        out: Its directory.
        prepared: The :attr:`~map_core.tasks.domain.OpenedData.preprocessing` of its pretraining, whose weights will
            bring it; None leaves it to the run's own settings.
    """
    config_classes = configs(domain)
    settings = dict(run.settings)
    recipe = settings.pop("recipe")
    overrides = [*(as_option(key, value) for key, value in settings.items()), f"--out={out}"]
    if run.command == "pretrain":
        return load_recipe(domain.recipes, recipe, config_classes.pretrain, overrides)
    defaults: OtherSettings = partial(model_of_run, domain)
    pinned: OtherSettings = partial(model_of_weights, domain)
    if (pretraining := pretraining_of(run)) is not None:  # whose weights need not exist yet
        model = configuration(domain, pretraining, out).model
        defaults = lambda explicit: (  # noqa: E731
            model_defaults(domain, model)
            | as_defaults("data", domain.data, domain.data_defaults({}, dict(prepared or {}), explicit))
        )
        pinned = lambda explicit: inherited_settings(domain, model, {"holds": "encoder"})  # noqa: E731
    return load_recipe(
        domain.recipes, recipe, config_classes.finetune, overrides, defaults=defaults, pinned=pinned
    )


def pretraining_of(run: PlannedRun) -> PlannedRun | None:
    """The pretraining from which a run starts, without its seed; None for a run that starts from none."""
    if run.pretrain is None:
        return None
    return PlannedRun("", run.arm, run.seed, None, "pretrain", "pretrain", run.pretrain)


def make_task(domain: Domain, run: PlannedRun, out: Path) -> tuple[Task, Any]:
    """The steps of a training run of a study, from scratch, and its configuration, with a sample budget as epochs."""
    task_classes: dict[str, Callable[[Domain, Any], Any]] = {
        "pretrain": PretrainSteps,
        "finetune": FinetuneSteps,
        "linear-probe": ProbeSteps,
    }
    task = task_classes[run.command](domain, configuration(domain, run, out))
    task.keep_best = None
    return task, task.config


def count_cost(domain: Domain, run: PlannedRun, out: Path, *, timed: bool = False) -> Cost:
    """Count the operations of one batch, and time some steps if ``timed``.

    Raises:
        RunStopped: a signal arrived while steps were timed.
    """
    if run.stage in added_measures():
        return load_measure(run.stage).cost(run.settings, timed=timed)
    task, config = make_task(domain, run, out)
    training = config.training
    plan = RunPlan.of(training, len(task.train_data), num_processes=1, rank=0)
    samples = plan.last_step(training.max_steps) * training.batch_size
    count = min(training.batch_size, len(task.train_data), 8)
    batch = (task.collate or default_collate)([task.train_data[i] for i in range(count)])
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        task.loss(task.model, batch, Draw.of_batch(count)).loss.backward()
    seconds = 0.0
    if timed:
        short_run = replace(training, max_steps=TIMED_STEPS, progress=False, tensorboard=False, trackers=())
        with contextlib.redirect_stderr(io.StringIO()):  # a run's own log lines
            summary = train(task, short_run, out, run_config=config)
        if summary["stopped_by"]:
            raise RunStopped(Signals[summary["stopped_by"]])
        seconds = samples / summary["samples_per_second"]
    return Cost(samples, counter.get_total_flops() / count * samples, seconds)


class Operations:
    """Counts the operations of runs, once for all that differ only in seed or learning rate, also of their pretraining.

    Args:
        domain: Domain of the runs.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain, self.counts = domain, dict[str, float]()

    def __call__(self, run: PlannedRun) -> float:
        """Operations of training; 0 for a run that does not train."""
        if run.command == "features":
            return 0.0
        # from the pretraining comes the model, as far as the run's own settings leave it open
        of_run, of_pretraining = (
            sorted(item for item in settings.items() if item[0] not in IRRELEVANT_TO_COST)
            for settings in (run.settings, run.pretrain or {})
        )
        key = f"{run.command} {of_run} {of_pretraining}"
        if key not in self.counts:
            with tempfile.TemporaryDirectory() as scratch:
                self.counts[key] = count_cost(self.domain, run, Path(scratch) / "none").flops
        return self.counts[key]


def length_of(settings: StudySettings) -> StudySettings:
    """The settings that say how long a run trains."""
    return {name: settings[name] for name in LENGTH_SETTINGS if settings.get(name) is not None}


def resolve_compute(study: Study, domain: Domain, scratch: Path, results: Sequence[Result] = ()) -> Study:
    """Give arms with ``compute_of`` the length of finetuning that costs what the other arm costs in all.

    Counted once: an arm keeps the length that its runs so far had, whatever another version or device would count.

    Args:
        study: Its arms may name others.
        domain: Domain of the study.
        scratch: A directory that does not exist; nothing is written there.
        results: Results of its runs so far.

    Raises:
        UserError: the finetuning of such an arm ends after ``training.max_steps``, whatever its epochs; no run can
            have the length.
    """
    if not any(arm.compute_of for arm in study.arms):
        return study
    by_name = {arm.name: arm for arm in study.arms}

    def first_run(arm: Arm, stage: str, labels: int | None) -> PlannedRun:
        without_trials = replace(study, arms=(replace(arm, compute_of=None),), learning_rates={})
        return next(
            run for run in planned_runs(without_trials, []) if run.stage == stage and run.labels == labels
        )

    def flops(arm: Arm, stage: str, labels: int | None) -> float:
        with naming_study(study, stage):
            return count_cost(domain, first_run(arm, stage, labels), scratch).flops

    def resolve(arm: Arm) -> Arm:
        if arm.compute_of is None:
            return arm
        lengths = lengths_so_far(study, arm, results)
        for labels in [labels for labels in study.labels if labels not in lengths]:
            with naming_study(study, "finetune"):
                training = configuration(domain, first_run(arm, "finetune", labels), scratch).training
            if training.max_steps is not None:
                raise UserError(
                    f"arm {arm.name} of study {study.name} has compute_of, which lengthens its finetuning, but "
                    f"training.max_steps ({training.max_steps}) would cut it short: set training.epochs instead of it"
                )
            other = by_name[arm.compute_of]
            pretraining = flops(other, "pretrain", None) if other.pretrain is not None else 0.0
            own_flops, other_flops = flops(arm, "finetune", labels), flops(other, "finetune", labels)
            name, length = "training.epochs", training.epochs
            if training.sample_budget is not None:  # which sets the epochs
                name, length = "training.sample_budget", training.sample_budget
            lengths[labels] = {name: max(1, round(length * (pretraining + other_flops) / own_flops))}
            resolved_run = first_run(replace(arm, lengths=lengths), "finetune", labels)
            with naming_study(study, "finetune"):
                validate(configuration(domain, resolved_run, scratch))
        return replace(arm, lengths=lengths)

    return replace(study, arms=tuple(resolve(arm) for arm in study.arms))


def resolve_known_compute(study: Study, results: Sequence[Result]) -> Study:
    """As :func:`resolve_compute`, but from the runs so far alone: nothing is counted, and no data are needed."""
    arms = (
        replace(arm, lengths=lengths_so_far(study, arm, results)) if arm.compute_of else arm
        for arm in study.arms
    )
    return replace(study, arms=tuple(arms))


def lengths_so_far(study: Study, arm: Arm, results: Sequence[Result]) -> dict[int | None, StudySettings]:
    """By number of labels, the length settings of an arm with ``compute_of`` in its runs so far."""
    return {
        result.labels: length
        for result in results
        if result.arm == arm.name and result.labels in study.labels and is_finetuning(result)
        # a run of the length that the arm has without ``compute_of`` belongs to another study
        if (length := length_of(result.settings))
        != length_of(stage_settings(study, arm, "finetune", result.labels, study.seeds[0]))
    }


def describe_plan(study: Study, domain: Domain, scratch: Path, results: Sequence[Result] = ()) -> str:
    """A table of the kinds of run: how many, how many are left, and their samples, operations and hours, timed here."""
    finished = {result.key for result in results}
    kinds: dict[tuple[str, str, int | None], list[PlannedRun]] = {}
    for run in every_run(study, results):
        stage = study_stage(study, run)
        kinds.setdefault((run.arm, stage, run.labels), []).append(run)
    lines = ["arm                  stage         labels  runs  left    samples      GFLOP    hours"]
    total = 0.0
    progress = track(kinds.items(), total=len(kinds), title="timing", unit="kind of run")
    for number, ((arm, stage, labels), runs) in enumerate(progress):
        if stage == "knn":
            continue
        remaining = [run for run in runs if run.key not in finished]
        cost = Cost(0, 0.0)
        if remaining:
            with naming_study(study, stage):
                cost = count_cost(domain, remaining[0], scratch / str(number), timed=True)
        hours = len(remaining) * cost.seconds / 3600
        total += hours
        lines.append(
            f"{arm:20} {stage:13} {labels or 'all':>6} {len(runs):5} {len(remaining):5} "
            f"{len(remaining) * cost.samples:10} {len(remaining) * cost.flops / 1e9:10.0f} {hours:8.2f}"
        )
    return "\n".join(
        [*lines, f"about {total:.2f} hours one run after the other on this machine, evaluation apart"]
    )


def study_stage(study: Study, run: PlannedRun) -> str:
    """The measure that a run belongs to; for a trial, the one whose learning rates it tries."""
    if run.stage != "trial":
        return run.stage
    return next(stage for stage in study.learning_rates if is_trial_of(run, stage))
