"""Parameter groups and the optimizer, both from timm."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import Tensor, nn

from map_core.errors import UserError, reason, unknown_name
from map_core.training.config import TrainingConfig


def default_parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split ``model``'s trainable parameters into groups with and without weight decay, by layer if asked.

    Vectors and what ``model.no_weight_decay()`` names are not decayed. With ``layer_decay``, layer i of n
    (in the order of ``model.group_matcher``) learns at ``layer_decay ** (n - i)`` times the rate (BEiT,
    section 3.2 of arXiv:2106.08254).

    Raises:
        UserError: layer decay is asked for, and the model has no ``group_matcher``.
    """
    no_weight_decay: Any = getattr(model, "no_weight_decay", tuple)
    excluded = no_weight_decay()
    if layer_decay is None:
        return list(param_groups_weight_decay(model, weight_decay, no_weight_decay_list=excluded))
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"training.layer_decay needs a model with group_matcher(), which {type(model).__name__} lacks; "
            "set --training.layer_decay null"
        )
    return list(
        param_groups_layer_decay(model, weight_decay, no_weight_decay_list=excluded, layer_decay=layer_decay)
    )


def build_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimizer that ``config.optimizer`` names.

    Raises:
        UserError: timm has no such optimizer or cannot build it here, or the training loop cannot use it.
    """
    known_names = list_optimizers()
    if config.optimizer.lower() not in known_names:
        raise unknown_name("training.optimizer", config.optimizer, known_names)
    info = get_optimizer_info(config.optimizer)
    options: dict[str, Any] = {}
    if info.has_betas and info.num_betas == 2:
        options["betas"] = config.betas
    if info.has_eps:
        options["eps"] = config.eps
    if config.optimizer.lower() in ("adam", "adamw"):
        options["fused"] = True  # one pass over parameters and states, on CPUs too
    try:
        optimizer = create_optimizer_v2(
            groups, config.optimizer, lr=config.peak_lr, weight_decay=config.weight_decay, **options
        )
    except (AssertionError, ImportError) as error:  # raised by those that need a GPU or another package
        raise UserError(
            f"training.optimizer {config.optimizer} cannot be used here: {reason(error)}; choose another"
        ) from error
    if problem := find_problem(optimizer, second_order=info.second_order):
        raise UserError(f"training.optimizer {config.optimizer} {problem}; choose another")
    return optimizer


def find_problem(optimizer: torch.optim.Optimizer, *, second_order: bool) -> str | None:
    """Return why the training loop cannot use an optimizer, or None."""
    if second_order:
        return "needs gradients of gradients, which the kernels of this project do not have"
    for name, value in optimizer.param_groups[0].items():
        if isinstance(value, torch.dtype):
            return f"keeps {name} as a dtype, which checkpoints of plain values cannot hold"
    if extra := optimizer.state_dict().keys() - {"state", "param_groups"}:
        return f"keeps {', '.join(sorted(extra))} beside the state of parameters, which checkpoints leave out"
    return None


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to ``lr``, times the group's ``lr_scale`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(accelerator: Accelerator, model: nn.Module, limit: float | None) -> Tensor:
    """Scale the whole gradient down to the norm ``limit``, if there is one; return the norm before clipping."""
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if limit is None else limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
