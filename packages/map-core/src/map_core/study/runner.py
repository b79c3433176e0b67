"""Running a study: every run an ordinary command in a process of its own, finished ones never repeated."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from map_core.errors import Diverged, UserError, reason
from map_core.json_values import is_finite
from map_core.reading import read_small
from map_core.study.definition import Settings, Study
from map_core.study.launching import Job, Launcher, Processes
from map_core.study.measures import added_measures, load_measure
from map_core.study.plan import TRAINING, PlannedRun, next_runs, planned_runs
from map_core.study.results import Result, append_result, read_results
from map_core.tasks.weights import MODEL_FILE

POLL_SECONDS = 0.2
SCORES = {"pretrain": "loss", "knn": "knn_accuracy"}  # by stage; of all others the accuracy
KEPT_FACTS = ("commit", "device", "versions", "peak_memory_bytes", "evaluated_on", "samples_per_second")


@dataclass(frozen=True)
class Place:
    """Where a study runs.

    Attributes:
        module: Run with ``python -m``, such as ``map_vision``.
        out: Directory of all its runs.
        results: File of the results.
        run_settings: How training runs are computed there, see :mod:`~map_core.study.run_settings`.
    """

    module: str
    out: Path
    results: Path
    run_settings: Settings = field(default_factory=dict)

    def directory(self, run: str) -> Path:
        """Where the run called ``run`` leaves its files."""
        return self.out / run

    def log(self, run: str) -> Path:
        """What the run prints."""
        return self.out / f"{run}.log"

    def settings_of(self, run: PlannedRun) -> Settings:
        """How ``run`` is computed there; nothing is said to one that trains nothing, or by a program of its own."""
        return self.run_settings if run.command in TRAINING else {}


@dataclass(frozen=True)
class Started:
    """A run that is going on."""

    run: PlannedRun
    job: Job
    began: float


def run_study(
    study: Study,
    place: Place,
    *,
    jobs: int = 1,
    budget_minutes: float | None = None,
    launcher: Launcher | None = None,
    flops: Callable[[PlannedRun], float] = lambda run: 0.0,
    progress: bool = True,
) -> list[Result]:
    """Run everything that is not done yet and return all results.

    Args:
        study: What to run.
        place: Where.
        jobs: Runs at once.
        budget_minutes: Start nothing that would not end within it, going by the runs of the same stage so far.
        launcher: Starts them; processes here, one thread each where there are several, when None.
        flops: Counts the operations of a run.
        progress: Show a bar.

    Raises:
        UserError: a run failed, and its log says why; results of a study that was another; a budget that is too small
            for any run; no jobs.
        Diverged: runs at the rates that were chosen did, and all others are done.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {jobs}")
    launcher = launcher or Processes(threads=1 if jobs > 1 else None)
    began, started = time.monotonic(), list[Started]()
    diverged = dict[str, Diverged]()
    results = read_results(place.results, study.name)
    refuse_other_settings(study, results, place)
    known = len(results)
    place.out.mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        total=len(list(planned_runs(study, results))), initial=len(results), unit="run", disable=not progress
    )
    # a scheduler's SIGTERM ends the study as an error would: through the end of this function, its runs with it
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = (
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        if in_main_thread
        else None
    )
    try:
        while True:
            going = {item.run.key for item in started}
            for planned in next_runs(study, results):
                if len(started) >= jobs:
                    break
                run = needed_first(planned, study, results, place)
                if (
                    run.key not in going
                    and run.key not in diverged
                    and fits(run, results, began, budget_minutes)
                ):
                    bar.set_postfix_str(run.key)
                    job = launcher.start(command_line(run, place), place.log(run.key))
                    started.append(Started(run, job, time.monotonic()))
                    going.add(run.key)
            if not started:
                if diverged:
                    raise next(iter(diverged.values()))
                if len(results) == known and next_runs(study, results) and budget_minutes is not None:
                    raise UserError(
                        f"--budget_minutes {budget_minutes:g} is too small for any run that is left"
                    )
                return results
            time.sleep(POLL_SECONDS)
            for item, status in [(item, item.job.status()) for item in started]:
                if status is None:
                    continue
                started.remove(item)
                try:
                    result = finish(study, item, status, place)
                except Diverged as error:  # it would again: the others go on without it
                    diverged[item.run.key] = error
                    continue
                append_result(place.results, replace(result, flops=flops(item.run)))
                results = read_results(place.results, study.name)
                bar.total = len(list(planned_runs(study, results)))
                bar.update(len(results) - bar.n)
    finally:
        bar.close()
        for item in started:  # a failure or Ctrl-C: each leaves a checkpoint and ends
            item.job.stop()
        for item in started:
            item.job.wait()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def refuse_other_settings(study: Study, results: Sequence[Result], place: Place) -> None:
    """Refuse results of runs that the study now asks for with other settings: they answer another question.

    Raises:
        UserError: naming a run and what differs.
    """
    done = {result.key: result.settings for result in results}
    for run in planned_runs(study, results):
        asked = json.loads(json.dumps(run.settings))
        was = done.get(run.key, asked)
        if changed := sorted(key for key in {*was, *asked} if was.get(key) != asked.get(key)):
            told = ", ".join(f"{key} was {was.get(key)!r} and is {asked.get(key)!r}" for key in changed)
            raise UserError(
                f"{place.results} holds {run.key} with other settings ({told}): give the changed study another name, "
                "or remove that line and the run's folder"
            )


