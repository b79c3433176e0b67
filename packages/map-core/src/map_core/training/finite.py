"""A loss or gradient that is not finite never reaches the weights, and ends the run."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from map_core.errors import Diverged


class FiniteGuard:
    """Watches the loss and the norm of the gradient of every step.

    On a CPU the numbers are at hand and checked at once. On a GPU a check would wait for the device: there a flag on
    the device makes the optimizer leave the weights alone from the first broken step on, where it supports that
    (PyTorch's fused optimizers on CUDA, through the flag that the gradient scaler of mixed precision sets), and the
    numbers are checked before the next line, evaluation or checkpoint. With other optimizers, and on mps, where the
    fused ones ignore the flag, every step is checked.

    Args:
        accelerator: The run's accelerator.
        optimizer: The run's optimizer.
        rate: The setting that the learning rate comes from, for the message.
        waits: Value of the attribute; None chooses by device and optimizer.

    Attributes:
        waits: Whether every step is checked at once, which waits for the device.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        *,
        rate: str = "base_lr",
        waits: bool | None = None,
    ) -> None:
        self._accelerator, self._optimizer, self._rate = accelerator, optimizer, rate
        skips_broken_steps = bool(optimizer.defaults.get("fused"))
        self.waits = (accelerator.device.type != "cuda" or not skips_broken_steps) if waits is None else waits
        self._broken = torch.zeros((), device=accelerator.device)
        self._first = torch.zeros(4, device=accelerator.device)  # step, rate, loss, norm

    def watch(self, step: int, lr: float, scalars: dict[str, Any]) -> None:
        """Check the loss and gradient norm of ``step`` before the optimizer's step.

        Raises:
            Diverged: they are not finite, and every step is checked (``waits``).
        """
        loss, norm = scalars["loss"], scalars["grad_norm"]
        broken = torch.maximum(self._broken, 1 - (loss.isfinite() & norm.isfinite()).float())
        # filled on the device: a copy of Python's numbers would wait for it
        current = torch.stack(
            [torch.full_like(loss, step + 1), torch.full_like(loss, lr), loss, norm.to(loss)]
        )
        self._first = torch.where(self._broken > 0, self._first, current)
        self._broken = broken
        if self.waits:
            self.raise_if_broken()
        else:
            self._optimizer.found_inf = broken  # type: ignore[attr-defined]

    def raise_if_broken(self) -> None:
        """Stop the run, on every process, if any step was broken.

        Raises:
            Diverged: a step was.
        """
        broken: Tensor = self._broken
        if self._accelerator.num_processes > 1:
            broken = self._accelerator.reduce(broken)
        if not broken.item():
            return
        step, lr, loss, norm = self._first.tolist()
        elsewhere = "" if math.isnan(loss + norm) or math.isinf(loss + norm) else " on another process"
        raise Diverged(
            f"the loss is not finite at step {step:.0f}{elsewhere} (loss {loss}, gradient norm {norm}, learning "
            f"rate {lr:g}); no checkpoint is from after it; look at the samples of this step, or start another run "
            f"(--out) with a lower --training.{self._rate}, a smaller --training.clip_grad, --training.precision fp32 "
            "or, where no sample_budget sets it, a longer --training.warmup_epochs"
        )
