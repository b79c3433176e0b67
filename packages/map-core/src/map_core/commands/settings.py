"""The settings of a configuration: a dataclass whose fields are settings, or sections that hold some."""

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = object()  # stands for the value of a setting that the user must set
FORMS = "forms"  # metadata key of a section that comes in several forms: each by name, the default first
FORM = "method"  # the setting of such a section that selects its form


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: Dotted, such as ``training.epochs``.
        kind: Its type; a dataclass where it is a section.
        help: The text on it in its configuration's docstring.
    """

    name: str
    kind: Any
    help: str

    @property
    def is_section(self) -> bool:
        """Whether it holds other settings."""
        return dataclasses.is_dataclass(self.kind)


def collect_settings(config_class: type, prefix: str = "") -> dict[str, Setting]:
    """All settings of a configuration by dotted name, each section before its settings."""
    kinds, docs = typing.get_type_hints(config_class), field_docs(config_class)
    settings = {}
    for entry in dataclasses.fields(config_class):
        name, kind = f"{prefix}{entry.name}", kinds[entry.name]
        settings[name] = Setting(name, kind, docs.get(entry.name, ""))
        if dataclasses.is_dataclass(kind):
            settings |= collect_settings(typing.cast(type, kind), f"{name}.")
    return settings


def field_docs(config_class: type) -> dict[str, str]:
    """The text on each field from the ``Args`` in the docstrings of a dataclass and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        _, _, args = (base.__doc__ or "").partition("Args:\n")
        indent = len(args) - len(args.lstrip(" "))
        section = re.split(r"\n\s*\n", args, maxsplit=1)[0]
        entries = re.split(rf"(?m)^ {{{indent}}}(?=\w)", section)[1:] if indent else []
        for entry in entries:
            names, _, text = entry.partition(":")
            docs |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return docs


def fill(config_class: type, tree: dict[str, Any], default: Any = None) -> dict[str, Any]:
    """Complete nested values with the defaults of a configuration, or with REQUIRED where there is none.

    Args:
        config_class: The configuration, or one of its sections.
        tree: Some of its values, converted.
        default: An instance whose values override the class's defaults.
    """
    kinds, values = typing.get_type_hints(config_class), {}
    for entry in dataclasses.fields(config_class):
        value = getattr(default, entry.name) if default is not None else field_default(entry)
        if dataclasses.is_dataclass(kinds[entry.name]):
            section = None if value is REQUIRED else value
            value = fill(typing.cast(type, kinds[entry.name]), tree.get(entry.name, {}), section)
        values[entry.name] = tree.get(entry.name, value) if not isinstance(value, dict) else value
    return values


def field_default(entry: "dataclasses.Field[Any]") -> Any:
    """A field's default, or REQUIRED."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return REQUIRED if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def nest(name: str, value: Any) -> dict[str, Any]:
    """Nested values that hold one value under its dotted name."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested values of two layers; those of ``above`` win."""
    merged = dict(below)
    for name, value in above.items():
        lower = merged.get(name)
        merged[name] = merge(lower, value) if isinstance(lower, dict) and isinstance(value, dict) else value
    return merged


def instantiate(config_class: type, values: dict[str, Any]) -> Any:
    """Make a configuration from the values that :func:`fill` completed."""
    kinds = typing.get_type_hints(config_class)
    return config_class(
        **{
            name: instantiate(kinds[name], value) if dataclasses.is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )


def yaml_values(value: Any) -> Any:
    """Values as YAML writes them: null for REQUIRED, lists for tuples, text for paths."""
    if isinstance(value, dict):
        return {name: yaml_values(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [yaml_values(entry) for entry in value]
    return None if value is REQUIRED else str(value) if isinstance(value, Path) else value
