"""timm's ``pretrained_cfg`` for weights: where they are, how images are prepared, what the outputs mean.

Imports neither torch nor timm at module level: the registry imports it while timm itself is being imported.
"""

import contextlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from map_core.errors import UserError, visible
from map_core.reading import read_small
from map_core.shipped import DESCRIPTION, MODEL, missing_weights_message

SOURCES = ("file", "url", "hf_hub_id", "state_dict")
SMALL = 64  # pixels: images for models up to this size are rarely stored larger, and are not cropped


def cfg_from_description(description: Mapping[str, Any], img_size: int) -> dict[str, Any]:
    """Translate a model's description, as in model.json, into the keys of timm's ``pretrained_cfg``.

    Args:
        description: Pixel statistics, crop and interpolation, and the classes of a classifier.
        img_size: Larger side of the model's images, in pixels.
    """
    crop = "crop_pct_small" if img_size <= SMALL else "crop_pct"  # timm has one value for all images
    names = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": crop}
    cfg = {
        name: tuple(description[key]) if isinstance(description[key], list) else description[key]
        for name, key in names.items()
        if description.get(key) is not None
    }
    classes = description.get("classes") or ()
    if classes:
        cfg["label_names"] = list(classes)
    return {**cfg, "num_classes": len(classes)}


def record_input_size(model: Any, size: tuple[int, int]) -> None:
    """Record a model's new image size (height, width) where timm does so for its own models."""
    try:
        from timm.models import _input
    except ImportError:  # a timm version that does not
        return
    _input.update_model_input_size(model, size)


def shipped_cfg(folder: Path | None, img_size: int) -> dict[str, Any]:
    """The entries of a model's ``pretrained_cfg`` for the weights in a folder; none without a folder.

    Only ``file`` is set where the description cannot be read; :func:`require_source` reports that at creation.
    """
    if folder is None:
        return {}
    try:
        cfg = cfg_from_description(json.loads(read_small(folder / DESCRIPTION)), img_size)
    except (OSError, ValueError, AttributeError, RecursionError, TypeError):
        cfg = {}
    return {**cfg, "file": str(folder / MODEL)}


def require_source(name: str, settings: Mapping[str, Any]) -> None:
    """Check that there are pretrained weights before a model is created with them.

    Args:
        name: The model's name.
        settings: Arguments of timm's ``create_model``, which may name another source.

    Raises:
        UserError: no weights, a missing file, or an unreadable description beside the weights of the repository.
    """
    explicit_cfg, overlay = settings.get("pretrained_cfg"), settings.get("pretrained_cfg_overlay") or {}
    cfg = cfg_of_weights(name, settings)
    if isinstance(cfg, str) or cfg.get("source"):  # a tag, or a name such as hf-hub:USER/NAME: timm's to read
        return
    merged = {**cfg, **overlay}
    if not any(merged.get(source) for source in SOURCES):
        raise UserError(missing_weights_message(name))
    if merged.get("file") and not Path(merged["file"]).is_file():
        raise UserError(f"{name}: the pretrained_cfg's file {visible(str(merged['file']))} does not exist")
    if not explicit_cfg and not overlay:
        from map_core.tasks.weights import read_description

        read_description(merged["file"])


def with_description(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of timm's ``create_model`` whose overlay also has what the description beside its file says.

    Without it timm takes the number of classes for that of the model's name, and drops a head that has another. What
    the arguments say themselves comes first.

    Args:
        name: The model's name.
        settings: The arguments.
    """
    from timm.layers import to_2tuple
    from timm.models import get_pretrained_cfg

    from map_core.tasks.weights import read_description

    explicit_cfg = settings.get("pretrained_cfg")
    given = dict(explicit_cfg) if isinstance(explicit_cfg, Mapping) else {}
    given |= settings.get("pretrained_cfg_overlay") or {}
    description: Mapping[str, Any] = {}
    with contextlib.suppress(UserError):  # a JSON file beside the weights that is none of ours
        description = read_description(given["file"]) if given.get("file") else {}
    if "name" not in description:
        return dict(settings)
    size = settings.get("img_size") or get_pretrained_cfg(name).input_size[1:]
    return {
        **settings,
        "pretrained_cfg_overlay": cfg_from_description(description, max(to_2tuple(size))) | given,
    }


def cfg_of_weights(name: str, settings: Mapping[str, Any]) -> Any:
    """The ``pretrained_cfg`` that a model is created with, as a dict without the user's overlay; a tag as it is."""
    from timm.models import PretrainedCfg, get_pretrained_cfg

    cfg: Any = settings.get("pretrained_cfg") or get_pretrained_cfg(name)
    return cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg


def refuse_changed_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check that pretrained weights would compute what they were trained to, where their settings are known.

    Args:
        name: The model's name.
        settings: Arguments of timm's ``create_model``; those from a ``config.json`` also come as
            ``pretrained_model_args``.

    Raises:
        UserError: a setting that no shape reveals differs.
    """
    from map_core.runs.summary import to_serializable
    from map_vision.factory import INVISIBLE_SETTINGS, UNCONFIGURED_SETTINGS, ModelConfig, resolved
    from map_vision.registry import model_class

    source_args = settings.get("pretrained_model_args")
    overlay = settings.get("pretrained_cfg_overlay") or {}
    if source_args is None and (settings.get("pretrained_cfg") or any(overlay.get(name) for name in SOURCES)):
        return  # the user's own weights, built as the user says
    compared = [*INVISIBLE_SETTINGS, *UNCONFIGURED_SETTINGS]
    cfg = cfg_of_weights(name, settings)
    if not isinstance(cfg, str) and cfg.get("num_classes"):  # an encoder goes with either norm
        compared.append("pool_norm")
    parameters = inspect.signature(model_class(name)).parameters
    compared = [key for key in compared if key in parameters]
    trained, requested = (
        resolved(
            ModelConfig(name),
            {key: value for key, value in arguments.items() if key in compared and value is not None},
        )
        for arguments in (source_args or {}, settings)
    )
    for key in compared:
        if to_serializable(requested.get(key)) != to_serializable(trained.get(key)):
            raise UserError(
                f"the pretrained weights of {name} were trained with {key}={trained.get(key)!r}; with "
                f"{requested[key]!r} they would fit, but mean something else: leave it out, or train anew"
            )
