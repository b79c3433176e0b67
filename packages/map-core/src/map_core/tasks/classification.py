"""Finetuning and linear probing of classifiers, as tasks of the training engine."""

import abc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from map_core.errors import UserError, in_one_line
from map_core.objective import LossOutput
from map_core.objectives.settings import Mixer, Settings
from map_core.randomness import Draw
from map_core.ranges import check
from map_core.runs.notes import tell
from map_core.tasks.domain import (
    Domain,
    OpenedData,
    data_settings,
    refuse_other_samples,
    report_skipped,
    required_training_samples,
)
from map_core.tasks.evaluation import (
    EvaluationConfig,
    class_totals,
    classification_metrics,
    collect,
    input_of,
    labels_of,
)
from map_core.tasks.probe import LinearProbe
from map_core.tasks.weights import read_description, save_weights, weights_identity
from map_core.training import Task
from map_core.training.processes import resolved_training, sum_over_processes
from map_core.training.recomputation import recompute_activations
from map_core.training.task import exported_file

EVALUATION_BATCH = 64  # the least; the micro-batch of training where that is larger


@dataclass
class ClassificationConfig(Settings):
    """The classification loss.

    Args:
        smoothing: Label smoothing.
    """

    smoothing: float = 0.0

    def validate(self) -> None:
        super().validate()
        check("objective", self, shares_below_one=("smoothing",))

    def mixer(self, num_classes: int) -> Mixer | None:
        """The mixer of batches, whose soft labels are smoothed already; None without mixing."""
        return None


