"""Reading files that may be anything: pipes that nobody writes to, devices without end, terabytes of nothing."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

MOST = 2**26  # bytes of a file of settings or the like


def read_small(path: Path, most: int = MOST) -> bytes:
    """The bytes of a file, without ever waiting for them.

    Args:
        path: Of the file.
        most: Bytes that it may have.

    Raises:
        OSError: it cannot be read, is larger, or is a folder, a pipe or a device.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size <= most and len(content := file.read(most + 1)) <= most:
            return content
    raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; others have no end, or keep whoever opens them waiting.

    Raises:
        OSError: it is a folder, a pipe or a device, or cannot be opened.
    """
    with open(file_descriptor(path), "rb") as file:
        yield file


def file_descriptor(path: Path) -> int:
    """A descriptor of a regular file, which the caller closes; see :func:`open_file`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file", str(path))
