"""The arguments of a command, sorted: recipes, settings and requests for help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from map_core.commands.settings import Setting
from map_core.commands.values import takes_several
from map_core.errors import UserError, near_matches

HELP = ("-h", "--help")
REQUESTS = (*HELP, "--help-all", "--print_config")  # shown instead of running the command
CONFIG = "--config"


@dataclass
class Arguments:
    """What a command line asks for.

    Attributes:
        recipes: Names or files, in order.
        settings: Dotted name and arguments of each setting, in order: texts, or one value of any kind in Python.
        request: One of REQUESTS, or None.
    """

    recipes: list[str] = field(default_factory=list)
    settings: list[tuple[str, list[Any]]] = field(default_factory=list)
    request: str | None = None


# what other programs have as a setting
NO_SETTINGS = {"model.num_classes": "classes are counted from the data: their folders, or the labels"}


def sort_arguments(arguments: Sequence[str], known: Mapping[str, Setting]) -> Arguments:
    """Sort a command's arguments: ``--key value``, ``--key=value``, and ``--key a b`` where several are allowed.

    A setting that is true or false is true where its option stands alone.

    Raises:
        UserError: an unknown option, a value without option, or an option without value.
    """
    asked, rest = Arguments(), list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option in REQUESTS and not equals:
            asked.request = option
            continue
        name = option.removeprefix("--")
        if not option.startswith("-"):
            raise UserError(f"unexpected argument {option!r}; settings are given as --key value")
        if option != CONFIG and (name not in known or not option.startswith("--")):
            listed = [*(f"--{name}" for name in known), CONFIG, *REQUESTS[1:]]
            raise UserError(
                f"unknown option {option}; {NO_SETTINGS.get(name) or near_matches(option, listed)}"
            )
        values = (
            [value]
            if equals
            else take_values(rest, several=name in known and takes_several(known[name].kind))
        )
        if option == CONFIG:
            if not values or not values[0]:
                raise UserError("--config needs a recipe's name or a file")
            asked.recipes.append(values[0])
        elif not values and known[name].kind is bool:
            asked.settings.append((name, ["true"]))
        elif not values:
            raise UserError(f"{option} needs a value; write {option} VALUE (or {option}=VALUE)")
        else:
            asked.settings.append((name, values))
    return asked


def take_values(rest: list[str], *, several: bool) -> list[str]:
    """Take the value that follows an option off ``rest``, or all up to the next option."""
    taken: list[str] = []
    while rest and not rest[0].startswith("--") and (several or not taken):
        taken.append(rest.pop(0))
    return taken
