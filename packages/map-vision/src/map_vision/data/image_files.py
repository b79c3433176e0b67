"""An image file, on disk or in memory: its kind by its name, and why it is refused."""

import io
import os
from typing import Any

from map_vision.data.formats import ARRAYS, EXTENSIONS_OF_FORMAT


class FileInMemory(io.BytesIO):
    """A file's content in memory, such as a sample of a shard; the extension of its name gives the format."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


File = str | os.PathLike[str] | FileInMemory


class RefusedImageError(Exception):
    """An image is refused; the message stands alone, without the name of an exception before it."""


def is_array(file: Any) -> bool:
    """Whether a file's name is that of an array."""
    return extension_of(file) in ARRAYS


def is_tiff(file: Any) -> bool:
    """Whether a file's name is that of a TIFF file."""
    return extension_of(file) in EXTENSIONS_OF_FORMAT["TIFF"]


def extension_of(file: Any) -> str:
    """The extension of a file's name, in lower case with its dot; "" for what has no name."""
    name = file.name if isinstance(file, FileInMemory) else file
    return os.path.splitext(name)[1].lower() if isinstance(name, str | os.PathLike) else ""
