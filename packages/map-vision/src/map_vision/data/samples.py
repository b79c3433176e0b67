"""The data set that loaders read: selected images of a source, transformed, with unreadable ones counted."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from map_core.errors import UserError
from map_core.training.plan import Shuffled
from map_vision.data.decoding import Pixels, UnreadableImageError
from map_vision.data.sources import ImageSource

log = logging.getLogger(__name__)
Transform = Callable[[Any], Tensor]  # from a picture, or from values [c h w]


@dataclass(frozen=True)
class SkippedImages:
    """The unreadable images that this process and those that load for it skipped: how many, and some names."""

    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        if not self.count:
            return "no unreadable images"
        more = ", ..." if self.count > len(self.names) else ""
        return f"skipped {self.count} unreadable images: {', '.join(self.names)}{more}"


class ImageSamples(Dataset[tuple[Tensor, int]]):
    """Images ``indices`` of ``source`` as (image [c h w] float32, label).

    Random transforms draw from the global generators of torch, random and numpy, and keep no state: seeding those
    determines the augmentation.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        mode: str,
        indices: np.ndarray | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.source = source
        self.transform = transform
        self.mode = mode
        self.indices = np.arange(len(source)) if indices is None else indices
        self.on_error = on_error
        # One flag per image, set by any worker process: counting needs no lock, and no image counts twice.
        self._unreadable = torch.zeros(len(source), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Float[Tensor, "c h w"], int]:
        index, image = self._readable(position)
        return self.transform(image), int(self.source.labels[index])

    @property
    def shuffled(self) -> Shuffled | None:
        """The order in which an epoch best reads the samples, if their source has one."""
        return self.source.shuffled(self.indices)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; () without labels."""
        return self.source.classes

    @property
    def labels(self) -> np.ndarray:
        """Labels [len(self)], int64."""
        return self.source.labels[self.indices]

    @property
    def names(self) -> list[str]:
        """Paths of the images, or what else identifies them, in the order of the samples."""
        return [self.source.name(index) for index in self.indices.tolist()]

    def image(self, position: int) -> Pixels:
        """Return one image as it is stored, before any transform."""
        return self._readable(position)[1]

    def with_transform(self, transform: Transform) -> "ImageSamples":
        """Return the same images under another transform; skipped images are counted jointly."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def select(self, indices: np.ndarray) -> "ImageSamples":
        """Return the images ``indices`` of the source; skipped images are counted jointly."""
        other = copy.copy(self)
        other.indices = indices
        return other

    def without_unreadable(self) -> "ImageSamples":
        """If unreadable images are skipped, decode every image once and return the readable ones.

        Names, labels and whatever is computed from the images then match, and no replacement is evaluated.

        Raises:
            UserError: no image is readable.
        """
        if self.on_error == "raise":
            return self
        with ThreadPoolExecutor() as pool:
            readable = list(pool.map(lambda index: self._try(index) is not None, self.indices.tolist()))
        if not any(readable):
            raise self._none_readable()
        return self.select(self.indices[np.array(readable, dtype=bool)])

    def require_readable(self) -> None:
        """If unreadable images are skipped, decode images until one is readable.

        Raises:
            UserError: no image is readable.
        """
        if self.on_error == "skip":
            self._readable(0)

    def skipped(self, show: int = 5) -> SkippedImages:
        """Report the unreadable images encountered so far."""
        indices = self._unreadable.nonzero().flatten().tolist()
        return SkippedImages(len(indices), tuple(self.source.name(index) for index in indices[:show]))

    def _readable(self, position: int) -> tuple[int, Pixels]:
        index = int(self.indices[position])  # beyond the end: IndexError, which ends iteration
        if self.on_error == "raise":
            return index, self.source.image(index, self.mode)
        for step in range(len(self.indices)):
            index = int(self.indices[(position + step) % len(self.indices)])
            image = self._try(index)
            if image is not None:
                return index, image
        raise self._none_readable()

    def _none_readable(self) -> UserError:
        try:
            self.source.image(int(self.indices[0]), self.mode)
            reason = self.names[0]
        except UnreadableImageError as error:
            reason = error.fact
        return UserError(
            f"none of the {len(self)} images is readable; the first: {reason}; correct the folder or files"
        )

    def _try(self, index: int) -> Pixels | None:
        if self._unreadable[index]:
            return None
        try:
            return self.source.image(index, self.mode)
        except UnreadableImageError as error:
            self._unreadable[index] = 1
            log.warning("skipped: %s", error.fact)
            return None
