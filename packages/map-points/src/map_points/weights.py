"""What may differ between a weights file and a point model that starts from it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

import map_core.tasks.initial_weights
from map_core.errors import UserError
from map_core.tasks.initial_weights import FittingOptions, LoadReport
from map_points.checkpoints import FAMILIES

# what a pretraining run lacks and a classifier starts anew
NEW_IN_CLASSIFIER = ("encoder.registers.", "order_scale.1.", "head.")
SEGMENTER_PREFIX = "backbone."


def load_init(
    model: nn.Module,
    path: str | Path,
    *,
    keep_head: bool = True,
    fitting_options: FittingOptions | None = None,
) -> LoadReport:
    """Start a point model from a pretraining run, a classifier, or a checkpoint of another project.

    Only the class token with its position, the scale of a second order and the head may be missing. Without
    ``keep_head`` the head starts anew. See :func:`map_core.tasks.initial_weights.load_init`.

    Raises:
        UserError: the file holds a part segmenter, and the model is none.
    """
    return map_core.tasks.initial_weights.load_init(
        model,
        path,
        may_be_missing=NEW_IN_CLASSIFIER,
        families=FAMILIES,
        convert=lambda state: refuse_segmenters(state, model, path),
        keep_head=keep_head,
        fitting_options=fitting_options,
    )


def load_backbone(model: nn.Module, path: str | Path) -> LoadReport:
    """Start an encoder from the backbone of a part segmenter, whose head is left.

    Raises:
        UserError: as :func:`map_core.tasks.initial_weights.load_init`.
    """
    return map_core.tasks.initial_weights.load_init(
        model, path, may_be_missing=NEW_IN_CLASSIFIER, families=FAMILIES, convert=backbone_state
    )


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a part segmenter, under an encoder's keys."""
    return {
        key.removeprefix(SEGMENTER_PREFIX): value
        for key, value in state.items()
        if key.startswith(SEGMENTER_PREFIX)
    }


def refuse_segmenters(state: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Return the state unchanged.

    Raises:
        UserError: it is a part segmenter's, and the model is none.
    """
    is_segmenter = any(key.startswith(SEGMENTER_PREFIX) for key in state)
    if is_segmenter and not any(key.startswith(SEGMENTER_PREFIX) for key in model.state_dict()):
        raise UserError(
            f"{path} holds a part segmenter: map-points segment starts from it, and evaluate measures it; start "
            "this model from a pretraining run or a classifier"
        )
    return dict(state)
