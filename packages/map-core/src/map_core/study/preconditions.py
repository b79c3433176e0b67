"""What must hold before a study starts, seen in the configurations that its runs will have."""

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from map_core.commands.program import validate
from map_core.errors import UserError
from map_core.quiet import quietly
from map_core.runs.files import save_json
from map_core.study.consistency import refuse_changed_recipes
from map_core.study.cost import configuration, naming_study, pretraining_of, study_stage
from map_core.study.definition import Study
from map_core.study.measures import TRAINED_MEASURES, added_measures, load_measure
from map_core.study.plan import (
    COMMANDS,
    TRAINING_COMMANDS,
    PlannedRun,
    every_run,
    planned_runs,
    stage_settings,
)
from map_core.study.results import Result
from map_core.tasks.domain import Domain, Purpose, required_training_samples


def check_preconditions(study: Study, domain: Domain, scratch: Path, results: Sequence[Result]) -> None:
    """Check a study; before its first run, and before that of an arm, also against its data.

    Args:
        study: The study.
        domain: Domain of the study.
        scratch: A directory that does not exist; nothing is written there.
        results: Results of its runs so far.

    Raises:
        UserError: it compares what cannot be compared, a recipe has changed since its first runs, a measure of another
            package refuses its settings, a run could not start with its settings, it asks for more labels than there
            are, or arms differ in how inputs are prepared.
    """
    refuse_rates_chosen_on_measured(study, domain, scratch)
    refuse_other_pretraining_data(study, domain, scratch)
    refuse_changed_recipes(study, results, domain.recipes)
    check_added_measures(study, results)
    refuse_impossible_runs(study, domain, scratch, results)
    if not results:
        refuse_missing_labels(study, domain, scratch)
    if {arm.name for arm in study.arms} - {result.arm for result in results}:
        refuse_other_preparation(study, domain, scratch)


def refuse_rates_chosen_on_measured(study: Study, domain: Domain, scratch: Path) -> None:
    """Refuse learning rates that would be chosen on the samples on which arms are then compared.

    Raises:
        UserError: a stage with learning rates is measured on a held-out part, or its recipe names ``eval_split``, which
            trials could not leave out.
    """
    arm = study.arms[0]  # all arms share their data
    for stage, labels in itertools.product(study.measures, study.labels):
        if not study.learning_rates.get(stage):
            continue
        settings = stage_settings(study, arm, stage, labels, study.seeds[0])
        run = PlannedRun("", arm.name, 0, labels, stage, COMMANDS[stage], settings)
        with naming_study(study, stage):
            data = configuration(domain, run, scratch).data
        if data.holdout:
            raise UserError(
                f"study {study.name} measures {stage} on data.holdout ({data.holdout:g}), on which its learning rates "
                f"would be chosen too: give a test split and data.holdout: 0 in {stage}, or leave learning_rates out"
            )
        eval_split = getattr(data, "eval_split", None)
        if eval_split is not None and "data.eval_split" not in settings:
            raise UserError(
                f"study {study.name} tries learning rates of {stage} on a held-out part, but its recipe names "
                f"data.eval_split {eval_split}: name it in {stage} of the study, whose trials then leave it out"
            )


def refuse_other_pretraining_data(study: Study, domain: Domain, scratch: Path) -> None:
    """Refuse arms whose recipes of pretraining name other data.

    Raises:
        UserError: it names two arms and what differs.
    """
    data = {}
    for arm in study.arms:
        if arm.pretrain is not None:
            run = PlannedRun("", arm.name, 0, None, "pretrain", "pretrain", arm.pretrain)
            with naming_study(study, "pretrain"):
                data[arm.name] = asdict(configuration(domain, run, scratch).data)
    for (name, values), (other, other_values) in itertools.pairwise(data.items()):
        for key, value in values.items():
            if other_values[key] != value:
                raise UserError(
                    f"arms {name} and {other} of study {study.name} are pretrained with data.{key} {value!r} and "
                    f"{other_values[key]!r}, but all arms share data: set data.{key} in pretrain of the study"
                )


def check_added_measures(study: Study, results: Sequence[Result]) -> None:
    """Let the measures of other packages check their settings: their runs come after all pretrainings.

    Raises:
        UserError: a measure refuses them, or cannot be loaded.
    """
    done = {result.key for result in results}
    runs = {  # one of each kind: all seeds share the settings
        (run.arm, run.stage): run
        for run in planned_runs(study, results)
        if run.stage in added_measures() and run.key not in done
    }
    for run in runs.values():
        load_measure(run.stage).check(run.settings)


def refuse_impossible_runs(study: Study, domain: Domain, scratch: Path, results: Sequence[Result]) -> None:
    """Refuse settings that no run can have, and models that cannot be built or that their pretraining would not fit.

    One run of each kind is checked, as its command would: the others differ in seed and learning rate. The weights of
    an arm's pretraining, which need not exist yet, are compared by names and shapes.

    Raises:
        UserError: what the command would say, with the study and the stage.
    """
    done = {result.key for result in results}
    at_equal_compute = {arm.name for arm in study.arms if arm.compute_of is not None}
    kinds: dict[tuple[str, str, int | None], PlannedRun] = {}
    for run in every_run(study, results):
        if run.command in TRAINING_COMMANDS and run.key not in done:
            kinds.setdefault((run.arm, study_stage(study, run), run.labels), run)
    for (arm, stage, _), run in kinds.items():
        with naming_study(study, stage), quietly():  # the runs themselves warn, in their logs
            config = configuration(domain, run, scratch)
            if arm in at_equal_compute:
                # its warmup may be longer than the epochs that compute has yet to replace
                config = replace(config, training=replace(config.training, warmup_epochs=0.0))
            validate(config)
            model = build_without_values(domain, run.command, config)
            if (pretraining := pretraining_of(run)) is not None:
                pretrained = configuration(domain, pretraining, scratch).model
                refuse_other_model(domain, run.command, config, model, pretrained)
            else:
                refuse_other_settings(domain, run.command, config, config.init)


