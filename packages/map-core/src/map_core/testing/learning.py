"""The minimum that an objective must achieve: learn one batch."""

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from map_core.objective import Objective
from map_core.randomness import Draw


def take_step(objective: Objective, optimizer: Optimizer, inputs: Any, draw: Draw) -> float:
    """Take one optimizer step and return the loss before it."""
    loss = objective(inputs, draw).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def learn_batch(objective: Objective, inputs: Any, draw: Draw, *, steps: int, lr: float) -> list[float]:
    """Train on one batch with Adam and return the loss before every step."""
    optimizer = torch.optim.Adam(objective.parameters(), lr)
    return [take_step(objective, optimizer, inputs, draw) for _ in range(steps)]
