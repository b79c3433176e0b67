"""Data sets of clouds with labelled parts, as segmentation reads them."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from map_core.errors import UserError
from map_core.runs.notes import note
from map_points.data.config import PointDataConfig
from map_points.data.shapenetpart import PartClouds, read_shapenetpart
from map_points.data.splits import Splits, hold_out_and_subset
from map_points.data.transforms import augment, prepare


class PartSamples(Dataset[tuple[Tensor, int, Tensor]]):
    """Clouds as (points [num_points 3] float32, category, parts [num_points] int64, UNLABELLED where unlabelled).

    Points are drawn at random, in evaluation too, as is usual; where a cloud has fewer than num_points, all of them
    are drawn before any is repeated.

    Args:
        clouds: Source of the clouds.
        config: Points, centring and augmentation.
        training: Whether to augment.
    """

    def __init__(self, clouds: PartClouds, config: PointDataConfig, *, training: bool) -> None:
        config.check_values()
        self.clouds, self.config, self.training = clouds, config, training

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n 3"], int, Int[Tensor, " n"]]:
        cloud, labels = self.clouds.labelled(index)
        points = prepare(cloud, unit_sphere=self.config.fits_unit_sphere, name=self.clouds.name(index))
        parts = torch.from_numpy(labels)
        indices = draw_points(len(points), self.config.num_points)
        points = points[indices]
        if self.training:
            points = augment(points, self.config)
        return points, int(self.clouds.labels[index]), parts[indices]

    @property
    def names(self) -> list[str]:
        """Files of the clouds, or other names that identify them, in the order of the samples."""
        return [self.clouds.name(index) for index in range(len(self))]


def draw_points(available: int, count: int) -> Int[Tensor, " {count}"]:
    """Draw ``count`` of ``available`` indices at random; none is repeated before all have been drawn."""
    rounds = -(-count // available)
    return torch.cat([torch.randperm(available) for _ in range(rounds)])[:count]


@dataclass(frozen=True)
class PartData:
    """Opened data for segmentation.

    Attributes:
        train: Training clouds, augmented.
        evaluation: Clouds of the test split (or a held-out part), not augmented.
        classes: Names of the categories.
        parts: Part labels of each category.
        evaluated_on: Name of what ``evaluation`` holds, for summaries.
        description: One line that says what was opened.
    """

    train: PartSamples
    evaluation: PartSamples
    classes: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    evaluated_on: str
    description: str


def load_part_data(config: PointDataConfig) -> PartData:
    """Open the training split and the clouds to evaluate on.

    Raises:
        UserError: the source has no parts to tell apart, or a file cannot be used; the message names it.
    """
    config.validate()
    if config.source != "shapenetpart":
        raise UserError(
            f"data.source {config.source!r} has no parts; segmentation reads --data.source shapenetpart "
            "(map-points write-part-shapes makes a small set in its layout)"
        )
    root = config.root_path
    read = partial(read_shapenetpart, root, ignore_label=config.ignore_label)
    train = read("train")
    if all(len(labels) == 1 for labels in train.parts):
        raise UserError(
            f"{root}: every category has one part only, and any model is always right about it; label at least two "
            "parts of a category"
        )
    splits: Splits[PartClouds] = hold_out_and_subset(
        train, lambda: read("test", parts=train.parts), config, every_class=True
    )
    assert splits.evaluation is not None
    left_out = splits.train.left_out
    omission = f"; left out without clouds: {', '.join(left_out)}" if left_out else ""
    if left_out:
        note(f"note: {root} has no clouds of {', '.join(left_out)}: left out")
    return PartData(
        train=PartSamples(splits.train, config, training=True),
        evaluation=PartSamples(splits.evaluation, config, training=False),
        classes=splits.train.classes,
        parts=splits.train.parts,
        evaluated_on=splits.evaluated_on,
        description=f"{root}: {len(splits.train)} training clouds, {len(splits.evaluation)} for evaluation "
        f"({splits.evaluated_on}){omission}",
    )
