"""A command of a program, and the defaults that it takes from the run that ``--init`` names."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError
from map_core.paths import expanded

MISSING = object()  # in place of a section that is not there

ESSENTIAL = (  # of any program's settings, those that most users set
    "data.root", "data.source", "data.num_points", "model.name", "model.img_size", "objective.method",
    "objective.mask_ratio", "training.epochs", "training.batch_size", "training.base_lr", "training.lr",
    "training.precision", "training.accumulation_steps", "training.workers", "training.device", "training.seed",
    "evaluation.batch_size", "evaluation.device",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One command of a program.

    ``config``, ``run``, ``defaults`` and ``settled`` may be given as ``"module:attribute"``, imported when the
    command is used, so that a program lists its commands without importing what they need.

    Attributes:
        name: As typed, such as ``pretrain``.
        help: One line for the list of commands.
        config: A dataclass, or a function that makes one; fields that are dataclasses become sections
            (``--training.epochs``). A configuration and its sections may have ``validate()``, which is called
            before the command runs.
        run: What to do with an instance of ``config``.
        defaults: From the settings named on the command line or in recipes (dotted name to text) to other
            defaults, by dotted name, such as those that a run named by ``--init`` was made with; recipes and the
            command line override them.
        essential: The settings that ``--help`` shows, besides those outside of any section; ``--help-all`` shows
            every one.
        settled: Likewise, settings that override those of recipes, such as what the weights that ``--init`` names
            are tied to; only the command line overrides them.
        positional: The setting whose value may come first, without its name, such as a file.
    """

    name: str
    help: str
    config: type | Callable[[], type] | str
    run: Callable[[Any], None] | str
    defaults: Callable[[dict[str, str]], dict[str, Any]] | str | None = None
    essential: Sequence[str] = ESSENTIAL
    settled: Callable[[dict[str, str]], dict[str, Any]] | str | None = None
    positional: str | None = None

    @property
    def config_class(self) -> type:
        """The configuration's class, imported if need be."""
        config = imported(self.config)
        return config if isinstance(config, type) else config()

    def execute(self, config: Any) -> None:
        """Run the command."""
        imported(self.run)(config)

    def other_defaults(self, given: dict[str, str]) -> dict[str, Any]:
        """Defaults that depend on what is given, by dotted name."""
        return {} if self.defaults is None else imported(self.defaults)(given)

    def settled_values(self, given: dict[str, str]) -> dict[str, Any]:
        """Settings that recipes do not change, by dotted name."""
        return {} if self.settled is None else imported(self.settled)(given)


def imported(target: Any) -> Any:
    """What ``"module:attribute"`` names; anything but a text as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def section_of_run(given: Mapping[str, str], section: str) -> dict[str, Any]:
    """The settings in a section of the run that ``--init`` names (or that its weights file lies in).

    Empty without ``--init``, where that run left no configuration, and where its section is empty.

    Raises:
        UserError: its configuration is no mapping of sections, or lacks this one.
    """
    if "init" not in given:
        return {}
    path = expanded(given["init"])
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    if not config.is_file():
        return {}
    values = read_yaml(config)
    found = values.get(section, MISSING) if isinstance(values, dict) else MISSING
    if found is not None and not isinstance(found, dict):
        holds = "lacks the section" if found is MISSING else "has no settings in its section"
        raise UserError(
            f"{config} {holds} {section}, so the settings of that run are not known; copy the file from the run again"
        )
    return dict(found or {})


def as_defaults(section: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a section by dotted name, as :attr:`Command.defaults` gives them; what ``kind`` lacks is left out."""
    known = {entry.name for entry in dataclasses.fields(kind)}
    return {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known
    }