def needed_first(run: PlannedRun, study: Study, results: Sequence[Result], place: Place) -> PlannedRun:
    """``run``, or what it starts from where those weights are not here: results travel without them."""
    if run.after is None or (place.directory(run.after) / MODEL_FILE).is_file():
        return run
    return next(other for other in planned_runs(study, results) if other.key == run.after)


def fits(run: PlannedRun, results: Sequence[Result], began: float, budget_minutes: float | None) -> bool:
    """Whether a run would end within the budget; the first of a stage is always tried."""
    if budget_minutes is None:
        return True
    left = 60 * budget_minutes - (time.monotonic() - began)
    alike = [result.seconds for result in results if result.stage == run.stage]
    return left > (max(alike) if alike else 0)


def command_line(run: PlannedRun, place: Place) -> list[str]:
    """The command that a person would type for ``run``."""
    directory = place.directory(run.key)
    here = place.settings_of(run)
    # those of the machine come last, to have the last word where the study gives the whole section
    settings = {key: value for key, value in run.settings.items() if key not in here} | here
    if run.stage in added_measures():
        init = settings.pop("init", None) or (run.after and str(place.directory(run.after)))
        return load_measure(run.stage).command(settings, seed=run.seed, init=init, out=directory)
    line = [sys.executable, "-m", place.module, run.command]
    if "recipe" in settings:
        line += ["--config", str(settings.pop("recipe"))]
    if run.after is not None:
        line += ["--init", str(place.directory(run.after))]
    if run.command == "features":
        return [*line, "--out", str(directory.with_suffix(".npz"))]
    line += ["--out", str(directory), "--resume", "auto"]
    return [*line, *(f"--{key}={as_text(value)}" for key, value in settings.items())]


def as_text(value: Any) -> str:
    """A setting as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def finish(study: Study, item: Started, status: int, place: Place) -> Result:
    """Read what a finished run measured.

    Raises:
        UserError: it failed or was interrupted.
        Diverged: it is no trial, whose rate would have lost.
    """
    run, directory, log = item.run, place.directory(item.run.key), place.log(item.run.key)
    computed = {"run_settings": here} if (here := place.settings_of(run)) else {}
    if status:
        said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last = said[-1] if said else "it printed nothing"
        if status == Diverged.status and run.stage == "trial":  # this rate has lost
            return result_of(
                study, run, 0.0, {}, time.monotonic() - item.began, {"diverged": last} | computed
            )
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
    seconds = numbers.get("seconds", time.monotonic() - item.began)
    return result_of(study, run, numbers[name], numbers, seconds, facts)


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
        samples=round(numbers.get("samples_per_second", 0) * numbers.get("seconds", 0)),
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
