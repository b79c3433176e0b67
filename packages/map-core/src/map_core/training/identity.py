"""What identifies a run: the settings that a resumed run must share with the run that it resumes."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from map_core.runs.saved_state import DATA, START
from map_core.runs.summary import to_serializable
from map_core.training.config import TrainingConfig
from map_core.training.plan import RunPlan

# What a resumed run may change without becoming another run. accumulation_steps changes the micro-batches, on which
# batch normalisation, mixed pairs and contrastive learning depend, but so does another number of processes.
FREE_TO_CHANGE = {
    "accumulation_steps", "activation_checkpointing", "recompute_every", "compile", "compile_mode", "workers",
    "checkpoint_steps", "checkpoint_epochs", "keep_checkpoints", "evaluate_epochs", "log_steps", "device",
    "max_steps", "progress", "tensorboard", "trackers",
}  # fmt: skip
COMPARED_SECTIONS = ("model", "objective")


def run_settings(
    name: str,
    plan: RunPlan,
    config: TrainingConfig,
    run_config: Any,
    data: Mapping[str, Any],
    start: str | None = None,
) -> dict[str, Any]:
    """Return, by dotted name, everything that identifies this run.

    Args:
        name: Name of the task.
        plan: Plan of the run.
        config: Settings of training.
        run_config: The whole configuration; its model and objective sections are compared.
        data: What defines the data, see :meth:`~map_core.training.task.Task.data_settings`.
        start: What the weights start from, see :meth:`~map_core.training.task.Task.init_identity`.
    """
    settings = {
        f"training.{key}": value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE
    }
    settings |= {"task": name, "training samples": plan.num_samples, START: start}
    settings |= {f"{DATA}{key}": value for key, value in data.items()}
    plain = to_serializable(run_config)
    for section in COMPARED_SECTIONS:
        values = plain.get(section) if isinstance(plain, dict) else None
        if isinstance(values, dict):
            settings |= {f"{section}.{key}": value for key, value in values.items()}
    return json.loads(json.dumps(to_serializable(settings)))


def default_settings(run_config: Any) -> dict[str, Any]:
    """Return, by dotted name, the defaults of the sections that are compared.

    They stand in for settings that an earlier version did not have.
    """
    defaults: dict[str, Any] = {}
    for section in COMPARED_SECTIONS:
        values = getattr(run_config, section, None)
        if is_dataclass(values):
            defaults |= {
                f"{section}.{entry.name}": entry.default
                for entry in fields(values)
                if entry.default is not MISSING
            }
    return json.loads(json.dumps(to_serializable(defaults)))
