"""What ``--help`` of a command prints: the settings that matter, with the values they would have."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from map_core.commands.command import Command
from map_core.commands.settings import REQUIRED, Setting, yaml_values
from map_core.commands.values import expectation

INDENT, WIDTH = 6, 100


def help_text(
    program: str,
    command: Command,
    settings: Mapping[str, Setting],
    values: Mapping[str, Any],
    *,
    everything: bool,
) -> str:
    """Return a command's help.

    Args:
        program: As the usage line shows it.
        command: The command.
        settings: Settings of the command.
        values: The value that each would have, by dotted name, after recipes and other settings.
        everything: Show all settings, not only the essential ones.
    """
    leaves = [setting for setting in settings.values() if not setting.is_section]
    shown_settings = [
        setting
        for setting in leaves
        if everything or "." not in setting.name or setting.name in command.essential
    ]
    positional = f" {command.positional.upper()}" if command.positional else ""
    lines = [
        f"usage: {program}{positional} [--config RECIPE ...] [--section.key value ...]",
        "",
        f"{command.help[:1].upper()}{command.help[1:]}.",
        "",
        "  --config RECIPE",
        *indented("A packaged recipe's name, or a YAML file; of several, the later one wins."),
    ]
    section = ""
    for setting in sorted(shown_settings, key=lambda setting: "." in setting.name):
        prefix = setting.name.rpartition(".")[0]
        if prefix != section and everything:
            lines += ["", f"{prefix}: {settings[prefix].help}"]
        section = prefix
        lines += describe(setting, values[setting.name])
    hidden = len(leaves) - len(shown_settings)
    notes = [f"--help-all shows {hidden} more settings."] if hidden else []
    if everything:
        notes.append(
            "A text setting takes any text, the word null too; --section '{key: null}' leaves it out."
        )
    notes.append("--print_config shows every setting resolved, as a recipe.")
    return "\n".join([*lines, "", *notes])


def describe(setting: Setting, value: Any) -> list[str]:
    """The lines on one setting: its allowed values, its value here, and what it means."""
    default = "required" if value is REQUIRED else f"default: {in_yaml(value)}"
    return [f"  --{setting.name} ({expectation(setting.kind)}; {default})", *indented(setting.help)]


def in_yaml(value: Any) -> str:
    """A value as a recipe writes it."""
    text = yaml.safe_dump(yaml_values(value), default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def indented(text: str) -> list[str]:
    """A text wrapped into indented lines, to stand below its setting."""
    return textwrap.wrap(text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
