"""What may differ between a weights file and an image model that starts from it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

import map_core.tasks.weights
from map_core.errors import UserError
from map_core.tasks.weights import LoadReport

# what a pretraining run does not have and a classifier starts anew
NEW_IN_CLASSIFIER = ("encoder.registers.", "neck.", "head.")
MASK_TOKEN = "mask_token"  # of pyramids, in pretraining alone
WRAPPERS = ("module.", "model.")  # prefixes under which other programs save a whole model


def load_init(model: nn.Module, path: str | Path, *, keep_head: bool = True) -> LoadReport:
    """Start an image model from a pretraining run, a classifier, or timm's ViT weights.

    Exactly these may be missing: registers and their positions, neck and its norm, classifier head, and what a
    pyramid paints hidden cells with. Positions of another grid are resampled. Without ``keep_head`` the head starts
    anew. See :func:`map_core.tasks.weights.load_init`.
    """
    return map_core.tasks.weights.load_init(
        model,
        path,
        may_be_missing=(*NEW_IN_CLASSIFIER, MASK_TOKEN),
        convert=lambda state: convert_state(state, model),
        resampled=_resamples,
        keep_head=keep_head,
    )


def _resamples(key: str, source: Tensor, own: Tensor) -> bool:
    return key.endswith("position.table") and source.ndim == 3 and source.shape[2] == own.shape[2]


def convert_state(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename the keys of timm's VisionTransformer to ours; other states keep theirs, without a wrapper's prefix.

    What hid cells in pretraining is left out where ``model`` hides none.
    """
    state = _unwrapped(state)
    if model is not None and getattr(model, MASK_TOKEN, None) is None:
        state.pop(MASK_TOKEN, None)
    if "cls_token" not in state or "pos_embed" not in state:
        return state
    position = state["pos_embed"][0]
    patches = position[1:]
    side = round(len(patches) ** 0.5)  # timm's ViT tables are square
    if side * side != len(patches):
        raise UserError(
            f"pos_embed has {len(patches)} patch positions, which is no square grid; resample it first"
        )
    converted = {
        "encoder.registers.token": state["cls_token"][0],
        "encoder.registers.position": position[:1],
        "encoder.position.table": patches.reshape(side, side, -1),
    }
    for key, value in state.items():
        if key.startswith(("blocks.", "norm.")):
            converted[f"encoder.{key}"] = value
        elif key not in ("cls_token", "pos_embed"):
            converted[key] = value
    return converted


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes that all of its keys share."""
    state = dict(state)
    for prefix in WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
