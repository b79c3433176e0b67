"""Two views of each sample, for objectives that compare them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Change = Callable[[Tensor], Tensor]


def unchanged(view: Tensor) -> Tensor:
    """A view as it is."""
    return view


class TwoViews(Dataset[Any]):
    """Every sample read twice, each time augmented anew, its inputs stacked to (2, ...).

    Args:
        samples: Augmented samples, (inputs, label, ...); names are theirs.
        changes: What else is done to the first view, and to the second.
    """

    def __init__(self, samples: Any, changes: tuple[Change, Change] = (unchanged, unchanged)) -> None:
        self.samples, self.changes = samples, changes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        first, second = self.samples[index], self.samples[index]
        views = [change(view) for change, view in zip(self.changes, (first[0], second[0]), strict=True)]
        return torch.stack(views), *first[1:]

    @property
    def shuffled(self) -> Any:
        """The order of the samples, where they have one of their own."""
        return getattr(self.samples, "shuffled", None)

    @property
    def names(self) -> Sequence[str]:
        """The samples' names."""
        return self.samples.names
