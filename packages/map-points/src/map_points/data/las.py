"""LAS and LAZ files of laser scanners, through laspy."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError
from map_points.data.files import reading, regular


def read_las(path: Path) -> dict[str, np.ndarray]:
    """Read every dimension of the points by name; coordinates with scale and offset applied.

    Raises:
        UserError: laspy is not installed, or the file cannot be read.
    """
    laspy = _laspy(path)
    with reading(regular(path)):
        cloud = laspy.read(path)
        columns = {name: np.asarray(cloud[name]) for name in cloud.point_format.dimension_names}
        return columns | {axis: np.asarray(getattr(cloud, axis), dtype=np.float64) for axis in "xyz"}


def _laspy(path: Path) -> Any:
    try:
        return importlib.import_module("laspy")
    except ImportError as error:
        raise UserError(f"{path} needs laspy: pip install laspy lazrs") from error
