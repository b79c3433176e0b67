"""How good an encoder is during pretraining: cheap measures on a few samples, between the steps."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Subset

from map_core.errors import UserError, unknown_name
from map_core.objective import Objective, ReconstructingObjective
from map_core.randomness import Draw
from map_core.ranges import check, refuse_without_effect
from map_core.tasks.domain import Domain, OpenedData, refuse_other_samples
from map_core.tasks.evaluation import EvaluationConfig, autocast, collect, input_of, pooled_features
from map_core.tasks.features import knn_accuracy
from map_core.training.loading import batches_in_order
from map_core.training.task import MapStyleDataset

MEASURES = ("heldout_loss", "knn_accuracy", "probe_accuracy", "rankme")
RIDGE = 1e-2  # weight decay of the probe, per sample, on standardised features
LARGEST_BATCH = 256
log = logging.getLogger(__name__)


@dataclass
class MonitorConfig:
    """Measures of the encoder at every evaluation (``training.evaluate_epochs``).

    The loss on held-out samples, for objectives that predict from one view of each; accuracies of nearest neighbours
    and of a linear probe where labels exist; RankMe, the features' effective rank, where none do. They take a few
    passes over the samples, and leave the training as it is.

    Args:
        samples: How many samples of the training split (without augmentation), and of the evaluation split, to measure;
            0 measures nothing.
        neighbors: Neighbours that vote.
        keep_best: Measure by which the best encoder so far is kept as ``model_best.safetensors``, such as
            knn_accuracy; on the test split unless ``data.holdout`` sets a part of the training split aside.
    """

    samples: int = 0
    neighbors: int = 20
    keep_best: str | None = None

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first invalid field."""
        if self.samples < 0 or self.samples == 1:
            raise UserError(f"monitor.samples must be 0 or at least 2; got {self.samples}")
        check("monitor", self, at_least_one=("neighbors",))
        if not self.samples:
            refuse_without_effect("monitor", self, "neighbors", because="monitor.samples 0")
        if self.keep_best is not None and self.keep_best not in MEASURES:
            raise unknown_name("monitor.keep_best", self.keep_best, MEASURES)
        if self.keep_best is not None and not self.samples:
            raise UserError(
                f"monitor.keep_best {self.keep_best} needs measures: set monitor.samples, such as 2048"
            )


