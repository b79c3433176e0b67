"""Clouds in single files, for inference: .npy, .ply and .txt."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_points.data.clouds import FileClouds
from map_points.data.config import Axis
from map_points.data.modelnet40 import read_txt
from map_points.data.ply import read_ply
from map_points.data.shapenet55 import read_npy

READERS = {".npy": read_npy, ".ply": read_ply, ".txt": read_txt}


def read_cloud(path: Path) -> np.ndarray:
    """Read a cloud by its file's ending.

    ``.npy`` holds an array (points, 3 or more columns), ``.txt`` such rows separated by commas or blanks,
    ``.ply`` a vertex element with x, y and z; columns after the third are left out.
    """
    return READERS[path.suffix.lower()](path)


def read_cloud_files(paths: str | list[str], *, up_axis: Axis = "z") -> FileClouds:
    """Open cloud files without labels; a folder stands for all cloud files under it, sorted by path.

    Raises:
        UserError: a path that does not exist, another ending, or a folder without clouds.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file())
            if not inside:
                raise UserError(f"{path} holds no cloud files ({', '.join(READERS)})")
            found += inside
        elif not path.is_file():
            raise UserError(
                f"{path} does not exist; give cloud files ({', '.join(READERS)}) or a folder of them"
            )
        elif path.suffix.lower() not in READERS:
            raise UserError(
                f"{path} ends in {path.suffix!r}; clouds are read from {', '.join(READERS)} files"
            )
        else:
            found.append(path)
    if not found:
        raise UserError("no cloud files given")
    return FileClouds(np.zeros(len(found), dtype=np.int64), (), up_axis, tuple(found), read_cloud)
