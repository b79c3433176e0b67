"""What the commands of ``map-points`` do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from map_core.errors import UserError
from map_core.inference import (
    SplitFeatures,
    Stopwatch,
    choose_device,
    describe_environment,
    refuse_other_classes,
    refuse_training_run,
    save_arrays,
    write_features,
    write_predictions,
)
from map_core.pretraining import inputs_to_draw
from map_core.trained_models import TrainedModels
from map_core.training import train
from map_core.training.summary import write_summary
from map_core.weights import read_description
from map_points.accelerators import neighbor_backends, sampling_backends
from map_points.data import (
    CloudSamples,
    PointDataConfig,
    choose_clouds,
    clouds_to_evaluate,
    load_part_data,
    read_cloud_files,
    read_clouds,
    write_part_shapes,
)
from map_points.evaluation import (
    PROTOCOLS,
    EvaluationConfig,
    class_totals,
    classification_metrics,
    extract_features,
    predict_probabilities,
    voted_logits,
)
from map_points.factory import create_backbone, create_classifier, described_model
from map_points.fewshot import FewShotConfig, run_folds
from map_points.finetuning import FinetuneConfig, FinetuneTask
from map_points.models import MODEL_NAMES, create_point_model
from map_points.part_metrics import part_metrics
from map_points.pretraining import PretrainConfig, PretrainTask, load_pretraining
from map_points.reconstruction import draw_reconstructions
from map_points.segmentation import (
    PROTOCOL,
    SegmentConfig,
    SegmentTask,
    TrainedSegmenter,
    load_segmenter,
    segmentation_totals,
)
from map_points.weights import load_init

TRAINED = TrainedModels(described_model, create_classifier, create_backbone, load_init)


def pretrain(config: PretrainConfig) -> None:
    """Pretrain an encoder."""
    task = PretrainTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


def finetune(config: FinetuneConfig) -> None:
    """Train a classifier."""
    task = FinetuneTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


def fewshot(config: FewShotConfig) -> None:
    """Train a classifier on every few-shot fold and write the mean over them."""
    run_folds(config)


def segment(config: SegmentConfig) -> None:
    """Train a part segmenter."""
    task = SegmentTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


@dataclass
class EvaluateConfig:
    """Accuracy of a classifier, or IoU of a part segmenter, on the test split (or the held-out part).

    Args:
        init: A run of finetune or segment, or its weights file.
        data: Labelled clouds; what is not given is as in the run.
        evaluation: Protocol, batch size, device and the like.
        out: Folder for summary.json.
    """

    init: str
    data: PointDataConfig = field(default_factory=PointDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    out: str = "runs/evaluate"


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a run by a named protocol and write summary.json."""
    out = Path(config.out)
    refuse_training_run(out)
    if "parts" in read_description(config.init):
        summary = _evaluate_segmenter(config, load_segmenter(config.init))
    else:
        summary = _evaluate_classifier(config)
    print(summary["protocol"])
    for name, value in summary.items():
        if name.startswith("test_"):
            print(f"{name:26} {value:.4g}")
    out.mkdir(parents=True, exist_ok=True)
    write_summary(out, {"task": "evaluate", "init": config.init, **summary})


def _evaluate_classifier(config: EvaluateConfig) -> dict[str, Any]:
    model, classes = TRAINED.classifier(config.init)
    clouds, evaluated_on = clouds_to_evaluate(config.data)
    refuse_other_classes(clouds.classes, classes, data=_data_name(config.data), init=config.init)
    device = choose_device(config.evaluation.device)
    samples = CloudSamples(clouds, config.data, training=False)
    with Stopwatch(device) as watch:
        logits, labels = voted_logits(model.to(device), samples, config.evaluation, device)
    protocol = config.evaluation.protocol
    return {
        "protocol": f"{protocol}: {PROTOCOLS[protocol]}",
        "evaluated_on": evaluated_on,
        **classification_metrics(class_totals(logits, labels)),
        "clouds": len(samples),
        **watch.report(len(samples)),
    }


def _evaluate_segmenter(config: EvaluateConfig, run: TrainedSegmenter) -> dict[str, Any]:
    if config.evaluation.protocol != "no_vote":
        raise UserError(
            f"evaluation.protocol {config.evaluation.protocol!r} is for classifiers; segmentation has no_vote only"
        )
    data = load_part_data(config.data)
    refuse_other_classes(data.classes, run.classes, data=_data_name(config.data), init=config.init)
    if data.parts != run.parts:
        raise UserError(
            f"the parts of {_data_name(config.data)} are not those that {config.init} was trained on"
        )
    device = choose_device(config.evaluation.device)
    with Stopwatch(device) as watch:
        totals = segmentation_totals(
            run.model.to(device),
            data.evaluation,
            run.parts,
            batch_size=config.evaluation.batch_size,
            workers=config.evaluation.workers,
            device=device,
            progress="evaluate" if config.evaluation.progress else None,
        )
    return {
        "protocol": f"no_vote: {PROTOCOL}",
        "evaluated_on": data.evaluated_on,
        **part_metrics(totals.float(), run.classes),
        "clouds": len(data.evaluation),
        **watch.report(len(data.evaluation)),
    }


def _data_name(data: PointDataConfig) -> str:
    return data.root or "the embedded shapes"


