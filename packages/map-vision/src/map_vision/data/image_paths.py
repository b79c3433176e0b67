"""Image files, folders and patterns that a user lists."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.runs.files import require_reachable
from map_core.shards import has_index
from map_vision.data.folders import read_unlabelled_folder
from map_vision.data.image_files import extension_of
from map_vision.data.listing import NO_EXTENSION, is_image_name, list_folder
from map_vision.data.sources import FileImages


def read_image_paths(paths: str | Path | Sequence[str | Path]) -> FileImages:
    """Expand files, folders and patterns such as ``photos/*.jpg``, in the given order, to images without labels.

    A file is read whatever its name; a folder is searched, and a pattern expanded, for image names, sorted.
    ``~`` is the home folder.

    Raises:
        UserError: no paths, a path that does not exist or may not be read, or a folder or pattern without images.
    """
    names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not names:
        raise UserError("images is an empty list: name at least one image file, folder or pattern")
    files: list[str] = []
    ignored: Counter[str] = Counter()
    for name in names:
        images, others_ignored = _read_one(name)
        files += images
        ignored += others_ignored
    labels = np.zeros(len(files), dtype=np.int64)
    return FileImages(labels, (), tuple(files), tuple(sorted(ignored.items())))


def _read_one(name: str | Path) -> tuple[list[str], Counter[str]]:
    """Return the image files of one path or pattern, and the number of other files by extension."""
    if not str(name).strip():
        raise UserError("images has an empty path: name image files, folders or patterns")
    path = expand_user(name)
    require_reachable(path)
    if path.is_dir():
        if has_index(str(path)):
            raise UserError(
                f"{name} is a folder of shards: features and evaluate read it with --data.root {name}; to name its "
                "images one by one, unpack the tar files"
            )
        source = read_unlabelled_folder(path)
        return [*map(str, source.paths)], Counter(dict(source.ignored))
    if os.path.lexists(path):  # an existing file with brackets in its name is not a pattern
        return [str(path)], Counter()
    if not glob.has_magic(str(path)):
        raise UserError(f"image or folder {name} does not exist: correct the path")
    matches = sorted(glob.glob(str(path), recursive=True))
    images, ignored = _matching_images(matches)
    if not images:
        raise UserError(
            f"no image matches {name} ({len(matches)} other files or folders do): correct the pattern"
        )
    return images, ignored


def _matching_images(matches: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """The images among a pattern's matches; folders are searched, and no file counts twice, as it would for ``**``."""
    files: dict[str, None] = {}
    ignored: Counter[str] = Counter()
    for match in matches:
        if os.path.isdir(match):
            files |= {os.path.join(match, image): None for image in list_folder(Path(match)).images}
        elif is_image_name(match):
            files[match] = None
        else:
            ignored[extension_of(match) or NO_EXTENSION] += 1
    return list(files), ignored
