"""The command line: ``map-points COMMAND --config RECIPE --section.key value ...``."""

from typing import Any

import map_core.cli
from map_core.cli import Command, as_defaults, section_of_run
from map_points import commands
from map_points.data import PointDataConfig
from map_points.factory import PointModelConfig, described_model
from map_points.fewshot import FewShotConfig
from map_points.finetuning import FinetuneConfig
from map_points.pretraining import PretrainConfig
from map_points.segmentation import SegmentConfig

RECIPES = "map_points.recipes"


def data_of_run(given: dict[str, str]) -> dict[str, Any]:
    """The data settings of the run that ``--init`` names."""
    return as_defaults("data", PointDataConfig, section_of_run(given, "data"))


def model_of_run(given: dict[str, str]) -> dict[str, Any]:
    """The model of the run that ``--init`` names."""
    model = described_model(given["init"]) if "init" in given else None
    return {} if model is None else as_defaults("model", PointModelConfig, vars(model))


COMMANDS = (
    Command("pretrain", "pretrain an encoder on clouds", PretrainConfig, commands.pretrain),
    Command("finetune", "train a classifier", FinetuneConfig, commands.finetune, model_of_run),
    Command("fewshot", "train a classifier on few-shot folds", FewShotConfig, commands.fewshot, model_of_run),
    Command("segment", "train a part segmenter", SegmentConfig, commands.segment, model_of_run),
    Command(
        "evaluate",
        "accuracy of a classifier, IoU of a part segmenter",
        commands.EvaluateConfig,
        commands.evaluate,
        data_of_run,
    ),
    Command("predict", "classes of clouds, as CSV", commands.PredictConfig, commands.predict, data_of_run),
    Command(
        "features",
        "features as npz, and a kNN score",
        commands.FeaturesConfig,
        commands.features,
        data_of_run,
    ),
    Command(
        "reconstruct",
        "picture of what a pretrained model reconstructs",
        commands.ReconstructConfig,
        commands.reconstruct,
        data_of_run,
    ),
    Command(
        "write-part-shapes",
        "make two-part shapes in ShapeNetPart's layout",
        commands.PartShapesConfig,
        commands.part_shapes,
    ),
    Command("info", "versions, devices, implementations, models", commands.InfoConfig, commands.info),
)


def main() -> int:
    """Run the command line of this process."""
    return map_core.cli.main("map-points", COMMANDS, RECIPES)
