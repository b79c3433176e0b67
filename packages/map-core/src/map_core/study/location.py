"""Where the runs of a study leave their files, and the commands that a user would type to start them."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from map_core.study.definition import layered
from map_core.study.measures import StudySettings, added_measures, load_measure
from map_core.study.plan import TRAINING_COMMANDS, PlannedRun


@dataclass(frozen=True)
class StudyLocation:
    """Where a study runs.

    Attributes:
        module: Module to run with ``python -m``, such as ``map_vision``.
        out: Directory of all its runs.
        results: File of the results.
        run_settings: How training runs are computed on this machine, see :mod:`~map_core.study.run_settings`.
    """

    module: str
    out: Path
    results: Path
    run_settings: StudySettings = field(default_factory=dict)

    def directory(self, run: str) -> Path:
        """The directory of the run with the key ``run``."""
        return self.out / run

    def log(self, run: str) -> Path:
        """The file that receives the run's output."""
        return self.out / f"{run}.log"

    def settings_of(self, run: PlannedRun) -> StudySettings:
        """The machine's settings for ``run``; none if it does not train, or trains with its own program."""
        return self.run_settings if run.command in TRAINING_COMMANDS else {}


def command_line(run: PlannedRun, location: StudyLocation) -> list[str]:
    """The command that a user would type to start ``run``."""
    directory = location.directory(run.key)
    settings = layered(run.settings, location.settings_of(run))
    if run.stage in added_measures():
        init = settings.pop("init", None) or (run.after and str(location.directory(run.after)))
        return load_measure(run.stage).command(settings, seed=run.seed, init=init, out=directory)
    line = [sys.executable, "-m", location.module, run.command]
    if "recipe" in settings:
        line += ["--config", str(settings.pop("recipe"))]
    if run.after is not None:
        line += ["--init", str(location.directory(run.after))]
    if run.command == "features":
        return [*line, "--out", str(directory.with_suffix(".npz"))]
    line += ["--out", str(directory), "--resume", "auto"]
    return [*line, *(as_option(key, value) for key, value in settings.items())]


def as_option(key: str, value: Any) -> str:
    """A setting as an option; null is set through its section, because a text setting would take it as a word."""
    section, dot, name = key.rpartition(".")
    if value is None and dot:
        key, value = section, {name: None}
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
