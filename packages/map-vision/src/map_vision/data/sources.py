"""The interface of all sources of images: labels, class names, and one decoded image at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from map_core.training.plan import Shuffled
from map_vision.data.bands import bands_of
from map_vision.data.decoding import Pixels, decode, stored_values

EMPTY: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ImageSource(ABC):
    """Images by index; ``labels`` [n] are int64, -1 or 0 if there are none; ``classes`` is () without labels."""

    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the image's path, or whatever else identifies it to a user."""

    @abstractmethod
    def image(self, index: int, mode: str) -> Pixels:
        """Decode one image to ``mode``: "RGB", "L", or, from files, one of :func:`~map_vision.data.bands.bands_mode`.

        Raises:
            UnreadableImageError: names the image.
        """

    def shuffled(self, indices: np.ndarray) -> Shuffled | None:
        """The order in which the images ``indices`` are best read, if the source has one."""
        return None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What identifies the images beyond the configuration, so that a run is resumed on the same ones."""
        return EMPTY


@dataclass(frozen=True)
class FileImages(ImageSource):
    """Images in files; ``ignored`` counts, by kind, the files beside them that were left out."""

    paths: tuple[Path | str, ...]
    ignored: tuple[tuple[str, int], ...] = ()

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def image(self, index: int, mode: str) -> Pixels:
        if (channels := bands_of(mode)) is not None:
            return stored_values(self.paths[index], channels, name=self.name(index))
        return decode(self.paths[index], mode, name=self.name(index))
