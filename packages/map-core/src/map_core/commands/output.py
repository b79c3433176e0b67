"""Output whose reader may go away: the command then ends silently."""

import io
import os
import select
import sys
from collections.abc import Callable

EXIT_READER_GONE = 1


def while_somebody_reads(run: Callable[[], int]) -> int:
    """Return the exit status that ``run`` returns, or EXIT_READER_GONE where the reader of its output goes away."""
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
        # Python flushes once more as it exits: what is still buffered is discarded, as Python's documentation of
        # SIGPIPE recommends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE


def open_missing_output() -> None:
    """Give a process that was started without stdout or stderr (``2>&-``) one that discards its output.

    Progress bars and libraries write there without asking, and the next file that is opened would get its number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def show_any_text() -> None:
    """Let stdout and stderr escape what their encoding lacks, such as names that are not UTF-8, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Flush stdout now: when Python exits, it is too late to catch what this raises."""
    if sys.stdout is not None:  # it is None where the process started without one
        sys.stdout.flush()


def reader_gone() -> bool:
    """Whether the broken pipe is stdout's, not that of a worker or a socket."""
    if sys.stdout is None:
        return False
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in watch.poll(0))
