"""A study's file (YAML), read and checked. It names a question, arms, seeds and measures::

    name: digits_labels
    question: When does pretraining pay on the digits?
    arms:
      map: {pretrain: {recipe: pretrain_digits, objective.attention: map}}
      scratch: {}
    finetune: {recipe: finetune_digits, training.epochs: 20}
    labels:                          # data.subset of finetuning and probing, with what else differs; all: every label
      50: {training.epochs: 100, training.batch_size: 50}
      all: {}
    learning_rates:                  # tried on a held-out part, the same grid for every arm; one list for both stages
      finetune: [0.001, 0.002, 0.004]
    seeds: [0, 1, 2]
    measures: [finetune, linear_probe, knn, heldout_loss]

Settings may be nested instead, such as ``training: {epochs: 100}``. ``base`` names a study to build on, packaged or
beside the file; the file's arms, if any, replace those of that study.
A measure that an installed package adds (:mod:`map_core.study.measures`) has its settings under its name, as
``finetune`` does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from map_core.commands.plain_yaml import read_yaml
from map_core.commands.recipes import find_recipe, nest_dotted_keys, recipe_names
from map_core.commands.settings import flatten
from map_core.commands.values import short_repr
from map_core.errors import UserError, near_matches
from map_core.paths import expand_user, is_file
from map_core.study.forms import check_forms, is_whole_between, rate
from map_core.study.measures import (
    TITLES,
    TRAINED_MEASURES,
    StudySettings,
    added_measures,
    load_measure,
    stages,
)

KEYS = (
    "name", "question", "arms", "labels", "learning_rates", "holdout", "seeds", "measures", "extensions", "base",
)  # fmt: skip
ARM_KEYS = ("model", "init", "compute_of")
LENGTH_SETTINGS = ("training.epochs", "training.sample_budget")
SHARED_SECTIONS = ("data.", "evaluation.")  # what arms may not change: they would be compared on other data


@dataclass(frozen=True)
class Arm:
    """One way of training, compared with the others.

    Attributes:
        pretrain: Recipe and settings of pretraining; None starts from scratch.
        stages: Settings of measures that differ from the study's.
        model: Settings of its model, in every stage.
        init: Weights that exist already, as ``--init`` takes them, instead of pretraining.
        compute_of: Another arm: this one is finetuned for as many operations as that is pretrained and finetuned for.
        lengths: By number of labels, the settings of finetuning's length to which ``compute_of`` was resolved.
    """

    name: str
    pretrain: StudySettings | None = None
    stages: Mapping[str, StudySettings] = field(default_factory=dict)
    model: StudySettings = field(default_factory=dict)
    init: str | None = None
    compute_of: str | None = None
    lengths: Mapping[int | None, StudySettings] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study's file, checked.

    Attributes:
        stages: Settings of measures that train; the recipe's name is under ``recipe``.
        labels: Numbers of labels (None: all), with the settings for each.
        learning_rates: Rates that each arm tries, by stage; none for a stage that runs at its recipe's rate.
        holdout: Share of the training split on which rates are compared.
        extensions: How often a best rate at the edge of the grid may extend it.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    stages: Mapping[str, StudySettings]
    labels: Mapping[int | None, StudySettings]
    learning_rates: Mapping[str, tuple[float, ...]]
    holdout: float
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    extensions: int


def read_study(path: Path, package: str) -> Study:
    """Read a study's file.

    Args:
        path: The file.
        package: Package that holds the packaged studies, on which a file may build.

    Raises:
        UserError: unknown keys, arms that change data or evaluation, seeds that repeat, a stage without recipe,
            measures and settings that have no effect.
    """
    values = _read_values(path, package, ())
    _check_measures(path, values.get("measures") or ())  # before the keys, which may be names of measures
    known_keys = (*KEYS, *stages())
    for key in values:
        if key not in known_keys:
            raise UserError(f"unknown key {key!r} in study {path}; {near_matches(str(key), known_keys)}")
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("name", "arms", "seeds", "measures"):
        if not values.get(key):
            raise UserError(f"study {path} lacks {key}")
    shared = values.get("pretrain", {})
    arms = tuple(_read_arm(path, name, arm or {}, shared) for name, arm in values["arms"].items())
    study = Study(
        name=values["name"],
        question=values.get("question", ""),
        arms=arms,
        stages={stage: dict(values[stage]) for stage in measured_stages() if stage in values},
        labels=_read_labels(path, values.get("labels") or {"all": {}}),
        learning_rates=_read_rates(path, values.get("learning_rates", {}), values["measures"]),
        holdout=rate(values.get("holdout", 0.1)),
        seeds=tuple(values["seeds"]),
        measures=tuple(values["measures"]),
        extensions=values.get("extensions", 2),
    )
    _check(path, study)
    return study


def _read_values(path: Path, package: str, descendants: tuple[Path, ...]) -> dict[str, Any]:
    """Read the keys of a study and of those that it builds on; ``descendants`` are the files that build on it.

    Raises:
        UserError: it cannot be read, has a value of the wrong form, or builds on itself or on no study.
    """
    if path in descendants:
        raise UserError(
            f"study {path} builds on itself: {' -> '.join(file.stem for file in (*descendants, path))}; remove a base, "
            "or rename a file that is called like the packaged study it builds on"
        )
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a study: it must map keys such as arms and seeds to values")
    check_forms(path, values)
    values |= {stage: by_dotted_name(path, stage, values[stage]) for stage in stages() if values.get(stage)}
    if values.get("base") is None:
        return values
    base = str(values["base"])
    if values.get("name") is None:
        raise UserError(
            f"study {path} builds on {base} and lacks name: results are kept by it, each study's apart"
        )
    beside = path.parent / f"{base}.yaml"
    if not (is_file(beside) or base in recipe_names(package) or is_file(expand_user(base))):
        raise UserError(
            f"base {short_repr(base)} of study {path} is neither a packaged study nor a file beside it, whose ending "
            f".yaml is left out; {near_matches(base, recipe_names(package))}"
        )
    with find_recipe(package, str(beside if is_file(beside) else base)) as file:
        base_values = _read_values(file, package, (*descendants, path))
    merged = {key: layered(base_values.get(key) or {}, values.get(key) or {}) for key in stages()}
    return {**base_values, **values, **merged}


def by_dotted_name(path: Path, where: str, settings: StudySettings | None) -> StudySettings:
    """Settings by dotted name, also those that the file nests: so an arm overrides the study, however each is written.

    Raises:
        UserError: a setting is there twice, nested and not.
    """
    return flatten(nest_dotted_keys(settings or {}, f"{where} of {path}"))


def layered(*layers: StudySettings) -> StudySettings:
    """Merge settings; those of a later layer win, and come later in a command, which may set a section as a whole."""
    settings: StudySettings = {}
    for layer in layers:
        settings = {key: value for key, value in settings.items() if key not in layer} | layer
    return settings


def measured_stages() -> tuple[str, ...]:
    """The measures that have settings."""
    return (*TRAINED_MEASURES, *added_measures())


def shared_sections(stage: str) -> tuple[str, ...]:
    """Prefixes of the settings of a stage that all arms share."""
    return load_measure(stage).shared if stage in added_measures() else SHARED_SECTIONS


def _read_arm(path: Path, name: str, values: StudySettings, shared: StudySettings) -> Arm:
    known_keys = (*stages(), *ARM_KEYS)
    values = {
        key: by_dotted_name(path, f"{key} of arm {name}", value) if key in (*stages(), "model") else value
        for key, value in values.items()
    }
    for key, value in values.items():
        if key not in known_keys:
            raise UserError(
                f"arm {name} of {path} has an unknown key {key!r}; {near_matches(str(key), known_keys)}"
            )
        for setting in value if key in stages() else ():
            if f"{setting}.".startswith(shared_sections(key)):
                raise UserError(
                    f"arm {name} of {path} sets {setting}: all arms share data and evaluation, or nothing is "
                    f"compared; set it in {key} of the study itself, beside its arms"
                )
        if key in measured_stages() and "recipe" in value:
            raise UserError(
                f"arm {name} of {path} has a recipe of its own for {key}, which may bring other data and evaluation: "
                "say what differs by its settings"
            )
    model = {f"model.{key}": value for key, value in values.get("model", {}).items()}
    pretrain = None
    if "pretrain" in values:
        pretrain = layered(shared, model, values["pretrain"])
        if "recipe" not in pretrain:
            raise UserError(f"arm {name} of {path} is pretrained without a recipe: add pretrain.recipe")
    stage_settings = {stage: values.get(stage, {}) for stage in measured_stages()}
    return Arm(name, pretrain, stage_settings, model, values.get("init"), values.get("compute_of"))


def _read_labels(path: Path, values: Mapping[Any, StudySettings | None]) -> dict[int | None, StudySettings]:
    for count in values:
        if count != "all" and not is_whole_between(count, 1):
            raise UserError(f"labels of {path} must be positive numbers or 'all'; got {count!r}")
    return {
        None if count == "all" else count: by_dotted_name(path, f"labels {count}", settings)
        for count, settings in values.items()
    }


def _read_rates(path: Path, values: Any, measures: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Learning rates by stage; a list applies to every stage that trains."""
    by_stage = values if isinstance(values, dict) else dict.fromkeys(TRAINED_MEASURES, values)
    learning_rates = {stage: tuple(map(rate, rates)) for stage, rates in by_stage.items()}
    for stage, rates in learning_rates.items():
        if stage not in TRAINED_MEASURES:
            raise UserError(
                f"learning_rates of {path} names {stage!r}; {near_matches(str(stage), TRAINED_MEASURES)}"
            )
        if isinstance(values, dict) and stage not in measures:
            raise UserError(
                f"learning_rates of {path}, or of its base, has rates for {stage}, which is not measured: leave them "
                "out, or give learning_rates here without them"
            )
        if list(rates) != sorted(set(rates)):
            raise UserError(f"learning_rates of {path} must ascend without repeating: {list(rates)}")
        if not rates:
            raise UserError(f"learning_rates of {path} has no rate for {stage}: add some, or leave it out")
        if len({f"{lr:g}" for lr in rates}) < len(rates):
            raise UserError(
                f"learning_rates of {path} has rates that agree in six digits, by which runs are named: {list(rates)}; "
                "leave all but one of them out"
            )
    return learning_rates


