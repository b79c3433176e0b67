"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose first part may be ``~`` or ``~user``, a home folder; nothing else in it has a meaning."""
    return Path(os.path.expanduser(path))
