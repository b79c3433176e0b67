"""Point models with weights: those that the repository ships, or those of a run."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from map_core.errors import UserError
from map_core.shipped import folder_of_weights, not_here
from map_core.tasks.weights import read_description
from map_points.factory import MODELS, PRETRAINED, PointModelConfig
from map_points.model import HybridNet3D, create_point_model, named_settings


def load_pretrained(
    name: str, num_classes: int | None, source: str | Path | None, changes: Mapping[str, Any]
) -> HybridNet3D:
    """Create a model and load its weights; see :func:`~map_points.model.create_point_model`.

    Args:
        name: Of the model.
        num_classes: Classes; those of the weights when None.
        source: A run or weights file; the repository's weights when None.
        changes: To the model's arguments, which are those of the weights where they are of this model.

    Raises:
        UserError: there are no weights, or they are of another model.
    """
    named_settings(name)  # an unknown name comes before weights that it cannot have
    path = folder_of_weights(name) if source is None else source
    if path is None:
        raise UserError(not_here(name))
    description, whole = read_description(path), num_classes is None
    trained = MODELS.described(path)
    own = {} if trained is None or trained.name != name else trained.arguments()
    if num_classes is None:
        num_classes = len(description.get("classes") or ())
        if num_classes == 0:  # an encoder: a class token would be one that nothing trained
            own |= PRETRAINED
    changes = {**own, **changes}
    known = {entry.name for entry in fields(PointModelConfig)}
    config = PointModelConfig(name, **{key: value for key, value in changes.items() if key in known})
    MODELS.refuse_other_settings(config, path, starts=False)
    model = create_point_model(name, num_classes, **changes)
    fresh = MODELS.load_init(model, path).fresh
    if whole and fresh:
        raise UserError(
            f"{path} lacks {', '.join(fresh)} of this model; give num_classes to start anew what is missing, or "
            "load the run as it is with map_points.load"
        )
    return model
