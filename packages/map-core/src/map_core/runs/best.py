"""The best weights so far: files of a run directory that follow the checkpoint which a run goes on from."""

import json
import shutil
from pathlib import Path
from typing import Any

from map_core.json_values import is_count
from map_core.reading import read_small
from map_core.runs.files import replacing, save_json

FILE = "best.json"  # says of which step the others are, and what they measured
PATTERNS = ("*_best.safetensors", "*_best.json", FILE)
FORGOTTEN = {"best": None, "best_of": None, "best_step": None}


def write_record(out: Path, step: int, measure: str, value: float) -> None:
    """Say in ``out`` of which step the best weights are; to be called before they are written.

    So those that a kill leaves unfinished, or of the step before, are of none that a checkpoint remembers.
    """
    save_json(out / FILE, {"step": step, measure: value})


def step_of_files(out: Path) -> int | None:
    """The step of the best weights in ``out``; None where nothing says it."""
    try:
        step = json.loads(read_small(out / FILE))["step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if is_count(step) else None


def files(out: Path) -> list[Path]:
    """The best weights in ``out``, what describes them, and last the file that says of which step they are."""
    return [path for pattern in PATTERNS for path in sorted(out.glob(pattern)) if path.is_file()]


def remove(out: Path) -> None:
    """Remove the best weights in ``out``."""
    for path in files(out):
        path.unlink()


def follow(out: Path, checkpoint: Path, recorder: dict[str, Any]) -> dict[str, Any]:
    """Make the best weights in ``out`` those that a checkpoint remembers, or forget them where they are gone.

    Args:
        out: The run directory that goes on from it.
        checkpoint: Its directory, in the run directory of the weights.
        recorder: Its account of the recorder.

    Returns:
        That account, without a best value where its weights are of another step, or nowhere.
    """
    source, step = checkpoint.resolve().parent.parent, recorder.get("best_step")
    elsewhere = source != out.resolve()
    if step is None:
        # An earlier version's checkpoint remembers a value and no step. In its directory the weights are kept, as that
        # version did, unless others with a step replaced them; elsewhere nothing tells whether they are its own.
        kept = recorder.get("best") is not None and not elsewhere
        kept = kept and step_of_files(out) is None and bool(files(out))
    else:
        kept = step_of_files(source) == step
    if not kept:
        remove(out)
        return recorder | FORGOTTEN
    if elsewhere:
        for path in files(source):
            with replacing(out / path.name) as partial:
                shutil.copyfile(path, partial)
    return recorder
