"""The model that a run trained, rebuilt from its weights and the description beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from map_core.errors import UserError
from map_core.weights import LoadReport, read_description, weights_file

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)
LoadInit = Callable[[nn.Module, str | Path], LoadReport]


@dataclass(frozen=True)
class TrainedModels(Generic[Config, Model]):
    """How a domain rebuilds the models of its runs.

    Attributes:
        described: Of a run or weights file: the configuration of its model; None where no description says it.
        create_classifier: Of a configuration and a number of classes.
        create_backbone: Of a configuration: the form that is pretrained.
        load_init: Of a model and a run or weights file: loads the weights.
    """

    described: Callable[[str | Path], Config | None]
    create_classifier: Callable[[Config, int], Model]
    create_backbone: Callable[[Config], Model]
    load_init: LoadInit

    def classifier(self, path: str | Path) -> tuple[Model, tuple[str, ...]]:
        """A classifier, in evaluation mode, and its class names.

        Raises:
            UserError: nothing there, or the weights of something else.
        """
        config, description = self.described(path), read_description(path)
        if config is None or description.get("holds") != "classifier":
            weights_file(path)  # says so when there is nothing at all
            raise UserError(
                f"{path} describes no classifier (its .json says: {description.get('holds', 'nothing')}); give a "
                "run that trained one, such as one of finetune"
            )
        classes = tuple(description["classes"])
        return load_whole(self.create_classifier(config, len(classes)), path, self.load_init), classes

    def encoder(self, path: str | Path) -> Model:
        """What gives features: a classifier as it is, or a pretraining run's encoder, in evaluation mode.

        Raises:
            UserError: nothing there, no description of its model, or the weights of something else.
        """
        config = self.described(path)
        if config is None:
            weights_file(path)  # says so when there is nothing at all
            raise UserError(
                f"{path} has no .json that describes its model: give a run's directory or its weights file"
            )
        if read_description(path).get("classes"):
            return self.classifier(path)[0]
        return load_whole(self.create_backbone(config), path, self.load_init)


def load_whole(model: Model, path: str | Path, load_init: LoadInit) -> Model:
    """Load a model whose file must have every parameter; return it in evaluation mode.

    Raises:
        UserError: some are missing, all of them named.
    """
    report = load_init(model, path)
    if report.fresh:
        raise UserError(f"{report.source} lacks {', '.join(report.fresh)}: it holds no whole model")
    return model.eval()
