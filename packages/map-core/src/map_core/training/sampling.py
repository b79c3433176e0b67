"""Which samples a process sees at a step: a function of the seed and the step, so that resuming is free."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from map_core.errors import UserError
from map_core.randomness import Draw, derive_seed, keyed_generator
from map_core.training.config import REFERENCE_BATCH, TrainingConfig
from map_core.training.task import MapStyleDataset
from map_core.training.workers import Reading


class SampleKey(NamedTuple):
    """What a sample and its augmentation are a function of, beside the run's seed."""

    epoch: int
    sample: int
    repeat: int


@dataclass(frozen=True)
class RunPlan:
    """How the samples of a run fall into epochs, optimizer steps, processes and micro-steps.

    The last samples of an epoch's order that fill no global batch are dropped.
    """

    samples: int
    batch_size: int
    epochs: int
    accumulation_steps: int
    repeats: int
    seed: int
    processes: int
    process: int

    @classmethod
    def of(cls, config: TrainingConfig, samples: int, processes: int, process: int) -> "RunPlan":
        """Plan a run over ``samples`` training samples.

        Raises:
            UserError: they fill no batch, or the batch does not split evenly.
        """
        config.micro_batch(processes)
        if samples < config.batch_size:
            raise UserError(
                f"the training data holds {samples} samples, fewer than one batch "
                f"(training.batch_size {config.batch_size}); lower --training.batch_size or add data"
            )
        return cls(
            samples=samples,
            batch_size=config.batch_size,
            epochs=config.epochs,
            accumulation_steps=config.accumulation_steps,
            repeats=config.repeated_augmentation,
            seed=config.seed,
            processes=processes,
            process=process,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.samples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def draw(self, step: int, micro: int) -> Draw:
        """What is random in micro-step ``micro`` of optimizer step ``step`` on this process."""
        size = self.batch_size // (self.processes * self.accumulation_steps)
        start = (micro * self.processes + self.process) * size
        return Draw(self.seed, step, slice(start, start + size), self.batch_size)

    def describe(self, task: str, config: TrainingConfig, device: torch.device, start: int) -> str:
        """Say what is about to run, from step ``start``."""
        scaled = f" = {config.base_lr:g} * {config.batch_size} / {REFERENCE_BATCH}"
        return (
            f"{task}: {self.samples} samples, {config.epochs} epochs of {self.steps_per_epoch} steps, batch "
            f"{config.batch_size} on {self.processes} process(es) ({device}, {config.precision}), learning rate "
            f"{config.peak_lr:g}{scaled if config.lr is None else ''}"
            + self._left_out()
            + (f"; going on after step {start}" if start else "")
        )

    def _left_out(self) -> str:
        """Say how many samples an epoch cannot use."""
        rest = self.samples % self.batch_size
        return (
            f"; each epoch leaves out {rest} samples, drawn anew, that fill no batch"
            if rest and self.repeats == 1
            else ""
        )

    def epoch_keys(self, epoch: int) -> list[SampleKey]:
        """Return the order of ``epoch``: every sample ``repeats`` times in a row, cut to the usual number."""
        order = torch.randperm(self.samples, generator=keyed_generator(self.seed, "order", epoch)).tolist()
        used = self.steps_per_epoch * self.batch_size
        return [SampleKey(epoch, order[i // self.repeats], i % self.repeats) for i in range(used)]


@contextlib.contextmanager
def single_samples_told(plan: RunPlan) -> Iterator[None]:
    """Turn batch normalisation's refusal of a single sample, in the first step, into a :class:`UserError`."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        parts = plan.processes * plan.accumulation_steps
        raise UserError(
            f"a micro-batch of {plan.batch_size // parts} sample(s) is too small for batch normalisation: "
            f"training.batch_size {plan.batch_size} is split over {plan.processes} process(es) times "
            f"accumulation_steps {plan.accumulation_steps}; set --training.batch_size to {2 * parts} or more, or lower "
            "--training.accumulation_steps"
        ) from error


class RunSampler(Sampler[list[SampleKey]]):
    """Batches of keys for every micro-step of one process, from step ``start`` up to step ``stop``."""

    def __init__(self, plan: RunPlan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulation_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, keys = -1, []
        for index in range(self.start, self.stop):
            if index // self.plan.steps_per_epoch != epoch:
                epoch = index // self.plan.steps_per_epoch
                keys = self.plan.epoch_keys(epoch)
            first = index % self.plan.steps_per_epoch * self.plan.batch_size
            for micro in range(self.plan.accumulation_steps):
                samples = self.plan.draw(index, micro).samples
                yield keys[first + samples.start : first + samples.stop]


@dataclass(frozen=True)
class Failure:
    """A user's error, carried out of a loading process in place of a batch."""

    message: str


class KeyedDataset(Dataset[Any]):
    """A data set read by :class:`SampleKey`, whose randomness is a function of the seed and the key."""

    def __init__(self, data: MapStyleDataset, seed: int, reading: Reading | None = None) -> None:
        self.data, self.seed, self.reading = data, seed, reading or Reading(0)

    def __getitem__(self, key: SampleKey) -> Any:
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        seed_everything(derive_seed(self.seed, "sample", *key), cuda=False)
        try:
            with self.reading.of(key.sample):
                return self.data[key.sample]
        except UserError as error:
            return Failure(str(error))
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])  # noqa: NPY002


@dataclass(frozen=True)
class Collate:
    """Collate samples as the task does, unless one of them failed or they do not fit together."""

    function: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        try:
            return self.function(samples)
        except UserError as error:
            return Failure(str(error))


def seed_everything(seed: int, *, cuda: bool = True) -> None:
    """Seed torch's (all devices, or the CPU alone), Python's and numpy's global generators."""
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.random.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
