"""One line of JSON a run: what was measured, with what settings, where."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from map_core.errors import UserError, reason
from map_core.tasks.typed import fits, name_of


@dataclass(frozen=True)
class Result:
    """One finished run of a study.

    Attributes:
        study: Name of the study.
        key: Of the run within the study.
        arm, seed, labels, stage, lr: What it belongs to, see :class:`~map_core.study.plan.PlannedRun`.
        settings: Recipe and overrides.
        score: The measure, in percent (accuracy); the loss where there is no accuracy.
        measures: Everything that was measured.
        seconds, samples: Of training.
        flops: Multiplications and additions of training, forward and backward, those of scans included.
        facts: Commit, hardware, versions, peak memory.
    """

    study: str
    key: str
    arm: str
    seed: int
    labels: int | None
    stage: str
    lr: float | None
    settings: dict[str, Any]
    score: float
    measures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    samples: int = 0
    flops: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


KINDS = get_type_hints(Result)


def append_result(path: Path, result: Result) -> None:
    """Add a line, whole or not at all: several processes may append to one file."""
    line = (json.dumps(asdict(result), sort_keys=True) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_results(path: Path, study: str | None = None) -> list[Result]:
    """Read the lines of a results file; of a run that is there twice (merged files) the last counts.

    Args:
        path: The file; an absent one holds no results.
        study: Name that all of them must have.

    Raises:
        UserError: a line that is no result, or one of another study.
    """
    if not path.exists():
        return []
    found: dict[tuple[str, str], Result] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            result = parse_result(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is broken in line {number} ({reason(error)}); repair or remove that line"
            ) from error
        if study is not None and result.study != study:
            raise UserError(
                f"{path} holds results of the study {result.study!r} (line {number}), not of {study!r}: give each "
                "study a file of its own"
            )
        found[result.study, result.key] = result
    return list(found.values())


def parse_result(line: bytes) -> Result:
    """Read one line of results.

    Raises:
        ValueError, TypeError, RecursionError: it is none.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError("no mapping")
    if strange := sorted(values.keys() - KINDS.keys()):
        raise ValueError(f"{strange[0][:40]!r} is no field of a result")
    for name, value in values.items():
        if not fits(value, KINDS[name]):
            raise TypeError(f"{name} must be {name_of(KINDS[name])}, not {value!r:.60}")
    return Result(**values)


def merge_results(paths: Iterable[Path], out: Path) -> None:
    """Write the results of several files, each run once."""
    merged = {(r.study, r.key): r for path in paths for r in read_results(path)}
    out.write_text("".join(json.dumps(asdict(r), sort_keys=True) + "\n" for r in merged.values()))
