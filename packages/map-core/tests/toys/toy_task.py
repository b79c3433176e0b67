"""A task that trains in a moment, whose samples, dropout and loss all draw random numbers.

As a script: ``python toy_task.py OUT RESUME TRAINING_JSON TASK_JSON``.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from map_core import LossOutput, UserError
from map_core.training import Task, TrainingConfig, train
from map_core.training.loading import batches_in_order


class ToyData:
    def __init__(self, samples=70, broken=None):
        self.samples, self.broken = samples, broken

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        if index == self.broken:
            raise UserError(f"picture {index} cannot be read; remove it")
        noise = random.random() + float(np.random.rand())  # noqa: NPY002
        return torch.randn(8) + noise + 0.05 * index, torch.tensor(index % 3)


class SlowData:
    """Creates a file when first read, and takes 20 seconds to read in full (2 workers)."""

    def __init__(self, marker):
        self.marker = marker

    def __len__(self):
        return 400

    def __getitem__(self, index):
        self.marker.touch()
        time.sleep(0.1)
        return torch.zeros(1), torch.tensor(0)


def linger(marker):
    """Read slow data in two processes, as an evaluation does."""
    for _ in batches_in_order(SlowData(marker), batch_size=2, workers=2, device=torch.device("cpu")):
        pass


class ToyTask(Task):
    name = "toy"

    def __init__(
        self,
        dropout=0.1,
        samples=70,
        width=16,
        slow=0.0,
        broken=None,
        nan_at=None,
        signal_at=None,
        evaluating=None,
    ):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(8, width), nn.GELU(), nn.Dropout(dropout), nn.BatchNorm1d(width), nn.Linear(width, 3)
        )
        self.model[3] = nn.BatchNorm1d(width) if dropout else nn.LayerNorm(width)
        self.train_data = ToyData(samples, broken)
        self.slow, self.nan_at, self.signal_at, self.evaluating = slow, nan_at, signal_at, evaluating
        self.exported, self.loss_inputs = [], []

    def loss(self, model, batch, draw):
        images, classes = batch
        time.sleep(self.slow)
        self.loss_inputs.append((draw, images))
        if draw.step == self.signal_at and int(os.environ.get("RANK", "1")) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        logits = model(images)
        loss = functional.cross_entropy(logits, classes)
        if draw.step == self.nan_at:
            loss = loss * float("nan")
        return LossOutput(loss, scalars={"accuracy": (logits.argmax(-1) == classes).float().mean()})

    def evaluate(self, model, accelerator):
        assert not model.training
        if self.evaluating is not None:
            linger(Path(self.evaluating))
        return {"test_output": model(torch.linspace(-1, 1, 8)[None].to(accelerator.device)).sum().item()}

    def export(self, model, directory, weights):
        self.exported.append(weights)
        torch.save(model.state_dict(), directory / f"{weights}.pt")


def toy_config(**changes):
    """70 samples in batches of 16: 4 steps an epoch, 16 in all."""
    settings = {"epochs": 4, "batch_size": 16, "warmup_epochs": 1.0, "lr": 1e-2, "workers": 0, "log_steps": 5}
    settings |= {"tensorboard": False, "device": "cpu"}
    return TrainingConfig(**(settings | changes))


def metrics_without_times(out):
    """The lines of metrics.jsonl without what differs between machines."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


if __name__ == "__main__":
    out, resume, training, task = sys.argv[1:]
    summary = train(
        ToyTask(**json.loads(task)), toy_config(**json.loads(training)), Path(out), resume=resume or None
    )
    if os.environ.get("RANK", "0") == "0":  # lines of two processes may get mixed up
        print(json.dumps(summary))
