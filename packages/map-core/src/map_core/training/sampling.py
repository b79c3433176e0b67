"""Which samples a process sees at a step: a function of the seed and the step, so resuming needs no state."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Sampler

from map_core.errors import UserError, abbreviate, reason
from map_core.randomness import Draw, derive_seed, keyed_generator
from map_core.training.config import REFERENCE_BATCH, TrainingConfig
from map_core.training.task import MapStyleDataset
from map_core.training.workers import CurrentSamples

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

    samples: int
    batch_size: int
    epochs: int
    accumulation_steps: int
    repeats: int
    seed: int
    processes: int
    process: int
    shuffled: Shuffled | None = None

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        samples: int,
        processes: int,
        process: int,
        shuffled: Shuffled | None = None,
    ) -> "RunPlan":
        """Plan a run over ``samples`` training samples.

        Raises:
            UserError: they do not fill one batch, or the batch does not split evenly.
        """
        config.micro_batch(processes, samples)
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
            shuffled=shuffled,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.samples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def last_step(self, max_steps: int | None) -> int:
        """The optimizer step at which a run stops."""
        return min(self.total_steps, max_steps or self.total_steps)

    def draw(self, step: int, micro: int) -> Draw:
        """What is random in micro-step ``micro`` of optimizer step ``step`` on this process."""
        micro_batch = self.batch_size // (self.processes * self.accumulation_steps)
        start = (micro * self.processes + self.process) * micro_batch
        return Draw(self.seed, step, slice(start, start + micro_batch), self.batch_size)

    def describe(self, task: str, config: TrainingConfig, device: torch.device, start: int) -> str:
        """Say what is about to run, from step ``start``."""
        scaling = f" = {config.base_lr:g} * {config.batch_size} / {REFERENCE_BATCH}"
        absolute = " as training.lr says (training.base_lr counts where that is null)"
        return (
            f"{task}: {self.samples} samples, {config.epochs} epochs of {self.steps_per_epoch} steps, batch "
            f"{config.batch_size} on {self.processes} process(es) ({device}, {config.precision}), learning rate "
            f"{config.peak_lr:g}{scaling if config.lr is None else absolute}"
            + self._describe_remainder()
            + (f"; going on after step {start}" if start else "")
        )

    def _describe_remainder(self) -> str:
        """Say how many samples each epoch leaves out."""
        remainder = self.samples % self.batch_size
        return (
            f"; each epoch leaves out {remainder} samples, drawn anew, that fill no batch"
            if remainder and self.repeats == 1
            else ""
        )

    def epoch_order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The numbers of all samples in the order of ``epoch``, the same on every process."""
        generator = keyed_generator(self.seed, "order", epoch)
        if self.shuffled is None:
            return torch.randperm(self.samples, generator=generator)
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
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.stop):
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                order = self.plan.epoch_order(epoch)
            for micro in range(self.plan.accumulation_steps):
                yield self.plan.keys(step, micro, order)


class SamplesInOrder(Sampler[SampleKey]):
    """Keys of the samples ``indices``, one after the other; ``draw`` takes the place of the epoch."""

    def __init__(self, indices: Sequence[int], draw: int) -> None:
        self.indices, self.draw = indices, draw

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleKey]:
        return (SampleKey(self.draw, int(index), 0) for index in self.indices)


@dataclass(frozen=True)
class Failure:
    """A user's error, carried out of a loading process in place of a batch."""

    message: str


class KeyedDataset(Dataset[Any]):
    """A data set indexed by :class:`SampleKey`; a sample's randomness is a function of the seed and its key."""

    def __init__(
        self, data: MapStyleDataset, seed: int, current_samples: CurrentSamples | None = None
    ) -> None:
        self.data, self.seed, self.current_samples = data, seed, current_samples or CurrentSamples(0)

    def __getitem__(self, key: SampleKey) -> Any:
        return self.__getitems__([key])[0]

    # list[SampleKey] would be checked at runtime, in tests, on an item that Python's generator draws
    def __getitems__(self, keys: list[Any]) -> list[Any]:
        """Read a batch, as PyTorch's loader asks for it; to keep the generators' states once per sample is slow."""
        with generators_restored():
            return [self._read(key) for key in keys]

    def _read(self, key: SampleKey) -> Any:
        seed_everything(derive_seed(self.seed, "sample", *key), cuda=False)
        try:
            with self.current_samples.reading(key.sample):
                return self.data[key.sample]
        except UserError as error:
            return Failure(str(error))


@dataclass(frozen=True)
class Collate:
    """Collate samples as the task does; a sample that failed, or one that does not fit the others, gives a Failure."""

    function: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        try:
            return self.function(samples)
        except UserError as error:
            return Failure(str(error))
        except (RuntimeError, ValueError) as error:
            shapes = list(dict.fromkeys(map(shapes_of, samples)))
            if len(shapes) == 1:
                raise
            return Failure(
                f"samples of shapes {abbreviate(shapes, separator=' and ')} do not fit into one batch "
                f"({reason(error)}); make their shapes equal where the data set reads them"
            )


def shapes_of(sample: Any) -> str:
    """The shapes of the tensors and arrays in a sample."""
    arrays = (leaf for leaf in tree_leaves(sample) if isinstance(leaf, Tensor | np.ndarray))
    return ", ".join(str(tuple(array.shape)) for array in arrays)


@contextlib.contextmanager
def generators_restored() -> Iterator[None]:
    """Give the CPU's global generators of torch, Python and numpy their states back after the block."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def seed_everything(seed: int, *, cuda: bool = True) -> None:
    """Seed torch's (all devices, or the CPU alone), Python's and numpy's global generators."""
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.random.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