@dataclass(frozen=True)
class Monitor:
    """Measures an objective's backbone.

    Attributes:
        training_samples: Samples of the training split, not augmented.
        held_out: Samples of the evaluation split; None where there is none.
        has_loss: Whether the objective has a loss on single views, which contrastive learning does not.
        num_classes: Number of classes of the samples' labels; 0 without labels.
        neighbors: Neighbours that vote.
        domain: The domain of the samples.
        loading: Batch size, workers, precision.
    """

    training_samples: MapStyleDataset
    held_out: MapStyleDataset | None
    has_loss: bool
    num_classes: int
    neighbors: int
    domain: Domain
    loading: EvaluationConfig

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the measures."""
        labelled = self.held_out is not None and self.num_classes > 1
        loss = ("heldout_loss",) if self.held_out is not None and self.has_loss else ()
        return (*loss, "knn_accuracy", "probe_accuracy") if labelled else (*loss, "rankme")

    def measure(self, objective: Objective, device: torch.device) -> dict[str, float]:
        """All measures; every process computes the same values."""
        features, labels = self._features(objective.backbone, self.training_samples, device)
        measures: dict[str, float] = {}
        if self.held_out is not None and "heldout_loss" in self.names:
            measures["heldout_loss"] = self._loss(objective, self.held_out, device)
        if self.held_out is None or "rankme" in self.names:
            return measures | {"rankme": rankme(features)}
        queries, query_labels = self._features(objective.backbone, self.held_out, device)
        arrays = [value.numpy() for value in (features, labels, queries, query_labels)]
        measures["knn_accuracy"] = knn_accuracy(*arrays, neighbors=self.neighbors)
        measures["probe_accuracy"] = probe_accuracy(features, labels, queries, query_labels, self.num_classes)
        return measures

    def _features(
        self, backbone: nn.Module, samples: MapStyleDataset, device: torch.device
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
        collate = self.domain.collate
        return collect(pooled_features(backbone), samples, self.loading, device, collate=collate)

    def _loss(self, objective: Objective, samples: MapStyleDataset, device: torch.device) -> float:
        """Mean loss over ``samples``, with the same tokens hidden every time."""
        total, count = 0.0, 0
        for number, inputs in enumerate(self._inputs(samples, device)):
            with autocast(device, self.loading.precision):
                loss = objective(inputs, Draw.of_batch(len(inputs), step=number)).loss
            total, count = total + float(loss) * len(inputs), count + len(inputs)
        return total / count

    def _inputs(self, samples: MapStyleDataset, device: torch.device) -> Iterator[Tensor]:
        batch_size, workers = self.loading.batch_size, self.loading.workers
        for batch in batches_in_order(
            samples, batch_size=batch_size, workers=workers, device=device, collate=self.domain.collate
        ):
            yield input_of(batch)


def open_monitor(
    domain: Domain, config: Any, objective: Objective, data: OpenedData | None = None
) -> Monitor | None:
    """The monitor that a pretraining run's configuration asks for, or None.

    Data that cannot be monitored stops no run, unless its best encoder is to be kept; it only logs a warning.

    Args:
        domain: The domain of the samples.
        config: The run's configuration: sections data, model, monitor, training.
        objective: The objective that is trained.
        data: Opened data, from ``config.data`` when None.

    Raises:
        UserError: invalid settings; samples of another form; ``keep_best`` names a measure that the data do not
            allow.
    """
    settings: MonitorConfig = config.monitor
    settings.validate()
    if not settings.samples:
        return None
    if data is not None:
        for samples in (data.plain_train, data.evaluation):
            if samples is not None:
                refuse_other_samples(samples, labelled=len(data.classes) > 1)
    try:
        data = data or domain.open_data(config.data, config.model, "features")
        if data.plain_train is None:
            raise UserError(f"no training split in {data.description}")
    except UserError as error:
        if settings.keep_best is not None:
            raise
        log.warning("nothing is monitored: %s", error)
        return None
    held_out = None if data.evaluation is None else spread(data.evaluation, settings.samples)
    training = config.training
    loading = EvaluationConfig(
        min(training.batch_size, LARGEST_BATCH),
        training.workers,
        precision=training.precision,
        progress=False,
    )
    training_samples, num_classes = spread(data.plain_train, settings.samples), len(data.classes)
    has_loss = isinstance(objective, ReconstructingObjective)
    monitor = Monitor(training_samples, held_out, has_loss, num_classes, settings.neighbors, domain, loading)
    if settings.keep_best not in (None, *monitor.names):
        raise UserError(
            f"monitor.keep_best is {settings.keep_best}, but {data.description} gives {', '.join(monitor.names)} only"
        )
    return monitor


def spread(samples: MapStyleDataset, count: int) -> MapStyleDataset:
    """``count`` samples, one at a fixed random place in each of ``count`` equal parts of ``samples``; all if fewer.

    This covers data sets that are sorted by class, and does not pick one class only where classes alternate.
    """
    total = len(samples)
    if total <= count:
        return samples
    bounds = [part * total // count for part in range(count + 1)]
    places = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()
    indices = [
        low + int(place * (high - low)) for place, (low, high) in zip(places, pairwise(bounds), strict=True)
    ]
    return Subset(samples, indices)  # type: ignore[arg-type]


def rankme(features: Float[Tensor, "n f"]) -> float:
    """Effective rank of features: the exponential of their singular values' entropy, from 1 to f.

    NaN where a feature is not finite. Source: RankMe (arXiv 2210.02885), equation 2.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    tiny = torch.finfo(torch.float32).eps
    shares = values / values.sum().clamp_min(tiny) + tiny  # features that are all zero have rank 1, too
    return float(torch.exp(-(shares * shares.log()).sum()))


def probe_accuracy(
    features: Float[Tensor, "n f"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m f"],
    query_labels: Int[Tensor, " m"],
    num_classes: int,
) -> float:
    """Accuracy in percent of a linear classifier on standardised features, fitted by ridge regression.

    It has a closed-form solution, so there is no state that a checkpoint would have to keep.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x = _with_ones((features - mean) / deviation)
    targets = torch.nn.functional.one_hot(labels.long(), num_classes).double()
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ targets)
    predictions = (_with_ones((queries - mean) / deviation) @ weight).argmax(1)
    return float(100 * (predictions == query_labels).double().mean())


def _with_ones(x: Float[Tensor, "n f"]) -> Float[Tensor, "n f+1"]:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
