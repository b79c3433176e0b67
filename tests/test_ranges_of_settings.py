"""Every number in every section of a command is checked before anything is read or built."""

import math
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import pytest

import map_points.cli
import map_vision.cli
from map_core.commands.settings import FORMS
from map_core.errors import UserError

PROGRAMS = {"map-vision": map_vision.cli.COMMANDS, "map-points": map_points.cli.COMMANDS}
# settings whose negative values are valid
MAY_BE_NEGATIVE = {"data.ignore_label", "data.mean"}


@cache
def sections() -> dict[tuple[str, type], Any]:
    """Each form of each section of the commands, by the section's name and the form's class."""
    by_place_and_form = {}
    for commands in PROGRAMS.values():
        for command in commands:
            for entry in fields(command.config_class):
                kind = typing.get_type_hints(command.config_class)[entry.name]
                if is_dataclass(kind):
                    for form in (*entry.metadata.get(FORMS, {}).values(), kind):
                        by_place_and_form[entry.name, form] = form
    return by_place_and_form


def number_types(kind: Any) -> Iterator[tuple[type, int]]:
    """The number types that a type allows, each with the length of the tuple around it; 0 for a plain number."""
    if kind in (int, float):
        yield kind, 0
    elif typing.get_origin(kind) is tuple:
        members = [member for member in typing.get_args(kind) if member is not ...]
        for number in {member for member in members if member in (int, float)}:
            yield number, max(len(members), 1)
    else:
        for member in typing.get_args(kind):
            yield from number_types(member)


def cases() -> Iterator[Any]:
    visited = set()
    for place, section in sections():
        for name, kind in typing.get_type_hints(section).items():
            if (section, name) in visited or name.startswith("_"):
                continue
            visited.add((section, name))
            for number, length in number_types(kind):
                invalid = [] if f"{place}.{name}" in MAY_BE_NEGATIVE else [-1]
                invalid += [math.nan] if number is float else [2**70] if "seed" in name else []
                for value in invalid:
                    case = number(value) if length == 0 else (number(value),) * length
                    yield pytest.param(place, section, name, case, id=f"{section.__module__}-{name}-{case}")


def test_the_sections_are_found():
    names = {place for place, _ in sections()}
    assert names >= {"data", "model", "objective", "training", "monitor", "evaluation", "fewshot"}
    assert len(sections()) > 15


@pytest.mark.parametrize(("place", "section", "name", "value"), list(cases()))
def test_a_number_out_of_its_range_is_refused_by_name(place, section, name, value):
    config = section()
    setattr(config, name, value)
    with pytest.raises(UserError, match=rf"\b{name}\b") as error:
        config.validate()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("place", "section"), list(sections()))
def test_defaults_are_in_their_ranges(place, section):
    config = section()
    if getattr(config, "source", None) == "auto" or hasattr(config, "shapes_per_class"):
        config.source = {"auto": "digits"}.get(config.source, config.source)
    config.validate()
