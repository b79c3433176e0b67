"""Data loaders: one for the whole run, whose processes live as long as the run, and one for a single pass in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, default_collate

from map_core.errors import UserError
from map_core.runs.progress import track
from map_core.training.plan import RunPlan
from map_core.training.sampling import Collate, Failure, KeyedDataset, RunSampler, SamplesInOrder
from map_core.training.task import MapStyleDataset, Task
from map_core.training.workers import (
    CHECK_SECONDS,
    PATIENCE_SECONDS,
    CurrentSamples,
    init_worker,
    watch_batches,
)


def training_batches(
    task: Task, plan: RunPlan, *, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Any]:
    """Yield this process's micro-batches from step ``start`` up to step ``stop``, on ``device``.

    Raises:
        UserError: the data set raised it, in whichever process; a process died or hangs.
    """
    batches = load_batches(
        task.train_data,
        plan.seed,
        workers=workers,
        device=device,
        collate=task.collate or default_collate,
        batch_sampler=RunSampler(plan, start, stop),
    )
    if device.type == "cuda":
        yield from prefetch(batches, device)
    else:
        for batch in batches:
            yield to_device(batch, device)


def prefetch(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield a loader's batches on a GPU; the next one is copied there while a step computes."""
    copy_stream = torch.cuda.Stream(device)

    def start(batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Failure):
            return batch, None  # raised in its turn
        with torch.cuda.stream(copy_stream):
            return to_device(batch, device), copy_stream.record_event()

    for batch, copy_done in start_one_ahead(batches, start):
        if copy_done is not None:
            compute_stream = torch.cuda.current_stream(device)
            compute_stream.wait_event(copy_done)
            for tensor in tree_leaves(batch):
                if isinstance(tensor, Tensor):
                    # no later copy gets its memory before the step has read it
                    tensor.record_stream(compute_stream)
        yield to_device(batch, device)  # copied already; this raises where a Failure came instead


def start_one_ahead(batches: Iterator[Any], start: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield ``start(batch)`` for every batch, calling it for the next batch before each is yielded."""
    pending: list[Any] = []
    for batch in batches:
        pending.append(start(batch))
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def batches_in_order(
    samples: MapStyleDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    shard: tuple[int, int] = (0, 1),
    indices: Sequence[int] | None = None,
    seed: int = 0,
    pass_number: int = 0,
    collate: Callable[[list[Any]], Any] = default_collate,
    progress: str | None = None,
) -> Iterator[Any]:
    """Yield batches of all samples (or some of them) in order, on ``device``, for evaluation and the like.

    The randomness of a sample, where it has any, is keyed by (seed, pass_number, index).

    Args:
        samples: Data set by index, of tuples such as (input, label), or of inputs alone.
        batch_size, workers: Settings of the loader.
        device: Where the batches go.
        shard: (i, n): take samples i, i + n, i + 2n, ...
        indices: The samples to take instead of a shard.
        seed, pass_number: Keys of the samples' randomness, which is drawn anew in every pass.
        collate: Makes a batch of samples.
        progress: Title of the progress bar; None shows none.

    Raises:
        UserError: the data set raised it, in whichever process; a process died or hangs.
    """
    if indices is None:
        indices = range(shard[0], len(samples), shard[1])
    batches = load_batches(
        samples,
        seed,
        workers=workers,
        device=device,
        collate=collate,
        batch_size=batch_size,
        sampler=SamplesInOrder(indices, pass_number),
    )
    count = -(-len(indices) // batch_size)
    if progress is not None:
        batches = track(batches, total=count, title=progress, unit="batch")
    for batch in batches:
        yield to_device(batch, device)


def load_batches(
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
        samples: Data set by index.
        seed: Seed of the samples' randomness.
        workers: Loading processes; 0 loads in this one, unwatched.
        device: Where the batches will go.
        collate: Makes a batch of samples.
        patience: Seconds to wait for a batch.
        order: Which samples in what order, as arguments of torch's loader.
    """
    current_samples, check_every = CurrentSamples(workers), min(CHECK_SECONDS, patience)
    loader: DataLoader[Any] = DataLoader(
        KeyedDataset(samples, seed, current_samples),
        num_workers=workers,
        collate_fn=Collate(collate),
        pin_memory=device.type == "cuda",
        timeout=check_every if workers else 0,
        worker_init_fn=init_worker,
        generator=torch.Generator(),
        **order,
    )
    return watch_batches(
        loader,
        current_samples,
        lambda: getattr(samples, "names", None),
        patience=patience,
        check_every=check_every,
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a loader's batch, moved to ``device``.

    Raises:
        UserError: a :class:`Failure` came in its place.
    """
    if isinstance(batch, Failure):
        raise UserError(batch.message)
    return send_to_device(batch, device, non_blocking=True)
