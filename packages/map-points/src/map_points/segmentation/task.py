"""Part segmentation, as a task of the training engine."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from map_core.data import refuse_two_evaluation_sets
from map_core.errors import UserError
from map_core.json_values import is_count
from map_core.objective import LossOutput
from map_core.randomness import Draw
from map_core.ranges import check, refuse_without_effect
from map_core.runs.notes import tell
from map_core.tasks.domain import data_settings
from map_core.tasks.evaluation import autocast
from map_core.tasks.families import family_of
from map_core.tasks.trained_models import load_whole
from map_core.tasks.weights import (
    read_description,
    read_settings,
    read_weights,
    save_weights,
    weights_identity,
)
from map_core.training import Task, TrainingConfig
from map_core.training.loading import batches_in_order
from map_core.training.processes import resolved_training, sum_over_processes
from map_core.training.recomputation import recompute_activations
from map_core.training.task import exported_file
from map_points.data import PartData, PartSamples, PointDataConfig, collate_clouds, load_part_data
from map_points.data.shapenetpart import CATEGORIES, PARTS_OF_SYNSET, UNLABELLED
from map_points.factory import MODELS, PointModelConfig, create_backbone
from map_points.segmentation.metrics import part_metrics, part_totals, parts_of_categories
from map_points.segmentation.model import PartSegmenter, feature_layers
from map_points.weights import load_backbone, load_init

PART_SEGMENTER = "part segmenter"
PROTOCOL = "weights as given, random points of each object (seed 0), among the parts of its category, no vote"


@dataclass
class SegmentationConfig:
    """The segmentation head and its loss, cross-entropy of every point over all parts.

    Args:
        layers: Layers whose features are used, counted from 1; when not given, those a third, two thirds and all
            the way up.
        hidden_dim: Width of a point's features.
        propagate_dim: Width of the layer before them; when not given, the larger of hidden_dim and that of the joined
            layers (Point-MAE: four times the model's width).
        category_slope: Slope below 0 of the category's activation (Point-MAE: .2).
        drop_rate: Dropout rate before the scores.
        smoothing: Label smoothing.
    """

    layers: tuple[int, ...] | None = None
    hidden_dim: int = 1024
    propagate_dim: int | None = None
    category_slope: float = 0.0
    drop_rate: float = 0.5
    smoothing: float = 0.0

    def validate(self) -> None:
        check(
            "objective",
            self,
            at_least_one=("layers", "propagate_dim"),
            not_negative=("category_slope",),
            shares_below_one=("smoothing", "drop_rate"),
        )
        if self.hidden_dim < 4:
            raise UserError(f"objective.hidden_dim must be at least 4; got {self.hidden_dim}")


@dataclass
class SegmentConfig:
    """Training of a part segmenter, from a pretraining run or from scratch.

    The test split is only measured, never used for selection: the weights are those of the last epoch.

    Args:
        data: Clouds with parts.
        model: The backbone.
        objective: The segmentation head and its loss.
        training: Epochs, batch, learning rate and the like.
        init: A pretraining run, a part segmenter or a weights file to start from; from scratch when not given.
        init_may_differ: Model settings that are meant to differ from those of init although the weights fit, such as
            order.
        resume: 'auto' continues the newest checkpoint in out; a path continues that one.
        out: Run directory.
    """

    data: PointDataConfig = field(default_factory=PointDataConfig)
    model: PointModelConfig = field(default_factory=PointModelConfig)
    objective: SegmentationConfig = field(default_factory=SegmentationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    init_may_differ: list[str] | None = None
    resume: str | None = None
    out: str = "runs/segment"


def build_segmenter(
    model: PointModelConfig, config: SegmentationConfig, num_categories: int, num_parts: int
) -> PartSegmenter:
    """Put the segmentation head on a backbone."""
    config.validate()
    return PartSegmenter(
        create_backbone(model),
        num_categories,
        num_parts,
        layers=config.layers,
        hidden_dim=config.hidden_dim,
        propagate_dim=config.propagate_dim,
        category_slope=config.category_slope,
        drop_rate=config.drop_rate,
    )


def segmenter_from_description(model: PointModelConfig, description: Mapping[str, Any]) -> PartSegmenter:
    """Build the part segmenter that a description of weights describes."""
    settings = read_settings(SegmentationConfig, description.get("head", {}), "the description")
    parts = description["parts"]
    return build_segmenter(model, settings, len(parts), 1 + max(max(labels) for labels in parts))


def start_from(
    model: PartSegmenter, path: str, classes: tuple[str, ...], parts: tuple[tuple[int, ...], ...]
) -> None:
    """Start from a part segmenter, or the backbone alone from a pretraining run or another encoder.

    The head of a segmenter of other categories or parts than ``classes`` and ``parts`` starts anew, with a note.

    Raises:
        UserError: the weights do not fit.
    """
    description = read_description(path)
    if "holds" not in description:
        state = read_weights(path)
        family = family_of(state, MODELS.families)
        if family is not None:
            converted = family.convert_file_state(state, path)
            labels = {"holds": converted.holds, "classes": list(converted.classes)}
            description = converted.extra_description | labels
    if description.get("holds") != PART_SEGMENTER:
        load_init(model.backbone, path)
        return
    trained = description.get("classes", [])
    # data without a list of categories name them by synset
    known = dict(zip(PARTS_OF_SYNSET, CATEGORIES, strict=True))
    before, now = ([known.get(name, name) for name in names] for names in (trained, classes))
    if before != now or description.get("parts") != [list(labels) for labels in parts]:
        tell(
            f"the head of {path} is for other categories or parts ({len(trained)} categories, "
            f"{', '.join(trained[:4])}, ...) than the data has ({len(classes)}, {', '.join(classes[:4])}, ...): it "
            "starts anew"
        )
        load_backbone(model.backbone, path)
        return
    refuse_another_head(model, read_settings(SegmentationConfig, description.get("head", {}), path), path)
    load_init(model, path)


def refuse_another_head(model: PartSegmenter, trained: SegmentationConfig, path: str) -> None:
    """Compare the settings of a head that no shape shows with the description of the weights that it starts from.

    Raises:
        UserError: a setting differs.
    """
    layers = sorted(trained.layers or feature_layers(len(model.backbone.encoder.blocks)))
    for name, trained_value in (("category_slope", trained.category_slope), ("layers", layers)):
        if trained_value != (value := model.invisible_settings[name]):
            raise UserError(
                f"{path} was trained with objective.{name} {trained_value!r}, this model has {value!r}: its weights "
                f"fit, but would mean something else; set --objective.{name} as it was"
            )


class SegmentTask(Task):
    """Train all weights of a part segmenter.

    Args:
        config: The run's configuration.
        data: Opened clouds, from ``config.data`` when None.
    """

    name = "segment"
    collate: Callable[[list[Any]], Any] | None = staticmethod(collate_clouds)

    def __init__(self, config: SegmentConfig, data: PartData | None = None) -> None:
        torch.manual_seed(config.training.seed)
        refuse_two_evaluation_sets(config.data)
        because = "segmentation, which draws points of the whole object"
        refuse_without_effect("data", config.data, "train_sampling", because=because)
        self.data = data or load_part_data(config.data)
        self.train_data = self.data.train
        training = resolved_training(config.training, len(self.train_data))
        self.config = config = replace(config, training=training)
        num_parts = 1 + max(max(labels) for labels in self.data.parts)
        model = build_segmenter(config.model, config.objective, len(self.data.classes), num_parts)
        recompute_activations(model.backbone, config.training)
        MODELS.refuse_other_settings(config.model, config.init, may_differ=config.init_may_differ)
        if config.init is not None:
            start_from(model, config.init, self.data.classes, self.data.parts)
        self.model = model

    def data_description(self) -> str:
        return self.data.description

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.config.data, {}, classes=self.data.classes, parts=self.data.parts)

    def init_identity(self) -> str | None:
        return weights_identity(self.config.init)

    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> LossOutput:
        points, category, parts = batch
        scores = model(points, category).float().flatten(0, 1)
        smoothing = self.config.objective.smoothing
        losses = F.cross_entropy(
            scores, parts.flatten(), ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum"
        )
        return LossOutput(losses / (parts != UNLABELLED).sum().clamp(min=1))  # 0 where no point has a part

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        totals = segmentation_totals(
            model,
            self.data.evaluation,
            self.data.parts,
            batch_size=self.config.training.micro_batch(accelerator.num_processes),
            workers=self.config.training.workers,
            device=accelerator.device,
            precision=self.config.training.precision,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        return part_metrics(sum_over_processes(accelerator, totals), self.data.classes)

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        description = MODELS.describe(
            self.config.model,
            task=self.name,
            holds=PART_SEGMENTER,
            weights=weights,
            classes=list(self.data.classes),
            parts=[list(labels) for labels in self.data.parts],
            head=asdict(self.config.objective),
            preparation=self.config.data.preparation,
        )
        save_weights(exported_file(directory, "model", weights), model.state_dict(), description)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        summary["protocol"] = f"last epoch: {PROTOCOL}"
        summary["evaluated_on"] = self.data.evaluated_on


@torch.no_grad()
def segmentation_totals(
    model: nn.Module,
    samples: PartSamples,
    parts: tuple[tuple[int, ...], ...],
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    precision: str = "fp32",
    progress: str | None = None,
) -> Float[Tensor, "4 c"]:
    """Sums of :func:`~map_points.segmentation.metrics.part_totals` over the samples (or a shard), on the CPU.

    ``parts`` lists the parts of each category, and ``precision`` is that of the forward pass; the rest are arguments of
    :func:`~map_core.training.loading.batches_in_order`.
    """
    model.eval()
    totals = torch.zeros(4, len(parts), dtype=torch.float64)
    for points, category, labels in batches_in_order(
        samples,
        batch_size=batch_size,
        workers=workers,
        device=device,
        shard=shard,
        collate=collate_clouds,
        progress=progress,
    ):
        with autocast(device, precision):
            logits = model(points, category).float()
        table = parts_of_categories(parts, logits.shape[-1]).to(device)
        totals += part_totals(logits, labels, category, table).cpu()
    return totals


@dataclass(frozen=True)
class TrainedSegmenter:
    """A part segmenter of a run, in evaluation mode, with its categories and their parts."""

    model: PartSegmenter
    classes: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]


def load_segmenter(path: str | Path) -> TrainedSegmenter:
    """Rebuild the part segmenter of a run.

    Raises:
        UserError: the run holds no part segmenter.
    """
    config, description = MODELS.read_model_config(path), read_description(path)
    if config is None or "parts" not in description:
        raise UserError(f"{path} describes no part segmenter: give a run of map-points segment")
    if not are_parts(description["parts"]) or len(description["parts"]) != len(
        description.get("classes", ())
    ):
        raise UserError(
            f"the .json of {path} does not list the parts of each of its classes; export the run again"
        )
    parts = tuple(tuple(labels) for labels in description["parts"])
    model = segmenter_from_description(config, description)
    load_whole(model, path, load_init)
    return TrainedSegmenter(model, tuple(description["classes"]), parts)


def are_parts(value: Any) -> bool:
    """Whether a JSON value lists the parts of categories: whole numbers from 0, at least one for each."""
    return all(isinstance(labels, list) and labels and all(map(is_count, labels)) for labels in value)
