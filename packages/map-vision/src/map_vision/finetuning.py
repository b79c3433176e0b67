"""Finetuning and linear probing of classifiers, as tasks of the training engine."""

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
from map_core.weights import save_weights
from map_vision.classifier import LinearProbe
from map_vision.data import DataConfig, ImageData, load_image_data
from map_vision.evaluation import classification_metrics, classification_totals
from map_vision.factory import ModelConfig, create_backbone, create_model, describe_model
from map_vision.hybridnet import HybridNet
from map_vision.mixing import BatchMixer, MixingConfig
from map_vision.weights import load_init


@dataclass
class ClassificationConfig(MixingConfig):
    """The classification loss.

    Args:
        smoothing: Label smoothing.
    """

    smoothing: float = 0.1


@dataclass
class FinetuneConfig:
    """Training of a classifier, from a pretraining run or from scratch.

    Args:
        data: Labelled images.
        model: The classifier.
        objective: Loss, label smoothing, Mixup and CutMix.
        training: Epochs, batch, learning rate and the like.
        init: A pretraining run or weights file to start from; from scratch when not given.
        resume: 'auto' continues the newest checkpoint in out; a path continues that one.
        out: Run directory.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    resume: str | None = None
    out: str = "runs/finetune"


class ClassificationTask(Task):
    """What finetuning and probing share: labelled images, a classification loss, accuracy.

    Args:
        config: The run's configuration.
        data: Opened images, from ``config.data`` when None.
    """

    def __init__(self, config: FinetuneConfig, data: ImageData | None = None) -> None:
        self.config = config
        torch.manual_seed(config.training.seed)
        with torch.device("meta"):
            shape = create_backbone(config.model)
        self.data = data or load_image_data(
            config.data, img_size=shape.img_size, in_chans=shape.patch_embed.in_chans, purpose="finetune"
        )
        self.train_data = self.data.train
        self.mixer = BatchMixer(
            config.objective, num_classes=len(self.data.classes), smoothing=config.objective.smoothing
        )
        self.model = self.build_model()

    def build_model(self) -> nn.Module:
        raise NotImplementedError

    def classifier(self, model: nn.Module) -> tuple[ModelConfig, HybridNet]:
        """The plain classifier that ``model`` amounts to, and the configuration that builds it."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        images, labels = batch
        smoothing = self.config.objective.smoothing
        if self.mixer.enabled:
            images, labels = self.mixer(images, labels, step)  # soft labels, smoothed already
            smoothing = 0.0
        return {"loss": F.cross_entropy(model(images).float(), labels, label_smoothing=smoothing)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        if self.data.evaluation is None:
            return {}
        training = self.config.training
        totals = classification_totals(
            model,
            self.data.evaluation,
            batch_size=max(training.micro_batch(accelerator.num_processes), 64),
            workers=training.workers,
            device=accelerator.device,
            precision=training.precision,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        return classification_metrics(sum_over_processes(accelerator, totals).double())

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        model_config, classifier = self.classifier(model)
        description = describe_model(
            model_config,
            task=self.name,
            holds="classifier",
            weights=weights,
            classes=list(self.data.classes),
            mean=self.data.mean,
            std=self.data.std,
        )
        save_weights(exported_file(directory, "model", weights), classifier.state_dict(), description)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        skipped = self.data.skipped()
        if skipped.count:
            summary["skipped_images"] = skipped.count
            print(skipped)


class FinetuneTask(ClassificationTask):
    """Train all weights of a classifier."""

    name = "finetune"

    def build_model(self) -> nn.Module:
        model = create_model(self.config.model, num_classes=len(self.data.classes))
        model.set_grad_checkpointing(self.config.training.activation_checkpointing)
        if self.config.init is not None:
            load_init(model, self.config.init)
        return model

    def classifier(self, model: nn.Module) -> tuple[ModelConfig, HybridNet]:
        assert isinstance(model, HybridNet)
        return self.config.model, model


class LinearProbeTask(ClassificationTask):
    """Train a linear classifier on the frozen, mean-pooled features of a pretraining run."""

    name = "linear-probe"

    def build_model(self) -> nn.Module:
        if self.config.init is None:
            raise UserError("a linear probe reads a pretrained encoder: give --init RUN")
        backbone = create_backbone(self.config.model)
        load_init(backbone, self.config.init)
        return LinearProbe(backbone, num_classes=len(self.data.classes))

    def classifier(self, model: nn.Module) -> tuple[ModelConfig, HybridNet]:
        assert isinstance(model, LinearProbe)
        arguments = {**self.config.model.arguments(), "num_registers": 0, "global_pool": "avg"}
        config = ModelConfig(self.config.model.name, **arguments)
        classifier = create_model(config, num_classes=len(self.data.classes))
        model.write_into(classifier)
        return config, classifier
