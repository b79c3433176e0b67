"""A command of a program, and the defaults that it takes from the run that ``--init`` names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from map_core.commands.recipes import read_yaml


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        name: as typed, such as ``pretrain``.
        help: one line for the list of commands.
        config: a dataclass; fields that are dataclasses become sections (``--training.epochs``).
        run: what to do with an instance of ``config``.
        defaults: from the given options (dotted key to value) to other defaults, by dotted key, such as those
            that a run named by ``--init`` was made with; a recipe and the command line go before them.
    """

    name: str
    help: str
    config: type
    run: Callable[[Any], None]
    defaults: Callable[[dict[str, str]], dict[str, Any]] | None = None


def given_options(arguments: Sequence[str]) -> dict[str, str]:
    """Map the options of a command line, without their dashes, to their values."""
    given = {}
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            given[name] = value if equals else following
    return given


def section_of_run(given: Mapping[str, str], section: str) -> dict[str, Any]:
    """The settings in a section of the run that ``--init`` names (or that its weights file lies in).

    Empty without ``--init`` or where that run left no configuration.
    """
    if "init" not in given:
        return {}
    path = Path(given["init"])
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    return dict(read_yaml(config).get(section, {})) if config.is_file() else {}


def as_defaults(section: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a section by dotted key, as :attr:`Command.defaults` gives them; what ``kind`` lacks is left out."""
    known = {entry.name for entry in dataclasses.fields(kind)}
    return {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known
    }
