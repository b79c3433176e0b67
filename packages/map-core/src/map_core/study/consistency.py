"""What all results of a study must share, so that its arms are compared on equal terms."""

import json
from collections.abc import Sequence
from functools import reduce

from map_core.commands.recipes import recipe_layers
from map_core.commands.settings import flatten, merge
from map_core.errors import UserError, abbreviate
from map_core.reading import content_of
from map_core.study.definition import Study
from map_core.study.location import StudyLocation
from map_core.study.measures import added_measures
from map_core.study.plan import PlannedRun, every_run, is_finetuning, next_runs, planned_runs
from map_core.study.results import Result
from map_core.study.run_settings import ALLOWED_NAMES, SECTION
from map_core.tasks.domain import NOT_IDENTIFYING
from map_core.tasks.parts import checksum
from map_core.tasks.weights import weights_identity

RECIPE_FACT = "recipe_identity"


def planned_results(study: Study, results: Sequence[Result], location: StudyLocation) -> list[Result]:
    """Results of the runs that the study plans now; those of other seeds or arms are left out.

    Raises:
        UserError: the results cannot be compared, see :func:`refuse_inconsistent`.
    """
    refuse_inconsistent(study, results, location)
    return of_planned_runs(study, results)


def of_planned_runs(study: Study, results: Sequence[Result]) -> list[Result]:
    """Leave out the results of seeds and arms that the study does not have."""
    keys = {run.key for run in every_run(study, results)}
    return [result for result in results if result.key in keys]


def refuse_inconsistent(study: Study, results: Sequence[Result], location: StudyLocation) -> None:
    """Refuse results that cannot be compared.

    Raises:
        UserError: the study now plans one of them with other settings; runs of an arm started from different weights;
            a recipe changed between runs.
    """
    refuse_other_settings(study, results, location)
    refuse_mixed_weights(study, results, location)
    refuse_mixed_recipes(study, results, location)


def refuse_other_settings(study: Study, results: Sequence[Result], location: StudyLocation) -> None:
    """Refuse results of runs that the study now plans with other settings: they answer another question.

    Raises:
        UserError: it names a run and what differs.
    """
    settings_by_run = {result.key: flatten(result.settings) for result in results}
    runs = list(planned_runs(study, results))
    for run in runs:
        current = json.loads(json.dumps(run.settings))
        earlier = settings_by_run.get(run.key, current)
        if changed := sorted(key for key in {*earlier, *current} if earlier.get(key) != current.get(key)):
            differences = ", ".join(
                f"{key} was {earlier.get(key)!r} and is {current.get(key)!r}" for key in changed
            )
            cure = "give the changed study another name, or remove that line and the run's folder"
            if after := [
                other.key for other in runs if other.after == run.key and other.key in settings_by_run
            ]:
                cure += f", and those of the runs that start from it ({abbreviate(after)})"
            if as_long := [
                other.key
                for other in runs
                if other.key in settings_by_run and follows_in_length(other, run, study)
            ]:
                cure += f", and those of the runs whose length follows from its operations ({abbreviate(as_long)})"
            if run.stage == "trial" and "training.seed" in changed:
                cure = (
                    f"trials run at the first of seeds: begin seeds with {earlier.get('training.seed')} wherever parts "
                    f"of the study run, or remove the lines and folders of all trials; else {cure}"
                )
            raise UserError(f"{location.results} holds {run.key} with other settings ({differences}): {cure}")


def follows_in_length(run: PlannedRun, other: PlannedRun, study: Study) -> bool:
    """Whether ``run`` is a finetuning whose arm has ``compute_of``, and what ``other`` costs counts for its length."""
    arm = next(arm for arm in study.arms if arm.name == run.arm)
    counted = other.stage == "pretrain" or (is_finetuning(other) and other.labels == run.labels)
    return arm.compute_of == other.arm and is_finetuning(run) and counted


def refuse_mixed_weights(study: Study, results: Sequence[Result], location: StudyLocation) -> None:
    """Refuse results of an arm whose ``init`` named other weights at some runs than at others.

    Raises:
        UserError: it names two of the runs.
    """
    for arm in study.arms:
        if len(runs := list(runs_by_weights(arm.name, results).values())) > 1:
            raise UserError(
                f"{location.results} holds {runs[0]} and {runs[1]} of one arm, whose init named other weights at one "
                "than at the other: remove the lines and folders of the runs from weights that it no longer names"
            )


