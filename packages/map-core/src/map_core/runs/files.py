"""Writing files that are either complete or not there, and saying what keeps a file from being written."""

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

FULL = (errno.ENOSPC, errno.EDQUOT)
UNFINISHED = ".unfinished_"  # before the names of files that are being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write under, in the folder of ``path``, which it takes once the block is through.

    What is no file, such as ``/dev/stdout``, is written to as it is.
    """
    if is_device(path):
        yield path
        return
    partial = path.with_name(UNFINISHED + path.name)
    partial.unlink(missing_ok=True)  # of a run that was killed, or a link that somebody laid
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """Write a whole text file, UTF-8, in the place of another, if there is one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def save_json(path: Path, value: Any) -> None:
    """Write a whole JSON file in the place of another, if there is one."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, readable by whoever may read the other files of this process.

    Tied tensors are written once for each name.

    Raises:
        OSError: as of any other file.
    """
    path.touch()  # safetensors hides what it writes from other users; this file has the usual rights
    mode = path.stat().st_mode
    separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(separate, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode & 0o777)


def sync(path: Path) -> None:
    """Wait until the file or directory at ``path`` is on disk; some file systems refuse that of directories."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room."""
    return isinstance(error, OSError) and error.errno in FULL


def require_folder(out: Path, *, option: str = "--out") -> None:
    """Check, before the work, that results can be written into a folder, which need not exist yet.

    Args:
        out: The folder.
        option: That names it, for messages.

    Raises:
        UserError: they cannot.
    """
    require_name(out, option)
    require_place(out, out, option)


def require_file(out: Path, *, option: str = "--out") -> None:
    """Check, before the work, that a result can be written to a file, whose folder need not exist yet.

    Args:
        out: The file.
        option: That names it, for messages.

    Raises:
        UserError: it cannot.
    """
    require_name(out, option)
    if out.is_dir():
        raise UserError(f"cannot write to {out}: it is a folder; give {option} a file's name")
    if not is_device(out):
        require_place(out.parent, out, option)
    elif not os.access(out, os.W_OK):
        raise UserError(f"cannot write to {out}: no permission; choose another {option}")


def require_name(out: Path, option: str) -> None:
    """Check that the system takes ``out`` as a name.

    Raises:
        UserError: it is too long, or leads through a folder that may not be entered.
    """
    try:
        os.lstat(out)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write to {out}: {reason}; choose another {option}") from error


def require_place(folder: Path, out: Path, option: str) -> None:
    """Check that ``folder`` can be written or made, for ``out``.

    Raises:
        UserError: it cannot.
    """
    existing = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place)
    )
    if not existing.is_dir():
        what = "a link to nothing" if not existing.exists() else "a file"
        raise UserError(f"cannot write to {out}: {existing} is {what}; choose another {option}")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {out}: no permission to read and write in {existing}; choose another {option}"
        )


def is_device(path: Path) -> bool:
    """Whether a path is there and is neither file nor folder, such as ``/dev/stdout`` or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
