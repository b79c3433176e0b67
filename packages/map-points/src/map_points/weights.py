"""What may differ between a weights file and a point model that starts from it."""

from pathlib import Path

from torch import nn

import map_core.tasks.weights
from map_core.tasks.weights import LoadReport

# what a pretraining run does not have and a classifier starts anew
NEW_IN_CLASSIFIER = ("encoder.registers.", "head.")


def load_init(model: nn.Module, path: str | Path, *, keep_head: bool = True) -> LoadReport:
    """Start a point model from a pretraining run or a classifier.

    Exactly the class token with its position and the head may be missing. Without ``keep_head`` the head starts
    anew. See :func:`map_core.tasks.weights.load_init`.
    """
    return map_core.tasks.weights.load_init(
        model, path, may_be_missing=NEW_IN_CLASSIFIER, keep_head=keep_head
    )
