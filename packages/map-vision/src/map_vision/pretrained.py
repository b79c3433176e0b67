"""What timm is told of pretrained weights: where they are, how images are prepared, what the outputs mean.

Imports neither torch nor timm: the registry reads it in the midst of whoever imports timm.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from map_core.errors import UserError, visible
from map_core.reading import read_small
from map_core.shipped import DESCRIPTION, MODEL, not_here

SOURCES = ("file", "url", "hf_hub_id", "state_dict")
SMALL = 64  # pixels: images for models of this size are hardly ever stored larger, and are not cropped


def described_cfg(description: Mapping[str, Any], img_size: int) -> dict[str, Any]:
    """A model's description, as model.json has it, in the words of timm's ``pretrained_cfg``.

    Args:
        description: Its pixels' statistics, crop and interpolation, and its classes if it is a classifier.
        img_size: Its images' larger side, in pixels.
    """
    crop = "crop_pct_small" if img_size <= SMALL else "crop_pct"  # timm has one for all images
    words = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": crop}
    named = {
        word: tuple(description[key]) if isinstance(description[key], list) else description[key]
        for word, key in words.items()
        if description.get(key) is not None
    }
    classes = description.get("classes") or ()
    if classes:
        named["label_names"] = list(classes)
    return {**named, "num_classes": len(classes)}


def shipped_cfg(folder: Path | None, img_size: int) -> dict[str, Any]:
    """What a model's ``pretrained_cfg`` says of the weights in a folder; nothing where there are none.

    A description that cannot be read leaves the file alone; whoever makes the model is told (:func:`require_source`).
    """
    if folder is None:
        return {}
    try:
        said = described_cfg(json.loads(read_small(folder / DESCRIPTION)), img_size)
    except (OSError, ValueError, AttributeError, RecursionError, TypeError):
        said = {}
    return {**said, "file": str(folder / MODEL)}


def require_source(name: str, settings: Mapping[str, Any]) -> None:
    """Check, before a model is made with pretrained weights, that there are some.

    Args:
        name: Of the model.
        settings: Arguments of timm's ``create_model``, which may name another source.

    Raises:
        UserError: there are none; their file is missing; or the description beside the repository's cannot be read.
    """
    from timm.models import PretrainedCfg, get_pretrained_cfg

    given, overlay = settings.get("pretrained_cfg"), settings.get("pretrained_cfg_overlay") or {}
    cfg: Any = given or get_pretrained_cfg(name)
    if isinstance(cfg, PretrainedCfg):
        cfg = cfg.to_dict()
    if isinstance(cfg, str) or cfg.get("source"):  # a tag, or a name such as hf-hub:USER/NAME: timm's to read
        return
    said = {**cfg, **overlay}
    if not any(said.get(source) for source in SOURCES):
        raise UserError(not_here(name))
    if said.get("file") and not Path(said["file"]).is_file():
        raise UserError(f"{name}: the pretrained_cfg's file {visible(str(said['file']))} does not exist")
    if not given and not overlay:
        from map_core.tasks.weights import read_description

        read_description(said["file"])


def refuse_other_meaning(name: str, settings: Mapping[str, Any]) -> None:
    """Check that a model made with pretrained weights computes what they were trained for, where that is known.

    Args:
        name: Of the model.
        settings: Arguments of timm's ``create_model``; those that a ``config.json`` says are among them twice.

    Raises:
        UserError: one that no shape shows differs.
    """
    from map_core.runs.summary import to_plain
    from map_vision.factory import UNSEEN, ModelConfig, resolved

    of_source = settings.get("pretrained_model_args")
    overlay = settings.get("pretrained_cfg_overlay") or {}
    if of_source is None and (settings.get("pretrained_cfg") or any(overlay.get(name) for name in SOURCES)):
        return  # weights of the user's, made as the user says
    trained, now = (
        resolved(ModelConfig(name, **{key: value for key, value in given.items() if key in UNSEEN}))
        for given in (of_source or {}, settings)
    )
    for key in UNSEEN:
        if to_plain(now.get(key)) != to_plain(trained.get(key)):
            raise UserError(
                f"the pretrained weights of {name} were trained with {key}={trained.get(key)!r}; with "
                f"{now[key]!r} they would fit, but mean something else: leave it out, or train anew"
            )
