"""Accelerate's trackers beside a run's own metrics: W&B, MLflow, trackio and others may fail, and the run goes on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from map_core.errors import UserError, unknown_name

log = logging.getLogger(__name__)
PROJECT = "map"
FOLDER = "trackers"  # in the run directory, for what they write to disk
RUN_NAME_OPTIONS: Mapping[str, Callable[[Path], dict[str, Any]]] = {  # how to pass each the run's name
    "wandb": lambda run: {"name": run.name, "dir": str(run / FOLDER)},
    "trackio": lambda run: {"name": run.name},
    "mlflow": lambda run: {"run_name": run.name},
}


class Trackers:
    """Sends every line of metrics to trackers. One that fails causes one warning and is not used any more.

    Args:
        names: Names of Accelerate's trackers.
        directory: The run directory; its name is that of the trackers' runs.
        settings: The run's whole configuration.

    Raises:
        UserError: a tracker that Accelerate does not have, or that is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, settings: Any) -> None:
        check_trackers(names)
        self._open: dict[str, GeneralTracker] = {}
        for name in names:
            tracker = self._try(name, partial(open_tracker, name, directory, settings))
            if tracker is not None:
                self._open[name] = tracker

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Send the values of ``step``, with ``kind`` before their names."""
        metrics = {f"{kind}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, metrics, step=step))

    def close(self) -> None:
        """End the trackers' runs."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)

    def _try(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # raised by another program, about its server, its account or its files
            self._open.pop(name, None)
            log.warning("tracker %s failed and is left alone from here on; the run goes on: %s", name, error)
            return None


def check_trackers(names: Sequence[str]) -> None:
    """Raise a :class:`UserError` for the first tracker that does not exist or is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            all_names = tuple(LOGGER_TYPE_TO_CLASS)
            raise unknown_name("training.trackers", name, all_names)
        if name not in {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}:
            raise UserError(f"training.trackers: {name} is not installed here; install it, or leave it out")


def open_tracker(name: str, directory: Path, settings: Any) -> GeneralTracker:
    """Make a tracker and begin a run in it."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    (directory / FOLDER).mkdir(exist_ok=True)
    options = RUN_NAME_OPTIONS.get(name, lambda run: {})(directory)
    if kind.requires_logging_directory:
        options["logging_dir"] = directory / FOLDER
    tracker = kind(PROJECT, **options)
    tracker.start()
    tracker.store_init_configuration(flatten_settings(settings))
    return tracker


def flatten_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, each a number, a truth value or a text, which every tracker accepts."""
    if not isinstance(settings, Mapping):
        plain = isinstance(settings, int | float | str)
        return {prefix.removesuffix("."): settings if plain else str(settings)}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten_settings(value, f"{prefix}{key}.")
    return flat
