"""Evaluation: classification accuracy, features, nearest neighbours, class probabilities."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.inference import autocast, choose_device
from map_core.training.loading import batches_in_order
from map_vision.data import ImageSamples
from map_vision.hybridnet import HybridNet


@dataclass
class EvaluationConfig:
    """How images are run through a model.

    Args:
        batch_size: Images at once, per process.
        workers: Loading processes.
        device: auto, cpu or cuda.
        precision: Arithmetic of the forward pass.
        progress: Show a progress bar.
    """

    batch_size: int = 128
    workers: int = 2
    device: str = "auto"
    precision: str = "fp32"
    progress: bool = True


@torch.no_grad()
def classification_totals(
    model: nn.Module,
    samples: ImageSamples,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: str = "fp32",
    shard: tuple[int, int] = (0, 1),
    progress: str | None = None,
) -> Float[Tensor, "4"]:
    """Sums over the samples, or a shard of them: correct, correct among five, cross-entropy, count.

    The arguments are those of :func:`~map_core.training.loading.batches_in_order`.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    for images, labels in batches_in_order(
        samples, batch_size=batch_size, workers=workers, device=device, shard=shard, progress=progress
    ):
        with autocast(device, precision):
            logits = model(images).float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums = (best[:, 0].sum(), best.sum(), loss, torch.tensor(len(labels)))
        totals += torch.tensor([float(value) for value in sums], dtype=torch.float64)
    return totals


def classification_metrics(totals: Float[Tensor, "4"]) -> dict[str, float]:
    """Accuracies in percent and the mean loss, from :func:`classification_totals`."""
    top1, top5, loss, count = totals.tolist()
    return {
        "test_accuracy": 100 * top1 / count,
        "test_accuracy_top5": 100 * top5 / count,
        "test_loss": loss / count,
    }


@torch.no_grad()
def extract_features(
    model: HybridNet, samples: ImageSamples, config: EvaluationConfig, *, title: str = "features"
) -> tuple[Float[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    """Pooled features (what the head reads) and labels of all samples, in order."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    features, labels = [], []
    for images, targets in batches_in_order(
        samples,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        progress=title if config.progress else None,
    ):
        with autocast(device, config.precision):
            pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        features.append(pooled.float().cpu().numpy())
        labels.append(targets.cpu().numpy())
    return np.concatenate(features), np.concatenate(labels)


@torch.no_grad()
def predict_probabilities(
    model: HybridNet, samples: ImageSamples, config: EvaluationConfig
) -> Float[np.ndarray, "n k"]:
    """Class probabilities of all samples, in order."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    rows = []
    for images, _ in batches_in_order(
        samples,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        progress="predict" if config.progress else None,
    ):
        with autocast(device, config.precision):
            rows.append(model(images).float().softmax(1).cpu().numpy())
    return np.concatenate(rows)
