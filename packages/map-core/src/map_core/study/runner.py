"""Running a study: every run an ordinary command in a process of its own, finished ones never repeated."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from map_core.errors import Diverged, UserError
from map_core.study.definition import Study
from map_core.study.launching import Job, Launcher, Processes
from map_core.study.outcomes import finish
from map_core.study.place import Place, command_line
from map_core.study.plan import PlannedRun, every_run, next_runs, planned_runs
from map_core.study.results import Result, append_result, read_results
from map_core.tasks.weights import MODEL_FILE, weights_file

POLL_SECONDS = 0.2


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
    budget = Budget(budget_minutes)
    launcher = launcher or Processes(threads=1 if jobs > 1 else None)
    running = RunningStudy(study, place, launcher, flops, progress=progress)
    with sigterm_noted() as noted:
        try:
            while True:
                running.start(jobs, budget)
                if noted:
                    sys.exit(128 + noted[0])
                if not running.started:
                    return running.outcome(budget)
                time.sleep(POLL_SECONDS)
                running.collect()
        finally:
            running.stop()


@dataclass(frozen=True)
class Budget:
    """The time that a study may take.

    Attributes:
        minutes: Of it; as long as it takes when None.
        began: When it began to run, in seconds of ``time.monotonic``.
    """

    minutes: float | None
    began: float = field(default_factory=time.monotonic)

    def holds(self, run: PlannedRun, results: Sequence[Result]) -> bool:
        """Whether ``run`` would end within it; the first of a stage is always tried."""
        if self.minutes is None:
            return True
        alike = [result.seconds for result in results if result.stage == run.stage]
        return 60 * self.minutes - (time.monotonic() - self.began) > (max(alike) if alike else 0)


class RunningStudy:
    """A study's runs: those that are done (``results``), those that go on (``started``), and those that diverged.

    Args:
        study: What is run.
        place: Where.
        launcher: Starts a run.
        flops: Counts the operations of one.
        progress: Show a bar.

    Raises:
        UserError: results of a study that was another; an arm starts from weights that are not there.
    """

    def __init__(
        self,
        study: Study,
        place: Place,
        launcher: Launcher,
        flops: Callable[[PlannedRun], float],
        *,
        progress: bool,
    ) -> None:
        self.study, self.place, self.launcher, self.flops = study, place, launcher, flops
        self.results = read_results(place.results, study.name)
        refuse_other_settings(study, self.results, place)
        refuse_missing_weights(study, self.results)
        self.started = list[Started]()
        self.diverged = dict[str, Diverged]()
        place.out.mkdir(parents=True, exist_ok=True)
        self.ran = False
        total, done = self.counts()
        self.bar = tqdm(total=total, initial=done, unit="run", disable=not progress)

    def counts(self) -> tuple[int, int]:
        """How many runs the study asks for as far as is known, and how many of them are done."""
        keys = {run.key for run in every_run(self.study, self.results)}
        return len(keys), sum(result.key in keys for result in self.results)

    def start(self, jobs: int, budget: Budget) -> None:
        """Start what can be and fits into ``budget``, until ``jobs`` runs go on."""
        taken = {item.run.key for item in self.started} | self.diverged.keys()
        for planned in next_runs(self.study, self.results):
            if len(self.started) >= jobs:
                return
            run = needed_first(planned, self.study, self.results, self.place)
            if run.key not in taken and budget.holds(run, self.results):
                self.bar.set_postfix_str(run.key)
                job = self.launcher.start(command_line(run, self.place), self.place.log(run.key))
                self.started.append(Started(run, job, time.monotonic()))
                taken.add(run.key)

    def collect(self) -> None:
        """Write down what the runs that have ended measured.

        Raises:
            UserError: one failed.
        """
        for item in list(self.started):
            status = item.job.status()
            if status is None:
                continue
            self.started.remove(item)
            try:
                result = finish(self.study, item.run, status, time.monotonic() - item.began, self.place)
            except Diverged as error:  # it would again: the others go on without it
                self.diverged[item.run.key] = error
                continue
            self.ran = True
            append_result(self.place.results, replace(result, flops=self.flops(item.run)))
            self.results = read_results(self.place.results, self.study.name)
            self.bar.total, done = self.counts()
            self.bar.update(done - self.bar.n)

    def outcome(self, budget: Budget) -> list[Result]:
        """All results, once nothing goes on or can be started.

        Raises:
            UserError: the budget was too small for any run.
            Diverged: a run did.
        """
        if self.diverged:
            raise next(iter(self.diverged.values()))
        if budget.minutes is not None and not self.ran and next_runs(self.study, self.results):
            raise UserError(f"--budget_minutes {budget.minutes:g} is too small for any run that is left")
        return self.results

    def stop(self) -> None:
        """End what still goes on, after a failure or Ctrl-C: each run leaves a checkpoint."""
        self.bar.close()
        for item in self.started:
            item.job.stop()
        for item in self.started:
            item.job.wait()


@contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """Note a scheduler's SIGTERM, for the study to end between two steps and its runs with it.

    A handler that raised would lose a run whose process is being started: nobody would end that one.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
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


def results_asked_for(study: Study, results: Sequence[Result], place: Place) -> list[Result]:
    """Results of the runs that the study asks for now; those of other seeds or arms are left out.

    Raises:
        UserError: the study now asks for one of them with other settings.
    """
    refuse_other_settings(study, results, place)
    keys = {run.key for run in every_run(study, results)}
    return [result for result in results if result.key in keys]


def refuse_missing_weights(study: Study, results: Sequence[Result]) -> None:
    """Refuse an arm whose ``init`` is not there before hours are spent on the others.

    Raises:
        UserError: naming the arm and the file.
    """
    for run in next_runs(study, results):
        if "init" in run.settings:
            try:
                weights_file(run.settings["init"])
            except UserError as error:
                raise UserError(f"arm {run.arm} of study {study.name} starts from init: {error}") from error


def needed_first(run: PlannedRun, study: Study, results: Sequence[Result], place: Place) -> PlannedRun:
    """``run``, or what it starts from where those weights are not here: results travel without them."""
    if run.after is None or (place.directory(run.after) / MODEL_FILE).is_file():
        return run
    return next(other for other in planned_runs(study, results) if other.key == run.after)
