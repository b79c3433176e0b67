"""The image domain: what map-vision provides to the tasks and commands of map-core."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

import map_vision.pictures
from map_core.data import prefer_given_holdout
from map_core.errors import UserError
from map_core.objective import Objective, ReconstructingObjective
from map_core.tasks.domain import Domain, OpenedData, Purpose, Samples, Skipped
from map_core.tasks.evaluation import input_of
from map_vision.data import DataConfig, load_image_data, load_images
from map_vision.data.preprocessing import Preprocessing
from map_vision.factory import MODELS, ModelConfig, input_size, timm_config
from map_vision.finetuning import ClassificationConfig
from map_vision.pictures import draw_reconstructions
from map_vision.pretraining import OBJECTIVES, build_objective

EMPTY: Mapping[str, Any] = {}


def open_data(
    config: DataConfig, model: ModelConfig, purpose: Purpose, trained: Mapping[str, Any] = EMPTY
) -> OpenedData:
    """Open the images of a run; see :func:`map_vision.data.load_image_data`."""
    in_chans, height, width = input_size(model)
    data = load_image_data(
        config,
        img_size=(height, width),
        in_chans=in_chans,
        purpose=purpose,
        trained=preprocessing_of(trained),
    )
    return OpenedData(
        description=data.description,
        classes=data.classes,
        train=data.training,
        plain_train=None if data.training is None else data.train_unaugmented(),
        evaluation=data.evaluation,
        evaluated_on=data.evaluated_on or "nothing",
        preprocessing=data.preprocessing.to_dict(),
        identity={} if data.training is None else data.training.source.identity,
        skipped=lambda: Skipped(data.skipped().count, str(data.skipped())),
    )


def open_files(
    paths: str | list[str], config: DataConfig, model: ModelConfig, trained: Mapping[str, Any] = EMPTY
) -> Samples:
    """Open image files and folders as samples without labels."""
    in_chans, height, width = input_size(model)
    preprocessing = preprocessing_of(trained)
    return load_images(paths, config, img_size=(height, width), in_chans=in_chans, trained=preprocessing)


def preprocessing_of(description: Mapping[str, Any]) -> Preprocessing | None:
    """How the images of a described model were prepared; up to version 0.1 only mean and deviation were stored.

    Raises:
        UserError: some of it is missing, or of the wrong type.
    """
    settings = fields(Preprocessing)
    values = {setting.name: description[setting.name] for setting in settings if setting.name in description}
    if values.keys() == {"mean", "std"} and isinstance(values["mean"], list):
        defaults = {setting.name: setting.default for setting in settings}
        values = defaults | {"channels": len(values["mean"])} | values
    try:
        return Preprocessing.from_dict(values) if values else None
    except UserError as error:
        raise UserError(f"the .json beside the weights: {error}; export the run again") from error


def data_defaults(
    values: dict[str, Any], description: dict[str, Any], overrides: Mapping[str, str]
) -> dict[str, Any]:
    """Data settings of a run for later commands: pixels are normalised as in training, whatever the images."""
    pixels = {key: description[key] for key in ("mean", "std", "pixels") if key in description}
    kind = description.get("pixels", "scaled")
    if "data.statistics" in overrides:
        pixels = {}  # taken from that file
    elif overrides.get("data.pixels", kind) != kind:  # the run's mean and deviation are for other pixels
        pixels = {}
        values = {key: value for key, value in values.items() if key not in ("statistics", "mean", "std")}
    elif pixels:
        values = {key: value for key, value in values.items() if key != "statistics"}  # the same values
    if "data.root" in overrides and values.get("source") == "digits":
        values = values | {"source": "auto"}  # the digits have no folder
    return prefer_given_holdout(values, overrides) | pixels


def draw_picture(
    objective: Objective,
    inputs: Tensor,
    path: Path,
    *,
    data: OpenedData,
    ratio: float | None = None,
    seed: int = 0,
) -> None:
    """Write a picture: original, masked, reconstruction."""
    if not isinstance(objective, ReconstructingObjective):
        raise UserError(f"{type(objective).__name__} reconstructs nothing to draw")
    channels = inputs.shape[1]  # without statistics, images of a user's data set are drawn as they are
    mean = tuple(data.preprocessing.get("mean", (0.0,) * channels))
    std = tuple(data.preprocessing.get("std", (1.0,) * channels))
    stored = data.preprocessing.get("pixels") == "stored"
    draw_reconstructions(objective, inputs, path, mean=mean, std=std, stored=stored, ratio=ratio, seed=seed)


def thumbnail(samples: Samples, index: int, preprocessing: Mapping[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    """An image as the model sees it."""
    return map_vision.pictures.thumbnail(input_of(samples[index]), preprocessing)


DOMAIN = Domain(
    program="map-vision",
    recipes="map_vision.recipes",
    sample="image",
    models=MODELS,
    data=DataConfig,
    objectives=OBJECTIVES,
    classification=ClassificationConfig,
    open_data=open_data,
    open_files=open_files,
    build_objective=build_objective,
    draw_picture=draw_picture,
    thumbnail=thumbnail,
    example=lambda config: torch.zeros(1, *input_size(config)),
    size_axes={2: "height", 3: "width"},
    outputs=1000,
    data_defaults=data_defaults,
    timm_config=timm_config,
)
