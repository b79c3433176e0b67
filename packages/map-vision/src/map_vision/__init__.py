"""Masked autoregressive pretraining for images; importing it registers the models with timm.

Public names are imported on first use: a command line that only shows its help does not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from map_vision.registration import register_once_timm_is_imported

if TYPE_CHECKING:
    from torch import nn

    import map_vision.registry as registry
    from map_core.tasks.hub import push_to_hub
    from map_core.tasks.pretraining import TrainedObjective
    from map_vision.data import DataConfig
    from map_vision.factory import ModelConfig
    from map_vision.model import HybridNet
    from map_vision.pretraining import ImageObjectiveConfig, build_objective
    from map_vision.python import features, finetune, predict, pretrain
    from map_vision.tokenizer import tokenize_images

__all__ = [
    "DataConfig",
    "HybridNet",
    "ImageObjectiveConfig",
    "ModelConfig",
    "build_objective",
    "features",
    "finetune",
    "from_pretrained",
    "load",
    "load_objective",
    "predict",
    "pretrain",
    "push_to_hub",
    "registry",
    "tokenize_images",
]
_MODULES = {
    "DataConfig": "map_vision.data",
    "HybridNet": "map_vision.model",
    "ImageObjectiveConfig": "map_vision.pretraining",
    "ModelConfig": "map_vision.factory",
    "build_objective": "map_vision.pretraining",
    "tokenize_images": "map_vision.tokenizer",
}
_MODULES["push_to_hub"] = "map_core.tasks.hub"
_MODULES |= dict.fromkeys(("features", "finetune", "predict", "pretrain"), "map_vision.python")


register_once_timm_is_imported()


def __getattr__(name: str) -> Any:
    if name == "registry":
        return importlib.import_module("map_vision.registry")
    if name == "__version__":
        from importlib.metadata import version

        return version("map-vision")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def load(run: str | Path) -> "nn.Module":
    """The model of a run, in evaluation mode; see :meth:`map_core.tasks.trained_models.Models.load`."""
    from map_vision.factory import MODELS

    return MODELS.load(run)


def from_pretrained(
    name: str | Path, *, cache_dir: str | Path | None = None, token: str | None = None
) -> "nn.Module":
    """A model from a folder or the Hub, in evaluation mode; see :func:`map_core.tasks.hub.from_pretrained`."""
    import map_core.tasks.hub
    from map_vision.factory import MODELS

    return map_core.tasks.hub.from_pretrained(MODELS, name, cache_dir=cache_dir, token=token)


def load_objective(run: str | Path) -> "TrainedObjective":
    """Encoder, decoder and head of a pretraining run; see :func:`map_core.tasks.pretraining.load_objective`."""
    import map_core.tasks.pretraining
    from map_vision.domain import DOMAIN

    return map_core.tasks.pretraining.load_objective(DOMAIN, run)
