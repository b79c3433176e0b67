"""The data sets that loaders read."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from map_core.errors import UserError
from map_points.data import modelnet40
from map_points.data.clouds import Clouds
from map_points.data.config import PointDataConfig
from map_points.data.scanobjectnn import read_scanobjectnn
from map_points.data.shapenet55 import read_shapenet55
from map_points.data.shapes import read_shapes
from map_points.data.transforms import augment, take_points, to_unit_sphere


class CloudSamples(Dataset[tuple[Tensor, int]]):
    """Clouds of a source as (points [num_points 3] float32, label).

    Args:
        clouds: Where they come from.
        config: Points, centring and augmentation.
        training: Random points and augmentation, from torch's global generator; else neither.
    """

    def __init__(self, clouds: Clouds, config: PointDataConfig, *, training: bool) -> None:
        self.clouds, self.config, self.training = clouds, config, training
        self.up_axis = config.up_axis or clouds.up_axis
        self.unit_sphere = config.source != "scanobjectnn"
        if config.unit_sphere is not None:
            self.unit_sphere = config.unit_sphere

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n 3"], int]:
        points = torch.from_numpy(self.clouds.points(index))
        if self.unit_sphere:
            points = to_unit_sphere(points)
        points = take_points(
            points,
            self.config.num_points,
            training=self.training,
            surplus=self.config.train_sampling == "fps_random",
            name=self.clouds.name(index),
        )
        if self.training:
            points = augment(points, self.config, self.up_axis)
        return points, int(self.clouds.labels[index])

    def as_training(self, training: bool) -> "CloudSamples":
        """The same clouds, with or without random points and augmentation."""
        other = copy.copy(self)
        other.training = training
        return other


@dataclass(frozen=True)
class PointData:
    """Opened data.

    Attributes:
        train: Training clouds, augmented.
        evaluation: Clouds of the test split, not augmented; None in pretraining.
        classes: Class names in the order of the labels.
        description: One line that says what was opened.
    """

    train: CloudSamples
    evaluation: CloudSamples | None
    classes: tuple[str, ...]
    description: str


def read_clouds(config: PointDataConfig, split: Literal["train", "test"]) -> Clouds:
    """Open one split of the configured source."""
    config.validate()
    if config.source == "shapes":
        if config.root is not None:
            raise UserError(
                f"data.root is {config.root}, but the embedded shapes have no folder: leave it out"
            )
        return read_shapes(split, config.shapes_per_class)
    assert config.root is not None
    root = Path(config.root)
    if config.source == "scanobjectnn":
        return read_scanobjectnn(root, split, config.variant)
    readers = {
        "modelnet40_npz": modelnet40.read_npz,
        "hdf5": modelnet40.read_hdf5,
        "normal_resampled": modelnet40.read_normal_resampled,
        "modelnet_dat": modelnet40.read_dat,
        "shapenet55": read_shapenet55,
    }
    return readers[config.source](root, split)


def load_point_data(config: PointDataConfig, *, purpose: Literal["pretrain", "finetune"]) -> PointData:
    """Open the training split, and for finetuning the test split with the same classes.

    Raises:
        UserError: what is wrong with the files, by name.
    """
    train = read_clouds(config, "train")
    where = config.root or "embedded shapes"
    if purpose == "pretrain":
        description = f"{where}: {len(train)} training clouds"
        return PointData(CloudSamples(train, config, training=True), None, train.classes, description)
    test = read_clouds(config, "test")
    return PointData(
        train=CloudSamples(train, config, training=True),
        evaluation=CloudSamples(test, config, training=False),
        classes=train.classes,
        description=f"{where}: {len(train)} training clouds, {len(test)} test clouds",
    )
