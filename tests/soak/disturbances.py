"""Disturbances of a run at random moments, and how the run must respond."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from programs import Running
from runs import Kind, find_difference, temporary_files

PATIENCE = 120.0  # seconds within which a run must end that was stopped, or that lost one of its processes
ORPHANS = 10.0  # seconds within which loading processes must notice that their parent is gone
PAUSE = 2.0  # maximum seconds for which one of two ranks is stopped
MAX_DISTURBANCES = 6  # per run; then it is left alone
USER_ERROR = 2
STOPPED = (0, 143, -signal.SIGTERM)  # just finished; saved a checkpoint; no signal handler yet


class BrokenPromise(AssertionError):
    """A run did not respond as it must."""


def kill(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGKILL to every rank, as from the kernel when memory runs out; loading processes get no warning."""
    run.send(signal.SIGKILL)
    require(run.wait(PATIENCE), "a killed run goes on")


def terminate(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGTERM to every rank, as a scheduler's warning."""
    run.send(signal.SIGTERM)
    require(run.wait(PATIENCE), f"still there {PATIENCE:g} s after SIGTERM")
    statuses = set(run.statuses.values())
    require(statuses <= set(STOPPED) or kind.ranks > 1, f"SIGTERM ended it with {statuses}")


def kill_one(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGKILL to one rank: the other must end on its own."""
    run.send(signal.SIGKILL, [draw.choice(run.alive())])
    require(run.wait(PATIENCE), f"a rank still waits {PATIENCE:g} s after the other was killed")


def stop_one(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGSTOP to one rank: the other waits, then continues if it resumes, or ends if it is killed."""
    rank = draw.choice(run.alive())
    run.send(signal.SIGSTOP, [rank])
    time.sleep(draw.uniform(0, PAUSE))
    resumes = draw.random() < 0.5
    run.send(signal.SIGCONT if resumes else signal.SIGKILL, [rank])
    require(run.wait(PATIENCE), f"a rank still waits {PATIENCE:g} s after the other was stopped")
    require(not resumes or set(run.statuses.values()) == {0}, f"paused, it ended with {run.statuses}")


def hide_file(run: Running, kind: Kind, draw: random.Random) -> None:
    """A data file is missing for a while: the run names it and ends, or no longer needs it."""
    path = draw.choice(kind.files())
    with moved_aside(path):
        ends_by_itself(run, path)


def cut_file(run: Running, kind: Kind, draw: random.Random) -> None:
    """A data file is truncated for a while, with the same outcome."""
    path = draw.choice(kind.files())
    with moved_aside(path) as backup:
        path.write_bytes(backup.read_bytes()[:-20])
        ends_by_itself(run, path)


def ends_by_itself(run: Running, path: Path) -> None:
    """Wait for the run to end: it must have finished, or name ``path``."""
    log_start = run.log.stat().st_size
    require(run.wait(PATIENCE), f"still running {PATIENCE:g} s after {path.name} changed")
    output = run.log.read_text()[log_start:]
    statuses = set(run.statuses.values())
    # the second message if the file was missing when the run listed its data
    is_named = path.name in output or "training samples was" in output
    require(
        statuses == {0} or is_named, f"it ended with {statuses} and does not name {path}: {output[-500:]}"
    )
    require(
        USER_ERROR not in statuses or "Traceback" not in output,
        f"a traceback instead of a sentence: {output}",
    )


@contextmanager
def moved_aside(path: Path) -> Iterator[Path]:
    """Rename a file for a while; yield its temporary path, and restore it afterwards."""
    backup = path.with_suffix(".aside")
    path.rename(backup)
    try:
        yield backup
    finally:
        backup.replace(path)


Disturbance = Callable[[Running, Kind, random.Random], None]
PROCESS_WEIGHTS: dict[Disturbance, int] = {kill: 6, terminate: 1, hide_file: 1, cut_file: 1}
RANK_WEIGHTS: dict[Disturbance, int] = {kill: 3, kill_one: 4, stop_one: 2, terminate: 1}


def attack(
    kind: Kind, out: Path, whole: Path, seconds: float, draw: random.Random, counts: Counter[str]
) -> None:
    """Disturb a run again and again until it finishes, and compare it with the undisturbed one.

    Args:
        kind: Kind of run.
        out: Directory of the run.
        whole: Directory of the undisturbed run.
        seconds: Duration of the undisturbed run.
        draw: Source of random moments and disturbances.
        counts: Disturbances by name; updated in place.

    Raises:
        BrokenPromise: the run did not respond as it must.
    """
    log = out.with_suffix(".log")
    weights = RANK_WEIGHTS if kind.ranks > 1 else PROCESS_WEIGHTS
    for start in range(MAX_DISTURBANCES + 1):
        run = kind.start(out, log)
        is_last_start = start == MAX_DISTURBANCES
        if run.wait(PATIENCE * 5 if is_last_start else draw.uniform(0, seconds)):
            break
        require(not is_last_start, "it does not end when it is left alone")
        (disturbance,) = draw.choices(list(weights), list(weights.values()))
        disturbance(run, kind, draw)
        counts[disturbance.__name__] += 1
        require(
            not (leftovers := run.left_behind(ORPHANS)),
            f"{disturbance.__name__} leaves processes {leftovers}",
        )
        if set(run.statuses.values()) == {0}:
            break
    require(set(run.statuses.values()) == {0}, f"left alone, it ended with {run.statuses}; see {log}")
    require((difference := find_difference(out, whole)) is None, f"{difference} in {out}; see {log}")
    require(not (leftovers := temporary_files(out)), f"left over: {leftovers}")


def require(holds: bool, fault: str) -> None:
    """Raise :class:`BrokenPromise` unless ``holds``."""
    if not holds:
        raise BrokenPromise(fault)
