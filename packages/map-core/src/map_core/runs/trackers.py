"""Accelerate's trackers beside a run's own metrics: W&B, MLflow, trackio and others may fail, the run goes on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from map_core.errors import UserError, near_matches

log = logging.getLogger(__name__)
PROJECT = "map"
FOLDER = "trackers"  # of a run, for what they write on disk
NAMED: Mapping[str, Callable[[Path], dict[str, Any]]] = {  # how each is told the run's name
    "wandb": lambda run: {"name": run.name, "dir": str(run / FOLDER)},
    "trackio": lambda run: {"name": run.name},
    "mlflow": lambda run: {"run_name": run.name},
}


class Trackers:
    """Sends every line of metrics to trackers. One that fails is warned of once, and left alone from then on.

    Args:
        names: Of Accelerate's trackers.
        directory: Of the run, whose name theirs gets.
        settings: The run's whole configuration.

    Raises:
        UserError: a tracker that Accelerate does not have, or that is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, settings: Any) -> None:
        check_trackers(names)
        self._open: dict[str, GeneralTracker] = {}
        for name in names:
            tracker = self._tried(name, partial(opened, name, directory, settings))
            if tracker is not None:
                self._open[name] = tracker

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Send values as of ``step``; ``kind`` goes before their names."""
        named = {f"{kind}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._open.items()):
            self._tried(name, partial(tracker.log, named, step=step))

    def close(self) -> None:
        """End the trackers' runs."""
        for name, tracker in list(self._open.items()):
            self._tried(name, tracker.finish)

    def _tried(self, name: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # of another program, about its server, its account or its files
            self._open.pop(name, None)
            log.warning("tracker %s failed and is left alone from here on; the run goes on: %s", name, error)
            return None


def check_trackers(names: Sequence[str]) -> None:
    """Raise a :class:`UserError` for the first tracker that there is not."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = tuple(LOGGER_TYPE_TO_CLASS)
            raise UserError(f"training.trackers: {name!r} is unknown; {near_matches(name, known)}")
        if name not in {str(getattr(found, "value", found)) for found in get_available_trackers()}:
            raise UserError(f"training.trackers: {name} is not installed here; install it, or leave it out")


def opened(name: str, directory: Path, settings: Any) -> GeneralTracker:
    """A tracker with a run begun in it."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    (directory / FOLDER).mkdir(exist_ok=True)
    told = NAMED.get(name, lambda run: {})(directory)
    if kind.requires_logging_directory:
        told["logging_dir"] = directory / FOLDER
    tracker = kind(PROJECT, **told)
    tracker.start()
    tracker.store_init_configuration(flat(settings))
    return tracker


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, each a number, a truth value or a text, which every tracker takes."""
    if not isinstance(settings, Mapping):
        plain = isinstance(settings, int | float | str)
        return {prefix.removesuffix("."): settings if plain else str(settings)}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.")
    return found
