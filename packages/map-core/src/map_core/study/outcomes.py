"""The results of a study's runs, read from the files that they leave."""

import json
from pathlib import Path
from typing import Any

from map_core.errors import Diverged, UserError, reason
from map_core.json_values import is_finite
from map_core.reading import read_small
from map_core.runs.summary import SUMMARY_FILE
from map_core.study.definition import Study
from map_core.study.location import StudyLocation
from map_core.study.measures import added_measures, load_measure
from map_core.study.plan import PlannedRun
from map_core.study.results import GO_ON, Result

SCORE_NAMES = {"pretrain": "loss", "knn": "knn_accuracy"}  # by stage; for all others the accuracy
FACT_NAMES = (
    "commit", "device", "versions", "peak_memory_bytes", "evaluated_on", "samples_per_second", "init_identity",
)  # fmt: skip


def finish(study: Study, run: PlannedRun, status: int, seconds: float, location: StudyLocation) -> Result:
    """Return the result of a run of ``study`` that ended with exit status ``status`` after ``seconds``.

    Raises:
        UserError: the run failed or was interrupted.
        Diverged: the run diverged and is not a trial; a trial's rate has merely lost.
    """
    directory, log = location.directory(run.key), location.log(run.key)
    machine_facts = {"run_settings": settings} if (settings := location.settings_of(run)) else {}
    if status:
        output = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last_line = output[-1] if output else "it printed nothing"
        if status == Diverged.status and run.stage == "trial":  # its rate has lost
            return result_of(study, run, 0.0, {}, seconds, {"diverged": last_line} | machine_facts)
        if status == Diverged.status:
            raise Diverged(
                f"run {run.key} of the study diverged: {last_line}; see {log}; ask for lower "
                "rates (learning_rates, or training.lr) in a copy of the study's file, under another name"
            )
        cure = "correct that and start the study again" if status == UserError.status else f"then {GO_ON}"
        raise UserError(
            f"run {run.key} of the study ended with status {status}: {last_line}; see {log}, {cure}"
        )
    summary = read_summary(run, directory)
    if summary.get("interrupted"):
        raise UserError(f"run {run.key} was interrupted; {GO_ON}")
    numbers = {key: float(value) for key, value in summary.items() if is_finite(value)}
    name = SCORE_NAMES.get(run.stage, "test_accuracy")
    if run.stage in added_measures():
        name = load_measure(run.stage).score
    if name not in numbers:
        raise UserError(f"run {run.key} measured no {name}; see {log}")
    facts = {key: summary[key] for key in FACT_NAMES if summary.get(key) is not None} | machine_facts
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
    """The summary of a training run, or the score that a run of features leaves beside them.

    Raises:
        UserError: there is none that can be read.
    """
    if run.stage in added_measures():
        return load_measure(run.stage).summary(directory)
    file = directory.with_suffix(".json") if run.command == "features" else directory / SUMMARY_FILE
    try:
        summary = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"run {run.key} left no readable {file.name} ({reason(error)})") from error
    if not isinstance(summary, dict):
        raise UserError(f"run {run.key} left a {file.name} that is not a mapping")
    return summary
