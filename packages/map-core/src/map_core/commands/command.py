"""A command of a program, and the defaults that it takes from the run named by ``--init``."""

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError
from map_core.paths import expand_user, is_file

MISSING = object()  # stands for a section that is not there

ESSENTIAL = (  # the settings that most users set, of every program
    "data.root", "data.source", "data.num_points", "model.name", "model.img_size", "objective.method",
    "objective.mask_ratio", "training.epochs", "training.batch_size", "training.base_lr", "training.lr",
    "training.precision", "training.accumulation_steps", "training.workers", "training.device", "training.seed",
    "evaluation.batch_size", "evaluation.device",
)  # fmt: skip

# settings that follow from another one where that is set
OVERRULED_BY = dict.fromkeys(("training.epochs", "training.warmup_epochs"), "training.sample_budget")

OtherSettings = Callable[[dict[str, str]], dict[str, Any]]  # of the explicit settings, by dotted name


@dataclass(frozen=True)
class Command:
    """One command of a program.

    ``config``, ``run``, ``defaults`` and ``pinned`` may be strings ``"module:attribute"``, which are imported when the
    command is used: a program then lists its commands without importing what they need.

    Attributes:
        name: Name as typed, such as ``pretrain``.
        help: One line for the list of commands.
        config: A dataclass, or a function that makes one; fields that are dataclasses become sections
            (``--training.epochs``). A configuration and its sections may have ``validate()``, which is called
            before the command runs.
        run: What to do with an instance of ``config``.
        defaults: Maps the settings of the command line and the recipes that are not null (dotted name to text) to
            other defaults, by dotted name, such as the settings of the run named by ``--init``; recipes and the
            command line override them.
        essential: The settings that ``--help`` shows, besides those outside of any section; ``--help-all`` shows
            all of them.
        pinned: Maps them likewise to settings that override the recipes, such as those inherited from the weights
            that ``--init`` names; only the command line overrides these.
        positional: The setting whose value may come first, without its name, such as a file.
    """

    name: str
    help: str
    config: type | Callable[[], type] | str
    run: Callable[[Any], None] | str
    defaults: OtherSettings | str | None = None
    essential: Sequence[str] = ESSENTIAL
    pinned: OtherSettings | str | None = None
    positional: str | None = None

    @property
    def config_class(self) -> type:
        """The configuration's class, imported if need be."""
        config = import_target(self.config)
        return config if isinstance(config, type) else config()

    def execute(self, config: Any) -> None:
        """Run the command."""
        import_target(self.run)(config)

    def other_defaults(self, explicit: dict[str, str]) -> dict[str, Any]:
        """Defaults that depend on the explicit settings, by dotted name."""
        return {} if self.defaults is None else import_target(self.defaults)(explicit)

    def pinned_settings(self, explicit: dict[str, str]) -> dict[str, Any]:
        """Settings that recipes do not change, by dotted name."""
        return {} if self.pinned is None else import_target(self.pinned)(explicit)


def import_target(target: Any) -> Any:
    """Import what ``"module:attribute"`` names; return anything but a string as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def section_of_run(explicit: Mapping[str, str], section: str) -> dict[str, Any]:
    """One section of the settings of the run named by ``--init``, or of the run that its weights file lies in.

    Empty without ``--init``, where that run left no configuration, and where its section is empty.

    Args:
        explicit: The settings of the command line and the recipes, by dotted name.
        section: Its name.

    Raises:
        UserError: the run's configuration is not a mapping of sections, or lacks this one.
    """
    if "init" not in explicit:
        return {}
    path = expand_user(explicit["init"])
    config = (path if os.path.isdir(path) else path.parent) / "config.yaml"
    if not is_file(config):
        return {}
    values = read_yaml(config)
    settings = values.get(section, MISSING) if isinstance(values, dict) else MISSING
    if settings is not None and not isinstance(settings, dict):
        fault = "lacks the section" if settings is MISSING else "has no settings in its section"
        raise UserError(
            f"{config} {fault} {section}, so the settings of that run are not known; copy the file from the run again"
        )
    return dict(settings or {})


def as_defaults(section: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's settings by dotted name, as :attr:`Command.defaults` returns them; only those that ``kind`` has."""
    field_names = {entry.name for entry in dataclasses.fields(kind)}
    return {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in field_names
    }
