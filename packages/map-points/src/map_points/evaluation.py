"""Evaluation of classifiers, by named protocols that are kept apart."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from map_core.errors import UserError
from map_core.training.sampling import Collate, Failure, KeyedDataset, SampleKey
from map_points.data import CloudSamples

Protocol = Literal["no_vote", "vote_10"]
PROTOCOLS = {
    "no_vote": "weights as given, farthest points of the test split, no vote",
    "vote_10": "one round of 10 votes: mean logits over random points, scaled and shifted",
}
VOTES = 10


@dataclass
class EvaluationConfig:
    """How clouds are run through a model.

    Args:
        protocol: no_vote, or vote_10: one round of 10 augmented votes (the literature's maximum over 299
            rounds selects on the test split and is not offered).
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


def batches(
    samples: CloudSamples,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    draw: int = 0,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (points, labels) in the order of the samples, whose randomness is keyed by (seed, draw, index).

    Args:
        samples: Clouds.
        batch_size, workers: Of the loader.
        device: Where the batches go.
        shard: (i, n): take samples i, i + n, i + 2n, ...
        seed, draw: Keys of the samples' randomness.
        progress: Title of a progress bar, None for none.
    """
    keys = [SampleKey(draw, index, 0) for index in range(shard[0], len(samples), shard[1])]
    loader = DataLoader(
        KeyedDataset(samples, seed),
        batch_size,
        sampler=keys,
        num_workers=workers,
        collate_fn=Collate(default_collate),
        generator=torch.Generator(),
    )
    for batch in tqdm(loader, desc=progress, disable=progress is None, leave=False):
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        points, labels = batch
        yield points.to(device), labels.to(device)


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
    """Logits and labels of all samples (or a shard), on the CPU; the arguments are those of :func:`batches`."""
    model.eval()
    logits, labels = [], []
    for points, targets in batches(
        samples,
        batch_size=batch_size,
        workers=workers,
        device=device,
        shard=shard,
        seed=seed,
        draw=draw,
        progress=progress,
    ):
        logits.append(model(points).float().cpu())
        labels.append(targets.cpu())
    return torch.cat(logits), torch.cat(labels)


def voted_logits(
    model: nn.Module, samples: CloudSamples, config: EvaluationConfig, device: torch.device
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Logits under the configured protocol; votes are averaged."""
    votes = 1
    if config.protocol == "vote_10":
        votes = VOTES
        samples = CloudSamples(
            samples.clouds, replace(samples.config, augmentation="scale_translate"), training=True
        )
    total: Tensor | None = None
    for vote in range(votes):
        logits, labels = collect_logits(
            model,
            samples,
            batch_size=config.batch_size,
            workers=config.workers,
            device=device,
            seed=config.seed,
            draw=vote,
            progress=f"evaluate {vote + 1}/{votes}" if config.progress else None,
        )
        total = logits if total is None else total + logits
    assert total is not None
    return total / votes, labels


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
