"""The one-sentence messages on mistakes in a command line or a recipe."""

import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from map_core.commands.command import Command
from map_core.commands.recipes import Layer
from map_core.commands.values import MismatchError, alternatives, short_repr
from map_core.errors import near_matches


def wrong_command_hint(sources: Iterable[str], command: Command, commands: Sequence[Command]) -> str:
    """Name the command that the first of some recipes is for, by the first word of its name, if that is another one."""
    for source in sources:
        word = Path(source).stem.split("_")[0]
        for other in commands:
            if other.name.split("-")[0] == word and other.name != command.name:
                return f" ({source} is a recipe for the command {other.name}, not {command.name})"
    return ""


def misfit(place: str, value: Any, error: MismatchError, kind: Any) -> str:
    """Say what a setting must be, and which of its choices the value resembles."""
    message = f"{place} must be {error}; got {'null' if value is None else short_repr(value)}"
    choices = [
        str(choice)
        for alternative in alternatives(kind)
        if typing.get_origin(alternative) is Literal
        for choice in typing.get_args(alternative)
    ]
    # without the list of all choices, which ``error`` has
    nearest, is_question, _ = near_matches(str(value), choices).partition("?")
    return f"{message}; {nearest}?" if is_question else message


def unknown_key(name: str, source: str, setting_names: Iterable[str]) -> str:
    """Say which keys of its section an unknown key resembles."""
    section, _, key = name.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in setting_names if other.rpartition(".")[0] == section]
    return f"unknown key {name} in {source}; {near_matches(key, siblings)}"


def not_a_mapping(layer: Layer, prefix: str) -> str:
    """Say that a recipe or a section of it must be a mapping."""
    place = f"section {prefix[:-1]} of {layer.source}" if prefix else layer.source
    return f"{place} must be a mapping of keys to values; got {short_repr(layer.values)}"
