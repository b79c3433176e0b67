"""What the runs of a study measured, read from the files that they leave."""

import json
from pathlib import Path
from typing import Any

from map_core.errors import Diverged, UserError, reason
from map_core.json_values import is_finite
from map_core.reading import read_small
from map_core.study.definition import Study
from map_core.study.measures import added_measures, load_measure
from map_core.study.place import Place
from map_core.study.plan import PlannedRun
from map_core.study.results import Result

SCORES = {"pretrain": "loss", "knn": "knn_accuracy"}  # by stage; of all others the accuracy
KEPT_FACTS = ("commit", "device", "versions", "peak_memory_bytes", "evaluated_on", "samples_per_second")


def finish(study: Study, run: PlannedRun, status: int, seconds: float, place: Place) -> Result:
    """Read what a run of ``study`` measured that ended with an exit status after so many seconds.

    Raises:
        UserError: it failed or was interrupted.
        Diverged: it is no trial, whose rate would have lost.
    """
    directory, log = place.directory(run.key), place.log(run.key)
    computed = {"run_settings": here} if (here := place.settings_of(run)) else {}
    if status:
        said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last = said[-1] if said else "it printed nothing"
        if status == Diverged.status and run.stage == "trial":  # this rate has lost
            return result_of(study, run, 0.0, {}, seconds, {"diverged": last} | computed)
        if status == Diverged.status:
            raise Diverged(
                f"run {run.key} of the study diverged: {last}; see {log}. The others are done; ask for lower rates "
                "(learning_rates, or training.lr) in a copy of the study's file, under another name"
            )
        raise UserError(
            f"run {run.key} of the study ended with status {status}: {last}; see {log}, then start the study again: it "
            "goes on"
        )
    summary = read_summary(run, directory)
    if summary.get("interrupted"):
        raise UserError(f"run {run.key} was interrupted; start the study again: it goes on")
    numbers = {key: float(v) for key, v in summary.items() if is_finite(v)}
    name = SCORES.get(run.stage, "test_accuracy")
    if run.stage in added_measures():
        name = load_measure(run.stage).score
    if name not in numbers:
        raise UserError(f"run {run.key} measured no {name}; see {log}")
    facts = {key: summary[key] for key in KEPT_FACTS if key in summary} | computed
    return result_of(study, run, numbers[name], numbers, numbers.get("seconds", seconds), facts)


def result_of(
    study: Study,
    run: PlannedRun,
    score: float,
    numbers: dict[str, float],
    seconds: float,
    facts: dict[str, Any],
) -> Result:
    """The result of a run whose summary holds ``numbers``."""
    return Result(
        study=study.name,
        key=run.key,
        arm=run.arm,
        seed=run.seed,
        labels=run.labels,
        stage=run.stage,
        lr=run.lr,
        settings=run.settings,
        score=score,
        measures=numbers,
        seconds=seconds,
        samples=round(numbers.get("samples", 0)),
        facts=facts,
    )


def read_summary(run: PlannedRun, directory: Path) -> dict[str, Any]:
    """The summary of a training run, or the score beside its features.

    Raises:
        UserError: there is none.
    """
    if run.stage in added_measures():
        return load_measure(run.stage).summary(directory)
    file = directory.with_suffix(".json") if run.command == "features" else directory / "summary.json"
    try:
        summary = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"run {run.key} left no readable {file.name} ({reason(error)})") from error
    if not isinstance(summary, dict):
        raise UserError(f"run {run.key} left a {file.name} that is no mapping")
    return summary
