"""Running a study: every run is an ordinary command in its own process; finished ones are never repeated."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from map_core.errors import Diverged, UserError
from map_core.study.consistency import recipe_facts, refuse_inconsistent, refuse_unusable_weights
from map_core.study.definition import Study
from map_core.study.launching import Job, Launcher, Processes
from map_core.study.location import StudyLocation, command_line
from map_core.study.outcomes import finish
from map_core.study.plan import PlannedRun, every_run, next_runs, planned_runs
from map_core.study.results import Result, append_result, read_results
from map_core.tasks.weights import MODEL_FILE

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class ActiveRun:
    """A run that is in progress.

    Attributes:
        planned: What runs.
        job: Its process.
        start_time: In seconds of ``time.monotonic``.
        facts: What was recorded of its recipe when it started.
    """

    planned: PlannedRun
    job: Job
    start_time: float
    facts: dict[str, str]


def run_study(
    study: Study,
    location: StudyLocation,
    *,
    jobs: int = 1,
    budget_minutes: float | None = None,
    launcher: Launcher | None = None,
    flops: Callable[[PlannedRun], float] = lambda run: 0.0,
    recipes: str | None = None,
    progress: bool = True,
) -> list[Result]:
    """Run everything that is not done yet and return all results.

    Args:
        study: What to run.
        location: Where.
        jobs: Number of runs at once.
        budget_minutes: Start no run that would exceed it, judged by the runs of the same stage so far.
        launcher: Starts the runs; None starts processes here, of one thread each where there are several.
        flops: Counts the operations of a run.
        recipes: The package of packaged recipes; None does not notice that a recipe changes.
        progress: Show a progress bar.

    Raises:
        UserError: a run failed, and its log says why; the results are of runs with other settings, weights or recipes;
            the budget is too small for any run; ``jobs`` is below 1.
        Diverged: runs at the chosen rates diverged, and no other run can be started.
    """
    check_jobs(jobs)
    budget = Budget(budget_minutes)
    launcher = launcher or Processes(threads=1 if jobs > 1 else None)
    running = RunningStudy(study, location, launcher, flops, recipes, progress=progress)
    with record_sigterm() as signals:
        try:
            while True:
                if not signals:
                    running.start(jobs, budget)
                if signals:  # before any run that it has reached too counts as failed
                    sys.exit(128 + signals[0])
                if not running.active:
                    return running.outcome(budget)
                time.sleep(POLL_SECONDS)
                if not signals:
                    running.collect()
        finally:
            running.stop()


def check_jobs(jobs: int) -> None:
    """Refuse fewer than one run at once.

    Raises:
        UserError: ``jobs`` is below 1.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {jobs}")


@dataclass(frozen=True)
class Budget:
    """The time that a study may take.

    Attributes:
        minutes: The limit; None sets none.
        start_time: When the study started, in seconds of ``time.monotonic``.
    """

    minutes: float | None
    start_time: float = field(default_factory=time.monotonic)

    def allows(self, run: PlannedRun, results: Sequence[Result]) -> bool:
        """Whether ``run`` would end within the budget; the first run of a stage is allowed until it is over."""
        if self.minutes is None:
            return True
        durations = [result.seconds for result in results if result.stage == run.stage]
        return 60 * self.minutes - (time.monotonic() - self.start_time) > max(durations, default=0)


