"""Two views of each sample, for objectives that compare them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Change = Callable[[Tensor], Tensor]


def unchanged(view: Tensor) -> Tensor:
    """Return the view unchanged."""
    return view


class TwoViews(Dataset[Any]):
    """Reads every sample twice, each time with new augmentation, and stacks the inputs to (2, ...).

    Args:
        samples: Augmented samples, (inputs, label, ...) or inputs alone, which may have names.
        changes: Further transforms of the first view and of the second.
    """

    def __init__(self, samples: Any, changes: tuple[Change, Change] = (unchanged, unchanged)) -> None:
        self.samples, self.changes = samples, changes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        samples = self.samples[index], self.samples[index]
        first, second = ((sample,) if isinstance(sample, Tensor) else sample for sample in samples)
        views = [change(view) for change, view in zip(self.changes, (first[0], second[0]), strict=True)]
        return torch.stack(views), *first[1:]

    @property
    def shuffled(self) -> Any:
        """The samples' own shuffled order, where they have one."""
        return getattr(self.samples, "shuffled", None)

    @property
    def names(self) -> Sequence[str]:
        """The samples' names."""
        return self.samples.names
