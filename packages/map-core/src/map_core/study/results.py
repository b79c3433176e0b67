"""One line of JSON a run: what was measured, with what settings, where."""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from map_core.errors import UserError, reason
from map_core.json_values import is_finite
from map_core.reading import read_small
from map_core.runs.files import is_full
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
        facts: Commit, hardware, versions, peak memory, and the machine's run settings.
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
NUMBERS = ("seed", "labels", "lr", "score", "seconds", "samples", "flops")
MOST = 2**30  # bytes of results


def append_result(path: Path, result: Result) -> None:
    """Add a line, whole or not at all: several processes may append to one file.

    Raises:
        UserError: the disk refused.
    """
    line = (json.dumps(asdict(result), sort_keys=True) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            append(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        cure = "make room" if is_full(error) else "see to that disk"
        raise UserError(
            f"cannot add to the results in {path} ({error.strerror}); {cure}, then start the study again: it goes on"
        ) from error


def append(descriptor: int, line: bytes) -> None:
    """Add a line to a file that is open for appending, or leave it as it was.

    Raises:
        OSError: there is no room, or the disk refuses.
    """
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    before = os.fstat(descriptor).st_size
    if (
        before and os.pread(descriptor, 1, before - 1) != b"\n"
    ):  # written by hand, or cut short by a power cut
        line = b"\n" + line
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def read_results(path: Path, study: str | None = None) -> list[Result]:
    """Read the lines of a results file; of a run that is there twice (merged files) the last counts.

    Args:
        path: The file; an absent one holds no results.
        study: Name that all of them must have.

    Raises:
        UserError: a line that is no result, or one of another study; a file that cannot be read.
    """
    try:
        lines = read_small(path, MOST).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path} holds no results that can be read ({error.strerror}); choose another --results"
        ) from error
    found: dict[tuple[str, str], Result] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():  # between files that were put together
            continue
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
        numbers = value.values() if name == "measures" else [value] if name in NUMBERS else []
        if not all(number is None or is_finite(number) for number in numbers):
            raise ValueError(f"{name} holds {value!r:.60}, which is no finite number")
    return Result(**values)
