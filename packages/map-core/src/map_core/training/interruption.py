"""SIGTERM and Ctrl-C end a run at the end of a step, with a checkpoint; a second Ctrl-C ends it at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from map_core.training.workers import STOPPING_SIGNALS

SAME_KEYPRESS_SECONDS = 1.0  # a launcher forwards the Ctrl-C that the terminal sent to us as well
GRACE_SECONDS = 5.0  # for the main thread to react to the second Ctrl-C
END = 0  # written in place of a signal's number


class Aborted(BaseException):  # like KeyboardInterrupt, for no task to catch
    """A signal arrived during work that need not be finished."""


class Interruption:
    """Remembers, while it is entered, whether the user or the scheduler asked the run to stop.

    Attributes:
        signal: The first signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._first_keypress: float | None = None
        self._abort_on_signal = False
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._exits.enter_context(exit_on_second_interrupt())
            for number in STOPPING_SIGNALS:
                self._exits.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    @property
    def requested(self) -> bool:
        """Whether a signal arrived."""
        return self.signal is not None

    @contextlib.contextmanager
    def abortable(self, allowed: bool = True) -> Iterator[None]:
        """Raise :class:`Aborted` inside the block when a signal arrives, if that is ``allowed``."""
        self._abort_on_signal = allowed
        try:
            if allowed and self.requested:
                raise Aborted
            yield
        finally:
            self._abort_on_signal = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._first_keypress is None:
                self._first_keypress = now
            elif now - self._first_keypress > SAME_KEYPRESS_SECONDS:
                raise KeyboardInterrupt
        if self._abort_on_signal:
            self._abort_on_signal = False
            raise Aborted


@contextlib.contextmanager
def exit_on_second_interrupt(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """End the process some seconds after a second Ctrl-C, even where it hangs in code that no exception reaches.

    Python runs signal handlers between two instructions of the main thread, and so none while that waits for a dead
    process or a dead disk. The interpreter still writes the signals' numbers to a pipe, which a thread reads.
    """
    finished = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        first: float | None = None
        while (number := os.read(reader, 1)[0]) != END:
            if number != signal.SIGINT:
                continue
            now = time.monotonic()
            first = first or now
            if now - first > SAME_KEYPRESS_SECONDS and not finished.wait(grace):
                os.write(2, b"the process hangs and is ended; its checkpoints are unharmed\n")
                os._exit(128 + signal.SIGINT)

    thread = threading.Thread(target=watch, name="impatience", daemon=True)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(previous)
        os.write(writer, bytes([END]))
        thread.join()
        os.close(reader)
        os.close(writer)