def _check_measures(path: Path, measures: Iterable[str]) -> None:
    known_measures = (*TITLES, *added_measures())
    for measure in measures:
        if measure not in known_measures:
            raise UserError(
                f"measure {measure!r} of {path} is unknown; {near_matches(measure, known_measures)}; more are there "
                "once the packages are installed that add them (map-dense: segment)"
            )


def _check(path: Path, study: Study) -> None:
    for key, entries in (("seeds", study.seeds), ("measures", study.measures)):
        if len(set(entries)) != len(entries):
            raise UserError(f"the {key} of {path} repeat: {list(entries)}; each must be there once")
    for measure in study.measures:
        if measure in measured_stages() and "recipe" not in study.stages.get(measure, {}):
            raise UserError(f"study {path} measures {measure} without a recipe: add {measure}.recipe")
    added = [measure for measure in study.measures if measure in added_measures()]
    for arm in study.arms:
        name = f"arm {arm.name} of {path}"
        if arm.model and added:
            raise UserError(
                f"{name} has model, which {added[0]} would not be told: say it in {added[0]} and pretrain"
            )
        if arm.init is not None and arm.pretrain is not None:
            raise UserError(f"{name} has init and pretrain: it can start from one of them")
        if arm.compute_of is not None:
            _check_compute(name, arm, study)
        for stage, settings in arm.stages.items():
            if settings and stage not in study.measures:
                raise UserError(
                    f"{name} sets {stage}, which is not measured: add it to measures, or remove it"
                )
        if arm.stages["linear_probe"] and arm.pretrain is None and arm.init is None:
            raise UserError(
                f"{name} sets linear_probe, which measures only arms with pretrain or init: remove it"
            )
        if "heldout_loss" in study.measures and (arm.pretrain or {}).get("monitor.samples") == 0:
            raise UserError(
                f"{name} sets monitor.samples 0, with which no heldout_loss is measured: leave it out, for 2048 samples"
            )
        _check_overwritten(path, "pretrain", arm.pretrain or {}, {"training.seed"})
    for stage in TRAINED_MEASURES:
        overwritten = {"training.seed"}
        if study.learning_rates.get(stage):
            overwritten |= {"training.lr", "training.base_lr"}
        subset = {"data.subset", "data.subset_seed"}  # which a number of labels sets
        for arm in study.arms:
            _check_overwritten(path, stage, arm.stages.get(stage, {}), overwritten)
        of_stage = overwritten if study.labels.keys() == {None} else overwritten | subset
        _check_overwritten(path, stage, study.stages.get(stage, {}), of_stage)
        for count, settings in study.labels.items():
            _check_overwritten(path, stage, settings, overwritten if count is None else overwritten | subset)
    _check_effects(path, study)


