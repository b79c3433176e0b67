"""Which runs a study needs: a function of its file and its results so far, so a killed study needs no other state."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from map_core.study.definition import Arm, Study, layered
from map_core.study.measures import StudySettings, added_measures
from map_core.study.results import Result

COMMANDS = {"finetune": "finetune", "linear_probe": "linear-probe"}  # that train for a measure
TRAINING_COMMANDS = ("pretrain", *COMMANDS.values())
MONITOR_SAMPLES = 2048  # of each split, where a study measures the loss on held-out samples


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        key: Name of the run within the study, and of its directory.
        arm, seed, labels: What it belongs to.
        stage: ``pretrain``, ``trial`` (of a learning rate, on the held-out part), or a measure.
        command: A command of the domain's program, or the name of a measure that a package adds.
        settings: Options of the command; the recipe's name is under ``recipe``.
        after: Key of the pretraining whose weights it starts from, or None.
        pretrain: Settings of that pretraining.
        lr: Learning rate that is tried or was chosen; None uses the recipe's.
    """

    key: str
    arm: str
    seed: int
    labels: int | None
    stage: str
    command: str
    settings: StudySettings
    after: str | None = None
    lr: float | None = None
    pretrain: StudySettings | None = None


def next_runs(study: Study, results: Sequence[Result]) -> list[PlannedRun]:
    """The runs that can start now: not done yet, and whatever they start from is done."""
    done = {result.key for result in results}
    return [run for run in planned_runs(study, results) if run.key not in done and run.after in {None, *done}]


def planned_runs(study: Study, results: Sequence[Result]) -> Iterator[PlannedRun]:
    """Yield the runs known to be needed, given the results; each chosen learning rate adds more.

    Seed by seed, so that a stopped study has compared all arms at the seeds that it reached.
    """
    for seed in study.seeds:
        for arm in study.arms:
            yield from _arm_runs(study, arm, seed, results)


def every_run(study: Study, results: Sequence[Result]) -> list[PlannedRun]:
    """All runs: those known to be needed, and at each seed the one whose rate the trials have yet to choose."""
    runs = {run.key: run for run in planned_runs(replace(study, learning_rates={}), [])}
    runs |= {run.key: run for run in planned_runs(study, results)}
    return list(runs.values())


def _arm_runs(study: Study, arm: Arm, seed: int, results: Sequence[Result]) -> Iterator[PlannedRun]:
    """Yield the pretraining of an arm at a seed, and the runs that measure it."""
    start = start_of(arm, seed)
    planned = partial(PlannedRun, arm=arm.name, seed=seed, labels=None)
    if arm.pretrain is not None:
        settings = {**arm.pretrain, "training.seed": seed}
        if "heldout_loss" in study.measures:
            settings.setdefault("monitor.samples", MONITOR_SAMPLES)
        key = key_of(arm, seed, "pretrain")
        yield planned(key=key, stage="pretrain", command="pretrain", settings=settings)
        if "knn" in study.measures:
            key = key_of(arm, seed, "knn")
            yield planned(key=key, stage="knn", command="features", settings={}, after=start)
    if "linear_probe" in study.measures and (start or arm.init):
        yield from _measure_runs(study, arm, seed, "linear_probe", results)
    if "finetune" in study.measures:
        yield from _measure_runs(study, arm, seed, "finetune", results)
    for stage in [measure for measure in study.measures if measure in added_measures()]:
        settings = layered(study.stages[stage], arm.stages.get(stage, {}))
        if arm.init is not None:
            settings["init"] = arm.init
        yield planned(
            key=key_of(arm, seed, stage), stage=stage, command=stage, settings=settings, after=start
        )


def key_of(arm: Arm, seed: int, name: str) -> str:
    """Key of a run of an arm at a seed."""
    return f"{arm.name}/seed{seed}/{name}"


def start_of(arm: Arm, seed: int) -> str | None:
    """Key of the pretraining that an arm starts from; None for an arm that the study does not pretrain."""
    return None if arm.pretrain is None else key_of(arm, seed, "pretrain")


