"""What a study runs: a function of its file and of the results so far, so that a killed study needs no other state.

A study's file (YAML) names a question, arms, seeds and measures::

    name: digits_labels
    question: When does pretraining pay on the digits?
    arms:
      map: {pretrain: {recipe: pretrain_digits, objective.attention: map}}
      scratch: {}
    finetune: {recipe: finetune_digits, training.epochs: 20}
    labels:                          # data.subset of finetuning and probing, with what else differs; all: every label
      50: {training.epochs: 100, training.batch_size: 50}
      all: {}
    learning_rates:                  # tried on a held-out part, the same number for every arm; one list for both stages
      finetune: [0.001, 0.002, 0.004]
    seeds: [0, 1, 2]
    measures: [finetune, linear_probe, knn]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError, near_matches
from map_core.study.results import Result

MEASURES = ("finetune", "linear_probe", "knn")
KEYS = {
    "name", "question", "arms", "pretrain", "finetune", "linear_probe", "labels", "learning_rates", "holdout",
    "seeds", "measures", "extensions",
}  # fmt: skip
TRAINED = ("finetune", "linear_probe")  # measures that train, at a learning rate
STAGES = ("pretrain", *TRAINED)
KEYS_OF_ARM = (*STAGES, "compute_of")
SHARED_SECTIONS = ("data.", "evaluation.")  # what arms may not change: they would be compared on other data
Settings = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way of training that is compared with the others.

    Attributes:
        pretrain: Recipe and settings of pretraining; None starts from scratch.
        finetune, linear_probe: Settings that differ from the study's.
        compute_of: Finetuned for as many operations as this arm is pretrained and finetuned for.
        epochs: Of finetuning, by number of labels, where ``compute_of`` was resolved to them.
    """

    name: str
    pretrain: Settings | None = None
    finetune: Settings = field(default_factory=dict)
    linear_probe: Settings = field(default_factory=dict)
    compute_of: str | None = None
    epochs: Mapping[int | None, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study's file, checked.

    Attributes:
        labels: Numbers of labels (None: all), with the settings that go with each.
        learning_rates: Tried by each arm, by stage; none for a stage that runs at its recipe's rate.
        holdout: Share of the training split on which rates are compared.
        extensions: How often a best rate at the edge of the grid adds one.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    finetune: Settings
    linear_probe: Settings
    labels: Mapping[int | None, Settings]
    learning_rates: Mapping[str, tuple[float, ...]]
    holdout: float
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    extensions: int


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        key: Its name within the study, and its directory.
        arm, seed, labels: What it belongs to.
        stage: ``pretrain``, ``trial`` (of a learning rate, on the held-out part), or a measure.
        command: Of the domain's program.
        settings: Options, the recipe's name under ``recipe``.
        after: Key of the run whose weights it starts from, or None.
        lr: Learning rate that is tried or was chosen; None where the recipe's is used.
    """

    key: str
    arm: str
    seed: int
    labels: int | None
    stage: str
    command: str
    settings: Settings
    after: str | None = None
    lr: float | None = None


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        UserError: unknown keys, arms that change data or evaluation, seeds that repeat, a stage without recipe.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no study: it must map keys such as arms and seeds to values")
    for key in values:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r} in study {path}; {near_matches(str(key), KEYS)}")
    for key in ("name", "arms", "seeds", "measures"):
        if not values.get(key):
            raise UserError(f"study {path} lacks {key}")
    shared = values.get("pretrain") or {}
    arms = tuple(_read_arm(path, name, stages or {}, shared) for name, stages in values["arms"].items())
    study = Study(
        name=str(values["name"]),
        question=str(values.get("question", "")),
        arms=arms,
        finetune=dict(values.get("finetune") or {}),
        linear_probe=dict(values.get("linear_probe") or {}),
        labels=_read_labels(path, values.get("labels") or {"all": {}}),
        learning_rates=_read_rates(path, values.get("learning_rates") or ()),
        holdout=float(values.get("holdout", 0.1)),
        seeds=tuple(values["seeds"]),
        measures=tuple(values["measures"]),
        extensions=int(values.get("extensions", 2)),
    )
    _check(path, study)
    return study


def _read_arm(path: Path, name: str, stages: Settings, shared: Settings) -> Arm:
    for stage, settings in stages.items():
        if stage not in KEYS_OF_ARM:
            raise UserError(
                f"arm {name} of {path} has an unknown key {stage!r}; {near_matches(stage, KEYS_OF_ARM)}"
            )
        for key in (settings or {}) if stage in STAGES else ():
            if key.startswith(SHARED_SECTIONS):
                raise UserError(
                    f"arm {name} of {path} sets {key}: all arms share data and evaluation, or nothing is "
                    "compared; set it for the study"
                )
    pretrain = None
    if "pretrain" in stages:
        pretrain = {**shared, **(stages["pretrain"] or {})}
        if "recipe" not in pretrain:
            raise UserError(f"arm {name} of {path} is pretrained without a recipe: add pretrain.recipe")
    finetune, probe = dict(stages.get("finetune") or {}), dict(stages.get("linear_probe") or {})
    return Arm(name, pretrain, finetune, probe, stages.get("compute_of"))


def _read_labels(path: Path, values: Any) -> dict[int | None, Settings]:
    if not isinstance(values, dict):
        raise UserError(f"labels of {path} must map numbers, or 'all', to settings; got {values!r}")
    for count in values:
        if count != "all" and not (isinstance(count, int) and count > 0):
            raise UserError(f"labels of {path} must be positive numbers or 'all'; got {count!r}")
    return {None if count == "all" else count: dict(settings or {}) for count, settings in values.items()}


def _read_rates(path: Path, values: Any) -> dict[str, tuple[float, ...]]:
    """Learning rates by stage; a list is for every stage that trains."""
    by_stage = values if isinstance(values, dict) else dict.fromkeys(TRAINED, values)
    for stage, rates in by_stage.items():
        if stage not in TRAINED:
            raise UserError(f"learning_rates of {path} names {stage!r}; {near_matches(str(stage), TRAINED)}")
        if list(rates) != sorted(set(rates)):
            raise UserError(f"learning_rates of {path} must ascend without repeating: {list(rates)}")
    return {stage: tuple(float(lr) for lr in rates) for stage, rates in by_stage.items()}


def _check(path: Path, study: Study) -> None:
    if len(set(study.seeds)) != len(study.seeds):
        raise UserError(f"the seeds of {path} repeat: {list(study.seeds)}; each must be there once")
    for measure in study.measures:
        if measure not in MEASURES:
            raise UserError(f"measure {measure!r} of {path} is unknown; {near_matches(measure, MEASURES)}")
        if measure != "knn" and "recipe" not in getattr(study, measure):
            raise UserError(f"study {path} measures {measure} without a recipe: add {measure}.recipe")
    names = [arm.name for arm in study.arms]
    for arm in study.arms:
        if arm.compute_of is not None and (arm.compute_of not in names or arm.pretrain is not None):
            raise UserError(
                f"arm {arm.name} of {path} has compute_of {arm.compute_of!r}: it must name another arm, and start "
                "from scratch itself"
            )


def next_runs(study: Study, results: Sequence[Result]) -> list[PlannedRun]:
    """The runs that can start now: not done yet, with everything that they build on done."""
    done = {result.key for result in results}
    return [run for run in planned_runs(study, results) if run.key not in done and run.after in {None, *done}]


def planned_runs(study: Study, results: Sequence[Result]) -> Iterator[PlannedRun]:
    """All runs that are known to be needed, given the results; a chosen learning rate makes more of them known.

    Seed by seed, so that a study that is stopped has compared all arms at the seeds that it came to.
    """
    for seed in study.seeds:
        for arm in study.arms:
            yield from _runs_of(study, arm, seed, results)


def _runs_of(study: Study, arm: Arm, seed: int, results: Sequence[Result]) -> Iterator[PlannedRun]:
    """Pretraining of an arm at a seed, and what is measured of it."""
    start = None
    if arm.pretrain is not None:
        start = f"{arm.name}/seed{seed}/pretrain"
        settings = {**arm.pretrain, "training.seed": seed}
        yield PlannedRun(start, arm.name, seed, None, "pretrain", "pretrain", settings)
        if "knn" in study.measures:
            yield PlannedRun(f"{arm.name}/seed{seed}/knn", arm.name, seed, None, "knn", "features", {}, start)
        if "linear_probe" in study.measures:
            yield from _measured(study, arm, seed, "linear_probe", "linear-probe", start, results)
    if "finetune" in study.measures:
        yield from _measured(study, arm, seed, "finetune", "finetune", start, results)


def _measured(
    study: Study, arm: Arm, seed: int, stage: str, command: str, start: str | None, results: Sequence[Result]
) -> Iterator[PlannedRun]:
    """Trials of learning rates (at the first seed), then the run at the chosen rate, for every number of labels."""
    for labels in study.labels:
        settings = _stage_settings(study, arm, stage, labels, seed)
        folder = f"{arm.name}/seed{seed}/{stage}" + ("" if labels is None else f"_{labels}")
        lr = None
        if study.learning_rates.get(stage):
            trials = list(_trials(study, arm, stage, command, labels, results))
            if seed == study.seeds[0]:
                yield from trials
            lr = chosen_rate(study, trials, results)
            if lr is None:
                continue
            settings |= {"training.lr": lr}
        yield PlannedRun(folder, arm.name, seed, labels, stage, command, settings, start, lr)


def _stage_settings(study: Study, arm: Arm, stage: str, labels: int | None, seed: int) -> Settings:
    """Options of a stage of an arm: the study's, those of the number of labels, the arm's, the seed."""
    settings = {**getattr(study, stage), **study.labels[labels], **getattr(arm, stage), "training.seed": seed}
    if stage == "finetune" and labels in arm.epochs:
        settings["training.epochs"] = arm.epochs[labels]
    if labels is not None:
        settings |= {"data.subset": labels, "data.subset_seed": seed}
    return settings


def _trials(
    study: Study, arm: Arm, stage: str, command: str, labels: int | None, results: Sequence[Result]
) -> Iterator[PlannedRun]:
    """One run a learning rate on the training split without its held-out part; a best rate at an edge adds one."""
    seed = study.seeds[0]
    start = f"{arm.name}/seed{seed}/pretrain" if arm.pretrain is not None else None
    scores = {result.key: result.score for result in results}

    def trial(lr: float) -> PlannedRun:
        settings = _stage_settings(study, arm, stage, labels, seed)
        settings |= {"data.holdout": study.holdout, "training.lr": lr}
        name = stage if labels is None else f"{stage}_{labels}"
        key = f"{arm.name}/trials/{name}_lr{lr:g}"
        return PlannedRun(key, arm.name, seed, labels, "trial", command, settings, start, lr)

    rates = list(study.learning_rates[stage])
    for _ in range(study.extensions):
        runs = [trial(lr) for lr in rates]
        if not all(run.key in scores for run in runs) or len(rates) < 2:
            break
        best = max(runs, key=lambda run: scores[run.key])
        if best is runs[0]:
            rates.insert(0, rates[0] ** 2 / rates[1])
        elif best is runs[-1]:
            rates.append(rates[-1] ** 2 / rates[-2])
        else:
            break
    for lr in rates:
        yield trial(lr)


def chosen_rate(study: Study, trials: Sequence[PlannedRun], results: Sequence[Result]) -> float | None:
    """The learning rate with the best score on the held-out part, once all trials are done."""
    scores = {result.key: result.score for result in results}
    if not all(run.key in scores for run in trials):
        return None
    return max(trials, key=lambda run: scores[run.key]).lr
