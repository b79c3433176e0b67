"""The state of a run in a checkpoint: step, settings and the recorder's state, read with every value checked."""

import json
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from map_core.errors import UserError, in_one_line, reason
from map_core.json_values import is_count, is_number
from map_core.reading import read_small

STATE = "state.json"
NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})
DATA = "data."  # prefix of the settings of the data
START = "init"
COMPARED_IF_SAVED = (DATA, START)  # earlier versions did not save them
SHORT = 4  # entries; a message shows lists up to this length whole


def read_state(
    checkpoint: Path,
    settings: dict[str, Any],
    *,
    total_steps: int,
    max_steps: int | None = None,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> dict[str, Any]:
    """Read the state of the run that wrote a checkpoint.

    Args:
        checkpoint: Its directory.
        settings: Settings of the run that is to continue.
        total_steps: Optimizer steps of that run.
        max_steps: Step at which it is to stop, if earlier.
        defaults: Default values of settings that earlier versions lack; their runs behaved as these defaults do.

    Raises:
        UserError: the checkpoint was written with other settings, lies beyond the run's end or ``max_steps``, or has
            no valid state.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(read_small(path))
        fault = find_fault_of_state(state)
    except (OSError, ValueError, RecursionError) as error:
        fault = reason(error)
    if fault is not None:
        raise UserError(f"{path} is not a valid run state ({fault}); use another checkpoint")
    refuse_another_run({**defaults, **state["settings"]}, settings, checkpoint)
    if state["step"] > total_steps:
        raise UserError(
            f"{path} is of step {state['step']}, but the run has {total_steps} steps; use another checkpoint"
        )
    if max_steps is not None and state["step"] > max_steps:
        raise UserError(
            f"training.max_steps ({max_steps}) is below the step of {checkpoint} ({state['step']}), from which the run "
            f"would go on; set --training.max_steps {state['step']} or more, or leave it out"
        )
    return state


def refuse_another_run(saved: dict[str, Any], settings: dict[str, Any], checkpoint: Path) -> None:
    """Compare the settings of a checkpoint with those of the run that is to continue from it.

    Raises:
        UserError: they differ; each difference is named.
    """
    names = {name for name in settings if name in saved or not name.startswith(COMPARED_IF_SAVED)}
    changed_names = sorted(name for name in names | saved.keys() if saved.get(name) != settings.get(name))
    if not changed_names:
        return
    changes = "; ".join(describe_change(name, saved.get(name), settings.get(name)) for name in changed_names)
    hint = ""
    run = checkpoint.parent.parent
    if "training.batch_size" in changed_names:
        hint = (
            "; if training.sample_budget sets them, use as many processes and accumulation_steps as before, or set "
            f"--training.sample_budget null and the values of {run / 'config.yaml'}"
        )
    elif "training.epochs" in changed_names:  # the learning rate of every step so far depends on the total
        hint = f"; to train longer, start another run from the weights of the finished one: --init {run}"
    raise UserError(
        f"cannot resume from {checkpoint} with other settings: {in_one_line(changes, limit=600)}; "
        f"set them back, or start anew with another --out{hint}"
    )


def describe_change(name: str, was: Any, now: Any) -> str:
    """Say how a setting changed: of a long list, the first entry that did."""
    if isinstance(was, list) and isinstance(now, list) and max(len(was), len(now)) > SHORT:
        index = next(i for i, (one, other) in enumerate(zip_longest(was, now)) if one != other)
        before, after = (repr(entries[index]) if index < len(entries) else "absent" for entries in (was, now))
        return f"{name}[{index}] was {before} and is {after}"
    return f"{name} was {was!r} and is {now!r}"


def find_fault_of_state(state: Any) -> str | None:
    """Say which entry of a saved state is missing or of the wrong type, or return None."""
    if not isinstance(state, dict):
        return "not a mapping"
    step, recorder = state.get("step"), state.get("recorder")
    if not is_count(step):
        return f"step is {step!r}"
    if not isinstance(state.get("settings"), dict):
        return "settings is not a mapping"
    if not isinstance(recorder, dict):
        return "recorder is not a mapping"
    window = recorder.get("window")
    if not isinstance(window, dict) or window.keys() != {"sums", "counts"}:
        return "recorder.window is not of sums and counts"
    sums, counts = window["sums"], window["counts"]
    if not are_numbers(sums) or not are_numbers(counts) or sums.keys() != counts.keys():
        return "recorder.window does not hold numbers"
    if not all(is_count(count) and count for count in counts.values()):
        return "recorder.window.counts are not counts"
    if not are_numbers(recorder.get("last")):
        return "recorder.last does not hold numbers"
    if recorder.get("evaluation") is not None and not are_numbers(recorder["evaluation"]):
        return "recorder.evaluation does not hold numbers"
    if recorder.get("best") is not None and not is_number(recorder["best"]):
        return "recorder.best is not a number"
    if recorder.get("best_step") is not None and not is_count(recorder["best_step"]):
        return "recorder.best_step is not a count"
    return None if is_number(recorder.get("seconds")) else "recorder.seconds is not a number"


def are_numbers(values: Any) -> bool:
    """Whether a value of JSON maps names to numbers."""
    return isinstance(values, dict) and all(is_number(value) for value in values.values())
