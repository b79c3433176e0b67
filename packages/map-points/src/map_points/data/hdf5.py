"""Clouds and labels in one h5 file."""

from pathlib import Path

import h5py
import numpy as np

from map_core.errors import UserError
from map_points.data.clouds import existing


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``data`` (n, points, 3 or more) and ``label`` (n) or (n, 1).

    Raises:
        UserError: no such file, no h5 file, other keys or shapes.
    """
    existing(path, "the folder that holds it")
    try:
        with h5py.File(path) as file:
            keys = sorted(file)
            if not {"data", "label"} <= set(keys):
                raise UserError(
                    f"{path} must have the keys data and label; it has {', '.join(keys) or 'none'}; "
                    "is it another release?"
                )
            points, labels = np.asarray(file["data"]), np.asarray(file["label"])
    except OSError as error:
        raise UserError(f"{path} is no h5 file ({error}); copy or download it again") from error
    if points.ndim != 3 or points.shape[2] < 3 or len(points) != labels.size:
        raise UserError(
            f"{path}: data has shape {points.shape} and label {labels.shape}; expected (n, points, 3) and (n)"
        )
    return points, labels.reshape(-1)
