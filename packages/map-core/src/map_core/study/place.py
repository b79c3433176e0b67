"""Where the runs of a study leave their files, and the commands that a person would type for them."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from map_core.study.definition import Settings
from map_core.study.measures import added_measures, load_measure
from map_core.study.plan import TRAINING, PlannedRun


@dataclass(frozen=True)
class Place:
    """Where a study runs.

    Attributes:
        module: Run with ``python -m``, such as ``map_vision``.
        out: Directory of all its runs.
        results: File of the results.
        run_settings: How training runs are computed there, see :mod:`~map_core.study.run_settings`.
    """

    module: str
    out: Path
    results: Path
    run_settings: Settings = field(default_factory=dict)

    def directory(self, run: str) -> Path:
        """Where the run called ``run`` leaves its files."""
        return self.out / run

    def log(self, run: str) -> Path:
        """What the run prints."""
        return self.out / f"{run}.log"

    def settings_of(self, run: PlannedRun) -> Settings:
        """How ``run`` is computed there; nothing is said to one that trains nothing, or by a program of its own."""
        return self.run_settings if run.command in TRAINING else {}


def command_line(run: PlannedRun, place: Place) -> list[str]:
    """The command that a person would type for ``run``."""
    directory = place.directory(run.key)
    here = place.settings_of(run)
    # those of the machine come last, to have the last word where the study gives the whole section
    settings = {key: value for key, value in run.settings.items() if key not in here} | here
    if run.stage in added_measures():
        init = settings.pop("init", None) or (run.after and str(place.directory(run.after)))
        return load_measure(run.stage).command(settings, seed=run.seed, init=init, out=directory)
    line = [sys.executable, "-m", place.module, run.command]
    if "recipe" in settings:
        line += ["--config", str(settings.pop("recipe"))]
    if run.after is not None:
        line += ["--init", str(place.directory(run.after))]
    if run.command == "features":
        return [*line, "--out", str(directory.with_suffix(".npz"))]
    line += ["--out", str(directory), "--resume", "auto"]
    return [*line, *(as_option(key, value) for key, value in settings.items())]


def as_option(key: str, value: Any) -> str:
    """A setting as it is typed; null is said of its section, as for a text it would be the word."""
    section, dot, name = key.rpartition(".")
    if value is None and dot:
        key, value = section, {name: None}
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
