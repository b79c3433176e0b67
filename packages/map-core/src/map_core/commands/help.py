"""What ``--help`` of a command prints: the settings that matter, with the values that they would have."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from map_core.commands.command import Command
from map_core.commands.settings import REQUIRED, Setting, to_plain
from map_core.commands.values import expectation

INDENT, WIDTH = 6, 100


def help_text(
    program: str,
    command: Command,
    known: Mapping[str, Setting],
    values: Mapping[str, Any],
    *,
    everything: bool,
) -> str:
    """Return a command's help.

    Args:
        program: As the usage line shows it.
        command: The command.
        known: Its settings.
        values: By dotted name: what each would be, recipes and other settings considered.
        everything: Show all settings, not the essential ones alone.
    """
    plain = [setting for setting in known.values() if not setting.is_section]
    chosen = [
        setting
        for setting in plain
        if everything or "." not in setting.name or setting.name in command.essential
    ]
    first = f" {command.positional.upper()}" if command.positional else ""
    lines = [
        f"usage: {program}{first} [--config RECIPE ...] [--section.key value ...]",
        "",
        f"{command.help[:1].upper()}{command.help[1:]}.",
        "",
        "  --config RECIPE",
        *explained("A packaged recipe's name, or a YAML file; of several, the later one wins."),
    ]
    section = ""
    for setting in sorted(chosen, key=lambda setting: "." in setting.name):
        prefix = setting.name.rpartition(".")[0]
        if prefix != section and everything:
            lines += ["", f"{prefix}: {known[prefix].help}"]
        section = prefix
        lines += describe(setting, values[setting.name])
    hidden = len(plain) - len(chosen)
    notes = [f"--help-all shows {hidden} more settings."] if hidden else []
    if everything:
        notes.append(
            "A text setting takes any text, the word null too; --section '{key: null}' leaves it out."
        )
    notes.append("--print_config shows every setting resolved, as a recipe.")
    return "\n".join([*lines, "", *notes])


def describe(setting: Setting, value: Any) -> list[str]:
    """The lines on one setting: what it may be, what it would be, and what it means."""
    default = "required" if value is REQUIRED else f"default: {written(value)}"
    return [f"  --{setting.name} ({expectation(setting.kind)}; {default})", *explained(setting.help)]


def written(value: Any) -> str:
    """A value as a recipe writes it."""
    text = yaml.safe_dump(to_plain(value), default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def explained(text: str) -> list[str]:
    """A text folded below its setting."""
    return textwrap.wrap(text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