class ClassificationTask(Task):
    """The common part of finetuning and probing: labelled samples, a classification loss, accuracy.

    Args:
        domain: The domain of the samples.
        config: The run's configuration: sections data, model, objective, training, and ``init``.
        data: Opened data, from ``config.data`` when None.
    """

    is_classifier = True  # a probe's model is an encoder, with a linear layer behind it

    def __init__(self, domain: Domain, config: Any, data: OpenedData | None = None) -> None:
        config.objective.validate()
        if data is not None:
            refuse_other_samples(required_training_samples(data), labelled=True)
            if data.evaluation is not None:
                refuse_other_samples(data.evaluation, labelled=True)
        self.domain, self.config = domain, config
        self.collate = domain.collate
        self.refuse_other_settings()
        torch.manual_seed(config.training.seed)
        self.data = data or domain.open_data(config.data, config.model, "finetune")
        self.train_data = required_training_samples(self.data)
        refuse_single_class(self.data)
        self.mixer: Mixer | None = config.objective.mixer(len(self.data.classes))
        self.mixes_pairs = self.mixer is not None
        training = resolved_training(config.training, len(self.train_data), pairs=self.mixes_pairs)
        self.config = config = replace(config, training=training)
        self.model = self.build_model()

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Build the module that is trained."""

    @abc.abstractmethod
    def classifier(self, model: nn.Module) -> tuple[Any, nn.Module]:
        """The model section of the plain classifier that equals ``model``, and that classifier."""

    def data_description(self) -> str:
        return self.data.description

    def data_settings(self) -> dict[str, Any]:
        return data_settings(
            self.config.data, self.data.preprocessing, classes=self.data.classes, **self.data.identity
        )

    def init_identity(self) -> str | None:
        return weights_identity(self.config.init)

    def refuse_other_settings(self) -> None:
        """Raise a :class:`UserError` where the weights of ``init`` would mean something else in this model."""
        config, models = self.config, self.domain.models
        models.refuse_other_settings(
            config.model, config.init, may_differ=config.init_may_differ, is_classifier=self.is_classifier
        )

    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> LossOutput:
        inputs, labels = input_of(batch), labels_of(batch)
        smoothing = self.config.objective.smoothing
        if self.mixer is not None:
            inputs, labels = self.mixer(inputs, labels, draw)
            smoothing = 0.0
        return LossOutput(F.cross_entropy(model(inputs).float(), labels, label_smoothing=smoothing))

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        if self.data.evaluation is None:
            return {}
        training = self.config.training
        batch_size = max(training.micro_batch(accelerator.num_processes), EVALUATION_BATCH)
        totals = torch.zeros(4, len(self.data.classes), dtype=torch.float64)
        if accelerator.process_index < len(self.data.evaluation):  # else this process has no samples
            logits, labels = collect(
                model,
                self.data.evaluation,
                EvaluationConfig(batch_size, training.workers, precision=training.precision, progress=False),
                accelerator.device,
                collate=self.domain.collate,
                shard=(accelerator.process_index, accelerator.num_processes),
            )
            totals = class_totals(logits, labels)
        return classification_metrics(sum_over_processes(accelerator, totals))

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        config, classifier = self.classifier(model)
        description = self.domain.models.describe(
            config,
            task=self.name,
            holds="classifier",
            weights=weights,
            classes=list(self.data.classes),
            **self.data.preprocessing,
        )
        save_weights(exported_file(directory, "model", weights), classifier.state_dict(), description)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        summary["evaluated_on"] = self.data.evaluated_on
        protocol = self.domain.protocol(self.domain.evaluation())
        if protocol:
            summary["protocol"] = f"last epoch: {protocol}"
        report_skipped(self.domain, self.data, summary)


def refuse_single_class(data: OpenedData) -> None:
    """Raise a :class:`UserError` unless there are two classes to tell apart: any model is always right about one."""
    if len(data.classes) < 2:
        name = in_one_line(", ".join(data.classes)) or "none"
        raise UserError(
            f"{data.description}: a classifier needs at least 2 classes; got {name}; is data.root one folder too high?"
        )


class FinetuneTask(ClassificationTask):
    """Train all weights of a classifier."""

    name = "finetune"

    def build_model(self) -> nn.Module:
        model = self.domain.models.create_classifier(self.config.model, len(self.data.classes))
        recompute_activations(model, self.config.training)
        if self.config.init is not None:
            load_for_classes(self.domain, model, self.config, self.data)
        return model

    def classifier(self, model: nn.Module) -> tuple[Any, nn.Module]:
        return self.config.model, model


class LinearProbeTask(ClassificationTask):
    """Train a linear classifier on the frozen, pooled features of a pretraining run."""

    name = "linear-probe"

    is_classifier = False

    def build_model(self) -> nn.Module:
        if self.config.init is None:
            raise UserError("a linear probe reads a pretrained encoder: give --init RUN")
        difference = self.domain.other_inputs(self.data.preprocessing, read_description(self.config.init))
        if difference is not None:
            raise UserError(f"{difference}: a frozen encoder reads only what it was trained on; give those")
        backbone = self.domain.models.create_backbone(self.config.model)
        self.domain.models.start_from(backbone, self.config.model, self.config.init)
        return LinearProbe(backbone, num_classes=len(self.data.classes))

    def classifier(self, model: nn.Module) -> tuple[Any, nn.Module]:
        assert isinstance(model, LinearProbe)
        config = self.domain.models.probed(self.config.model)
        classifier = self.domain.models.create_probed(config, len(self.data.classes))
        model.write_into(classifier)
        return config, classifier


def load_for_classes(domain: Domain, model: nn.Module, config: Any, data: OpenedData) -> None:
    """Start the classifier of a configuration from its ``init``; a head for other classes starts anew.

    Notes say so, and where the inputs differ from those of the training.
    """
    init = config.init
    description = read_description(init)
    difference = domain.other_inputs(data.preprocessing, description)
    if difference is not None:
        tell(f"{difference}: training goes on from its weights with other inputs")
    trained = tuple(description.get("classes") or ())
    if trained and trained != data.classes:
        tell(
            f"the head of {init} tells {len(trained)} classes {', '.join(trained[:4])}, ... apart, the data has "
            f"{len(data.classes)}, {', '.join(data.classes[:4])}, ...: it starts anew"
        )
    domain.models.start_from(model, config.model, init, keep_head=trained == data.classes)