def _check_effects(path: Path, study: Study) -> None:
    """Refuse measures that no arm has, and labels and learning rates that no measure uses."""
    absent: set[str] = set()
    if all(arm.pretrain is None for arm in study.arms):
        absent = {"knn", "heldout_loss"}
        if all(arm.init is None for arm in study.arms):
            absent.add("linear_probe")
    if without := [measure for measure in study.measures if measure in absent]:
        raise UserError(
            f"no arm of {path} is pretrained by the study, so none has {' or '.join(without)}: add pretrain to an arm, "
            f"or leave {' and '.join(without)} out of measures"
        )
    if not set(TRAINED_MEASURES) & set(study.measures):
        for key, is_set in (("labels", study.labels != {None: {}}), ("learning_rates", study.learning_rates)):
            if is_set:
                raise UserError(
                    f"{key} of {path} has no effect, as neither {' nor '.join(TRAINED_MEASURES)} is measured: "
                    "remove it, or make it null where a base has it"
                )


def _check_overwritten(path: Path, stage: str, settings: StudySettings, overwritten: set[str]) -> None:
    """Refuse settings of a stage without effect, because the study sets them for each run itself."""
    if both := sorted(settings.keys() & overwritten):
        raise UserError(
            f"{stage} of {path} sets {both[0]}, which the study sets for each run itself, by its seeds, labels or "
            "learning_rates: remove it"
        )


