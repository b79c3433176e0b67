"""What every source of images offers: labels, class names, and one decoded image at a time."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from map_core.errors import UserError


class UnreadableImageError(UserError):
    """One image cannot be decoded.

    A loader worker's exception is raised again with its traceback as the message; only the sentence is kept.
    """

    def __init__(self, message: str) -> None:
        sentence = re.search(r"UnreadableImageError: (.*)\s*\Z", message)
        super().__init__(sentence[1] if sentence else message)


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
    def image(self, index: int, mode: str) -> Image.Image:
        """Decode one image to ``mode`` ("RGB" or "L").

        Raises:
            UnreadableImageError: naming the image.
        """


@dataclass(frozen=True)
class FileImages(ImageSource):
    """Images in files."""

    paths: tuple[Path | str, ...]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def image(self, index: int, mode: str) -> Image.Image:
        return decode(self.paths[index], mode, name=self.name(index))


def decode(file: object, mode: str, *, name: str) -> Image.Image:
    """Decode a path or open file; EXIF orientation is ignored, as timm does."""
    try:
        with Image.open(file) as image:  # type: ignore[arg-type]
            return image.convert(mode)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception | str) -> UnreadableImageError:
    """Say which image, why, and what to do."""
    reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
    reason = " ".join(reason.split())
    return UnreadableImageError(
        f"cannot read image {name} ({reason}): replace or remove it, or pass --data.on_error skip"
    )
