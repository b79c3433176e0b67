"""Opening a run directory: a new one must be empty, a resumed one must hold a checkpoint of the same run."""

import contextlib
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.runs import best, lock, metrics, trackers
from map_core.runs.checkpoint import REMOVING, SUPERSEDED, WRITING, Checkpoints, find_fault
from map_core.runs.files import UNFINISHED, is_full, require_folder, require_reachable
from map_core.runs.lock import RunLock
from map_core.runs.metrics import truncate_metrics
from map_core.runs.summary import CONFIG_FILE, SUMMARY_FILE

# everything that a run which failed before its first checkpoint can leave behind
FILES_OF_A_START = {
    lock.FILE,
    metrics.FILE,
    CONFIG_FILE,
    "tensorboard",
    "checkpoints",
    "curves.png",
    trackers.FOLDER,
}
TEMPORARY = (f"{UNFINISHED}*", ".tmp*", "*.partial")
WEIGHTS = ("model", "model_ema", "pretraining", "pretraining_ema")
# what a run writes at its end: the mark that it has finished, then its weights
RESULTS = (SUMMARY_FILE, *(f"{name}{suffix}" for name in WEIGHTS for suffix in (".safetensors", ".json")))


def require_run_directory(out: Path, resume: str | None) -> None:
    """Check, before data and model are opened, that a run can be written in ``out``.

    Raises:
        UserError: it cannot, or there is already a run that ``resume`` does not continue.
    """
    require_folder(out)
    if resume is None and not nothing_to_lose(out, None):
        raise UserError(in_use(out))


def in_use(out: Path) -> str:
    """The message that ``out`` is not free for a new run."""
    return f"{out} exists and is not empty; continue that run with --resume auto or choose another --out"


def open_run(out: Path, checkpoints: Checkpoints, resume: str | None, run_lock: RunLock) -> Path | None:
    """Create ``out`` if need be, lock it, clear it of leftovers, and return the checkpoint to continue from, if any.

    A run that failed before its first checkpoint starts anew, with ``resume`` and without.

    Raises:
        UserError: ``out`` is in use or cannot be written, or ``resume`` finds nothing usable.
    """
    checkpoint = None if resume in (None, "auto") else named_checkpoint(checkpoints, resume)
    starts_anew = nothing_to_lose(out, resume)
    if resume is None and not starts_anew:
        raise UserError(in_use(out))
    if checkpoint is not None:
        is_elsewhere = checkpoint.resolve().parent != checkpoints.directory.resolve()
        if is_elsewhere and not starts_anew:
            raise UserError(
                f"{out} is not empty and --resume {resume} belongs to another run; continue the run in {out} with "
                "--resume auto, or choose another --out"
            )
        if not is_elsewhere:
            refuse_set_aside(checkpoint.resolve())
    run_lock.acquire()
    refuse_links(out)
    if checkpoint is None and not starts_anew:
        # without one, this is no run's directory, and nothing is removed
        checkpoint = newest_checkpoint(checkpoints)
    clear(out, checkpoints)
    if starts_anew:
        (out / metrics.FILE).unlink(missing_ok=True)
        best.remove(out)
        if resume == "auto":
            print(f"nothing to resume in {out}: starting anew", file=sys.stderr)
    return checkpoint


def named_checkpoint(checkpoints: Checkpoints, resume: str) -> Path:
    """The checkpoint that ``--resume PATH`` names.

    Raises:
        UserError: it is not a usable one, or may not be read.
    """
    path = expand_user(resume)
    require_reachable(path)
    fault = find_fault(path) if path.is_dir() else "there is no such directory"
    if fault is not None:
        raise UserError(
            f"--resume {path} is not a usable checkpoint: {fault}; give a directory like "
            f"{checkpoints.directory}/step_00000100, or --resume auto"
        )
    return path