def build_without_values(domain: Domain, command: str, config: Any) -> nn.Module:
    """The model that a command trains, on the device ``meta``, where parameters take neither memory nor time.

    Raises:
        UserError: no model can be built with these settings.
    """
    with torch.device("meta"):
        if command == "finetune":
            return domain.models.create_classifier(config.model, domain.outputs)
        backbone = domain.models.create_backbone(config.model)
        return domain.build_objective(backbone, config.objective) if command == "pretrain" else backbone


def refuse_other_model(domain: Domain, command: str, config: Any, model: nn.Module, pretrained: Any) -> None:
    """Refuse a model that could not start from its pretraining, whose weights need not exist yet.

    Args:
        domain: Domain of the study.
        command: The command that trains the model.
        config: Its configuration.
        model: The model, without values.
        pretrained: The ``model`` section of the pretraining.

    Raises:
        UserError: names or shapes of parameters differ other than ``--init`` allows, or settings without which weights
            mean nothing.
    """
    with torch.device("meta"):
        state = domain.models.create_backbone(pretrained).state_dict()
    # one zero for all values of a parameter: a file of a few kilobytes
    zeros = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pretraining.pth"
        torch.save(zeros, file)
        save_json(file.with_suffix(".json"), domain.models.describe(pretrained, holds="encoder"))
        try:
            refuse_other_settings(domain, command, config, file)
            domain.models.load_init(model, file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), "the pretraining of its arm")) from error


def refuse_other_settings(domain: Domain, command: str, config: Any, init: str | Path | None) -> None:
    """Compare the model of a run with the description of the weights that it starts from, as its command does.

    Raises:
        UserError: they would mean something else in this model.
    """
    is_classifier = command == "finetune"
    domain.models.refuse_other_settings(
        config.model, init, may_differ=config.init_may_differ, is_classifier=is_classifier
    )


def refuse_missing_labels(study: Study, domain: Domain, scratch: Path) -> None:
    """Refuse more labels than there are training samples, of which trials of learning rates hold some out.

    Raises:
        UserError: it names both numbers; or the data cannot be opened, or have no part to hold out.
    """
    most = max((labels for labels in study.labels if labels is not None), default=None)
    runs: dict[str, PlannedRun] = {}  # one of each command: all arms share their data
    for run in planned_runs(study, []):
        if run.labels == most and (most is not None or run.stage == "trial"):
            runs.setdefault(run.command, run)
    for run in runs.values():
        with naming_study(study, study_stage(study, run)):
            config = configuration(domain, run, scratch)
            data = domain.open_data(replace(config.data, subset=None), config.model, "finetune")
            samples = len(required_training_samples(data))
        if most is not None and most > samples:
            held_out = (
                f" without the held-out part (holdout {study.holdout:g})" if run.stage == "trial" else ""
            )
            raise UserError(
                f"study {study.name} asks for {most} labels, but {run.command} has {samples} training samples"
                f"{held_out}: give a smaller number in labels"
            )


def refuse_other_preparation(study: Study, domain: Domain, scratch: Path) -> None:
    """Refuse arms that would be finetuned or probed on differently prepared inputs, such as by another mean.

    Weights bring the preparation of their training unless the run's settings say otherwise; a run from scratch has its
    recipe's.

    Raises:
        UserError: it names two arms and what differs; or the data cannot be opened.
    """
    opened: dict[str, dict[str, Any]] = {}  # data may be large, and most runs share theirs

    def prepared_inputs(
        run: PlannedRun, purpose: Purpose, prepared: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """The shape of the inputs of ``run``, and their preprocessing, which its weights would bring to another run."""
        with naming_study(study, run.stage):
            config = configuration(domain, run, scratch, prepared)
            shape = str(domain.example(config.model).shape)
            key = f"{purpose} {shape} {replace(config.data, subset=None)}"  # how many samples there are does not matter
            if key not in opened:
                opened[key] = domain.open_data(config.data, config.model, purpose).preprocessing
        return shape, opened[key]

    first: dict[tuple[str, str], tuple[PlannedRun, dict[str, Any]]] = {}
    for run in planned_runs(replace(study, learning_rates={}, seeds=study.seeds[:1]), []):
        if run.stage not in TRAINED_MEASURES:
            continue
        prepared: dict[str, Any] = {}
        if (pretraining := pretraining_of(run)) is not None:
            _, prepared = prepared_inputs(pretraining, "pretrain", {})
        shape, preprocessing = prepared_inputs(run, "finetune", prepared)
        values = domain.data_defaults({}, preprocessing, {})
        other, other_values = first.setdefault((f"{run.stage} {run.labels}", shape), (run, values))
        if changed := sorted(
            key for key in {*values, *other_values} if values.get(key) != other_values.get(key)
        ):
            key, names = changed[0], " and ".join(f"data.{key}" for key in changed)
            raise UserError(
                f"arms {other.arm} and {run.arm} of study {study.name} differ in {names} of {run.stage} (data.{key} is "
                f"{other_values.get(key)!r} and {values.get(key)!r}), which weights bring with them: set {names} in "
                f"{run.stage} of the study"
            )
