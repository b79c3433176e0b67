"""The learning rate as a function of the step alone, so that a resumed run needs no state for it."""

import math
from dataclasses import dataclass

from map_core.training.config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """A linear warmup, then half a cosine.

    Attributes:
        peak: learning rate at the end of the warmup.
        start: learning rate of step 0, where there is a warmup.
        end: learning rate at the end of the cosine.
        warmup: steps of the warmup.
        total: steps of the whole run.
    """

    peak: float
    start: float
    end: float
    warmup: int
    total: int

    @classmethod
    def of(cls, config: TrainingConfig, steps_per_epoch: int) -> "Schedule":
        """Return the schedule of a run; its start and end rates are cut to the peak where they exceed it."""
        peak = config.peak_lr
        return cls(
            peak=peak,
            start=min(config.warmup_lr, peak),
            end=min(config.min_lr, peak),
            warmup=round(config.warmup_epochs * steps_per_epoch),
            total=config.epochs * steps_per_epoch,
        )

    def __call__(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        progress = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        return self.end + (self.peak - self.end) * 0.5 * (1 + math.cos(math.pi * progress))
