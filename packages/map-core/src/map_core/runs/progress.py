"""What a user sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from map_core.runs.notes import is_main_process

SECONDS_BETWEEN_LINES = 30.0
T = TypeVar("T")


def track(items: Iterable[T], *, total: int, title: str, unit: str) -> Iterator[T]:
    """Yield ``items``, with a bar on a terminal and a line now and then elsewhere, both on the main process's stderr.

    Args:
        items: What to iterate over.
        total: How many there are.
        title: What is done with them.
        unit: The word for one of them.
    """
    if not is_main_process():
        yield from items
        return
    prints_lines, last_line = not sys.stderr.isatty(), time.monotonic()
    with tqdm(
        total=total, desc=title, unit=unit, dynamic_ncols=True, disable=prints_lines, leave=False
    ) as bar:
        for count, item in enumerate(items, start=1):
            yield item
            bar.update()
            if prints_lines and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                print(f"{title}: {unit} {count} of {total}", file=sys.stderr, flush=True)


class Progress:
    """Progress over all steps of a run, on stderr.

    Args:
        total: the step at which the run will stop.
        start: steps done before.
        enabled: False prints messages only.
    """

    def __init__(self, total: int, start: int, *, enabled: bool) -> None:
        self._total, self._start, self._step = total, start, start
        self._start_time = time.monotonic()
        self._last_line = self._start_time
        self._prints_lines = enabled and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not enabled or self._prints_lines,
        )

    def advance(self, loss: float | None, samples_per_second: float) -> None:
        """Count one step; its loss is None until one has been read from the device."""
        self._step += 1
        status = f"{samples_per_second:.1f} samples/s"
        status = status if loss is None else f"loss {loss:.4f}, {status}"
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update()
        now = time.monotonic()
        line_is_due = now - self._last_line > SECONDS_BETWEEN_LINES or self._step == self._total
        if self._prints_lines and line_is_due:
            self._last_line = now
            seconds_per_step = (now - self._start_time) / (self._step - self._start)
            remaining = tqdm.format_interval(seconds_per_step * (self._total - self._step))
            self.say(f"step {self._step}/{self._total}, {status}, {remaining} left")

    def say(self, message: str) -> None:
        """Print a message without disturbing the bar."""
        self._bar.write(message, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
