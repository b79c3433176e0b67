"""What the commands of ``map-vision`` do."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
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
from map_vision.data import DataConfig, ImageData, ImageSamples, load_image_data, load_images
from map_vision.data.config import Purpose
from map_vision.evaluation import (
    EvaluationConfig,
    classification_metrics,
    classification_totals,
    extract_features,
    predict_probabilities,
)
from map_vision.factory import create_backbone, create_model, described_model
from map_vision.finetuning import ClassificationTask, FinetuneConfig, FinetuneTask, LinearProbeTask
from map_vision.hybridnet import HybridNet
from map_vision.models import MODEL_NAMES
from map_vision.pretraining import PretrainConfig, PretrainTask, load_pretraining
from map_vision.reconstruction import draw_reconstructions
from map_vision.weights import load_init

TRAINED = TrainedModels(described_model, create_model, create_backbone, load_init)


def pretrain(config: PretrainConfig) -> None:
    """Pretrain an encoder."""
    task = PretrainTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


def finetune(config: FinetuneConfig) -> None:
    """Train a classifier."""
    _train_classifier(FinetuneTask(config), config)


def linear_probe(config: FinetuneConfig) -> None:
    """Train a linear classifier on frozen features."""
    _train_classifier(LinearProbeTask(config), config)


def _train_classifier(task: ClassificationTask, config: FinetuneConfig) -> None:
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


@dataclass
class EvaluateConfig:
    """Accuracy of a classifier on the evaluation split.

    Args:
        init: A finetuning or probing run, or its weights file.
        data: Labelled images; what is not given is as in the run.
        evaluation: Batch size, device and the like.
        out: Folder for summary.json.
    """

    init: str
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    out: str = "runs/evaluate"


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a classifier and write summary.json."""
    out = Path(config.out)
    refuse_training_run(out)
    model, classes = TRAINED.classifier(config.init)
    data = _open(config.data, model, purpose="evaluate")
    assert data.evaluation is not None
    refuse_other_classes(data.classes, classes, data=data.description, init=config.init)
    device = choose_device(config.evaluation.device)
    with Stopwatch(device) as watch:
        totals = classification_totals(
            model.to(device),
            data.evaluation,
            batch_size=config.evaluation.batch_size,
            workers=config.evaluation.workers,
            device=device,
            precision=config.evaluation.precision,
            progress="evaluate" if config.evaluation.progress else None,
        )
    metrics = classification_metrics(totals)
    for name, value in metrics.items():
        print(f"{name:20} {value:.4g}")
    skipped = data.skipped()
    if skipped.count:
        print(skipped)
    out.mkdir(parents=True, exist_ok=True)
    summary = {"task": "evaluate", "init": config.init, **metrics, "images": len(data.evaluation)}
    write_summary(out, summary | watch.report(len(data.evaluation)))


@dataclass
class PredictConfig:
    """Classes of given images.

    Args:
        init: A finetuning or probing run, or its weights file.
        images: Image file or folder, or a list of them.
        data: How unreadable images are treated; normalisation and resizing are as in the run.
        evaluation: Batch size, device and the like.
        top: Classes a row, most probable first.
        out: CSV to write.
    """

    init: str
    images: str | list[str]
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    top: int = 5
    out: str = "predictions.csv"


def predict(config: PredictConfig) -> None:
    """Write a CSV with the most probable classes of each image."""
    model, classes = TRAINED.classifier(config.init)
    samples = _open_images(config.images, config.data, model)
    if config.top < 1:
        raise UserError(f"top must be at least 1; got {config.top}")
    probabilities = predict_probabilities(model, samples, config.evaluation)
    write_predictions(Path(config.out), "image", samples.names, classes, probabilities, top=config.top)


@dataclass
class FeaturesConfig:
    """Pooled features of images.

    Args:
        init: A pretraining, finetuning or probing run, or its weights file.
        images: Image file or folder, or a list of them, without labels; the run's own data when not given.
        data: Labelled images when none are named; what is not given is as in the run.
        evaluation: Batch size, device and the like.
        neighbors: Neighbours of the kNN score, which is computed where there are labels and two splits.
        out: NPZ to write, with features, labels and names of each split (features and names of ``images``).
    """

    init: str
    images: str | list[str] | None = None
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    neighbors: int = 20
    out: str = "features.npz"


def features(config: FeaturesConfig) -> None:
    """Write features of the training and evaluation splits, and print a kNN score where labels exist."""
    if config.neighbors < 1:
        raise UserError(f"neighbors must be at least 1; got {config.neighbors}")
    model = TRAINED.encoder(config.init)
    if config.images is not None:
        unlabelled = _open_images(config.images, config.data, model)
        found, _ = extract_features(model, unlabelled, config.evaluation)
        save_arrays(Path(config.out), {"features": found, "names": np.array(unlabelled.names)})
        return
    data = _open(config.data, model, purpose="features")
    measured = {}
    for split, samples in (("train", data.training), ("test", data.evaluation)):
        if samples is not None:
            title = f"features of {split}"
            values, labels = extract_features(model, samples, config.evaluation, title=title)
            measured[split] = SplitFeatures(values, labels, samples.names)
    write_features(Path(config.out), measured, data.classes, neighbors=config.neighbors)


@dataclass
class ReconstructConfig:
    """A picture of what a pretrained model reconstructs.

    Args:
        init: Directory of a pretraining run.
        images: Image file or folder, or a list of them; the run's training images when not given.
        data: Images when none are named; what is not given is as in the run.
        count: Rows of the picture.
        mask_ratio: Share to hide; as in the run when not given.
        seed: Chooses the hidden patches.
        out: PNG to write.
    """

    init: str
    images: str | list[str] | None = None
    data: DataConfig = field(default_factory=DataConfig)
    count: int = 8
    mask_ratio: float | None = None
    seed: int = 0
    out: str = "reconstructions.png"


def reconstruct(config: ReconstructConfig) -> None:
    """Write a picture: original, masked, reconstruction."""
    if config.count < 1:
        raise UserError(f"count must be at least 1; got {config.count}")
    objective, settings = load_pretraining(config.init)
    model_config = described_model(config.init)
    assert model_config is not None
    backbone = create_backbone(model_config)
    if config.images is None:
        samples = _open(config.data, backbone, purpose="pretrain").train_unaugmented()
    else:
        samples = _open_images(config.images, config.data, backbone)
    images = inputs_to_draw(samples, config.count)
    description = read_description(config.init)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_reconstructions(
        objective,
        images,
        out,
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        normalized_targets=settings.normalize_targets,
        ratio=config.mask_ratio,
        seed=config.seed,
    )
    print(f"{len(images)} images -> {out}")


@dataclass
class InfoConfig:
    """What is installed and what it can do."""


def info(config: InfoConfig) -> None:
    """Print versions, devices, the implementations of the scan, and the models."""
    print(describe_environment())
    print("models (parameters at 1000 classes)")
    for name in MODEL_NAMES:
        with torch.device("meta"):
            model = timm.create_model(name)
        print(f"  {name:30} {sum(p.numel() for p in model.parameters()):>12,}")


def _open(config: DataConfig, model: HybridNet, *, purpose: Purpose) -> ImageData:
    return load_image_data(
        config, img_size=model.img_size, in_chans=model.patch_embed.in_chans, purpose=purpose
    )


def _open_images(paths: str | list[str], config: DataConfig, model: HybridNet) -> ImageSamples:
    return load_images(paths, config, img_size=model.img_size, in_chans=model.patch_embed.in_chans)
