"""Paths as people write them."""

import os
from pathlib import Path

from map_core.errors import UserError


def expand_user(path: str | os.PathLike[str]) -> Path:
    """A path with a leading ``~`` or ``~user`` replaced by the home folder; nothing else in it is special."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """This user's cache folder, for files that can be made or fetched again.

    Raises:
        UserError: It is not absolute, as for a user without a home folder; files would go to the working directory.
    """
    folder = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not folder.is_absolute():
        raise UserError(f"the cache folder ({folder}) must be an absolute path: set XDG_CACHE_HOME to one")
    return folder / "map"


def is_file(path: Path) -> bool:
    """Whether a path is a file; False also for texts that are not paths, such as one of thousands of letters."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_device(path: Path) -> bool:
    """Whether a path exists and is neither a file nor a folder, such as ``/dev/stdout`` or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def fault_of_name(path: Path) -> str | None:
    """Why the system does not follow a path; None where it does, or where nothing is there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return error.strerror if isinstance(error, OSError) else str(error)
    return None
