"""Writing files that are either complete or absent, and checking beforehand that they can be written."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from map_core.errors import UserError
from map_core.paths import fault_of_name, is_device

FULL = (errno.ENOSPC, errno.EDQUOT)
UNFINISHED = ".unfinished_"  # prefix of the names of files that are being written
OPEN_FILES = ("/dev/std", "/dev/fd/", "/proc/")  # where the system names the open files of a process


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; once the block succeeds, the file is renamed to ``path``.

    What is not a regular file, such as ``/dev/stdout``, is written to directly.
    """
    if is_device(path):
        yield path
        return
    partial = path.with_name(UNFINISHED + path.name)
    partial.unlink(missing_ok=True)  # of a run that was killed, or a link that somebody planted
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Name ``path`` in the system's errors of the block that name no file, such as those of a write or a flush."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def save_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, replacing an older one."""
    with naming_file(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def save_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, replacing an older one."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, readable by whoever may read the other files of this process.

    Tied tensors are written once per name.

    Raises:
        OSError: as for any other file.
    """
    path.touch()  # safetensors hides what it writes from other users; this file has the usual rights
    mode = path.stat().st_mode
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, path, metadata={"format": "pt"})
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
    path.chmod(mode & 0o777)


def sync(path: Path) -> None:
    """Wait until the file or directory at ``path`` is on disk; some file systems refuse to sync directories."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space."""
    return isinstance(error, OSError) and error.errno in FULL


@contextlib.contextmanager
def explaining_disk_errors(action: str, *, then: str) -> Iterator[None]:
    """Report what a disk refuses in one sentence.

    Args:
        action: What the block does, such as "write FILE".
        then: What to do once there is room, or the disk works.

    Raises:
        UserError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        cure = "make room" if is_full(error) else "check that disk"
        raise UserError(f"cannot {action} ({error.strerror or error}); {cure}, then {then}") from error


def require_folder(out: Path, *, option: str = "--out") -> None:
    """Check, before any work, that results can be written into a folder, which need not exist yet.

    Args:
        out: The folder.
        option: The option that names it, for messages.

    Raises:
        UserError: they cannot.
    """
    require_name(out, option)
    require_place(out, out, option)


def require_file(out: Path, *, option: str = "--out") -> None:
    """Check, before any work, that a result can be written to a file, whose folder need not exist yet.

    Args:
        out: The file.
        option: The option that names it, for messages.

    Raises:
        UserError: it cannot.
    """
    require_name(out, option)
    if out.is_dir():
        raise UserError(f"cannot write to {out}: it is a folder; give {option} a file's name")
    # a file that a descriptor leads to cannot be replaced, and what is printed there would mix with it
    if out.is_file() and os.path.abspath(out).startswith(OPEN_FILES):
        raise UserError(f"cannot write to {out}: it leads to a file; give {option} that file's name")
    if not is_device(out):
        require_place(out.parent, out, option)
    elif not os.access(out, os.W_OK):
        raise UserError(f"cannot write to {out}: no permission; choose another {option}")


def require_name(out: Path, option: str) -> None:
    """Check that the system accepts ``out`` as a path.

    Raises:
        UserError: it is too long, or leads through a folder that may not be entered.
    """
    if (reason := fault_of_name(out)) is not None:
        raise UserError(f"cannot write to {out}: {reason}; choose another {option}")


def require_reachable(path: Path) -> None:
    """Check that the system leads to what is to be read, if there is anything.

    Raises:
        UserError: its name is too long, or it lies in a folder that may not be entered.
    """
    if (reason := fault_of_name(path)) is not None:
        raise UserError(f"cannot read {path} ({reason}): make it readable, or give another path")


def require_place(folder: Path, out: Path, option: str) -> None:
    """Check that ``folder`` can be written or created, for ``out``.

    Raises:
        UserError: it cannot.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        obstacle = "a link to nothing" if not existing.exists() else "a file"
        raise UserError(f"cannot write to {out}: {existing} is {obstacle}; choose another {option}")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {out}: no permission to read and write in {existing}; choose another {option}"
        )