def refuse_set_aside(checkpoint: Path) -> None:
    """Refuse to continue from a checkpoint of the run's directory that the run itself would remove.

    Raises:
        UserError: the name shows that it is unfinished, being removed or set aside.
    """
    if checkpoint.name.startswith((WRITING, REMOVING, SUPERSEDED)):
        raise UserError(
            f"--resume {checkpoint} would be removed by the run that goes on from it; rename it to "
            f"{checkpoint.name.partition('_')[2]}, in place of one of that name, and give that"
        )


def newest_checkpoint(checkpoints: Checkpoints) -> Path:
    """The checkpoint that ``--resume auto`` continues from.

    Raises:
        UserError: none of them is usable.
    """
    path = checkpoints.newest_usable()
    if path is None:
        raise UserError(
            f"--resume auto found no usable checkpoint in {checkpoints.directory}; "
            "drop --resume (and choose an empty --out) to start anew"
        )
    return path


def nothing_to_lose(out: Path, resume: str | None) -> bool:
    """Whether ``out`` is absent, empty, or holds only what a run without checkpoints left and would write again."""
    if not out.is_dir():
        return not out.exists()
    names = {path.name for path in out.iterdir()}
    # in a folder that is no run's, other temporary files may be anybody's
    replaceable: tuple[str, ...] = (f"{UNFINISHED}*",)
    if not names.isdisjoint(FILES_OF_A_START):
        # best weights, too, are written again by the same command
        replaceable = TEMPORARY if resume is None else (*TEMPORARY, *best.NAMES)
    names = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in replaceable)}
    return names <= FILES_OF_A_START and not any((out / "checkpoints").glob("step_*"))


def refuse_links(out: Path) -> None:
    """Keep a run from writing through symbolic links, which a directory from elsewhere may contain.

    Raises:
        UserError: there is one.
    """
    for path in (*out.iterdir(), *(out / "checkpoints").glob("*")):
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link, through which no run writes; put what it points to "
                f"({os.readlink(path)}) in its place, or remove it"
            )


def clear(out: Path, checkpoints: Checkpoints) -> None:
    """Remove the files that a kill left unfinished."""
    checkpoints.clear_leftovers()
    for pattern in TEMPORARY:
        for path in out.glob(pattern):
            if path.is_file():
                path.unlink()


def rewind(
    out: Path, checkpoints: Checkpoints, checkpoint: Path, state: dict[str, Any], *, stop: int
) -> dict[str, Any]:
    """Take ``out`` back to the step of ``checkpoint``.

    If steps follow, the results of an earlier end of the run are removed: nobody shall take them for those of this one.

    Args:
        out: The run directory.
        checkpoints: Those in it.
        checkpoint: The one that the run continues from; it may be of another directory.
        state: Its state of the run, see :func:`~map_core.runs.saved_state.read_state`.
        stop: The step at which the run will stop.

    Returns:
        The recorder's state to continue from, see :func:`~map_core.runs.best.follow`.
    """
    step, recorder = state["step"], state["recorder"]
    # in this order, so that no checkpoint that a kill leaves in its place lacks the lines before it
    checkpoints.set_aside_after(step)
    truncate_metrics(out, step, evaluated=recorder.get("evaluation") is not None)
    for name in RESULTS if step < stop else ():
        (out / name).unlink(missing_ok=True)
    return best.follow(out, checkpoint, recorder)


@contextlib.contextmanager
def disk_errors_as_user_errors(out: Path, run_lock: RunLock) -> Iterator[None]:
    """Turn a disk that is full, vanished or refuses the files of ``out`` into a :class:`UserError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        run_lock.check()
        if is_full(error):
            raise UserError(
                f"the disk is full ({error}) while writing the run in {out}; its checkpoints are unharmed; "
                "make room, then continue with --resume auto"
            ) from error
        if isinstance(error, SafetensorError) or within(error.filename, out):
            raise UserError(
                f"cannot write the run in {out}: {error}; its checkpoints are unharmed; check that disk, then "
                "continue with --resume auto"
            ) from error
        raise


def within(filename: Any, directory: Path) -> bool:
    """Whether an error's file lies in ``directory``."""
    return isinstance(filename, (str, os.PathLike)) and Path(filename).absolute().is_relative_to(
        directory.absolute()
    )
