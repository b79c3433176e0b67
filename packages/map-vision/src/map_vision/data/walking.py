"""What lies in a folder: its images, its subfolders, and a count of everything else."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from map_core.errors import UserError

from .formats import ARRAYS, missing_decoder, readable_extensions

Kind = Literal["folder", "file", "special file", "broken link"]


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Args:
        images: Paths relative to the folder, sorted; hidden files and folders are left out. Arrays (.npy) are images
            where there are no pictures; beside pictures they are ignored.
        ignored: How many files of each other kind there are, by extension.
        repeated: Links to folders that were listed already, relative to the folder.
    """

    images: tuple[str, ...]
    ignored: Counter[str]
    repeated: tuple[str, ...]


def list_folder(folder: Path) -> Listing:
    """List ``folder`` and all below it, each real directory once, by its own name where it has one in there.

    Raises:
        UserError: for a folder that cannot be read, and for a link that leads nowhere and may be one.
    """
    images: list[str] = []
    arrays: list[str] = []
    ignored: Counter[str] = Counter()
    repeated: list[str] = []
    seen = {_identity(parent) for parent in folder.resolve().parents}  # a link up there would bring in all
    folders, links = [""], list[str]()
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)  # links last: what they lead to may be in here
        path = folder / relative
        identity = _identity(path)
        if identity in seen:
            repeated.append(relative)
            continue
        seen.add(identity)
        prefix = relative and relative + os.sep
        for entry in scan(path):
            inside = prefix + entry.name
            kind, ending = kind_of(entry), extension(entry.name)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(inside)
            elif kind == "file" and ending in ARRAYS:
                arrays.append(inside)
            elif kind != "special file" and is_image_ending(ending):
                images.append(inside)  # broken links, too: they are images that cannot be read
            else:
                ignored[kind if kind == "special file" else ending] += 1
        links.sort()
    if images:
        ignored.update(map(extension, arrays))
    images = images or arrays
    images.sort(key=lambda path: path.replace(os.sep, "\0"))  # folder by folder: no name has a zero in it
    return Listing(tuple(images), ignored, tuple(repeated))


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders directly below, hidden ones left out."""
    return [entry.name for entry in scan(folder) if kind_of(entry) == "folder"]


def images_directly_in(folder: Path) -> int:
    """Count the images of ``folder`` itself."""
    return sum(is_image_name(entry.name) and kind_of(entry) == "file" for entry in scan(folder))


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return is_image_ending(extension(name))


def is_image_ending(ending: str) -> bool:
    """Whether files of an :func:`extension` are taken for images."""
    return ending in readable_extensions() or ending in ARRAYS


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, hidden ones left out.

    Raises:
        UserError: naming the folder and why it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise _cannot_read(folder, error) from error


def kind_of(entry: os.DirEntry[str]) -> Kind:
    """Say what an entry is, links followed.

    Raises:
        UserError: for a link that leads nowhere, or that may not be followed, unless it is named as an image.
    """
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        if not entry.is_symlink():
            return "special file"
        os.stat(entry.path)  # raises for a link that leads nowhere
        return "special file"
    except OSError as error:
        if is_image_name(entry.name):
            return "broken link"
        raise UserError(
            f"cannot follow {entry.path} ({error.strerror}): is it a folder of images? correct or remove it"
        ) from error


def count_by_kind(ignored: Iterable[tuple[str, int]], limit: int = 5) -> str:
    """Write ``"ignored: 2 .avif, 1 .heic"``, the most frequent first; '' when nothing was ignored."""
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


def extension(name: str) -> str:
    """Return a file's extension, lower case with its dot, or "without extension"."""
    return os.path.splitext(name)[1].lower() or "without extension"