def refuse_unusable_weights(study: Study, results: Sequence[Result]) -> None:
    """Refuse an arm whose ``init`` is missing, or replaced since its first runs, before hours are spent on the others.

    Raises:
        UserError: it names the arm and the file.
    """
    inits = {run.arm: run.settings["init"] for run in next_runs(study, results) if "init" in run.settings}
    for arm, init in inits.items():
        try:
            identity = weights_identity(init)
        except UserError as error:
            raise UserError(f"arm {arm} of study {study.name} starts from init: {error}") from error
        if (runs := runs_by_weights(arm, results)) and identity not in runs:
            raise UserError(
                f"init {init} of arm {arm} of study {study.name} no longer holds the weights from which "
                f"{next(iter(runs.values()))} started: put those back, or give the changed study another name"
            )


def runs_by_weights(arm: str, results: Sequence[Result]) -> dict[str, str]:
    """By the identity of the weights that ``init`` of an arm named, the last run that started from them."""
    return runs_by_fact(
        "init_identity", [result for result in results if result.arm == arm and "init" in result.settings]
    )


def runs_by_recipe(recipe: str | None, results: Sequence[Result]) -> dict[str, str]:
    """By the identity of a recipe's settings, the last run that had them."""
    return runs_by_fact(RECIPE_FACT, [result for result in results if recipe_of(result) == recipe])


def runs_by_fact(name: str, results: Sequence[Result]) -> dict[str, str]:
    """By the values of a fact, the last run that recorded each; earlier versions recorded fewer facts."""
    return {str(result.facts[name]): result.key for result in results if name in result.facts}


def recipe_identity(package: str, name: str) -> str:
    """Identify what a recipe and its bases set, apart from where data lie and how a machine computes.

    A file of statistics counts by its content; skipping unreadable samples counts, too.

    Args:
        package: The package that holds the recipes.
        name: A recipe's name or a file's path.

    Raises:
        UserError: there is no such recipe, or it cannot be read.
    """
    layers = [layer.values for layer in recipe_layers(package, name) if isinstance(layer.values, dict)]
    values = flatten(reduce(merge, layers, {}))
    ignored = {
        "out",
        *(f"data.{setting}" for setting in NOT_IDENTIFYING),
        *(f"{SECTION}{setting}" for setting in ALLOWED_NAMES),
    }
    relevant = {key: value for key, value in values.items() if key not in ignored}
    if (file := values.get("data.statistics")) is not None:
        relevant["data.statistics"] = content_of(file)
    if (on_error := values.get("data.on_error")) not in (None, "raise"):
        relevant["data.on_error"] = on_error
    return checksum(relevant)[:16]


def recipe_of(run: PlannedRun | Result) -> str | None:
    """The recipe of a run; None if it trains with its own program, or does not train."""
    return None if run.stage in added_measures() else run.settings.get("recipe")


def recipe_facts(
    run: PlannedRun, study: Study, results: Sequence[Result], package: str | None
) -> dict[str, str]:
    """What is recorded of a run's recipe.

    Args:
        run: A run that has yet to start.
        study: The study.
        results: Its results so far.
        package: The package that holds the recipes; None records nothing.

    Raises:
        UserError: the recipe has changed since an earlier run; it cannot be read.
    """
    recipe = recipe_of(run)
    if recipe is None or package is None:
        return {}
    identity = recipe_identity(package, recipe)
    if (runs := runs_by_recipe(recipe, of_planned_runs(study, results))) and identity not in runs:
        raise UserError(
            f"recipe {recipe} has changed since {next(iter(runs.values()))} ran: put it back as it was (config.yaml in "
            "that run's folder has all settings; a packaged recipe comes with its version), or give the changed study "
            "another name"
        )
    return {RECIPE_FACT: identity}


def refuse_changed_recipes(study: Study, results: Sequence[Result], package: str) -> None:
    """Refuse a recipe that has changed since its first runs, before hours are spent on others.

    Raises:
        UserError: it names the recipe and a run.
    """
    done = {result.key for result in results}
    runs = {recipe_of(run): run for run in every_run(study, results) if run.key not in done}
    for run in runs.values():
        recipe_facts(run, study, results, package)


def refuse_mixed_recipes(study: Study, results: Sequence[Result], location: StudyLocation) -> None:
    """Refuse results of which some ran with a recipe before it changed and some after.

    Raises:
        UserError: it names the recipe and two of the runs.
    """
    planned = of_planned_runs(study, results)
    for recipe in {recipe_of(result): None for result in planned}:
        if len(runs := list(runs_by_recipe(recipe, planned).values())) > 1:
            raise UserError(
                f"{location.results} holds {runs[0]} and {runs[1]}, between which recipe {recipe} changed: remove the "
                "lines and folders of the runs with one of the two"
            )
