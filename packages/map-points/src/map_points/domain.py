"""What map-points hands to the tasks and commands of map-core."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from map_core.data import (
    evaluates_held_out,
    prefer_given_holdout,
    refuse_two_evaluation_sets,
    report_unused_split,
)
from map_core.errors import UserError, in_one_line
from map_core.objective import Objective, ReconstructingObjective
from map_core.runs.notes import note
from map_core.tasks.classification import ClassificationConfig
from map_core.tasks.domain import Domain, OpenedData, Purpose, Samples
from map_core.tasks.evaluation import input_of
from map_points.data import (
    CloudSamples,
    PointDataConfig,
    channel_scaling,
    choose_clouds,
    clouds_to_evaluate,
    collate_clouds,
    evaluation_split,
    has_evaluation,
    read_cloud_files,
    require_classes,
    require_same_classes,
)
from map_points.data.clouds import Clouds, describe_ignored
from map_points.data.config import SOURCE_OF_SETTING
from map_points.data.folders import cloud_labels
from map_points.evaluation import EvaluationConfig, voted_logits
from map_points.factory import MODELS, PointModelConfig, resolved
from map_points.patches.dispatch import describe_backends
from map_points.pictures import draw_cloud, draw_reconstructions
from map_points.pretraining import OBJECTIVES, build_objective
from map_points.segmentation.evaluation import evaluate_segmenter
from map_points.segmentation.task import PART_SEGMENTER, load_segmenter, segmenter_from_description

NO_SETTINGS: Mapping[str, Any] = {}
SCALING = ("channel_mean", "channel_std")  # of channels, in settings and descriptions


def open_data(
    config: PointDataConfig,
    model: PointModelConfig,
    purpose: Purpose,
    trained: Mapping[str, Any] = NO_SETTINGS,
) -> OpenedData:
    """Open the clouds of a run.

    Raises:
        UserError: a file cannot be used, which the message names, or the channels are not those of the training.
    """
    refuse_other_channels(config, model)
    refuse_untrained_channels(config.channels, trained)
    if purpose == "finetune":
        refuse_two_evaluation_sets(config)
    where = config.root or "embedded shapes"
    if purpose == "evaluate":
        if config.labels is not None and trained.get("classes"):  # a classifier's, which labels measure
            cloud_labels(config.root_path, config.labels).require_labels()
        clouds, evaluated_on = clouds_to_evaluate(config)
        note_unused_split(config)
        if ignored := describe_ignored([clouds]):
            note(f"{where}: {len(clouds)} clouds to evaluate on{ignored}")
        return as_opened_data(config, where, None, clouds, evaluated_on)
    evaluate = purpose == "finetune" or (purpose == "features" and has_evaluation(config))
    splits = choose_clouds(config, evaluate=evaluate, every_class=purpose == "finetune")
    if purpose == "finetune":
        require_classes(splits.train, splits.evaluation, config)
        note_unused_split(config)
    elif purpose == "features" and splits.evaluation is not None:
        require_same_classes(splits.train, splits.evaluation, config)
    return as_opened_data(config, where, splits.train, splits.evaluation, splits.evaluated_on)


def note_unused_split(config: PointDataConfig) -> None:
    """Say if a folder has a split to evaluate on that is left alone because of a held-out part."""
    if config.source == "folder" and evaluates_held_out(config):
        split = evaluation_split(config)
        if split is not None:
            report_unused_split(split, config, note)


def as_opened_data(
    config: PointDataConfig, where: str, train: Clouds | None, evaluation: Clouds | None, evaluated_on: str
) -> OpenedData:
    """Make samples of the clouds to train and evaluate on."""
    parts = [] if train is None else [f"{len(train)} training clouds"]
    parts += [] if evaluation is None else [f"{len(evaluation)} for evaluation ({evaluated_on})"]
    clouds = train or evaluation
    assert clouds is not None
    ignored = describe_ignored([part for part in (train, evaluation) if part is not None])
    return OpenedData(
        description=f"{where}: {', '.join(parts)}{ignored}",
        classes=tuple(clouds.classes),
        train=None if train is None else CloudSamples(train, config, training=True),
        plain_train=None if train is None else CloudSamples(train, config, training=False),
        evaluation=None if evaluation is None else CloudSamples(evaluation, config, training=False),
        evaluated_on=evaluated_on,
        preprocessing={**describe_channels(config), "preparation": config.preparation},
    )


def describe_channels(config: PointDataConfig) -> dict[str, Any]:
    """What later commands must know about the channels that a model was trained with."""
    if not config.channels:
        return {}
    scaling = channel_scaling(config)
    statistics = (
        {} if scaling is None else {"channel_mean": list(scaling.mean), "channel_std": list(scaling.std)}
    )
    return {"channels": list(config.channels), **statistics}


def refuse_other_channels(config: PointDataConfig, model: PointModelConfig) -> None:
    """Raise a :class:`UserError` unless the model takes as many values per point as the data have."""
    data_chans, model_chans = 3 + len(config.channels or ()), model.in_chans or 3
    if data_chans != model_chans:
        cure = (
            f"name {model_chans - 3} with --data.channels" if model_chans > 3 else "leave --data.channels out"
        )
        raise UserError(
            f"data.channels names {data_chans - 3} channels beside x, y and z, and model.in_chans is {model_chans}: "
            f"{cure}, or, without --init, give --model.in_chans {data_chans}"
        )


def refuse_untrained_channels(channels: Sequence[str] | None, trained: Mapping[str, Any]) -> None:
    """Raise a :class:`UserError` unless the channels are those of the training, in their order.

    Args:
        channels: Names, if there are any.
        trained: The description of the trained model; without ``channels`` it says nothing about them.
    """
    difference = other_channels({"channels": list(channels or ())}, trained)
    if difference is not None:
        raise UserError(f"{difference}: leave --data.channels out, or give those")


def other_channels(prepared: Mapping[str, Any], trained: Mapping[str, Any]) -> str | None:
    """Say how channels differ from those of the training, as :attr:`Domain.other_inputs`; None where they do not."""
    now, before = prepared.get("channels", []), trained.get("channels")
    if before in (None, now):
        return None
    return (
        f"data.channels is {in_one_line(str(now))}, and the model was trained with {in_one_line(str(before))}, in this "
        "order"
    )


def data_defaults(
    values: dict[str, Any], description: dict[str, Any], options: Mapping[str, str]
) -> dict[str, Any]:
    """A run's data settings for later commands: points keep the channels that the model was trained with.

    Their mean and deviation go with these channels alone. Clouds have as many points as in training, and where their
    source is the same, they are prepared as there; that of weights without their run is taken for a given data.root.
    Settings that the source to read does not read are left out.
    """
    preparation = description.get("preparation", {})
    is_open = "data.source" not in options and "source" not in values
    if is_open and "data.root" in options and "source" in preparation:
        values = values | {"source": preparation["source"]}
        note(
            f"data.source {preparation['source']}, which the weights were trained on; --data.source reads another"
        )
    source = options.get("data.source", values.get("source"))
    unread = {name for name, reader in SOURCE_OF_SETTING.items() if reader != source}
    if source == "shapes":
        unread.add("root")
    if source != values.get("source"):
        unread.add("eval_split")
    channels = description.get("channels", [])
    trained = {"channels": channels} if "channels" in description else {}
    has_other_channels = options.get("data.channels", str(tuple(channels))) != str(tuple(channels))
    if has_other_channels:
        unread |= {"statistics", *SCALING}
    elif "data.statistics" not in options and SCALING[0] in description:  # in place of the statistics file
        unread.add("statistics")
        trained |= {name: description[name] for name in SCALING if name in description}
    is_same_source = options.get("data.source", preparation.get("source")) == preparation.get("source")
    names = ("num_points", "unit_sphere", "up_axis") if is_same_source else ("num_points",)
    trained |= {name: preparation[name] for name in names if name in preparation}
    values = {name: value for name, value in values.items() if name not in unread}
    return prefer_given_holdout(values, options) | trained


def open_files(
    paths: str | list[str],
    config: PointDataConfig,
    model: PointModelConfig,
    trained: Mapping[str, Any] = NO_SETTINGS,
) -> Samples:
    """Open cloud files and folders as samples without labels."""
    refuse_other_channels(config, model)
    refuse_untrained_channels(config.channels, trained)
    clouds = read_cloud_files(
        paths, channels=config.channels or (), columns=config.columns, scaling=channel_scaling(config)
    )
    if ignored := describe_ignored([clouds]):
        note(f"{len(clouds)} clouds to read{ignored}")
    return CloudSamples(clouds, config, training=False)


def thumbnail(samples: Samples, index: int, prepared: Mapping[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    """A cloud as the model sees it."""
    up_axis = samples.config.upward if isinstance(samples, CloudSamples) else "z"
    return draw_cloud(input_of(samples[index]), up_axis=up_axis)


def draw_picture(
    objective: Objective,
    inputs: Tensor,
    path: Path,
    *,
    data: OpenedData,
    ratio: float | None = None,
    seed: int = 0,
) -> None:
    """Write a picture: cloud, visible patches, reconstruction."""
    if not isinstance(objective, ReconstructingObjective):
        raise UserError(f"{type(objective).__name__} reconstructs nothing to draw")
    samples = data.plain_train or data.evaluation
    up_axis = samples.config.upward if isinstance(samples, CloudSamples) else "z"
    draw_reconstructions(objective, inputs, path, up_axis=up_axis, ratio=ratio, seed=seed)


def example_cloud(config: PointModelConfig) -> Float[Tensor, "1 n c"]:
    """A random cloud to try a model on: 1,024 points, or as many as its patches need."""
    settings = resolved(config)
    count = max(1024, settings["num_patches"], settings["patch_size"])
    return torch.randn(1, count, config.in_chans or 3, generator=torch.Generator().manual_seed(0))


def load_parts(path: str | Path) -> nn.Module:
    """The part segmenter of a run, in evaluation mode; its ``parts`` are those of each of its ``classes``.

    Raises:
        UserError: as of :func:`~map_points.segmentation.task.load_segmenter`.
    """
    run = load_segmenter(path)
    run.model.classes, run.model.parts = run.classes, run.parts  # type: ignore[assignment]
    return run.model


DOMAIN = Domain(
    program="map-points",
    recipes="map_points.recipes",
    sample="cloud",
    models=replace(MODELS, loaders={PART_SEGMENTER: load_parts}),
    data=PointDataConfig,
    objectives=OBJECTIVES,
    classification=ClassificationConfig,
    open_data=open_data,
    open_files=open_files,
    build_objective=build_objective,
    draw_picture=draw_picture,
    thumbnail=thumbnail,
    example=example_cloud,
    size_axes={1: "points"},
    any_size=True,
    outputs=40,
    data_defaults=data_defaults,
    other_inputs=other_channels,
    rows=6,
    evaluation=EvaluationConfig,
    collate=collate_clouds,
    logits=voted_logits,
    protocol=EvaluationConfig.describe,
    evaluators={PART_SEGMENTER: evaluate_segmenter},
    builders={PART_SEGMENTER: segmenter_from_description},
    info=describe_backends,
)
