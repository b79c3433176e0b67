"""One line of JSON per run: what was measured, with what settings, where."""

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
from map_core.runs.files import explaining_disk_errors
from map_core.tasks.setting_values import fits, name_of


@dataclass(frozen=True)
class Result:
    """One finished run of a study.

    Attributes:
        study: Name of the study.
        key: Key of the run within the study.
        arm, seed, labels, stage, lr: What it belongs to, see :class:`~map_core.study.plan.PlannedRun`.
        settings: Recipe and overrides.
        score: The measure, in percent (accuracy); the loss where there is no accuracy.
        measures: Everything that was measured.
        seconds, samples: Duration of training, and its number of samples.
        flops: Multiplications and additions of training, forward and backward, including scans.
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


FIELD_TYPES = get_type_hints(Result)
NUMERIC_FIELDS = ("seed", "labels", "lr", "score", "seconds", "samples", "flops")
MAX_BYTES = 2**30  # of a results file
GO_ON = "start the study again: it goes on"


def append_result(path: Path, result: Result) -> None:
    """Add a line, whole or not at all: several processes may append to one file.

    Raises:
        UserError: the disk refused the write.
    """
    line = (json.dumps(asdict(result), sort_keys=True) + "\n").encode()
    with explaining_disk_errors(f"add to the results in {path}", then=GO_ON):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            append(descriptor, line)
        finally:
            os.close(descriptor)


def append(descriptor: int, line: bytes) -> None:
    """Add a line to a file that is open for appending, or leave the file as it was.

    Raises:
        OSError: the disk is full, or refuses the write.
    """
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    size = os.fstat(descriptor).st_size
    # the last line has no end: written by hand, or cut short by a power cut
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def read_results(path: Path, study: str | None = None) -> list[Result]:
    """Read a results file; if a run is there twice (merged files), its last line counts.

    Args:
        path: The file; a missing one holds no results.
        study: Name of the study that all lines must have.

    Raises:
        UserError: a line is not a result, or one of another study; the file cannot be read.
    """
    try:
        lines = read_small(path, MAX_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path} holds no results that can be read ({error.strerror}); choose another --results"
        ) from error
    results_by_key: dict[tuple[str, str], Result] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():  # between concatenated files
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
        results_by_key[result.study, result.key] = result
    return list(results_by_key.values())


def parse_result(line: bytes) -> Result:
    """Read one line of results.

    Raises:
        ValueError, TypeError, RecursionError: the line is not a result.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError("not a mapping")
    if unknown := sorted(values.keys() - FIELD_TYPES.keys()):
        raise ValueError(f"{unknown[0][:40]!r} is not a field of a result")
    for name, value in values.items():
        if not fits(value, FIELD_TYPES[name]):
            raise TypeError(f"{name} must be {name_of(FIELD_TYPES[name])}, not {value!r:.60}")
        numbers = value.values() if name == "measures" else [value] if name in NUMERIC_FIELDS else []
        if not all(number is None or is_finite(number) for number in numbers):
            raise ValueError(f"{name} holds {value!r:.60}, which is not a finite number")
    return Result(**values)
