"""A command's arguments sorted into recipes, settings and requests for help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from map_core.commands.settings import Setting
from map_core.commands.values import takes_several
from map_core.errors import UserError, near_matches

HELP, PRINT_CONFIG = ("-h", "--help"), "--print_config"
REQUESTS = (*HELP, "--help-all", PRINT_CONFIG)  # shown instead of running the command
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


# options of other programs that are not settings here
NO_SETTINGS = {"model.num_classes": "classes are counted from the data: their folders, or the labels"}


def sort_arguments(arguments: Sequence[str], settings: Mapping[str, Setting]) -> Arguments:
    """Sort a command's arguments: ``--key value``, ``--key=value``, and ``--key a b`` where several are allowed.

    The option of a Boolean setting means true where it stands alone. An empty value, as of a shell variable that is
    not set, is refused.

    Raises:
        UserError: an unknown option, a value without an option, or an option without a value.
    """
    result, remaining = Arguments(), list(arguments)
    while remaining:
        option, equals, value = remaining.pop(0).partition("=")
        if option in REQUESTS and not equals:
            result.request = option
            continue
        name = option.removeprefix("--")
        if not option.startswith("-"):
            raise UserError(f"unexpected argument {option!r}; settings are given as --key value")
        if option != CONFIG and (name not in settings or not option.startswith("--")):
            options = [*(f"--{name}" for name in settings), CONFIG, *REQUESTS[1:]]
            raise UserError(
                f"unknown option {option}; {NO_SETTINGS.get(name) or near_matches(option, options)}"
            )
        values = (
            [value]
            if equals
            else take_values(remaining, several=name in settings and takes_several(settings[name].kind))
        )
        if option == CONFIG:
            if not values or not values[0]:
                raise UserError("--config needs a recipe's name or a file")
            result.recipes.append(values[0])
        elif not values and settings[name].kind is bool:
            result.settings.append((name, ["true"]))
        elif not any(values):
            raise UserError(f"{option} needs a value; write {option} VALUE (or {option}=VALUE)")
        else:
            result.settings.append((name, values))
    return result


def take_values(remaining: list[str], *, several: bool) -> list[str]:
    """Take the value that follows an option off ``remaining``, or all values up to the next option."""
    values: list[str] = []
    while remaining and not remaining[0].startswith("--") and (several or not values):
        values.append(remaining.pop(0))
    return values
