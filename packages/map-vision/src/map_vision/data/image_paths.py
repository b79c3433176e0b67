"""Image files, folders and patterns that a user names one by one."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_core.paths import expanded
from map_core.shards import has_index

from .folders import read_unlabelled_folder
from .sources import FileImages
from .walking import extension, is_image_name, list_folder


def read_image_paths(paths: str | Path | Sequence[str | Path]) -> FileImages:
    """Expand files, folders and patterns such as ``photos/*.jpg``, in their order, to images without labels.

    A file is taken whatever its name; a folder is searched, and a pattern expanded, for image names, sorted.
    ``~`` is the home folder.

    Raises:
        UserError: for no paths, a path that does not exist, and a folder or pattern without images.
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not named:
        raise UserError("images is an empty list: name at least one image file, folder or pattern")
    files: list[str] = []
    ignored: Counter[str] = Counter()
    for name in named:
        images, others = _read_one(name)
        files += images
        ignored += others
    labels = np.zeros(len(files), dtype=np.int64)
    return FileImages(labels, (), tuple(files), tuple(sorted(ignored.items())))


def _read_one(name: str | Path) -> tuple[list[str], Counter[str]]:
    """Return the image files that one path or pattern stands for, and what it left out."""
    if not str(name).strip():
        raise UserError("images has an empty path: name image files, folders or patterns")
    path = expanded(name)
    if path.is_dir():
        if has_index(str(path)):
            raise UserError(
                f"{name} is a folder of shards: features and evaluate read it with --data.root {name}; to name its "
                "images one by one, unpack the tar files"
            )
        source = read_unlabelled_folder(path)
        return [*map(str, source.paths)], Counter(dict(source.ignored))
    if os.path.lexists(path):  # brackets in the name of an existing file are no pattern
        return [str(path)], Counter()
    if not glob.has_magic(str(path)):
        raise UserError(f"image or folder {name} does not exist: correct the path")
    matches = sorted(glob.glob(str(path), recursive=True))
    files, ignored = _matching_images(matches)
    if not files:
        raise UserError(
            f"no image matches {name} ({len(matches)} other files or folders do): correct the pattern"
        )
    return files, ignored


def _matching_images(matches: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """As a shell would expand them: folders are searched; no file counts twice, as it would for ``**``."""
    files: dict[str, None] = {}
    ignored: Counter[str] = Counter()
    for match in matches:
        if os.path.isdir(match):
            files |= {os.path.join(match, image): None for image in list_folder(Path(match)).images}
        elif is_image_name(match):
            files[match] = None
        else:
            ignored[extension(match)] += 1
    return list(files), ignored
