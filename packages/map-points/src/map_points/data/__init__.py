"""Point-cloud data: sources, the choice of clouds and points, and augmentation."""

from map_points.data.cloud_files import read_cloud_files
from map_points.data.clouds import Clouds
from map_points.data.config import PointDataConfig
from map_points.data.fewshot import FewShotEpisode, find_folds, read_fold, sample_fold
from map_points.data.part_shapes import write_part_shapes
from map_points.data.parts import PartData, PartSamples, load_part_data
from map_points.data.samples import CloudSamples, collate_clouds
from map_points.data.scaling import channel_scaling
from map_points.data.splits import (
    choose_clouds,
    clouds_to_evaluate,
    evaluation_split,
    has_evaluation,
    read_clouds,
    require_classes,
    require_same_classes,
)
from map_points.data.statistics import measure

__all__ = [
    "CloudSamples",
    "Clouds",
    "FewShotEpisode",
    "PartData",
    "PartSamples",
    "PointDataConfig",
    "channel_scaling",
    "choose_clouds",
    "clouds_to_evaluate",
    "collate_clouds",
    "evaluation_split",
    "find_folds",
    "has_evaluation",
    "load_part_data",
    "measure",
    "read_cloud_files",
    "read_clouds",
    "read_fold",
    "require_classes",
    "require_same_classes",
    "sample_fold",
    "write_part_shapes",
]
