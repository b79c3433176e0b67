"""Opening a run directory: a new one must be empty, a resumed one must hold a checkpoint of the same run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from map_core.errors import UserError
from map_core.training.checkpoint import Checkpoints, find_fault
from map_core.training.config import TrainingConfig
from map_core.training.metrics import truncate_metrics
from map_core.training.sampling import RunPlan
from map_core.training.summary import to_plain

STATE = "state.json"
FREE_TO_CHANGE = {  # what a resumed run may set otherwise without becoming another run
    "accumulation_steps", "activation_checkpointing", "workers", "checkpoint_steps", "checkpoint_epochs",
    "keep_checkpoints", "evaluate_epochs", "log_steps", "device", "max_steps", "progress", "tensorboard",
}  # fmt: skip
COMPARED_SECTIONS = ("model", "objective")


def run_settings(name: str, plan: RunPlan, config: TrainingConfig, run_config: Any) -> dict[str, Any]:
    """Return, by dotted name, everything that makes this run the run that it is."""
    settings = {
        f"training.{key}": value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE
    }
    settings |= {"task": name, "training samples": plan.samples}
    plain = to_plain(run_config)
    for section in COMPARED_SECTIONS:
        values = plain.get(section) if isinstance(plain, dict) else None
        if isinstance(values, dict):
            settings |= {f"{section}.{key}": value for key, value in values.items()}
    return json.loads(json.dumps(to_plain(settings)))


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
