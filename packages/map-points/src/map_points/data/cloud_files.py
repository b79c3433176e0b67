"""Clouds in single files, read by suffix."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_core.paths import expand_user
from map_points.data.clouds import FileClouds, Ignored
from map_points.data.columns import AXES, Columns, choose_columns
from map_points.data.files import files_below, require_existing, require_regular
from map_points.data.las import read_las
from map_points.data.npy import read_all, read_npy
from map_points.data.off import read_off
from map_points.data.pcd import read_pcd
from map_points.data.ply import read_ply
from map_points.data.txt import begins_like_a_cloud, read_named_txt

POINT_ARRAYS = ("points", "xyz", "pos", "coord")


def read_table(path: Path) -> np.ndarray | Columns:
    """Read columns of text, by name where the first line names them."""
    names, table = read_named_txt(path)
    return table if names is None else {name: table[:, i] for i, name in enumerate(names)}


def read_arrays(path: Path) -> np.ndarray | Columns:
    """Read an npz file's only array, or its points with arrays of channels (n) or of vectors (n, 3), such as normal.

    Raises:
        UserError: none of several arrays is (points, 3) under one of the names ``POINT_ARRAYS``.
    """
    arrays = read_all(path)
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    name = next((name for name in POINT_ARRAYS if name in arrays), None)
    if name is None or arrays[name].ndim != 2 or arrays[name].shape[1] < 3:
        raise UserError(
            f"{path} holds {len(arrays)} arrays; one must be (points, 3) and called {', '.join(POINT_ARRAYS)}"
        )
    points = arrays.pop(name)
    columns = {axis: points[:, i] for i, axis in enumerate(AXES)}
    for name, values in arrays.items():
        if values.shape == (len(points), 3):
            columns |= {f"{name}_{axis}": values[:, i] for i, axis in enumerate(AXES)}
        elif values.shape == (len(points),) and name not in AXES:  # y is a label there, not a coordinate
            columns[name] = values
    return columns


READERS: dict[str, Callable[[Path], np.ndarray | Columns]] = {
    ".npy": read_npy,
    ".npz": read_arrays,
    ".ply": read_ply,
    ".pcd": read_pcd,
    ".off": read_off,
    ".las": read_las,
    ".laz": read_las,
    ".txt": read_table,
    ".xyz": read_table,
    ".pts": read_table,
    ".csv": read_table,
}
# taken for predictions, features or lists of labels where a folder holds other clouds
RESULTS = (".csv", ".npz")


def read_cloud(path: Path, channels: Sequence[str] = (), columns: Sequence[str] | None = None) -> np.ndarray:
    """Read a cloud (points, 3 + channels) by its file's suffix.

    Columns without names in the file are x y z and others, which are left out, unless ``columns`` names them all.

    Raises:
        UserError: it cannot be read, or lacks a channel.
    """
    return choose_columns(READERS[path.suffix.lower()](path), channels, columns, path)


def file_clouds(
    paths: Iterable[Path],
    labels: np.ndarray,
    classes: tuple[str, ...],
    *,
    channels: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    scaling: Callable[[np.ndarray], np.ndarray] | None = None,
    split: str = "",
    ignored: tuple[Ignored, ...] = (),
) -> FileClouds:
    """Clouds of a split in one file each, see :func:`read_cloud`; ``scaling`` is applied to each."""
    read = partial(read_cloud, channels=tuple(channels), columns=columns)
    return FileClouds(
        labels,
        classes,
        tuple(paths),
        read,
        channels=len(channels),
        ignored=ignored,
        scaling=scaling,
        split=split,
    )


@dataclass(frozen=True)
class Listing:
    """The cloud files below a folder, sorted, and a count of all others that are not hidden."""

    clouds: tuple[Path, ...]
    ignored: tuple[Ignored, ...]


def clouds_below(folder: Path) -> Listing:
    """The cloud files below a folder; .csv and .npz files count where there are no others but texts without points.

    Beside .npz files, a .csv file counts if it begins like a cloud.

    Raises:
        UserError: there are none.
    """
    files = sorted(files_below(folder))
    readable = [file for file in files if file.suffix.lower() in READERS]
    results = [file for file in readable if file.suffix.lower() in RESULTS]
    others = [file for file in readable if file.suffix.lower() not in RESULTS]
    clouds = others if not results or any(map(_may_be_cloud, others)) else results
    if any(file.suffix.lower() == ".npz" for file in clouds):
        clouds = [file for file in clouds if _may_be_cloud(file)]
    if not clouds:
        raise UserError(f"{folder} holds no cloud files ({', '.join(READERS)})")
    kinds = Counter(file.suffix.lower() or "without extension" for file in {*files} - {*clouds})
    return Listing(tuple(clouds), tuple(Ignored(folder, kind, count) for kind, count in kinds.items()))


def _may_be_cloud(file: Path) -> bool:
    """Whether a file is not text, or one that begins like a cloud: not README.txt."""
    return READERS[file.suffix.lower()] is not read_table or begins_like_a_cloud(file)


def read_cloud_files(
    paths: str | list[str],
    *,
    channels: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    scaling: Callable[[np.ndarray], np.ndarray] | None = None,
) -> FileClouds:
    """Open cloud files without labels; a folder stands for all cloud files under it, sorted by path.

    Raises:
        UserError: a path does not exist, has another suffix, or is a folder without clouds.
    """
    files: list[Path] = []
    ignored: list[Ignored] = []
    for path in map(expand_user, [paths] if isinstance(paths, str) else paths):
        if path.is_dir():
            listing = clouds_below(path)
            files += listing.clouds
            ignored += listing.ignored
            continue
        require_existing(path, cure=f"give cloud files ({', '.join(READERS)}) or a folder of them")
        if path.suffix.lower() not in READERS:
            raise UserError(
                f"{path} ends in {path.suffix!r}; clouds are read from {', '.join(READERS)} files"
            )
        files.append(require_regular(path))
    if not files:
        raise UserError("no cloud files given")
    labels = np.zeros(len(files), dtype=np.int64)
    return file_clouds(
        files, labels, (), channels=channels, columns=columns, scaling=scaling, ignored=tuple(ignored)
    )
