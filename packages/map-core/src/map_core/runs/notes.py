"""What a command prints besides its result: once, however many processes it runs in."""

import os
import sys
from pathlib import Path

from map_core.errors import visible
from map_core.paths import is_device


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher started, which sets both variables."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """Print a line of a result on stdout, with names of files in it made harmless to a terminal."""
    if is_main_process():
        print(visible(message))


def tell_of(out: Path, message: str) -> None:
    """Print a line on a result in ``out``: on stderr if that is a device, which may be stdout itself."""
    (note if is_device(out) else tell)(message)


def note(message: str) -> None:
    """Print a remark on stderr, likewise."""
    if is_main_process():
        print(visible(message), file=sys.stderr)
