"""What a command says besides its result: once, however many processes it runs in."""

import os
import sys

from map_core.errors import visible


def is_main_process() -> bool:
    """Whether this is the only process, or the first of a launcher's, which sets RANK before anything is imported."""
    return os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """Print a line of a result on stdout, names of files in it made harmless."""
    if is_main_process():
        print(visible(message))


def note(message: str) -> None:
    """Print a remark on stderr, likewise."""
    if is_main_process():
        print(visible(message), file=sys.stderr)
