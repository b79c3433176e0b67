"""What the commands of ``map-vision`` do."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch

from map_core.errors import UserError
from map_core.inference import (
    Stopwatch,
    choose_device,
    describe_environment,
    knn_accuracy,
    save_arrays,
    write_predictions,
)
from map_core.pretraining import inputs_to_draw
from map_core.training import train
from map_core.training.summary import write_summary
from map_core.weights import read_description, weights_file
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
    if (out / "checkpoints").is_dir():
        raise UserError(
            f"{out} is a training run, whose summary.json would be replaced; choose another --out"
        )
    model, classes = _load_classifier(config.init)
    data = _open(config.data, model, purpose="evaluate")
    assert data.evaluation is not None
    if data.classes != classes:
        raise UserError(
            f"the classes of {data.description} are not those of {config.init}: {len(data.classes)} classes "
            f"{', '.join(data.classes[:4])}, ... against {len(classes)} {', '.join(classes[:4])}, ...; "
            "evaluate on data with the same classes"
        )
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
    model, classes = _load_classifier(config.init)
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
    model = _load_encoder(config.init)
    if config.images is not None:
        unlabelled = _open_images(config.images, config.data, model)
        found, _ = extract_features(model, unlabelled, config.evaluation)
        save_arrays(Path(config.out), {"features": found, "names": np.array(unlabelled.names)})
        return
    data = _open(config.data, model, purpose="features")
    arrays = {"classes": np.array(data.classes, dtype=str)}
    for split, samples in (("train", data.training), ("test", data.evaluation)):
        if samples is not None:
            arrays[f"{split}_features"], arrays[f"{split}_labels"] = extract_features(
                model, samples, config.evaluation, title=f"features of {split}"
            )
            arrays[f"{split}_names"] = np.array(samples.names)
    save_arrays(Path(config.out), arrays)
    if len(data.classes) > 1 and data.training is not None and data.evaluation is not None:
        score = knn_accuracy(
            arrays["train_features"],
            arrays["train_labels"],
            arrays["test_features"],
            arrays["test_labels"],
            neighbors=config.neighbors,
        )
        print(f"kNN accuracy ({config.neighbors} neighbours): {score:.2f} %")
        Path(config.out).with_suffix(".json").write_text(
            json.dumps({"task": "features", "knn_accuracy": score, "neighbors": config.neighbors}) + "\n"
        )


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


def _load_classifier(path: str) -> tuple[HybridNet, tuple[str, ...]]:
    config, description = described_model(path), read_description(path)
    if config is None or not description.get("classes"):
        weights_file(path)  # says so when there is nothing at all
        raise UserError(
            f"{path} describes no classifier (its .json names no classes): give a finetuning or probing run, "
            "not a pretraining run"
        )
    model = create_model(config, num_classes=len(description["classes"]))
    report = load_init(model, path)
    if report.fresh:
        raise UserError(f"{report.source} lacks {', '.join(report.fresh)}: it holds no whole classifier")
    return model.eval(), tuple(description["classes"])


def _load_encoder(path: str) -> HybridNet:
    """The model of a run for features: a classifier as it is, or a pretraining run's mean-pooled encoder."""
    config, description = described_model(path), read_description(path)
    if config is None:
        weights_file(path)  # says so when there is nothing at all
        raise UserError(
            f"{path} has no .json that describes its model: give a run's directory or its weights file"
        )
    if description.get("classes"):
        return _load_classifier(path)[0]
    model = create_backbone(config)
    load_init(model, path)
    return model.eval()


def _open(config: DataConfig, model: HybridNet, *, purpose: Purpose) -> ImageData:
    return load_image_data(
        config, img_size=model.img_size, in_chans=model.patch_embed.in_chans, purpose=purpose
    )


def _open_images(paths: str | list[str], config: DataConfig, model: HybridNet) -> ImageSamples:
    return load_images(paths, config, img_size=model.img_size, in_chans=model.patch_embed.in_chans)