def name_of(stage: str, labels: int | None) -> str:
    """Name of a stage with a number of labels, in keys."""
    return stage if labels is None else f"{stage}_{labels}"


def _measure_runs(
    study: Study, arm: Arm, seed: int, stage: str, results: Sequence[Result]
) -> Iterator[PlannedRun]:
    """Yield, by number of labels, trials of learning rates (at the first seed), then the run at the chosen rate."""
    for labels in study.labels:
        settings = stage_settings(study, arm, stage, labels, seed)
        lr = None
        if study.learning_rates.get(stage):
            trials = list(_trial_runs(study, arm, stage, labels, results))
            if seed == study.seeds[0]:
                yield from trials
            lr = chosen_rate(trials, results)
            if lr is None:
                continue
            settings |= {"training.lr": lr}
        yield PlannedRun(
            key=key_of(arm, seed, name_of(stage, labels)),
            arm=arm.name,
            seed=seed,
            labels=labels,
            stage=stage,
            command=COMMANDS[stage],
            settings=settings,
            after=start_of(arm, seed),
            lr=lr,
            pretrain=arm.pretrain,
        )


def stage_settings(study: Study, arm: Arm, stage: str, labels: int | None, seed: int) -> StudySettings:
    """Options of a stage of an arm: the study's, those for the number of labels, the arm's, and the seed."""
    lengths = arm.lengths.get(labels, {}) if stage == "finetune" else {}
    settings = layered(
        study.stages[stage], study.labels[labels], arm.model, arm.stages.get(stage, {}), lengths
    )
    settings["training.seed"] = seed
    if arm.init is not None:
        settings["init"] = arm.init
    if labels is not None:
        settings |= {"data.subset": labels, "data.subset_seed": seed}
    return settings


def _trial_runs(
    study: Study, arm: Arm, stage: str, labels: int | None, results: Sequence[Result]
) -> Iterator[PlannedRun]:
    """Yield one run per learning rate, trained without the held-out part; a best rate at an edge adds one.

    So does an edge rate that ties with the best, the lower edge first.
    """
    seed = study.seeds[0]
    scores = {result.key: result.score for result in results}

    def trial(lr: float) -> PlannedRun:
        settings = stage_settings(study, arm, stage, labels, seed)
        settings |= {"data.holdout": study.holdout, "training.lr": lr}
        if "data.eval_split" in settings:  # the held-out part is evaluated on
            settings["data.eval_split"] = None
        return PlannedRun(
            key=f"{arm.name}/trials/{name_of(stage, labels)}_lr{lr:g}",
            arm=arm.name,
            seed=seed,
            labels=labels,
            stage="trial",
            command=COMMANDS[stage],
            settings=settings,
            after=start_of(arm, seed),
            lr=lr,
            pretrain=arm.pretrain,
        )

    rates = list(study.learning_rates[stage])
    for _ in range(study.extensions):
        runs = [trial(lr) for lr in rates]
        if not all(run.key in scores for run in runs) or len(rates) < 2:
            break
        best = max(scores[run.key] for run in runs)
        if scores[runs[0].key] == best:
            rates.insert(0, rates[0] ** 2 / rates[1])
        elif scores[runs[-1].key] == best:
            rates.append(rates[-1] ** 2 / rates[-2])
        else:
            break
    for lr in rates:
        yield trial(lr)


def is_trial_of(run: PlannedRun | Result, stage: str) -> bool:
    """Whether a run is a trial of a learning rate of ``stage``."""
    return run.key.startswith(f"{run.arm}/trials/{stage}")


def is_finetuning(run: PlannedRun | Result) -> bool:
    """Whether a run is a finetuning, a trial or not."""
    return run.stage == "finetune" or is_trial_of(run, "finetune")


def chosen_rate(trials: Sequence[PlannedRun], results: Sequence[Result]) -> float | None:
    """The learning rate with the best score on the held-out part, lowest of ties; None until all trials are done."""
    scores = {result.key: result.score for result in results}
    if not all(run.key in scores for run in trials):
        return None
    return max(trials, key=lambda run: scores[run.key]).lr