class RunningStudy:
    """A study's runs: those that are done (``results``), those in progress (``active``), and those that diverged.

    Args:
        study: What is run.
        location: Where.
        launcher: Starts a run.
        flops: Counts the operations of a run.
        recipes: The package of packaged recipes, or None.
        progress: Show a progress bar.

    Raises:
        UserError: the results cannot be compared; an arm starts from weights that are not there, or are not those of
            its runs so far.
    """

    def __init__(
        self,
        study: Study,
        location: StudyLocation,
        launcher: Launcher,
        flops: Callable[[PlannedRun], float],
        recipes: str | None = None,
        *,
        progress: bool,
    ) -> None:
        self.study, self.location, self.launcher = study, location, launcher
        self.flops, self.recipes = flops, recipes
        self.results = read_results(location.results, study.name)
        refuse_inconsistent(study, self.results, location)
        refuse_unusable_weights(study, self.results)
        self.active = list[ActiveRun]()
        self.diverged = dict[str, Diverged]()
        location.out.mkdir(parents=True, exist_ok=True)
        self.any_finished = False
        total, done = self.counts()
        self.bar = tqdm(total=total, initial=done, unit="run", disable=not progress)

    def counts(self) -> tuple[int, int]:
        """How many runs the study needs, as far as is known, and how many of them are done."""
        keys = {run.key for run in every_run(self.study, self.results)}
        return len(keys), sum(result.key in keys for result in self.results)

    def start(self, jobs: int, budget: Budget) -> None:
        """Start runs that are ready and fit into ``budget``, until ``jobs`` runs are in progress.

        Raises:
            UserError: the recipe of one has changed since an earlier run.
        """
        excluded = {run.planned.key for run in self.active} | self.diverged.keys()
        for planned in next_runs(self.study, self.results):
            if len(self.active) >= jobs:
                return
            run = run_or_prerequisite(planned, self.study, self.results, self.location)
            if run.key not in excluded and budget.allows(run, self.results):
                facts = recipe_facts(run, self.study, self.results, self.recipes)
                self.bar.set_postfix_str(run.key)
                job = self.launcher.start(command_line(run, self.location), self.location.log(run.key))
                self.active.append(ActiveRun(run, job, time.monotonic(), facts))
                excluded.add(run.key)

    def collect(self) -> None:
        """Record the results of the runs that have ended.

        Raises:
            UserError: a run failed.
        """
        for run in list(self.active):
            status = run.job.status()
            if status is None:
                continue
            self.active.remove(run)
            try:
                result = finish(
                    self.study, run.planned, status, time.monotonic() - run.start_time, self.location
                )
            except Diverged as error:  # it would diverge again: the others go on without it
                self.diverged[run.planned.key] = error
                continue
            self.any_finished = True
            operations = self.operations(run.planned, result)
            facts = {**result.facts, **run.facts}
            append_result(self.location.results, replace(result, flops=operations, facts=facts))
            self.results = read_results(self.location.results, self.study.name)
            self.bar.total, done = self.counts()
            self.bar.update(done - self.bar.n)

    def operations(self, run: PlannedRun, result: Result) -> float:
        """Operations of a finished run; 0 where it diverged, or where they cannot be counted."""
        if "diverged" in result.facts:
            return 0.0
        try:
            return self.flops(run)
        except UserError as error:
            self.bar.write(f"operations of {run.key} were not counted: {error}", file=sys.stderr)
            return 0.0

    def outcome(self, budget: Budget) -> list[Result]:
        """All results, once no run is in progress and none can be started.

        Raises:
            UserError: the budget was too small for any run.
            Diverged: a run diverged.
        """
        if self.diverged:
            raise next(iter(self.diverged.values()))
        if budget.minutes is not None and not self.any_finished and next_runs(self.study, self.results):
            raise UserError(f"--budget_minutes {budget.minutes:g} is too small for any run that is left")
        return self.results

    def stop(self) -> None:
        """Stop the runs in progress, after a failure or Ctrl-C: each leaves a checkpoint."""
        self.bar.close()
        for run in self.active:
            run.job.stop()
        for run in self.active:
            run.job.wait()


@contextmanager
def record_sigterm() -> Iterator[list[int]]:
    """Record a scheduler's SIGTERM, so that the study stops between two steps and stops its runs.

    A handler that raised could lose a run whose process is just being started: nothing would stop that one.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_or_prerequisite(
    run: PlannedRun, study: Study, results: Sequence[Result], location: StudyLocation
) -> PlannedRun:
    """``run``, or the run that it starts from if those weights are not here: results travel without weights."""
    if run.after is None or (location.directory(run.after) / MODEL_FILE).is_file():
        return run
    return next(other for other in planned_runs(study, results) if other.key == run.after)
