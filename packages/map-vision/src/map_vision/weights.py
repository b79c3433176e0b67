"""Load weights into image models: what a weights file and a model may differ in."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import map_core.tasks.initial_weights
from map_core.errors import UserError
from map_core.positions import resamples
from map_core.tasks.families import family_of
from map_core.tasks.foreign_weights import without_prefix
from map_core.tasks.initial_weights import (
    FittingOptions,
    LoadReport,
    format_keys,
    other_guesses,
    refuse_other_invisible_settings,
)
from map_vision.checkpoints import FAMILIES

REGISTERS = "encoder.registers."
HEAD, HEAD_WEIGHT = "head.", "head.weight"
BEHIND_ENCODER = ("neck.", "pool_norm.", HEAD)
# parameters that a pretraining run lacks and a classifier initialises
NEW_IN_CLASSIFIER = (REGISTERS, *BEHIND_ENCODER)
MASK_TOKEN = "mask_token"  # of pyramids, in pretraining only
# may be missing or of another shape without harm: a head for other classes, a norm of ones
MAY_DIFFER = (HEAD, "pool_norm.", MASK_TOKEN)
# parameters that a model has only with registers: the weights of an encoder without registers lack them
ONLY_WITH_REGISTERS = (REGISTERS, "neck.")
LAST_NORM = "encoder.norm."
STATE_DICT = "the state dict"  # without a file, in messages
log = logging.getLogger(__name__)


def load_init(
    model: nn.Module,
    path: str | Path,
    *,
    keep_head: bool = True,
    fitting_options: FittingOptions | None = None,
) -> LoadReport:
    """Start an image model from a pretraining run, a classifier, or a checkpoint of another project.

    Exactly these may be missing: registers and their positions, neck and its norm, the norm after the pooling, the
    classifier's head, and a pyramid's mask token. Positions of another grid are resampled. Without
    ``keep_head`` the head starts anew. See :func:`map_core.tasks.initial_weights.load_init`.
    """
    return map_core.tasks.initial_weights.load_init(
        model,
        path,
        may_be_missing=(*NEW_IN_CLASSIFIER, MASK_TOKEN),
        families=FAMILIES,
        convert=lambda state: without_unused(state, model),
        resampled=resamples,
        keep_head=keep_head,
        fitting_options=fitting_options,
    )


def convert_state(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename the keys of a known family's checkpoint to ours; other states keep theirs, without a wrapper's prefix.

    Raises:
        UserError: the weights would compute something else in ``model`` than in the model they come from.
    """
    state = without_prefix(state, STATE_DICT)
    family = family_of(state, FAMILIES)
    if family is not None:
        converted = family.convert_file_state(state, STATE_DICT)
        state = converted.state
        if model is not None:
            refuse_other_invisible_settings(model, converted, STATE_DICT, family)
            for warning in other_guesses(model, converted).values():
                log.warning("%s: %s", STATE_DICT, warning)
    return state if model is None else without_unused(state, model)


def pretrained_state(
    state: Mapping[str, Tensor], model: nn.Module, *, with_head: bool = True
) -> dict[str, Tensor]:
    """:func:`convert_state` for ``pretrained=True``, where timm loads whatever fits as soon as the head differs.

    Args:
        state: The weights.
        model: The model that timm is about to load them into.
        with_head: Whether the head will be used; with ``features_only`` timm drops it.

    Raises:
        UserError: apart from the head, the model has a layer that the weights lack, the weights one that the model
            lacks, or one has another shape; or timm would load a head of another number of classes.
    """
    state, model_state = convert_state(state, model), model.state_dict()
    if with_head:
        _refuse_other_classes(state, model)
    # registers of an encoder without a head, such as a class token, were pretrained with it (keep_registers)
    is_classifier = any(key.startswith(HEAD) for key in state)
    may_be_left = NEW_IN_CLASSIFIER if is_classifier else BEHIND_ENCODER
    faults = {
        "missing": [key for key in model_state if key not in state and not key.startswith(MAY_DIFFER)],
        "not used": [key for key in state if key not in model_state and not key.startswith(may_be_left)],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in model_state.items()
            if key in state and not (key.startswith(MAY_DIFFER) or _adaptable(key, state[key], value))
        ],
    }
    if any(faults.values()):
        cure = "leave out what changes its layers, their sizes or its pooling"
        missing, misfits = faults["missing"], faults["not used"] or faults["shapes"]
        lacks_registers = any(key.startswith(REGISTERS) for key in missing)
        if lacks_registers and not misfits and all(key.startswith(ONLY_WITH_REGISTERS) for key in missing):
            cure = "they have no registers: add num_registers=0, global_pool='avg'"
        raise UserError(
            f"the pretrained weights do not fit this model: {format_keys(faults)}; {cure}, or load them as they are "
            "with map_vision.load"
        )
    return state


def _refuse_other_classes(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse weights whose head timm would load into another, or drop although it fits.

    timm keeps the head where ``pretrained_cfg`` has as many classes as the model, whatever the weights have.
    """
    registered: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    of_model, of_weights = model.num_classes, len(state.get(HEAD_WEIGHT, ()))
    if of_weights and (of_model == registered.get("num_classes")) != (of_model == of_weights):
        raise UserError(
            f"the pretrained weights have {of_weights} classes, and neither a description beside them nor "
            f"pretrained_cfg_overlay says so: add num_classes={of_weights} to pretrained_cfg_overlay"
        )


def _adaptable(key: str, source: Tensor, target: Tensor) -> bool:
    """Whether weights fit, possibly after resampling, or after timm adapts a first convolution to other in_chans."""
    if source.shape == target.shape or resamples(key, source, target):
        return True
    return (
        source.ndim == target.ndim == 4
        and source.shape[:1] + source.shape[2:] == target.shape[:1] + target.shape[2:]
    )


def without_unused(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leave out what ``model`` has no use for: a mask token, or a last norm where it normalises after the pooling."""
    unused: tuple[str, ...] = () if getattr(model, MASK_TOKEN, None) is not None else (MASK_TOKEN,)
    if getattr(model, "pool_norm", None) is not None:
        unused += (LAST_NORM,)
    return {key: value for key, value in state.items() if not key.startswith(unused)}
