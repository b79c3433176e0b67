"""``training.activation_checkpointing``: which blocks of an encoder compute their activations again in backward."""

from typing import Any

from torch import nn

from map_core.training.config import TrainingConfig


def recompute_activations(model: nn.Module, config: TrainingConfig) -> None:
    """Tell a model, which has timm's ``set_grad_checkpointing``, which of its blocks to run again in backward."""
    ask: Any = model.set_grad_checkpointing
    if config.recompute_every == 1:
        ask(config.activation_checkpointing)
    else:  # not an argument of timm's
        ask(config.activation_checkpointing, every=config.recompute_every)
