"""Output that is read by somebody, or no longer: a command ends there without a word."""

import io
import os
import select
import sys
from collections.abc import Callable

EXIT_READER_GONE = 1


def while_somebody_reads(run: Callable[[], int]) -> int:
    """Return the exit status that ``run`` returns, or EXIT_READER_GONE where whoever reads its output stops reading."""
    try:
        try:
            status = run()
        except SystemExit:  # of --help
            flush_output()
            raise
        flush_output()
        return status
    except BrokenPipeError:
        if os.environ.get("MAP_DEBUG") or not reader_gone():
            raise
        # Python flushes once more as it exits: what it still holds goes nowhere, as Python's documentation of
        # SIGPIPE recommends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE


def open_missing_output() -> None:
    """Give a process that was started without stdout or stderr (``2>&-``) one that goes nowhere.

    Progress bars and libraries write there without asking, and the next file that is opened would get its number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def show_any_text() -> None:
    """Let stdout and stderr show what their encoding cannot, such as names that are not UTF-8, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what waits for stdout now: as Python exits it would be too late to catch what this raises."""
    if sys.stdout is not None:  # it is None where the process started without one
        sys.stdout.flush()


def reader_gone() -> bool:
    """Whether it is stdout's pipe that broke, not one of a worker or a socket."""
    if sys.stdout is None:
        return False
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in watch.poll(0))
