"""What may differ between a weights file and an image model that starts from it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

import map_core.tasks.weights
from map_core.errors import UserError
from map_core.tasks.weights import LoadReport

# what a pretraining run does not have and a classifier starts anew
NEW_IN_CLASSIFIER = ("encoder.registers.", "neck.", "head.")


def load_init(model: nn.Module, path: str | Path, *, keep_head: bool = True) -> LoadReport:
    """Start an image model from a pretraining run, a classifier, or timm's ViT weights.

    Exactly these may be missing: registers and their positions, neck and its norm, classifier head. Positions of
    another grid are resampled. Without ``keep_head`` the head starts
    anew. See :func:`map_core.tasks.weights.load_init`.
    """
    return map_core.tasks.weights.load_init(
        model,
        path,
        may_be_missing=NEW_IN_CLASSIFIER,
        convert=convert_state,
        resampled=_resamples,
        keep_head=keep_head,
    )


def _resamples(key: str, source: Tensor, own: Tensor) -> bool:
    return key.endswith("position.table") and source.ndim == 3 and source.shape[2] == own.shape[2]


def convert_state(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename the keys of timm's VisionTransformer to ours; states with our own keys pass unchanged.

    ``model`` is not read: timm passes it to such filters.
    """
    if "cls_token" not in state or "pos_embed" not in state:
        return dict(state)
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
