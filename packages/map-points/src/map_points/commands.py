"""What the commands of ``map-points`` do."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from map_core.errors import UserError
from map_core.inference import Stopwatch, choose_device, describe_environment
from map_core.training import train
from map_core.training.summary import write_summary
from map_core.weights import read_description
from map_points.accelerators import load
from map_points.data import CloudSamples, PointDataConfig, read_clouds
from map_points.evaluation import (
    PROTOCOLS,
    EvaluationConfig,
    class_totals,
    classification_metrics,
    voted_logits,
)
from map_points.factory import create_classifier, described_model
from map_points.finetuning import FinetuneConfig, FinetuneTask
from map_points.models import MODEL_NAMES, HybridNet3D, create_point_model
from map_points.pretraining import PretrainConfig, PretrainTask, load_pretraining
from map_points.reconstruction import draw_reconstructions
from map_points.weights import load_init


def pretrain(config: PretrainConfig) -> None:
    """Pretrain an encoder."""
    task = PretrainTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


def finetune(config: FinetuneConfig) -> None:
    """Train a classifier."""
    task = FinetuneTask(config)
    train(task, config.training, Path(config.out), resume=config.resume, run_config=config)


@dataclass
class EvaluateConfig:
    """Accuracy of a classifier on the test split.

    Args:
        init: A finetuning run, or its weights file.
        data: Labelled clouds; what is not given is as in the run.
        evaluation: Protocol, batch size, device and the like.
        out: Folder for summary.json.
    """

    init: str
    data: PointDataConfig = field(default_factory=PointDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    out: str = "runs/evaluate"


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a classifier by a named protocol and write summary.json."""
    out = Path(config.out)
    if (out / "checkpoints").is_dir():
        raise UserError(
            f"{out} is a training run, whose summary.json would be replaced; choose another --out"
        )
    model, classes = load_classifier(config.init)
    clouds = read_clouds(config.data, "test")
    if clouds.classes != classes:
        raise UserError(
            f"the classes of {config.data.root or 'the embedded shapes'} are not those of {config.init}: "
            f"{len(clouds.classes)} classes {', '.join(clouds.classes[:4])}, ... against {len(classes)} "
            f"{', '.join(classes[:4])}, ...; evaluate on data with the same classes"
        )
    device = choose_device(config.evaluation.device)
    samples = CloudSamples(clouds, config.data, training=False)
    with Stopwatch(device) as watch:
        logits, labels = voted_logits(model.to(device), samples, config.evaluation, device)
    metrics = classification_metrics(class_totals(logits, labels))
    protocol = PROTOCOLS[config.evaluation.protocol]
    print(f"{config.evaluation.protocol}: {protocol}")
    for name, value in metrics.items():
        print(f"{name:26} {value:.4g}")
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        "task": "evaluate",
        "init": config.init,
        "protocol": f"{config.evaluation.protocol}: {protocol}",
        **metrics,
        "clouds": len(samples),
    }
    write_summary(out, summary | watch.report(len(samples)))


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
    chosen = range(0, len(samples), max(len(samples) // config.count, 1))[: config.count]
    points = torch.stack([samples[i][0] for i in chosen])
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_reconstructions(
        objective, points, out, up_axis=samples.up_axis, ratio=config.mask_ratio, seed=config.seed
    )
    print(f"{len(points)} clouds -> {out}")


@dataclass
class InfoConfig:
    """What is installed and what it can do."""


def info(config: InfoConfig) -> None:
    """Print versions, devices, the implementations of scan, sampling and neighbours, and the models."""
    print(describe_environment())
    print("sampling and neighbours")
    for package in ("pointnet2_ops", "knn_cuda"):
        found = load("pointnet2_ops.pointnet2_utils" if package == "pointnet2_ops" else package) is not None
        print(f"  {package:14} {'used on CUDA devices' if found else 'not installed: plain PyTorch'}")
    print("models (parameters of the classifier for 40 classes)")
    for name in MODEL_NAMES:
        with torch.device("meta"):
            model = create_point_model(name, 40)
        print(f"  {name:14} {sum(p.numel() for p in model.parameters()):>12,}")


def load_classifier(path: str) -> tuple[HybridNet3D, tuple[str, ...]]:
    """Rebuild a classifier of a finetuning run, in evaluation mode, and its class names.

    Raises:
        UserError: the run holds no classifier.
    """
    config, description = described_model(path), read_description(path)
    if config is None or not description.get("classes"):
        raise UserError(
            f"{path} describes no classifier (its .json names no classes): give a finetuning run, not a "
            "pretraining run"
        )
    model = create_classifier(config, num_classes=len(description["classes"]))
    report = load_init(model, path)
    if report.fresh:
        raise UserError(f"{path} lacks {', '.join(report.fresh)}: it holds no whole classifier")
    return model.eval(), tuple(description["classes"])
