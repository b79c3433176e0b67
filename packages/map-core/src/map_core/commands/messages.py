"""The one sentence that each mistake on a command line or in a recipe gives."""

import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from map_core.commands.command import Command
from map_core.commands.recipes import Layer
from map_core.commands.values import MismatchError, alternatives, shown
from map_core.errors import near_matches


def wrong_command_hint(source: str, command: Command, commands: Sequence[Command]) -> str:
    """Say which command a recipe is for, going by the first word of its name, if it is another one."""
    word = Path(source).stem.split("_")[0]
    for other in commands:
        if other.name.split("-")[0] == word and other.name != command.name:
            return f" ({source} is a recipe for the command {other.name}, not {command.name})"
    return ""


def misfit(place: str, value: Any, error: MismatchError, kind: Any) -> str:
    """Say what a setting must be, and which of its choices the value is like."""
    message = f"{place} must be {error}; got {'null' if value is None else shown(value)}"
    choices = [
        str(choice)
        for one in alternatives(kind)
        if typing.get_origin(one) is Literal
        for choice in typing.get_args(one)
    ]
    like = near_matches(str(value), choices) if choices else ""
    return f"{message}; {like}" if like.startswith("did you mean") else message


def unknown_key(name: str, source: str, known: Iterable[str]) -> str:
    """Say which keys of its section a key is like."""
    section, _, key = name.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    return f"unknown key {name} in {source}; {near_matches(key, beside)}"


def no_mapping(layer: Layer, prefix: str) -> str:
    """Say that a recipe or a section of it must be a mapping."""
    place = f"section {prefix[:-1]} of {layer.source}" if prefix else layer.source
    return f"{place} must be a mapping of keys to values; got {shown(layer.values)}"
