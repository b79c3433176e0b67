"""What befalls a run at a random moment, and what it must make of it."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from programs import Running
from runs import Kind, find_difference, unfinished

PATIENCE = 120.0  # seconds for a run to end that was stopped, or that lost one of its processes
ORPHANS = 10.0  # seconds for loading processes to notice that who started them is gone
PAUSE = 2.0  # seconds for which one of two ranks is stopped, at most
PER_RUN = 6  # disturbances of one run; then it is left alone
USER_ERROR = 2
STOPPED = (0, 143, -signal.SIGTERM)  # finished just then; saved a checkpoint; not yet listening


class Broken(AssertionError):
    """A promise that was not kept."""


def kill(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGKILL to every rank, as the kernel sends it when memory runs out: nobody warns the loading processes."""
    run.send(signal.SIGKILL)
    require(run.wait(PATIENCE), "a killed run goes on")


def terminate(run: Running, kind: Kind, draw: random.Random) -> None:
    """A scheduler's warning to every rank."""
    run.send(signal.SIGTERM)
    require(run.wait(PATIENCE), f"still there {PATIENCE:g} s after SIGTERM")
    statuses = set(run.statuses.values())
    require(statuses <= set(STOPPED) or kind.ranks > 1, f"SIGTERM ended it with {statuses}")


def kill_one(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGKILL to one rank: the other must end by itself."""
    run.send(signal.SIGKILL, [draw.choice(run.alive())])
    require(run.wait(PATIENCE), f"a rank still waits {PATIENCE:g} s after the other was killed")


def stop_one(run: Running, kind: Kind, draw: random.Random) -> None:
    """SIGSTOP to one rank: the other waits for it, and goes on with it or ends when it is killed."""
    rank = draw.choice(run.alive())
    run.send(signal.SIGSTOP, [rank])
    time.sleep(draw.uniform(0, PAUSE))
    goes_on = draw.random() < 0.5
    run.send(signal.SIGCONT if goes_on else signal.SIGKILL, [rank])
    require(run.wait(PATIENCE), f"a rank still waits {PATIENCE:g} s after the other was stopped")
    require(not goes_on or set(run.statuses.values()) == {0}, f"paused, it ended with {run.statuses}")


def hide_file(run: Running, kind: Kind, draw: random.Random) -> None:
    """A file of the data is away for a while: the run names it and ends, or never needs it again."""
    path = draw.choice(kind.files())
    with away(path):
        ends_by_itself(run, path)


def cut_file(run: Running, kind: Kind, draw: random.Random) -> None:
    """A file of the data is cut off for a while, likewise."""
    path = draw.choice(kind.files())
    with away(path) as aside:
        path.write_bytes(aside.read_bytes()[:-20])
        ends_by_itself(run, path)


def ends_by_itself(run: Running, path: Path) -> None:
    """Wait for the end, which is of one that finished, or of one that names ``path``."""
    log = run.log.stat().st_size
    require(run.wait(PATIENCE), f"still running {PATIENCE:g} s after {path.name} changed")
    said = run.log.read_text()[log:]
    statuses = set(run.statuses.values())
    named = path.name in said or "training samples was" in said  # not there when the run began to look
    require(statuses == {0} or named, f"it ended with {statuses} and does not name {path}: {said[-500:]}")
    require(
        USER_ERROR not in statuses or "Traceback" not in said, f"a traceback instead of a sentence: {said}"
    )


@contextmanager
def away(path: Path) -> Iterator[Path]:
    """Give the path that a file has meanwhile, and put it back as it was."""
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        yield aside
    finally:
        aside.replace(path)


Disturbance = Callable[[Running, Kind, random.Random], None]
OF_EVERY_RUN: dict[Disturbance, int] = {kill: 6, terminate: 1, hide_file: 1, cut_file: 1}
OF_RANKS: dict[Disturbance, int] = {kill: 3, kill_one: 4, stop_one: 2, terminate: 1}


def attack(
    kind: Kind, out: Path, whole: Path, seconds: float, draw: random.Random, counts: Counter[str]
) -> None:
    """Disturb a run again and again until it is through, and compare it with the undisturbed one.

    Args:
        kind: Of run.
        out: Its directory.
        whole: The directory of the undisturbed run.
        seconds: How long that one took.
        draw: Moments and disturbances.
        counts: Of disturbances, by name, added to.

    Raises:
        Broken: what was promised is not so.
    """
    log = out.with_suffix(".log")
    weights = OF_RANKS if kind.ranks > 1 else OF_EVERY_RUN
    for start in range(PER_RUN + 1):
        run = kind.start(out, log)
        left_alone = start == PER_RUN
        if run.wait(PATIENCE * 5 if left_alone else draw.uniform(0, seconds)):
            break
        require(not left_alone, "it does not end when it is left alone")
        (disturbance,) = draw.choices(list(weights), list(weights.values()))
        disturbance(run, kind, draw)
        counts[disturbance.__name__] += 1
        require(not (left := run.left_behind(ORPHANS)), f"{disturbance.__name__} leaves processes {left}")
        if set(run.statuses.values()) == {0}:
            break
    require(set(run.statuses.values()) == {0}, f"left alone, it ended with {run.statuses}; see {log}")
    require((difference := find_difference(out, whole)) is None, f"{difference} in {out}; see {log}")
    require(not (left := unfinished(out)), f"left over: {left}")


def require(holds: bool, fault: str) -> None:
    """Raise :class:`Broken` unless ``holds``."""
    if not holds:
        raise Broken(fault)
