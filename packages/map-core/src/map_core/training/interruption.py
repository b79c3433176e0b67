"""SIGTERM and Ctrl-C end a run at the end of a step, with a checkpoint."""

import signal
import threading
import time
from types import FrameType
from typing import Any

SAME_KEYPRESS_SECONDS = 1.0  # a launcher forwards the Ctrl-C that the terminal sent to us as well


class Interruption:
    """Remembers, while it is entered, that the user or the scheduler asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._first_keypress: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._first_keypress is None:
            self._first_keypress = now
        elif now - self._first_keypress > SAME_KEYPRESS_SECONDS:
            raise KeyboardInterrupt
