"""What a command prints besides its result: once, however many processes it runs in."""

import os
import sys

from map_core.errors import visible


def is_main_process() -> bool:
    """Whether this is the only process, or the first that a launcher started: it sets RANK before any import."""
    return os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """Print a line of a result on stdout, with names of files in it made harmless to a terminal."""
    if is_main_process():
        print(visible(message))


def note(message: str) -> None:
    """Print a remark on stderr, likewise."""
    if is_main_process():
        print(visible(message), file=sys.stderr)
