"""Masked autoregressive pretraining for point clouds.

Public names are imported at their first use, so that a command line that only shows its help need not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from map_core.tasks.hub import push_to_hub
    from map_core.tasks.pretraining import TrainedObjective
    from map_points.data import PointDataConfig
    from map_points.factory import PointModelConfig
    from map_points.model import HybridNet3D, create_point_model
    from map_points.pretraining import PointObjectiveConfig, build_objective
    from map_points.python import features, finetune, predict, pretrain
    from map_points.tokenizer import tokenize_clouds

__all__ = [
    "HybridNet3D",
    "PointDataConfig",
    "PointModelConfig",
    "PointObjectiveConfig",
    "build_objective",
    "create_point_model",
    "features",
    "finetune",
    "from_pretrained",
    "load",
    "load_objective",
    "predict",
    "pretrain",
    "push_to_hub",
    "tokenize_clouds",
]
_MODULES = {
    "HybridNet3D": "map_points.model",
    "create_point_model": "map_points.model",
    "PointDataConfig": "map_points.data",
    "PointModelConfig": "map_points.factory",
    "PointObjectiveConfig": "map_points.pretraining",
    "build_objective": "map_points.pretraining",
    "tokenize_clouds": "map_points.tokenizer",
}
_MODULES["push_to_hub"] = "map_core.tasks.hub"
_MODULES |= dict.fromkeys(("features", "finetune", "predict", "pretrain"), "map_points.python")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("map-points")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def load(run: str | Path) -> "nn.Module":
    """Load the model of a run, in evaluation mode; see :meth:`map_core.tasks.trained_models.Models.load`."""
    from map_points.domain import DOMAIN

    return DOMAIN.models.load(run)


def from_pretrained(
    name: str | Path, *, cache_dir: str | Path | None = None, token: str | None = None
) -> "nn.Module":
    """Load a model from a folder or the Hub, in evaluation mode; see :func:`map_core.tasks.hub.from_pretrained`."""
    import map_core.tasks.hub
    from map_points.domain import DOMAIN

    return map_core.tasks.hub.from_pretrained(DOMAIN.models, name, cache_dir=cache_dir, token=token)


def load_objective(run: str | Path) -> "TrainedObjective":
    """Load encoder, decoder and head of a pretraining run; see :func:`map_core.tasks.pretraining.load_objective`."""
    import map_core.tasks.pretraining
    from map_points.domain import DOMAIN

    return map_core.tasks.pretraining.load_objective(DOMAIN, run)
