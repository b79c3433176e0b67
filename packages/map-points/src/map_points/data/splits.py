"""The clouds that a run trains on and evaluates on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

from map_core.data import evaluates_held_out, hold_out, take_subset
from map_core.errors import UserError
from map_points.data import modelnet40
from map_points.data.clouds import Clouds, SomeClouds
from map_points.data.config import PointDataConfig
from map_points.data.folders import (
    cloud_labels,
    find_evaluation_split,
    read_cloud_folder,
    read_labelled_clouds,
    why_no_classes,
)
from map_points.data.scaling import channel_scaling
from map_points.data.scanobjectnn import read_scanobjectnn
from map_points.data.shapenet55 import read_shapenet55
from map_points.data.shapenetpart import read_shapenetpart
from map_points.data.shapes import read_shapes

TEST_SPLIT = "test split"  # of sources that have only one split to evaluate on


@dataclass(frozen=True)
class Splits(Generic[SomeClouds]):
    """Clouds to train on, clouds to evaluate on (None in pretraining), and a name for the latter."""

    train: SomeClouds
    evaluation: SomeClouds | None
    evaluated_on: str


def hold_out_and_subset(
    train: SomeClouds,
    open_test: Callable[[], SomeClouds | None],
    config: PointDataConfig,
    *,
    every_class: bool,
) -> Splits[SomeClouds]:
    """Set the held-out part of the training split aside, or open the test split; then take the subset.

    Raises:
        UserError: the training split cannot give such a held-out part or subset; where ``every_class``, also if the
            held-out part takes a whole class.
    """
    evaluation: SomeClouds | None
    if config.holdout:
        remaining, held_out = hold_out(
            train.labels, config.holdout, seed=config.holdout_seed, every_class=every_class
        )
        evaluation = train.select(held_out)
        evaluated_on = f"held-out {config.holdout:g} of the training split (seed {config.holdout_seed})"
        train = train.select(remaining)
    if not evaluates_held_out(config):
        evaluation = open_test()
        evaluated_on = TEST_SPLIT if evaluation is None else evaluation.split or TEST_SPLIT
    if config.subset is not None:
        train = train.select(take_subset(train.labels, config.subset, seed=config.subset_seed))
    return Splits(train, evaluation, evaluated_on)


def read_clouds(config: PointDataConfig, split: Literal["train", "test"]) -> Clouds:
    """Open one split of the configured source, whole; ``test`` stands for the one to evaluate on."""
    config.validate()
    if config.source == "shapes":
        return read_shapes(split, config.shapes_per_class)
    if config.source == "fewshot_pkl":
        raise UserError(
            "data.source 'fewshot_pkl' holds folds, not splits: use map-points fewshot; folds are measured in their "
            "own summary.json only"
        )
    root = config.root_path
    if config.source == "scanobjectnn":
        return read_scanobjectnn(root, split, config.variant)
    if config.source == "shapenetpart":
        return read_shapenetpart(root, split, ignore_label=config.ignore_label)
    if config.source == "folder":
        options: dict[str, Any] = {"channels": config.channels or (), "columns": config.columns}
        options |= {"scaling": channel_scaling(config), "eval_split": config.eval_split}
        if config.labels is not None:
            return read_labelled_clouds(root, split, config.labels, **options)
        return read_cloud_folder(root, split, **options)
    readers: dict[str, Callable[[Path, str], Clouds]] = {
        "modelnet40_npz": modelnet40.read_modelnet40_npz,
        "hdf5": modelnet40.read_hdf5,
        "normal_resampled": modelnet40.read_normal_resampled,
        "modelnet_dat": modelnet40.read_dat,
        "shapenet55": read_shapenet55,
    }
    return readers[config.source](root, split)


def choose_clouds(
    config: PointDataConfig, *, evaluate: bool = True, every_class: bool = False
) -> Splits[Clouds]:
    """Open the clouds to train on and, where ``evaluate``, those to evaluate on.

    With ``every_class``, a held-out part must leave training clouds of every class.

    Raises:
        UserError: a file cannot be used, or there is no such split; the message names it.
    """

    def open_test() -> Clouds | None:
        if evaluate:
            return read_clouds(config, "test")
        if config.eval_split is not None:
            has_evaluation(config)  # a wrong name is an error, used or not
        return None

    return hold_out_and_subset(read_clouds(config, "train"), open_test, config, every_class=every_class)


def has_evaluation(config: PointDataConfig) -> bool:
    """Whether there are clouds to evaluate on, as in every source except folders without splits.

    Raises:
        UserError: ``data.eval_split`` names no split of the folder.
    """
    return config.source != "folder" or evaluates_held_out(config) or evaluation_split(config) is not None


def evaluation_split(config: PointDataConfig) -> str | None:
    """The split of a folder to evaluate on where nothing is held out, in words; None where there is none.

    Raises:
        UserError: ``data.eval_split`` names no split of the folder.
    """
    if config.labels is None:
        path = find_evaluation_split(config.root_path, config.eval_split)
        return None if path is None else str(path)
    table = cloud_labels(config.root_path, config.labels)
    name = table.evaluation_split(config.eval_split)
    return None if name is None else f"split {name} of {table.file}"


def clouds_to_evaluate(config: PointDataConfig) -> tuple[Clouds, str]:
    """Open what a run is evaluated on (the test split, or its held-out part) and say which it is.

    Raises:
        UserError: a file cannot be used; the message names it.
    """
    if not evaluates_held_out(config):
        clouds = read_clouds(config, "test")
        return clouds, clouds.split or TEST_SPLIT
    splits = choose_clouds(config)
    assert splits.evaluation is not None
    return splits.evaluation, splits.evaluated_on


def require_classes(train: Clouds, evaluation: Clouds | None, config: PointDataConfig) -> None:
    """Raise a :class:`UserError` if the clouds have no classes, or other ones than the clouds to evaluate on."""
    if config.labels is not None:
        cloud_labels(config.root_path, config.labels).require_classes_to_train()
    if not train.classes:
        raise UserError(why_no_classes(config.root_path))
    if evaluation is not None:
        require_same_classes(train, evaluation, config)


def require_same_classes(train: Clouds, evaluation: Clouds, config: PointDataConfig) -> None:
    """Raise a :class:`UserError` if two splits number their classes differently, so that labels would not agree."""
    if train.classes != evaluation.classes:
        if not (train.classes and evaluation.classes):
            split = "test" if train.classes else "train"
            raise UserError(why_no_classes(config.root_path, split, eval_split=config.eval_split))
        unshared = sorted({*train.classes} ^ {*evaluation.classes})
        raise UserError(
            f"the classes of the splits of {config.root} differ, as only one of them has {', '.join(unshared)}; "
            "every class needs a folder in both"
        )
