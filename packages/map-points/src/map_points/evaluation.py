"""Evaluation of classifiers, by named protocols that are kept apart."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.inference import choose_device
from map_core.training.loading import batches_in_order
from map_points.data import CloudSamples, collate_clouds
from map_points.models import HybridNet3D

Protocol = Literal["no_vote", "vote_10", "best_of_299"]
PROTOCOLS = {
    "no_vote": "weights as given, farthest points of each cloud, no vote",
    "vote_10": "one round of 10 votes: mean logits over random points, scaled and shifted",
    "best_of_299": "the best of 299 rounds of 10 votes, chosen by accuracy on the evaluated clouds themselves: "
    "it selects on the test split, as the literature's voted numbers do",
}
VOTES = 10
ROUNDS = 299


@dataclass
class EvaluationConfig:
    """How clouds are run through a model.

    Args:
        protocol: no_vote; vote_10, one round of 10 augmented votes; best_of_299, the literature's maximum over
            299 such rounds, which selects on the test split.
        batch_size: Clouds at once.
        workers: Loading processes.
        device: auto, cpu or cuda.
        seed: Of the votes.
        progress: Show a progress bar.
    """

    protocol: Protocol = "no_vote"
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"
    seed: int = 0
    progress: bool = True


@torch.no_grad()
def collect_logits(
    model: nn.Module,
    samples: CloudSamples,
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    draw: int = 0,
    progress: str | None = None,
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Logits and labels of all samples (or a shard), on the CPU; arguments as of :func:`batches_in_order`."""
    model.eval()
    logits, labels = [], []
    for points, targets in batches_in_order(
        samples,
        batch_size=batch_size,
        workers=workers,
        device=device,
        shard=shard,
        seed=seed,
        draw=draw,
        collate=collate_clouds,
        progress=progress,
    ):
        logits.append(model(points).float().cpu())
        labels.append(targets.cpu())
    return torch.cat(logits), torch.cat(labels)


def voted_logits(
    model: nn.Module, samples: CloudSamples, config: EvaluationConfig, device: torch.device
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Logits and labels under the configured protocol: plain, of one round of votes, or of the best round."""
    if config.protocol == "no_vote":
        return _logits(model, samples, config, device, draw=0, title="evaluate")
    voting = CloudSamples(
        samples.clouds, replace(samples.config, augmentation="scale_translate"), training=True
    )
    if config.protocol == "vote_10":
        return _vote(model, voting, config, device, round=0)
    rounds = (_vote(model, voting, config, device, round=i) for i in range(ROUNDS))
    return max(rounds, key=lambda found: int((found[0].argmax(dim=1) == found[1]).sum()))


def _vote(
    model: nn.Module, samples: CloudSamples, config: EvaluationConfig, device: torch.device, *, round: int
) -> tuple[Tensor, Tensor]:
    """Mean logits of one round of votes, and the labels."""
    total, labels = torch.zeros(()), torch.zeros(())
    for vote in range(VOTES):
        title = f"round {round + 1}, vote {vote + 1}/{VOTES}"
        logits, labels = _logits(model, samples, config, device, draw=round * VOTES + vote, title=title)
        total = total + logits
    return total / VOTES, labels


def _logits(
    model: nn.Module,
    samples: CloudSamples,
    config: EvaluationConfig,
    device: torch.device,
    *,
    draw: int,
    title: str,
) -> tuple[Tensor, Tensor]:
    return collect_logits(
        model,
        samples,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        seed=config.seed,
        draw=draw,
        progress=title if config.progress else None,
    )


@torch.no_grad()
def extract_features(
    model: HybridNet3D, samples: CloudSamples, config: EvaluationConfig, *, title: str = "features"
) -> tuple[Float[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    """Pooled features (what the head reads) and labels of all samples, in order."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    features, labels = [], []
    for points, targets in batches_in_order(
        samples,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        collate=collate_clouds,
        progress=title if config.progress else None,
    ):
        features.append(model.forward_features(points).float().cpu().numpy())
        labels.append(targets.cpu().numpy())
    return np.concatenate(features), np.concatenate(labels)


def predict_probabilities(
    model: HybridNet3D, samples: CloudSamples, config: EvaluationConfig
) -> Float[np.ndarray, "n c"]:
    """Class probabilities of all samples, in order, under the configured protocol.

    Raises:
        UserError: a protocol that needs labels.
    """
    if config.protocol == "best_of_299":
        raise UserError(
            "evaluation.protocol 'best_of_299' chooses a round by labels, which clouds to predict lack"
        )
    device = choose_device(config.device)
    logits, _ = voted_logits(model.to(device), samples, config, device)
    return logits.softmax(dim=1).numpy()


def class_totals(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "3 c"]:
    """Sums by class: clouds, correct ones, cross-entropy; totals of shards add up."""
    totals = torch.zeros(3, logits.shape[1], dtype=torch.float64)
    correct = (logits.argmax(dim=1) == labels).double()
    loss = F.cross_entropy(logits.double(), labels, reduction="none")
    for row, values in enumerate((torch.ones_like(correct), correct, loss)):
        totals[row].index_add_(0, labels, values)
    return totals


def classification_metrics(totals: Float[Tensor, "3 c"]) -> dict[str, float]:
    """Overall accuracy, mean of the classes' accuracies (of classes with clouds), both in percent; mean loss."""
    count, correct, loss = totals.double()
    present = count > 0
    return {
        "test_accuracy": float(100 * correct.sum() / count.sum()),
        "test_accuracy_class_mean": float(100 * (correct[present] / count[present]).mean()),
        "test_loss": float(loss.sum() / count.sum()),
    }
