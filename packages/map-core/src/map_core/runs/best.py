"""The best weights so far: files of a run directory that match the checkpoint from which a run continues."""

import json
import shutil
from pathlib import Path
from typing import Any

from map_core.json_values import is_count
from map_core.reading import read_small
from map_core.runs.files import replacing, save_json

FILE = "best.json"  # records the step of the others, and their score
# weights that tasks export, then their descriptions, and last the record
NAMES = (
    *(f"{name}_best{end}" for end in (".safetensors", ".json") for name in ("model", "pretraining")),
    FILE,
)
FORGOTTEN = {"best": None, "best_of": None, "best_step": None}


def write_record(out: Path, step: int, measure: str, value: float) -> None:
    """Record in ``out`` the step of the best weights; call this before they are written.

    If a kill then leaves them unfinished, or still those of an earlier step, no checkpoint remembers the recorded step.
    """
    save_json(out / FILE, {"step": step, measure: value})


def step_of_files(out: Path) -> int | None:
    """The step of the best weights in ``out``; None where none is recorded."""
    try:
        step = json.loads(read_small(out / FILE))["step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if is_count(step) else None


def files(out: Path) -> list[Path]:
    """The best weights in ``out``, their descriptions, and last the file that records their step."""
    return [path for name in NAMES if (path := out / name).is_file()]


def remove(out: Path) -> None:
    """Remove the best weights in ``out``."""
    for path in files(out):
        path.unlink()


def follow(out: Path, checkpoint: Path, recorder: dict[str, Any]) -> dict[str, Any]:
    """Make the best weights in ``out`` those that a checkpoint remembers, or forget them where they are gone.

    Args:
        out: The run directory that continues from the checkpoint.
        checkpoint: Its directory, in the run directory of the weights.
        recorder: The recorder's state in it.

    Returns:
        That state, without a best value where the weights are gone or of another step.
    """
    source, step = checkpoint.resolve().parent.parent, recorder.get("best_step")
    is_elsewhere = source != out.resolve()
    if step is None:
        # A checkpoint of an earlier version remembers a value but no step. In its own directory the weights are kept,
        # as that version did, unless others with a step replaced them; elsewhere nothing tells whose they are.
        matches = recorder.get("best") is not None and not is_elsewhere
        matches = matches and step_of_files(out) is None and bool(files(out))
    else:
        matches = step_of_files(source) == step
    if not matches:
        remove(out)
        return recorder | FORGOTTEN
    if is_elsewhere:
        for path in files(source):
            with replacing(out / path.name) as partial:
                shutil.copyfile(path, partial)
    return recorder
