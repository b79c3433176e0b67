"""Every number of every section that a command has is checked before anything is read or built."""

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
# numbers below 0 that mean something
MAY_BE_NEGATIVE = {"data.ignore_label", "data.mean", "data.holdout_seed", "data.subset_seed"}


@cache
def sections() -> dict[tuple[str, type], Any]:
    """Each section of each command, by its place and class, with the settings that are checked."""
    found = {}
    for commands in PROGRAMS.values():
        for command in commands:
            for entry in fields(command.config_class):
                kind = typing.get_type_hints(command.config_class)[entry.name]
                if is_dataclass(kind):
                    for form in (*entry.metadata.get(FORMS, {}).values(), kind):
                        found[entry.name, form] = form
    return found


def numbers_of(kind: Any) -> Iterator[tuple[type, int]]:
    """The numbers that a type allows, each with the length of the tuple that holds it; 0 for a plain one."""
    if kind in (int, float):
        yield kind, 0
    elif typing.get_origin(kind) is tuple:
        members = [member for member in typing.get_args(kind) if member is not ...]
        for number in {member for member in members if member in (int, float)}:
            yield number, max(len(members), 1)
    else:
        for member in typing.get_args(kind):
            yield from numbers_of(member)


def cases() -> Iterator[Any]:
    seen = set()
    for place, section in sections():
        for name, kind in typing.get_type_hints(section).items():
            if (section, name) in seen or name.startswith("_"):
                continue
            seen.add((section, name))
            for number, length in numbers_of(kind):
                wrong = [] if f"{place}.{name}" in MAY_BE_NEGATIVE else [-1]
                wrong += [math.nan] if number is float else [2**70] if "seed" in name else []
                for value in wrong:
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
    with pytest.raises(UserError, match=rf"\b{name}\b") as refused:
        config.validate()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("place", "section"), list(sections()))
def test_defaults_are_in_their_ranges(place, section):
    config = section()
    if getattr(config, "source", None) == "auto" or hasattr(config, "shapes_per_class"):
        config.source = {"auto": "digits"}.get(config.source, config.source)
    config.validate()
