"""Reading samples by keys, which determine their randomness; an error comes in place of a batch."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Sampler

from map_core.errors import UserError, abbreviate, reason
from map_core.randomness import derive_seed
from map_core.training.plan import RunPlan, SampleKey
from map_core.training.task import MapStyleDataset
from map_core.training.workers import CurrentSamples


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
    """Keys of the samples ``indices``, one after the other; ``pass_number`` takes the place of the epoch."""

    def __init__(self, indices: Sequence[int], pass_number: int) -> None:
        self.indices, self.pass_number = indices, pass_number

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleKey]:
        return (SampleKey(self.pass_number, int(index), 0) for index in self.indices)


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
