"""Arrays in .npy and .npz files: plain numbers and strings, as many as the file holds."""

import io
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from map_core.errors import UserError, in_one_line
from map_points.data.files import open_regular

LONGEST_HEADER = 16_384  # bytes; numpy itself stops at 10,000 characters
DEFLATE = 1032  # no deflated stream grows by more than this
HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read_npy(path: Path) -> np.ndarray:
    """Read an array; Python objects and structures are refused.

    Raises:
        UserError: it is not an npy file, or holds more or less than its header says.
    """
    with open_regular(path) as file:
        return _read_array(file.read, path.stat().st_size, str(path))


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of an npz file.

    Raises:
        UserError: it is not an npz file, lacks an array, or an array cannot be read.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if missing := set(names) - set(members):
            contents = in_one_line(", ".join(members)) or "nothing"
            raise UserError(f"{path} has no {', '.join(sorted(missing))}; it holds {contents}")
        size = path.stat().st_size
        return {name: _read_member(archive, members[name], size, f"{path} ({name})") for name in names}


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file.

    Raises:
        UserError: it is not an npz file, or an array cannot be read.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
    return read_npz(path, names)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int, name: str) -> np.ndarray:
    growth = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE}.get(info.compress_type, 0)
    if info.compress_size > size or info.file_size > growth * info.compress_size:
        raise UserError(
            f"{name} claims {info.file_size} bytes, more than the file can hold; download it again"
        )
    with archive.open(info) as file:
        return _read_array(file.read, info.file_size, name)


def _read_array(read: Callable[[int], bytes], size: int, name: str) -> np.ndarray:
    """Read the only array of a stream of ``size`` bytes, which its header must account for exactly."""
    head = io.BytesIO(read(LONGEST_HEADER))
    version = npy_format.read_magic(head)
    if version not in HEADERS:
        raise UserError(f"{name} has version {version} of the npy format; save plain numbers again")
    shape, fortran, dtype = HEADERS[version](head)
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise UserError(
            f"{name} holds {in_one_line(str(dtype), 40)}; only arrays of numbers or strings are read"
        )
    claimed_bytes, available_bytes = math.prod(shape) * dtype.itemsize, size - head.tell()
    if min(shape, default=0) < 0 or claimed_bytes != available_bytes:
        raise UserError(
            f"{name}: its header claims {in_one_line(str(shape), 40)} of {dtype}, {claimed_bytes} bytes, but it holds "
            f"{available_bytes}; copy or download it again"
        )
    rest = head.read()
    data = rest + read(available_bytes - len(rest))
    if read(1):  # reads to the end, where a zip archive compares its checksum
        raise UserError(f"{name} holds more than its header says; copy or download it again")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
