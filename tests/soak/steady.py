"""Whether a long run keeps its size over time: memory, descriptors, threads and processes."""

import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
from programs import Running
from runs import Kind, metrics

MEGABYTES = 1e6


@dataclass(frozen=True)
class Size:
    """The size of a run at one moment; all but ``processes`` are of its main process."""

    megabytes: float
    descriptors: float
    threads: float
    processes: float


# allowed growth between the second quarter and the last: noise of the allocator, a loader that is just starting
BOUNDS = Size(megabytes=24.0, descriptors=4, threads=1, processes=1)
RELATIVE = Size(megabytes=0.05, descriptors=0, threads=0, processes=0)


def find_growth(sizes: list[Size]) -> list[str]:
    """Compare the maxima of the second and the last quarter, and list what grew beyond its bound."""
    quarter = len(sizes) // 4
    early, late = sizes[quarter : 2 * quarter], sizes[-quarter:]
    growth = []
    for entry in fields(Size):
        before, after = (max(getattr(size, entry.name) for size in part) for part in (early, late))
        bound = getattr(BOUNDS, entry.name) + before * getattr(RELATIVE, entry.name)
        if after - before > bound:
            growth.append(f"{entry.name} grew from {before:g} to {after:g}, by more than {bound:g}")
    return growth


def measure(run: Running) -> Size | None:
    """The current size of a run, or None if it is just ending."""
    try:
        main = run.processes[0]
        with main.oneshot():
            return Size(
                round(main.memory_info().rss / MEGABYTES, 1),
                main.num_fds(),
                main.num_threads(),
                1 + len(main.children(recursive=True)),
            )
    except psutil.Error:
        return None


def train_for(kind: Kind, seconds: float, out: Path, *, every: float) -> list[Size]:
    """Train for ``seconds`` with evaluations, checkpoints and loading processes, and return the run's sizes.

    Raises:
        AssertionError: the run ends early, or does not respond to SIGTERM.
    """
    log = out.with_suffix(".log")
    run = kind.start(out, log, epochs=1_000_000, tensorboard=True, evaluate_epochs=5)
    while not (out / "checkpoints").exists():  # by then everything has been used once
        assert not run.wait(0.05), log.read_text()[-2000:]
    sizes, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        assert not run.wait(every), f"a long run ended: {log.read_text()[-2000:]}"
        if size := measure(run):
            sizes.append(size)
    run.send(signal.SIGTERM)
    assert run.wait(120), "a long run does not end at SIGTERM"
    assert list(run.statuses.values()) == [143], f"{run.statuses}: {log.read_text()[-2000:]}"
    return sizes


def work_done(out: Path) -> dict[str, int]:
    """Numbers of steps and evaluations of a run."""
    lines = metrics(out)
    evaluations = sum(line["kind"] == "evaluation" for line in lines)
    return {"steps": int(max(line["step"] for line in lines)), "evaluations": evaluations}
