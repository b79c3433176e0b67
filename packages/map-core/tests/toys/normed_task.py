"""Batch normalisation in several processes, with the best weights kept: ``python normed_task.py OUT BUFFERS``."""

import faulthandler
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from toy_task import toy_config

from map_core import LossOutput
from map_core.training import Task, train
from map_core.training.task import exported_file


class NormedTask(Task):
    """Its loss falls on the first process and rises on the others; it records the buffers that it is evaluated with."""

    name = "normed"
    keep_best = "own_loss"

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.train_data = [torch.randn(4) for _ in range(64)]
        self.rank, self.buffers = int(os.environ["RANK"]), []

    def loss(self, model, batch, draw):
        return LossOutput(model(batch).square().mean())

    def evaluate(self, model, accelerator):
        own_loss = len(self.buffers) * (1.0 if self.rank else -1.0)
        self.buffers.append(model[0].running_mean.tolist() + model[0].running_var.tolist())
        return {"own_loss": own_loss}

    def export(self, model, directory, weights):
        save_file(model.state_dict(), exported_file(directory, "model", weights))


if __name__ == "__main__":
    # processes that wait for each other would do so forever
    faulthandler.dump_traceback_later(60, exit=True)
    task = NormedTask()
    summary = train(task, toy_config(ema_decay=0.5), Path(sys.argv[1]))
    (Path(sys.argv[2]) / f"{task.rank}.json").write_text(json.dumps([task.buffers, summary["own_loss"]]))
