"""Full state dicts of plain modules (also inside DDP) and sharded ones, under the unwrapped module's names.

Every process calls these functions; only the main process receives what is to be written.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from map_core.errors import UserError, abbreviate, reason

GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
SCATTER = StateDictOptions(full_state_dict=True)
MAX_SHOWN = 5  # names in an error message


def gather_model(model: nn.Module) -> dict[str, Any]:
    """Return the whole model's parameters and buffers, on the CPU of the main process."""
    return get_model_state_dict(model, options=GATHER)


def gather_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the whole optimizer state by parameter name, on the CPU of the main process."""
    return get_optimizer_state_dict(model, optimizer, options=GATHER)


def scatter_model(model: nn.Module, state: dict[str, Any], source: str) -> None:
    """Load ``state``, the same on every process, into ``model``.

    Raises:
        UserError: a name or shape differs; ``source`` is where the state came from.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    refuse_differences(expected, {name: tuple(value.shape) for name, value in state.items()}, source)
    set_model_state_dict(model, state, options=SCATTER)


def scatter_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], source: str
) -> None:
    """Load ``state``, the same on every process, into ``optimizer``.

    Raises:
        UserError: it was saved for other parameters or other groups, or lacks a part.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {
        f"group {i}": [names[id(p)] for p in g["params"]] for i, g in enumerate(optimizer.param_groups)
    }
    saved = {f"group {i}": list(group["params"]) for i, group in enumerate(state["param_groups"])}
    if expected != saved:
        raise UserError(
            f"{source} belongs to another optimizer: it has {len(saved)} parameter groups of "
            f"{[len(group) for group in saved.values()]} parameters, this run {len(expected)} of "
            f"{[len(group) for group in expected.values()]}, or their names differ; resume with the settings that "
            "wrote it, or start anew with another --out"
        )
    try:
        set_optimizer_state_dict(model, optimizer, state, options=SCATTER)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{source} does not hold the complete state of this optimizer ({type(error).__name__}: {reason(error)}); "
            "use another checkpoint"
        ) from error


def refuse_differences(expected: Mapping[str, Any], saved: Mapping[str, Any], source: str) -> None:
    """Raise a :class:`UserError` that lists missing, unknown and misshaped names, if there are any."""
    differences = [f"{name} is missing" for name in expected if name not in saved]
    differences += [f"{name} is unknown to the model" for name in saved if name not in expected]
    differences += [
        f"{name} has shape {saved[name]}, the model {expected[name]}"
        for name in expected
        if name in saved and saved[name] != expected[name]
    ]
    if differences:
        raise UserError(
            f"{source} belongs to another model: {abbreviate(differences, MAX_SHOWN, '; ')}; "
            "resume with the settings that wrote it, or start anew with another --out"
        )
