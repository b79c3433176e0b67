"""Opening a run directory: a new one must be empty, a resumed one must hold a checkpoint of the same run."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from map_core.errors import UserError
from map_core.runs.checkpoint import Checkpoints, find_fault
from map_core.runs.metrics import truncate_metrics

STATE = "state.json"


def open_run(out: Path, checkpoints: Checkpoints, resume: str | None) -> Path | None:
    """Make ``out`` if need be and return the checkpoint to go on from, if any.

    Raises:
        UserError: ``out`` is in use, or ``resume`` finds nothing usable.
    """
    if resume is None:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UserError(
                f"{out} exists and is not empty; continue that run with --resume auto or choose another --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        return None
    if resume == "auto":
        path = checkpoints.newest_usable()
        if path is None:
            raise UserError(
                f"--resume auto found no usable checkpoint in {checkpoints.directory}; "
                "drop --resume (and choose an empty --out) to start anew"
            )
        return path
    path = Path(resume)
    fault = find_fault(path) if path.is_dir() else "there is no such directory"
    if fault is not None:
        raise UserError(
            f"--resume {path} is no usable checkpoint: {fault}; give a directory like "
            f"{checkpoints.directory}/step_00000100, or --resume auto"
        )
    elsewhere = path.resolve().parent != checkpoints.directory.resolve()
    if elsewhere and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"{out} is not empty and --resume {path} belongs to another run; choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    return path


def read_state(checkpoint: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's step and account.

    Raises:
        UserError: it was written with other settings.
    """
    state = json.loads((checkpoint / STATE).read_text())
    saved = state["settings"]
    changes = [
        f"{name} was {saved.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted(saved.keys() | settings.keys())
        if saved.get(name) != settings.get(name)
    ]
    if changes:
        raise UserError(
            f"cannot resume from {checkpoint} with other settings: {'; '.join(changes)}; "
            "set them back, or start anew with another --out"
        )
    return state


def rewind(out: Path, checkpoints: Checkpoints, state: dict[str, Any]) -> None:
    """Take ``out`` back to the step of ``state``."""
    step = state["step"]
    truncate_metrics(out, step, evaluated=state["recorder"]["evaluation"] is not None)
    checkpoints.set_aside_after(step)


@contextlib.contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """Turn a full disk into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full ({error}) while writing the run in {out}; its checkpoints are unharmed; "
            "make room, then continue with --resume auto"
        ) from error
