"""The contents of a folder: its images, its subfolders, and a count of everything else."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from map_core.errors import UserError
from map_vision.data.formats import ARRAYS, missing_decoder, readable_extensions
from map_vision.data.image_files import extension_of

Kind = Literal["folder", "file", "special file", "broken link"]
NO_EXTENSION = "without extension"  # in counts by extension


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Args:
        images: Paths relative to the folder, sorted; hidden files and folders are left out. Arrays (.npy) count as
            images if there are no pictures; beside pictures they are ignored.
        ignored: Number of all other files, by extension.
        repeated: Links to folders that were already listed, relative to the folder.
    """

    images: tuple[str, ...]
    ignored: Counter[str]
    repeated: tuple[str, ...]


def list_folder(folder: Path) -> Listing:
    """List ``folder`` and everything below it; each real directory once, by its own path if it lies in there.

    Raises:
        UserError: a folder that cannot be read, or a broken link that may be a folder.
    """
    images: list[str] = []
    arrays: list[str] = []
    ignored: Counter[str] = Counter()
    repeated: list[str] = []
    # a link to a parent would include everything
    visited = {_identity(parent) for parent in folder.resolve().parents}
    folders, links = [""], list[str]()
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)  # links last: their targets may lie in here
        path = folder / relative
        identity = _identity(path)
        if identity in visited:
            repeated.append(relative)
            continue
        visited.add(identity)
        prefix = relative and relative + os.sep
        for entry in scan(path):
            entry_path = prefix + entry.name
            kind, suffix = kind_of(entry), extension_of(entry.name)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(entry_path)
            elif kind == "file" and suffix in ARRAYS:
                arrays.append(entry_path)
            elif kind != "special file" and is_image_suffix(suffix):
                images.append(entry_path)  # broken links too: they are unreadable images
            else:
                ignored[kind if kind == "special file" else suffix or NO_EXTENSION] += 1
        links.sort()
    if images:
        ignored.update(map(extension_of, arrays))
    images = images or arrays
    images.sort(key=lambda path: path.replace(os.sep, "\0"))  # folder by folder: no name contains a zero byte
    return Listing(tuple(images), ignored, tuple(repeated))


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders directly in ``folder``, without hidden ones."""
    return [entry.name for entry in scan(folder) if kind_of(entry) == "folder"]


def images_directly_in(folder: Path) -> int:
    """Count the images directly in ``folder``."""
    return sum(is_image_name(entry.name) and kind_of(entry) == "file" for entry in scan(folder))


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return is_image_suffix(extension_of(name))


def is_image_suffix(suffix: str) -> bool:
    """Whether files with this extension, in lower case with its dot, count as images."""
    return suffix in readable_extensions() or suffix in ARRAYS


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden ones.

    Raises:
        UserError: names the folder and why it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise _cannot_read(folder, error) from error


def kind_of(entry: os.DirEntry[str]) -> Kind:
    """Return the kind of an entry, following links.

    Raises:
        UserError: a link that is broken or may not be followed, unless its name is that of an image.
    """
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        if not entry.is_symlink():
            return "special file"
        os.stat(entry.path)  # raises for a broken link
        return "special file"
    except OSError as error:
        if is_image_name(entry.name):
            return "broken link"
        raise UserError(
            f"cannot follow {entry.path} ({error.strerror}): is it a folder of images? correct or remove it"
        ) from error


def count_by_kind(ignored: Iterable[tuple[str, int]], limit: int = 5) -> str:
    """Format as ``"ignored: 2 .avif, 1 .heic"``, the most frequent first; '' if nothing was ignored."""
    counts = sorted(ignored, key=lambda pair: (-pair[1], pair[0]))
    if not counts:
        return ""
    parts = [f"{count} {kind}" for kind, count in counts[:limit]]
    if rest := sum(count for _, count in counts[limit:]):
        parts.append(f"{rest} of other kinds")
    advice = missing_decoder(frozenset(kind for kind, _ in counts))
    return f"ignored: {', '.join(parts)}" + (f"; {advice}" if advice else "")


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _cannot_read(folder, error) from error
    return status.st_dev, status.st_ino


def _cannot_read(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot read folder {folder} ({error.strerror}): make it readable, or remove it")