def _check_compute(name: str, arm: Arm, study: Study) -> None:
    """Refuse ``compute_of`` of an arm (``name`` in messages) whose operations cannot be counted or matched."""
    if "finetune" not in study.measures:
        raise UserError(
            f"{name} has compute_of, which gives finetuning its epochs, but finetune is not measured: set the length "
            "of what is"
        )
    if added := [measure for measure in study.measures if measure in added_measures()]:
        raise UserError(
            f"{name} has compute_of, which lengthens finetuning alone, but {added[0]} is measured too, and would be "
            f"without that compute: measure {added[0]} in another study"
        )
    other = next((other for other in study.arms if other.name == arm.compute_of), None)
    if other is None or other.compute_of is not None or arm.pretrain is not None or arm.init is not None:
        raise UserError(
            f"{name} has compute_of {arm.compute_of!r}: it must name another arm, one without compute_of, and start "
            "from scratch itself"
        )
    if other.init is not None:
        raise UserError(
            f"{name} has compute_of {arm.compute_of!r}, whose weights come from elsewhere: what they cost is not "
            "known here; set training.epochs of its finetuning instead"
        )
    finetune = arm.stages.get("finetune", {})
    for setting in LENGTH_SETTINGS:
        if setting in finetune:
            raise UserError(
                f"{name} sets {setting} of finetune ({finetune[setting]}), which has no effect with compute_of "
                f"{arm.compute_of!r}, as its length follows from that arm's operations: remove one of the two"
            )
