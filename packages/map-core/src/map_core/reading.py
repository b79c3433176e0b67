"""Safe reading of paths that may be anything: pipes that nobody writes to, endless devices, terabytes of zeros."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from map_core.paths import expand_user

MAX_BYTES = 2**26  # of a settings file or the like


def read_small(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a whole file, without ever blocking.

    Args:
        path: Path of the file.
        limit: Largest size in bytes.

    Raises:
        OSError: the file cannot be read, is larger, or is a folder, a pipe or a device.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size <= limit and len(content := file.read(limit + 1)) <= limit:
            return content
    raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; other kinds can be endless, or block whoever opens them.

    Raises:
        OSError: it is a folder, a pipe or a device, or cannot be opened.
    """
    with open(file_descriptor(path), "rb") as file:
        yield file


def sha256(path: Path) -> str:
    """Hash a regular file.

    Raises:
        OSError: as :func:`open_file`.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(path: str) -> str:
    """The content of a file named by a setting, wherever the file is: its SHA-256, or the name where there is none."""
    file = expand_user(path)
    return f"a file with the SHA-256 {sha256(file)}" if file.is_file() else path


def file_descriptor(path: Path) -> int:
    """Open a regular file and return its descriptor, which the caller closes; see :func:`open_file`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file", str(path))
