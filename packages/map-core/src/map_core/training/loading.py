"""One data loader for the whole run, whose processes live as long as the run."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, default_collate

from map_core.errors import UserError
from map_core.training.sampling import Collate, Failure, KeyedDataset, RunPlan, RunSampler
from map_core.training.task import Task


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
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        yield send_to_device(batch, device, non_blocking=True)


def leave_signals_to_the_parent(worker: int) -> None:
    """Let Ctrl-C and SIGTERM, which reach the whole process group, stop the run at the end of a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
