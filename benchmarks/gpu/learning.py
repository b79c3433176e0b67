"""Seconds of pretraining as users run it, stopped by a signal and resumed for as long: the loss must fall.

The images are synthetic (smooth shapes and gratings, kept as bytes in memory); loaders, mixed precision, optimizer,
checkpoint and resumption are those of every run.
"""

import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from report import Part
from torch import Tensor, nn

from map_core.commands.standard import configs
from map_core.objective import LossOutput
from map_core.randomness import Draw
from map_core.tasks.domain import OpenedData
from map_core.tasks.pretraining import PretrainTask
from map_core.training import TrainingConfig, train
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig

SECONDS = 25  # of each of the two runs


class SyntheticImages:
    """Synthetic images by index, mirrored at random, normalised."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, 8, 8, generator=generator)
        angle, pitch = (torch.rand(count, 1, 1, 1, generator=generator) for _ in range(2))
        along = torch.arange(size) / size
        waves = (
            math.tau
            * (3 + 12 * pitch)
            * (along * torch.cos(math.pi * angle) + along[:, None] * torch.sin(math.pi * angle))
        )
        images = 0.7 * F.interpolate(coarse, (size, size), mode="bilinear") + 0.15 * (1 + torch.sin(waves))
        self.images = (255 * images).byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index].float().div(127.5).sub(1)
        return image.flip(-1) if torch.rand(()) < 0.5 else image


def make_config(quick: bool, out: Path) -> Any:
    """The run's configuration."""
    training = TrainingConfig(
        epochs=1000,
        batch_size=128,
        lr=1e-3,
        warmup_epochs=2.0,
        precision="bf16",
        workers=max(1, min(12, (os.cpu_count() or 2) - 2)),
        log_steps=5,
        checkpoint_epochs=1000,
        evaluate_epochs=1000,
        progress=False,
        tensorboard=False,
    )
    model = ModelConfig("hybridnet_tiny_patch16_224")
    if quick:
        training = replace(training, batch_size=8, precision="fp32", workers=0, log_steps=1, lr=1e-2)
        model = replace(model, img_size=32, patch_size=8, embed_dim=32, layout="MT", num_heads=2)
    return configs(DOMAIN).pretrain(model=model, training=training, out=str(out))


class SelfStoppingTask(PretrainTask):
    """A run that sends itself SIGTERM a number of seconds after its first step or after a number of steps.

    The earlier of the two counts. The seconds begin after the first step, which may wait half a minute for kernels to
    be compiled.
    """

    deadline = math.inf

    def stop_after(self, seconds: float, steps: int) -> None:
        self.seconds, self.steps = seconds, steps
        self.done = 0

    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> LossOutput:
        if self.done == 1:
            self.deadline = time.monotonic() + self.seconds
        self.done += 1
        self.steps -= 1
        if time.monotonic() > self.deadline or self.steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch, draw)


def read_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of training in the log of a run, in its order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def main() -> int:
    part = Part(__doc__)
    out = part.out.with_suffix(".run")
    shutil.rmtree(out, ignore_errors=True)
    config = make_config(part.quick, out)
    images = SyntheticImages(16, 32) if part.quick else SyntheticImages(1024, 224)
    data = OpenedData("drawn images", (), images, None, None)
    seen, checkpoint = 0, None
    for run in ("first", "resumed"):
        task = SelfStoppingTask(DOMAIN, config, data)
        task.stop_after(SECONDS, 10 if part.quick else 10**9)
        # a checkpoint that is named must be usable: a run that started anew would look the same
        summary = train(task, config.training, out, resume=checkpoint, run_config=config)
        checkpoint = max((out / "checkpoints").glob("step_*"))
        lines = read_lines(out)[seen:]
        seen += len(lines)
        rates = [line["samples_per_second"] for line in lines[1:]]  # kernels are compiled in the first steps
        part.add(
            run=run,
            steps=f"{lines[0]['step']} to {lines[-1]['step']}",
            **{"loss at first": lines[0]["loss"], "loss at last": lines[-1]["loss"]},
            **{"images/s": statistics.median(rates) if rates else None},
        )
        if not summary["interrupted"]:
            part.fail("the run was not stopped by its signal")
    curve = [line["loss"] for line in read_lines(out)]
    tenth = max(1, len(curve) // 10)
    before, after = (sum(losses) / tenth for losses in (curve[:tenth], curve[-tenth:]))
    part.add(run="both", steps=len(curve), **{"loss at first": before, "loss at last": after})
    if not (math.isfinite(after) and after < before):
        part.fail(f"the loss did not fall: {before} to {after}")
    steps, interval = [line["step"] for line in read_lines(out)], config.training.log_steps
    if steps != list(range(interval, steps[-1] + 1, interval)):
        part.fail(f"steps were repeated or left out: {steps}")
    shutil.rmtree(out, ignore_errors=True)
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
