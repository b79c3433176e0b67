"""Clouds and labels in one h5 file."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import check_layout
from map_points.data.files import MISSING_FILE, reading, require_existing, require_regular
from map_points.data.npy import DEFLATE

KEYS = ("data", "label")


def read_h5(path: Path, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``data`` (n, points, 3 or more) and ``label`` (n) or (n, 1).

    Parts of an h5 file may lie in other files; these must lie below ``root``.

    Raises:
        UserError: the file is missing or no h5 file, has other keys or shapes, or has parts outside ``root``.
    """
    require_existing(path, cure=MISSING_FILE)
    with reading(require_regular(path)):
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(
                f"{path} is not an h5 file ({in_one_line(str(error))}); copy or download it again"
            ) from error
        with file:
            if not set(KEYS) <= (keys := set(file)):
                names = in_one_line(", ".join(sorted(keys))) or "none"
                raise UserError(
                    f"{path} must have the keys data and label; it has {names}; is it another release?"
                )
            points, labels = (_read(file, key, path, root) for key in KEYS)
    if points.ndim != 3 or labels.shape not in ((len(points),), (len(points), 1)):
        raise UserError(
            f"{path}: data has shape {points.shape} and label {labels.shape}; expected (n, points, 3) and (n)"
        )
    check_layout(points.shape[1:], f"{path} (data)")
    return points, labels.reshape(-1)


def _read(file: h5py.File, key: str, path: Path, root: Path, *, follow: bool = True) -> np.ndarray:
    """Read a data set of numbers; one link into another file is followed."""
    link = file.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink) and follow:
        target = _below(path.parent / link.filename, root, f"{path}: {key}")
        with reading(require_regular(target)), h5py.File(target, "r") as other:
            return _read(other, link.path.strip("/"), target, root, follow=False)
    # a name with a slash could pass through another link
    if not isinstance(link, h5py.HardLink) or "/" in key or not isinstance(file[key], h5py.Dataset):
        raise UserError(f"{path}: {in_one_line(key)} is a link or a group; it must be a data set itself")
    _check_storage(file[key], path, root)
    return np.asarray(file[key])


def _below(target: Path, root: Path, source: str) -> Path:
    if not target.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{source} lies in {in_one_line(str(target))}, outside {root}; copy it into the folder"
        )
    return target


def _check_storage(values: Any, path: Path, root: Path) -> None:
    """Refuse data that are not an array of numbers, lie outside ``root``, or claim more than their files hold.

    Raises:
        UserError: saying which of these.
    """
    name = f"{path}: {values.name.strip('/')}"
    if values.dtype.kind not in "fiu" or values.shape is None:
        raise UserError(f"{name} holds {in_one_line(str(values.dtype), 40)}; expected numbers")
    if values.is_virtual:
        raise UserError(f"{name} is put together from other files; store the numbers themselves")
    file_bytes, stored_bytes = path.stat().st_size, values.id.get_storage_size()
    if values.external:
        files = [(_below(Path(file), root, name), offset, length) for file, offset, length in values.external]
        # HDF5 fills with zeros whatever such files lack
        stored_bytes = sum(
            min(length, max(require_regular(file).stat().st_size - offset, 0))
            for file, offset, length in files
        )
        file_bytes = stored_bytes
    claimed_bytes = math.prod(values.shape) * values.dtype.itemsize
    growth = 1 if values.chunks is None else DEFLATE  # chunks may be compressed
    chunk_bytes = math.prod(values.chunks or ()) * values.dtype.itemsize
    if claimed_bytes > growth * min(file_bytes, stored_bytes) or chunk_bytes > DEFLATE * file_bytes:
        raise UserError(
            f"{name} claims {claimed_bytes} bytes, more than is stored; copy or download it again"
        )
