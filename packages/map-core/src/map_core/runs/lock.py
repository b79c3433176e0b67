"""A lock on a run directory: two runs in one would delete each other's checkpoints and mix their metrics."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from map_core.errors import UserError

FILE = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without locks
HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)  # by another process


class RunLock:
    """Held from :meth:`acquire` to the end of the block; the system frees it when the process ends, however it ends.

    It is a POSIX record lock, which data-loading processes do not inherit, and which NFS shares with other hosts.

    Args:
        directory: The run directory; created when the lock is acquired.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / FILE
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if not self.lost():
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def acquire(self) -> None:
        """Acquire the lock and record its holder.

        Raises:
            UserError: another process holds it, or the directory cannot be created or written.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                self._lock(descriptor)
                if os.fstat(descriptor).st_nlink:
                    self._descriptor = descriptor
                else:  # its holder removed it as we opened it
                    os.close(descriptor)
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{socket.gethostname()} {os.getpid()} {started}\n".encode(), 0)
        except OSError as error:
            raise UserError(
                f"cannot write in {self._directory}: {error.strerror} ({error.filename or self._path}); "
                "choose another --out"
            ) from error

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD_ELSEWHERE:
                holder = os.pread(descriptor, 500, 0).decode(errors="replace").split()
                os.close(descriptor)
                host, process, started = holder if len(holder) == 3 else ("unknown host", "?", "?")
                raise UserError(
                    f"{self._directory} is in use by process {process} on {host}, started {started}; wait for it, "
                    "stop it, or choose another --out"
                ) from None
            if error.errno not in UNSUPPORTED:
                os.close(descriptor)
                raise
            print(
                f"warning: the file system of {self._directory} has no locks ({error.strerror}): nothing keeps "
                "another run out of it",
                file=sys.stderr,
            )

    def lost(self) -> bool:
        """Whether the locked directory no longer exists: removed, renamed, or its disk unmounted."""
        if self._descriptor is None:
            return False
        try:
            return not os.fstat(self._descriptor).st_nlink or not self._path.exists()
        except OSError:  # such as a stale NFS handle
            return True

    def check(self) -> None:
        """Raise a :class:`UserError` if the directory is lost."""
        if self.lost():
            if self._directory.is_dir() and not self._path.exists():
                raise UserError(
                    f"{self._path}, which keeps other runs out, vanished while the run wrote {self._directory}; do not "
                    "remove that file, and continue with --resume auto, or start anew"
                )
            raise UserError(
                f"{self._directory} vanished while the run wrote it (removed, renamed, or its disk unmounted); bring "
                "it back and continue with --resume auto, or start anew"
            )
