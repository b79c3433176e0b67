"""The command line: ``map-vision COMMAND --config RECIPE --section.key value ...``."""

from typing import Any

import map_core.cli
from map_core.cli import Command, as_defaults, section_of_run
from map_core.weights import read_description
from map_vision import commands
from map_vision.data import DataConfig
from map_vision.factory import ModelConfig, described_model
from map_vision.finetuning import FinetuneConfig
from map_vision.pretraining import PretrainConfig

RECIPES = "map_vision.recipes"


def data_of_run(given: dict[str, str]) -> dict[str, Any]:
    """The data settings of the run that ``--init`` names; pixels are normalised as in training, whatever the images."""
    values = section_of_run(given, "data")
    description = read_description(given["init"]) if "init" in given else {}
    values |= {key: description[key] for key in ("mean", "std") if key in description}
    if "data.root" in given and values.get("source") == "digits":
        values["source"] = "auto"  # the digits have no folder
    return as_defaults("data", DataConfig, values)


def model_of_run(given: dict[str, str]) -> dict[str, Any]:
    """The model of the run that ``--init`` names, and how its images were normalised."""
    model = described_model(given["init"]) if "init" in given else None
    if model is None:
        return {}
    description = read_description(given["init"])
    pixels: dict[str, Any] = {key: description[key] for key in ("mean", "std") if key in description}
    return as_defaults("model", ModelConfig, vars(model)) | as_defaults("data", DataConfig, pixels)


COMMANDS = (
    Command("pretrain", "pretrain an encoder on images", PretrainConfig, commands.pretrain),
    Command("finetune", "train a classifier", FinetuneConfig, commands.finetune, model_of_run),
    Command(
        "linear-probe",
        "train a linear classifier on frozen features",
        FinetuneConfig,
        commands.linear_probe,
        model_of_run,
    ),
    Command("evaluate", "accuracy of a classifier", commands.EvaluateConfig, commands.evaluate, data_of_run),
    Command("predict", "classes of images, as CSV", commands.PredictConfig, commands.predict, data_of_run),
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
    Command("info", "versions, devices, scan implementations, models", commands.InfoConfig, commands.info),
)


def main() -> int:
    """Run the command line of this process."""
    return map_core.cli.main("map-vision", COMMANDS, RECIPES)
