"""LAS and LAZ files of laser scanners, through laspy."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError
from map_points.data.files import reading, require_regular
from map_points.data.las_header import check_header


def read_las(path: Path) -> dict[str, np.ndarray]:
    """Read every dimension of the points by name; coordinates have scale and offset applied.

    Raises:
        UserError: laspy, or lazrs for a .laz file, is not installed, or the file cannot be read.
    """
    laspy = _laspy(path)
    if path.suffix.lower() == ".laz" and not laspy.LazBackend.Lazrs.is_available():
        raise UserError(f"{path} is compressed and needs lazrs: pip install lazrs")
    with reading(require_regular(path)):
        check_header(path)
        cloud = _points(laspy, path)
        columns = {name: np.asarray(cloud[name]) for name in cloud.point_format.dimension_names}
        return columns | {axis: np.asarray(getattr(cloud, axis), dtype=np.float64) for axis in "xyz"}


def _points(laspy: Any, path: Path) -> Any:
    """Read all points with laspy.

    Raises:
        ValueError: there are fewer than the header says, or the reader of LAZ, which is not Python, panicked.
    """
    try:
        # the reader that does not trust the sizes of chunks: with the other, false ones end the process
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as reader:
            cloud, point_count = reader.read(), reader.header.point_count
    except BaseException as error:  # panics of lazrs are not of class Exception
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise ValueError("it is damaged") from error
    if len(cloud.points) != point_count:
        raise ValueError(f"it claims {point_count:,} points and holds {len(cloud.points):,}")
    return cloud


def _laspy(path: Path) -> Any:
    try:
        return importlib.import_module("laspy")
    except ImportError as error:
        raise UserError(f"{path} needs laspy: pip install laspy lazrs") from error
