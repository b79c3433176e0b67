"""Which samples a process sees at a step: a function of the seed and the step, so resuming needs no state."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from map_core.errors import UserError
from map_core.randomness import Draw, derive_seed, keyed_generator
from map_core.training.config import REFERENCE_BATCH, TrainingConfig

Shuffled = Callable[[torch.Generator], Int64[Tensor, " n"]]  # numbers of all samples, in a random order


class SampleKey(NamedTuple):
    """What determines a sample and its augmentation, besides the run's seed."""

    epoch: int
    sample: int
    repeat: int


@dataclass(frozen=True)
class RunPlan:
    """How the samples of a run are split into epochs, optimizer steps, processes and micro-steps.

    The last samples of an epoch's order that do not fill a global batch are dropped. ``shuffled`` draws that order
    for a data set that reads best in a particular one; None draws any permutation.
    """

    num_samples: int
    batch_size: int
    epochs: int
    accumulation_steps: int
    repeats: int
    seed: int
    num_processes: int
    rank: int
    shuffled: Shuffled | None = None

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        num_samples: int,
        num_processes: int,
        rank: int,
        shuffled: Shuffled | None = None,
    ) -> "RunPlan":
        """Plan a run over ``num_samples`` training samples.

        Raises:
            UserError: they do not fill one batch, or the batch does not split evenly.
        """
        config.micro_batch(num_processes, num_samples)
        if num_samples < config.batch_size:
            raise UserError(
                f"the training data holds {num_samples} samples, fewer than one batch "
                f"(training.batch_size {config.batch_size}); lower --training.batch_size or add data"
            )
        return cls(
            num_samples=num_samples,
            batch_size=config.batch_size,
            epochs=config.epochs,
            accumulation_steps=config.accumulation_steps,
            repeats=config.repeated_augmentation,
            seed=config.seed,
            num_processes=num_processes,
            rank=rank,
            shuffled=shuffled,
        )

    @property
    def micro_batch(self) -> int:
        """Samples that one process holds in one micro-step."""
        return self.batch_size // (self.num_processes * self.accumulation_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.num_samples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def last_step(self, max_steps: int | None) -> int:
        """The optimizer step at which a run stops."""
        return min(self.total_steps, max_steps or self.total_steps)

    def draw(self, step: int, micro: int) -> Draw:
        """What is random in micro-step ``micro`` of optimizer step ``step`` on this process."""
        start = (micro * self.num_processes + self.rank) * self.micro_batch
        return Draw(self.seed, step, slice(start, start + self.micro_batch), self.batch_size)

    def step_seed(self, step: int, micro: int) -> int:
        """Seed of what a model draws in micro-step ``micro`` of ``step``, such as dropout; another on every process."""
        return derive_seed(self.seed, "step", step, micro, self.rank)

    def describe(self, task: str, config: TrainingConfig, device: torch.device, start: int) -> str:
        """Say what is about to run, from step ``start``."""
        scaling = f" = {config.base_lr:g} * {config.batch_size} / {REFERENCE_BATCH}"
        absolute = " as training.lr says (training.base_lr counts where that is null)"
        return (
            f"{task}: {self.num_samples} samples, {config.epochs} epochs of {self.steps_per_epoch} steps, batch "
            f"{config.batch_size} on {self.num_processes} process(es) ({device}, {config.precision}), learning rate "
            f"{config.peak_lr:g}{scaling if config.lr is None else absolute}"
            + self._describe_remainder()
            + (f"; going on after step {start}" if start else "")
        )

    def _describe_remainder(self) -> str:
        """Say how many samples each epoch leaves out."""
        remainder = self.num_samples % self.batch_size
        return (
            f"; each epoch leaves out {remainder} samples, drawn anew, that fill no batch"
            if remainder and self.repeats == 1
            else ""
        )

    def epoch_order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The numbers of all samples in the order of ``epoch``, the same on every process."""
        generator = keyed_generator(self.seed, "order", epoch)
        if self.shuffled is None:
            return torch.randperm(self.num_samples, generator=generator)
        return self.shuffled(generator)

    def keys(self, step: int, micro: int, order: Int64[Tensor, " n"]) -> list[SampleKey]:
        """Keys of the samples that this process reads for micro-step ``micro`` of optimizer step ``step``.

        An epoch is its order with every sample ``repeats`` times in a row, cut to the usual number.

        Args:
            step: Optimizer step of the run.
            micro: Micro-step of that step.
            order: :meth:`epoch_order` of the step's epoch.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        share = self.draw(step, micro).samples  # of the global batch
        first = step_of_epoch * self.batch_size
        positions = torch.arange(first + share.start, first + share.stop)
        samples, repeats = order[positions // self.repeats].tolist(), (positions % self.repeats).tolist()
        return [SampleKey(epoch, sample, repeat) for sample, repeat in zip(samples, repeats, strict=True)]


@contextlib.contextmanager
def explain_single_samples(plan: RunPlan) -> Iterator[None]:
    """Turn batch normalisation's refusal of a single sample, in the first step, into a :class:`UserError`."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        parts = plan.num_processes * plan.accumulation_steps
        raise UserError(
            f"a micro-batch of {plan.micro_batch} sample(s) is too small for batch normalisation: "
            f"training.batch_size {plan.batch_size} is split over {plan.num_processes} process(es) times "
            f"accumulation_steps {plan.accumulation_steps}; set --training.batch_size to {2 * parts} or more, or lower "
            "--training.accumulation_steps"
        ) from error
