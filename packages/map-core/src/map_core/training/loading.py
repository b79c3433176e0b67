"""Data loaders: one for the whole run, whose processes live as long as the run, and one for a pass in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, default_collate

from map_core.errors import UserError
from map_core.runs.progress import shown
from map_core.training.sampling import Collate, Failure, KeyedDataset, RunPlan, RunSampler, SamplesInOrder
from map_core.training.task import MapStyleDataset, Task
from map_core.training.workers import LOOK_SECONDS, PATIENCE_SECONDS, Reading, begin_loading, watched


def training_batches(
    task: Task, plan: RunPlan, *, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Any]:
    """Yield this process's micro-batches from step ``start`` up to step ``stop``, on ``device``.

    Raises:
        UserError: what the data set raises, in whichever process; a process that died or hangs.
    """
    batches = loaded(
        task.train_data,
        plan.seed,
        workers=workers,
        device=device,
        collate=task.collate or default_collate,
        batch_sampler=RunSampler(plan, start, stop),
    )
    if device.type == "cuda":
        yield from copied_ahead(batches, device)
    else:
        for batch in batches:
            yield delivered(batch, device)


def copied_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield a loader's batches on a GPU, the next one on its way there while a step computes."""
    copies = torch.cuda.Stream(device)

    def start(batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Failure):
            return batch, None  # its turn comes
        with torch.cuda.stream(copies):
            return delivered(batch, device), copies.record_event()

    for batch, copied in one_ahead(batches, start):
        if copied is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copied)
            for tensor in tree_leaves(batch):
                if isinstance(tensor, Tensor):
                    tensor.record_stream(
                        computing
                    )  # no later copy gets its memory before the step has read it
        yield delivered(batch, device)


def one_ahead(batches: Iterator[Any], start: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield ``start`` of every batch, that of the next one called before."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(start(batch))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def batches_in_order(
    samples: MapStyleDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    indices: Sequence[int] | None = None,
    seed: int = 0,
    draw: int = 0,
    collate: Callable[[list[Any]], Any] = default_collate,
    progress: str | None = None,
) -> Iterator[Any]:
    """Yield batches of all samples (or some of them) in their order, on ``device``, for evaluation and the like.

    The randomness of a sample, where it has any, is keyed by (seed, draw, index).

    Args:
        samples: By index: tuples, such as (input, label), or inputs alone.
        batch_size, workers: Of the loader.
        device: Where the batches go.
        shard: (i, n): take samples i, i + n, i + 2n, ...
        indices: Of the samples to take instead of a shard.
        seed, draw: Keys of the samples' randomness.
        collate: Makes a batch of samples.
        progress: Title of what shows how far it is, None for nothing.

    Raises:
        UserError: what the data set raises, in whichever process; a process that died or hangs.
    """
    if indices is None:
        indices = range(shard[0], len(samples), shard[1])
    batches = loaded(
        samples,
        seed,
        workers=workers,
        device=device,
        collate=collate,
        batch_size=batch_size,
        sampler=SamplesInOrder(indices, draw),
    )
    count = -(-len(indices) // batch_size)
    if progress is not None:
        batches = shown(batches, total=count, title=progress, unit="batch")
    for batch in batches:
        yield delivered(batch, device)


def loaded(
    samples: MapStyleDataset,
    seed: int,
    *,
    workers: int,
    device: torch.device,
    collate: Callable[[list[Any]], Any],
    patience: float = PATIENCE_SECONDS,
    **order: Any,
) -> Iterator[Any]:
    """Yield the batches of a loader whose processes are watched.

    Args:
        samples: By index.
        seed: Of their randomness.
        workers: Loading processes; 0 loads in this one, which nobody watches.
        device: Where the batches will go.
        collate: Makes a batch of samples.
        patience: Seconds that a batch may be awaited.
        order: Which samples, as torch's loader takes it.
    """
    reading, look = Reading(workers), min(LOOK_SECONDS, patience)
    loader: DataLoader[Any] = DataLoader(
        KeyedDataset(samples, seed, reading),
        num_workers=workers,
        collate_fn=Collate(collate),
        pin_memory=device.type == "cuda",
        timeout=look if workers else 0,
        worker_init_fn=begin_loading,
        generator=torch.Generator(),
        **order,
    )
    return watched(loader, reading, lambda: getattr(samples, "names", None), patience=patience, look=look)


def delivered(batch: Any, device: torch.device) -> Any:
    """Return a loader's batch on ``device``.

    Raises:
        UserError: there is a failure in its place.
    """
    if isinstance(batch, Failure):
        raise UserError(batch.message)
    return send_to_device(batch, device, non_blocking=True)
