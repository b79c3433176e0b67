"""From a command's arguments to its configuration: recipe first, then what the command line overrides."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from map_core.commands.command import Command, given_options
from map_core.commands.messages import explain, wrong_command_hint
from map_core.commands.recipes import check_keys, find_recipe, read_yaml
from map_core.errors import UserError

Config = TypeVar("Config")


def load_recipe(package: str, name: str, config_class: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Resolve a packaged recipe (or a file) as a command would; ``out`` need not be given.

    Args:
        package: the package that holds the recipes.
        name: a recipe's name or a file's path.
        config_class: the command's configuration.
        overrides: as on the command line, such as ``["--training.epochs=1"]``.

    Raises:
        UserError: there is no such recipe, or it does not fit ``config_class``.
    """
    command = Command(name="recipe", help="", config=config_class, run=lambda config: None)
    arguments = ["--config", name, *overrides]
    names = {entry.name for entry in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    if "out" in names and not any(argument.split("=")[0] == "--out" for argument in overrides):
        arguments += ["--out", f"runs/{Path(name).stem}"]
    return parse(f"recipe {name}", command, (), package, arguments)


def parse(
    program: str, command: Command, commands: Sequence[Command], recipes: str, arguments: Sequence[str]
) -> Any:
    """Turn a command's arguments into an instance of its configuration.

    Raises:
        UserError: an unknown recipe, option or key, or a value of the wrong type.
    """
    parser = ArgumentParser(
        prog=program,
        usage="%(prog)s [--config RECIPE] [--section.key value ...]",
        description=command.help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a packaged recipe's name, or a YAML file")
    parser.add_class_arguments(command.config)
    config_file, others = split_config(arguments)
    if command.defaults is not None:
        parser.set_defaults(command.defaults(given_options(others)))
    with contextlib.ExitStack() as stack:
        given: list[str] = []
        if config_file is not None:
            path = stack.enter_context(find_recipe(recipes, config_file))
            hint = wrong_command_hint(config_file, command, commands)
            check_keys(read_yaml(path), command.config, config_file, hint)
            given = ["--config", str(path)]
        try:
            namespace = parser.parse_args([*given, *others])
        except ArgumentError as error:
            raise UserError(explain(str(error), command, config_file)) from error
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes
    values = build(namespace)
    return command.config(**{entry.name: values[entry.name] for entry in dataclasses.fields(command.config)})


def split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take ``--config`` out, so that overrides win wherever they stand."""
    config_file, others, rest = None, [], iter(arguments)
    for argument in rest:
        if argument == "--config":
            config_file = next(rest, None)
            if config_file is None:
                raise UserError("--config needs a recipe's name or a file")
        elif argument.startswith("--config="):
            config_file = argument.removeprefix("--config=")
        else:
            others.append(argument)
    return config_file, others
