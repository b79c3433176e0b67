"""Point models with pretrained weights: those that the repository ships, or those of a run."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from map_core.errors import UserError
from map_core.shipped import folder_of_weights, missing_weights_message
from map_core.tasks.weights import read_description
from map_points.factory import MODELS, PRETRAINING_FORM, PointModelConfig
from map_points.model import HybridNet3D, create_point_model, named_settings


def load_pretrained(
    name: str, num_classes: int | None, source: str | Path | None, changes: Mapping[str, Any]
) -> HybridNet3D:
    """Create a model and load its weights; see :func:`~map_points.model.create_point_model`.

    Args:
        name: Name of the model.
        num_classes: Number of classes; that of the weights when None.
        source: A run or weights file; the repository's weights when None.
        changes: Changes to the model's arguments, which are those of the weights where these are of this model.

    Raises:
        UserError: there are no weights, or they belong to another model.
    """
    named_settings(name)  # report an unknown name before missing weights
    path = folder_of_weights(name) if source is None else source
    if path is None:
        raise UserError(missing_weights_message(name))
    description, must_be_complete = read_description(path), num_classes is None
    trained = MODELS.read_model_config(path)
    trained_arguments = {} if trained is None or trained.name != name else trained.arguments()
    if num_classes is None:
        num_classes = len(description.get("classes") or ())
        if num_classes == 0:  # an encoder: its class token would be untrained
            trained_arguments |= PRETRAINING_FORM
    changes = {**trained_arguments, **changes}
    config_fields = {entry.name for entry in fields(PointModelConfig)}
    config = PointModelConfig(name, **{key: value for key, value in changes.items() if key in config_fields})
    MODELS.refuse_other_settings(config, path, is_init=False)
    model = create_point_model(name, num_classes, **changes)
    missing = MODELS.load_init(model, path).missing
    if must_be_complete and missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)} of this model; give num_classes to start anew what is missing, or "
            "load the run as it is with map_points.load"
        )
    return model
