"""What makes a run the run that it is: the settings that a resumed run must share with the one before."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from map_core.runs.account import DATA, START
from map_core.runs.summary import to_plain
from map_core.training.config import TrainingConfig
from map_core.training.sampling import RunPlan

# What a resumed run may set otherwise without becoming another run. accumulation_steps changes micro-batches, on which
# batch normalisation, mixed pairs and contrastive learning depend, as another number of processes does.
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
    """Return, by dotted name, everything that makes this run the run that it is.

    Args:
        name: Of the task.
        plan: Of the run.
        config: How it is trained.
        run_config: The whole configuration; its model and objective count.
        data: What makes the data what they are, see :meth:`~map_core.training.task.Task.data_settings`.
        start: What it starts from, see :meth:`~map_core.training.task.Task.starts_from`.
    """
    settings = {
        f"training.{key}": value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE
    }
    settings |= {"task": name, "training samples": plan.samples, START: start}
    settings |= {f"{DATA}{key}": value for key, value in data.items()}
    plain = to_plain(run_config)
    for section in COMPARED_SECTIONS:
        values = plain.get(section) if isinstance(plain, dict) else None
        if isinstance(values, dict):
            settings |= {f"{section}.{key}": value for key, value in values.items()}
    return json.loads(json.dumps(to_plain(settings)))


def default_settings(run_config: Any) -> dict[str, Any]:
    """Return, by dotted name, the defaults of the sections that are compared.

    They stand for what a run of an earlier version, which had fewer settings, did.
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
    return json.loads(json.dumps(to_plain(defaults)))
