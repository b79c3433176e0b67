"""What every source of images offers: labels, class names, and one decoded image at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from map_core.training.sampling import Shuffled

from .bands import bands_of
from .decoding import Pixels, decode, stored_values

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ImageSource(ABC):
    """Images by index; ``labels`` [n] are int64, zeros without classes; ``classes`` is () without labels."""

    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the image's path, or what else identifies it to a user."""

    @abstractmethod
    def image(self, index: int, mode: str) -> Pixels:
        """Decode one image to ``mode``: "RGB", "L", or, of files, that of :func:`~map_vision.data.bands.bands_mode`.

        Raises:
            UnreadableImageError: naming the image.
        """

    def shuffled(self, indices: np.ndarray) -> Shuffled | None:
        """The order in which the images ``indices`` are read best, where the source has one."""
        return None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What else makes the images what they are, so that a run is resumed on the same."""
        return NOTHING


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
