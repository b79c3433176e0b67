"""Data loaders: one for the whole run, whose processes live as long as the run, and one for a pass in order."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from map_core.errors import UserError
from map_core.training.sampling import Collate, Failure, KeyedDataset, RunPlan, RunSampler, SampleKey
from map_core.training.task import MapStyleDataset, Task


def training_batches(
    task: Task, plan: RunPlan, *, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Any]:
    """Yield this process's micro-batches from step ``start`` up to step ``stop``, on ``device``.

    Raises:
        UserError: what the data set raises, in whichever process.
    """
    loader: DataLoader[Any] = DataLoader(
        KeyedDataset(task.train_data, plan.seed),
        batch_sampler=RunSampler(plan, start, stop),
        num_workers=workers,
        collate_fn=Collate(task.collate or default_collate),
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield delivered(batch, device)


def batches_in_order(
    samples: MapStyleDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    draw: int = 0,
    collate: Callable[[list[Any]], Any] = default_collate,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of all samples (or a shard) in their order, on ``device``, for evaluation and the like.

    The randomness of a sample, where it has any, is keyed by (seed, draw, index).

    Args:
        samples: Tuples, such as (inputs, label).
        batch_size, workers: Of the loader.
        device: Where the batches go.
        shard: (i, n): take samples i, i + n, i + 2n, ...
        seed, draw: Keys of the samples' randomness.
        collate: Makes a batch of samples.
        progress: Title of a progress bar, None for none.

    Raises:
        UserError: what the data set raises, in whichever process.
    """
    loader: DataLoader[Any] = DataLoader(
        KeyedDataset(samples, seed),
        batch_size,
        sampler=[SampleKey(draw, index, 0) for index in range(shard[0], len(samples), shard[1])],
        num_workers=workers,
        collate_fn=Collate(collate),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for batch in tqdm(loader, desc=progress, disable=progress is None, leave=False):
        yield tuple(delivered(batch, device))


def delivered(batch: Any, device: torch.device) -> Any:
    """Return a loader's batch on ``device``.

    Raises:
        UserError: there is a failure in its place.
    """
    if isinstance(batch, Failure):
        raise UserError(batch.message)
    return send_to_device(batch, device, non_blocking=True)


def leave_signals_to_the_parent(worker: int) -> None:
    """Let Ctrl-C and SIGTERM, which reach the whole process group, stop the run at the end of a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
