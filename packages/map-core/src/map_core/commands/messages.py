"""The one sentence that each mistake on a command line or in a recipe gives."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path

from map_core.commands.command import Command
from map_core.errors import near_matches


def wrong_command_hint(config_file: str, command: Command, commands: Sequence[Command]) -> str:
    """Say which command a recipe is for, going by the first word of its name, if it is another one."""
    word = Path(config_file).stem.split("_")[0]
    for other in commands:
        if other.name.split("-")[0] == word and other.name != command.name:
            return f" ({config_file} is a recipe for the command {other.name}, not {command.name})"
    return ""


def options(config_class: type, prefix: str = "--") -> list[str]:
    """List every option of a configuration, with its sections' options."""
    found = []
    types = typing.get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        found.append(f"{prefix}{entry.name}")
        if dataclasses.is_dataclass(types[entry.name]):
            found += options(typing.cast(type, types[entry.name]), f"{prefix}{entry.name}.")
    return found


def explain(message: str, command: Command, config_file: str | None) -> str:
    """Turn a parser's message into one sentence."""
    message = one_line(message)
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        name = match[1].split("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {name!r}; settings are given as --key value"
        return (
            f"unknown option {name}; {near_matches(name, [*options(command.config), '--config', '--help'])}"
        )
    if match := re.search(r"arguments are required: (.+)", message):
        return f"missing {', '.join(f'--{name.strip()}' for name in match[1].split(','))}"
    message = re.sub(r"(?:an? )?<class '([\w.]+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r'^Parser key "([\w.]+)":', r"--\1:", message)
    return message + (f" (after reading {config_file})" if config_file else "")


def one_line(message: str) -> str:
    """Fold a message of several lines."""
    return " ".join(message.split())