@dataclass
class PredictConfig:
    """Classes of given clouds.

    Args:
        init: A finetuning run, or its weights file.
        clouds: Cloud file (.npy, .ply, .txt) or folder, or a list of them, oriented as the run's training data.
        data: num_points and unit_sphere; what is not given is as in the run.
        evaluation: Batch size, device and the like.
        top: Classes a row, most probable first.
        out: CSV to write.
    """

    init: str
    clouds: str | list[str]
    data: PointDataConfig = field(default_factory=PointDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    top: int = 5
    out: str = "predictions.csv"


def predict(config: PredictConfig) -> None:
    """Write a CSV with the most probable classes of each cloud."""
    model, classes = TRAINED.classifier(config.init)
    samples = CloudSamples(read_cloud_files(config.clouds), config.data, training=False)
    if config.top < 1:
        raise UserError(f"top must be at least 1; got {config.top}")
    probabilities = predict_probabilities(model, samples, config.evaluation)
    write_predictions(Path(config.out), "cloud", samples.names, classes, probabilities, top=config.top)


@dataclass
class FeaturesConfig:
    """Pooled features of clouds.

    Args:
        init: A pretraining or finetuning run, or its weights file.
        clouds: Cloud file (.npy, .ply, .txt) or folder, or a list of them, without labels; the run's own data
            when not given.
        data: Labelled clouds when none are named; what is not given is as in the run.
        evaluation: Batch size, device and the like.
        neighbors: Neighbours of the kNN score.
        out: NPZ to write, with features, labels and names of each split (features and names of ``clouds``).
    """

    init: str
    clouds: str | list[str] | None = None
    data: PointDataConfig = field(default_factory=PointDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    neighbors: int = 20
    out: str = "features.npz"


def features(config: FeaturesConfig) -> None:
    """Write features of the training split and of what is evaluated on, and print a kNN score."""
    if config.neighbors < 1:
        raise UserError(f"neighbors must be at least 1; got {config.neighbors}")
    model, out = TRAINED.encoder(config.init), Path(config.out)
    if config.clouds is not None:
        samples = CloudSamples(read_cloud_files(config.clouds), config.data, training=False)
        found, _ = extract_features(model, samples, config.evaluation)
        save_arrays(out, {"features": found, "names": np.array(samples.names)})
        return
    splits = choose_clouds(config.data)
    measured = {}
    for split, clouds in (("train", splits.train), ("test", splits.evaluation)):
        assert clouds is not None
        samples = CloudSamples(clouds, config.data, training=False)
        title = f"features of {split}"
        values, labels = extract_features(model, samples, config.evaluation, title=title)
        measured[split] = SplitFeatures(values, labels, samples.names)
    write_features(
        out, measured, splits.train.classes, neighbors=config.neighbors, evaluated_on=splits.evaluated_on
    )


@dataclass
class ReconstructConfig:
    """A picture of what a pretrained model reconstructs.

    Args:
        init: Directory of a pretraining run.
        data: Clouds; what is not given is as in the run.
        split: Which split to draw.
        count: Rows of the picture.
        mask_ratio: Share to hide; as in the run when not given.
        seed: Chooses the hidden patches.
        out: PNG to write.
    """

    init: str
    data: PointDataConfig = field(default_factory=PointDataConfig)
    split: str = "train"
    count: int = 6
    mask_ratio: float | None = None
    seed: int = 0
    out: str = "reconstructions.png"


def reconstruct(config: ReconstructConfig) -> None:
    """Write a picture: cloud, visible patches, reconstruction."""
    if config.count < 1:
        raise UserError(f"count must be at least 1; got {config.count}")
    if config.split not in ("train", "test"):
        raise UserError(f"split must be 'train' or 'test'; got {config.split!r}")
    objective = load_pretraining(config.init)
    clouds = read_clouds(config.data, "train" if config.split == "train" else "test")
    samples = CloudSamples(clouds, config.data, training=False)
    points = inputs_to_draw(samples, config.count)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_reconstructions(
        objective, points, out, up_axis=samples.up_axis, ratio=config.mask_ratio, seed=config.seed
    )
    print(f"{len(points)} clouds -> {out}")


@dataclass
class PartShapesConfig:
    """Shapes of two parts in ShapeNetPart's layout, to try segmentation on.

    Args:
        train: Training shapes of each of the five categories.
        val: Validation shapes of each (trained on as well, as the field does).
        test: Test shapes of each.
        points: Points of each shape.
        seed: Of everything random.
        out: Folder to make.
    """

    train: int = 60
    val: int = 6
    test: int = 20
    points: int = 1500
    seed: int = 0
    out: str = "part_shapes"


def part_shapes(config: PartShapesConfig) -> None:
    """Write two-part shapes as txt files with their lists."""
    out = Path(config.out)
    counts = {"train": config.train, "val": config.val, "test": config.test}
    write_part_shapes(out, **counts, points=config.points, seed=config.seed)
    print(f"two-part shapes -> {out} (--data.root {out})")


@dataclass
class InfoConfig:
    """What is installed and what it can do."""


def info(config: InfoConfig) -> None:
    """Print versions, devices, the implementations of scan, sampling and neighbours, and the models."""
    print(describe_environment())
    for title, statuses in (("farthest points", sampling_backends()), ("neighbours", neighbor_backends())):
        print(title)
        for status in statuses:
            print(f"  {status.name:14} {status}")
    print("models (parameters of the classifier for 40 classes)")
    for name in MODEL_NAMES:
        with torch.device("meta"):
            model = create_point_model(name, 40)
        print(f"  {name:14} {sum(p.numel() for p in model.parameters()):>12,}")
