"""Clouds in single files: .npy, .ply, and tables of text."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_core.paths import expanded
from map_points.data.clouds import FileClouds
from map_points.data.config import Axis
from map_points.data.files import existing, files_below, regular
from map_points.data.npy import read_npy
from map_points.data.ply import read_ply
from map_points.data.txt import read_txt

READERS = {
    ".npy": read_npy,
    ".ply": read_ply,
    ".txt": read_txt,
    ".xyz": read_txt,
    ".pts": read_txt,
}


def read_cloud(path: Path) -> np.ndarray:
    """Read a cloud by its file's ending.

    ``.npy`` holds an array (points, 3 or more columns), ``.txt``, ``.xyz`` and ``.pts`` such rows separated
    by commas, semicolons or blanks, ``.ply`` a vertex element with x, y and z; columns after the third are left out.
    """
    return READERS[path.suffix.lower()](path)


def read_cloud_files(paths: str | list[str], *, up_axis: Axis = "z") -> FileClouds:
    """Open cloud files without labels; a folder stands for all cloud files under it, sorted by path.

    Raises:
        UserError: a path that does not exist, another ending, or a folder without clouds.
    """
    found: list[Path] = []
    for path in map(expanded, [paths] if isinstance(paths, str) else paths):
        if path.is_dir():
            inside = sorted(file for file in files_below(path) if file.suffix.lower() in READERS)
            if not inside:
                raise UserError(f"{path} holds no cloud files ({', '.join(READERS)})")
            found += inside
            continue
        existing(path, cure=f"give cloud files ({', '.join(READERS)}) or a folder of them")
        if path.suffix.lower() not in READERS:
            raise UserError(
                f"{path} ends in {path.suffix!r}; clouds are read from {', '.join(READERS)} files"
            )
        found.append(regular(path))
    if not found:
        raise UserError("no cloud files given")
    return FileClouds(np.zeros(len(found), dtype=np.int64), (), up_axis, tuple(found), read_cloud)
