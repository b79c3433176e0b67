"""``training.activation_checkpointing``: which blocks of an encoder recompute their activations in backward."""

from typing import Any

from torch import nn

from map_core.training.config import TrainingConfig


def recompute_activations(model: nn.Module, config: TrainingConfig) -> None:
    """Set which blocks of a model recompute their activations in backward, by timm's ``set_grad_checkpointing``."""
    set_checkpointing: Any = model.set_grad_checkpointing
    if config.recompute_every == 1:
        set_checkpointing(config.activation_checkpointing)
    else:  # not an argument of timm's
        set_checkpointing(config.activation_checkpointing, every=config.recompute_every)
