"""What a person sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from map_core.runs.notes import is_main_process

SECONDS_BETWEEN_LINES = 30.0
T = TypeVar("T")


def shown(items: Iterable[T], *, total: int, title: str, unit: str) -> Iterator[T]:
    """Yield ``items``, with a bar on a terminal and a line now and then elsewhere, both on the main process's stderr.

    Args:
        items: What is waited for.
        total: How many there are.
        title: What is done with them.
        unit: What one of them is.
    """
    if not is_main_process():
        yield from items
        return
    lines, last = not sys.stderr.isatty(), time.monotonic()
    with tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True, disable=lines, leave=False) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update()
            if lines and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"{title}: {unit} {done} of {total}", file=sys.stderr, flush=True)


class Progress:
    """Progress over all steps of a run, on stderr.

    Args:
        total: steps of the run.
        start: steps done before.
        shown: False shows messages only.
    """

    def __init__(self, total: int, start: int, *, shown: bool) -> None:
        self._total, self._start, self._done = total, start, start
        self._began = time.monotonic()
        self._last_line = self._began
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True, disable=not shown or self._lines
        )

    def advance(self, loss: float | None, samples_per_second: float) -> None:
        """Count one step; its loss is None until one has been read from the device."""
        self._done += 1
        said = f"{samples_per_second:.1f} samples/s"
        said = said if loss is None else f"loss {loss:.4f}, {said}"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._lines and (now - self._last_line > SECONDS_BETWEEN_LINES or self._done == self._total):
            self._last_line = now
            left = (now - self._began) / (self._done - self._start) * (self._total - self._done)
            self.say(f"step {self._done}/{self._total}, {said}, {tqdm.format_interval(left)} left")

    def say(self, message: str) -> None:
        """Print a message without disturbing the bar."""
        self._bar.write(message, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
