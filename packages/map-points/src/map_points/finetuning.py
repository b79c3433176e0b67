"""Finetuning of classifiers, as a task of the training engine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.training import Step, Task, TrainingConfig
from map_core.training.processes import sum_over_processes
from map_core.training.task import exported_file
from map_core.weights import read_description, save_weights
from map_points.data import PointData, PointDataConfig, collate_clouds, load_point_data
from map_points.evaluation import PROTOCOLS, class_totals, classification_metrics, collect_logits
from map_points.factory import PointModelConfig, create_classifier, describe_model
from map_points.weights import load_init


@dataclass
class ClassificationConfig:
    """The classification loss.

    Args:
        smoothing: Label smoothing.
    """

    smoothing: float = 0.0

    def validate(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"objective.smoothing must lie in [0, 1); got {self.smoothing}")


@dataclass
class FinetuneConfig:
    """Training of a classifier, from a pretraining run or from scratch.

    The test split is measured, never selected on: the weights are those of the last epoch.

    Args:
        data: Labelled clouds.
        model: The classifier.
        objective: Loss and label smoothing.
        training: Epochs, batch, learning rate and the like.
        init: A pretraining run or weights file to start from; from scratch when not given.
        resume: 'auto' continues the newest checkpoint in out; a path continues that one.
        out: Run directory.
    """

    data: PointDataConfig = field(default_factory=PointDataConfig)
    model: PointModelConfig = field(default_factory=PointModelConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    resume: str | None = None
    out: str = "runs/finetune"


class FinetuneTask(Task):
    """Train all weights of a classifier.

    Args:
        config: The run's configuration.
        data: Opened clouds, from ``config.data`` when None.
    """

    name = "finetune"
    collate: Callable[[list[Any]], Any] | None = staticmethod(collate_clouds)

    def __init__(self, config: FinetuneConfig, data: PointData | None = None) -> None:
        config.objective.validate()
        self.config = config
        torch.manual_seed(config.training.seed)
        self.data = data or load_point_data(config.data, purpose="finetune")
        self.train_data = self.data.train
        model = create_classifier(config.model, num_classes=len(self.data.classes))
        model.set_grad_checkpointing(config.training.activation_checkpointing)
        if config.init is not None:
            check_head(config.init, self.data)
            load_init(model, config.init)
        self.model = model

    def loss(self, model: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        points, labels = batch
        smoothing = self.config.objective.smoothing
        return {"loss": F.cross_entropy(model(points).float(), labels, label_smoothing=smoothing)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        if self.data.evaluation is None:
            return {}
        logits, labels = collect_logits(
            model,
            self.data.evaluation,
            batch_size=max(self.config.training.micro_batch(accelerator.num_processes), 64),
            workers=self.config.training.workers,
            device=accelerator.device,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        return classification_metrics(sum_over_processes(accelerator, class_totals(logits, labels)))

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        description = describe_model(
            self.config.model,
            task=self.name,
            holds="classifier",
            weights=weights,
            classes=list(self.data.classes),
        )
        save_weights(exported_file(directory, "model", weights), model.state_dict(), description)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        summary["protocol"] = f"last epoch: {PROTOCOLS['no_vote']}"
        summary["evaluated_on"] = self.data.evaluated_on


def check_head(init: str, data: PointData) -> None:
    """Refuse a checkpoint whose head would be taken over for other classes.

    Raises:
        UserError: a classifier of as many classes, which are others; of another number, the head starts anew.
    """
    classes = tuple(read_description(init).get("classes") or ())
    if len(classes) == len(data.classes) and classes != data.classes:
        raise UserError(
            f"the head of {init} tells {', '.join(classes[:4])}, ... apart, the data ({data.description}) has "
            f"{', '.join(data.classes[:4])}, ...; start from the pretraining run instead"
        )
