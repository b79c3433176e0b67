"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose first part may be ``~`` or ``~user``, a home folder; nothing else in it has a meaning."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """Where this user's programs keep what can be had again."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "map"


def is_file(path: Path) -> bool:
    """Whether a path is of a file; a text of thousands of letters, which no file system takes, is of none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
