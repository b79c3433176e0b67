"""From a command's arguments to its configuration: defaults, then recipes in order, then the command line.

Between recipes and command line stand the settings that the weights named by ``--init`` are tied to.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from map_core.commands.arguments import HELP, Arguments, sort_arguments
from map_core.commands.command import Command
from map_core.commands.forms import choose_forms, forms_of, settings_of_all_forms
from map_core.commands.help import help_text
from map_core.commands.messages import misfit, no_mapping, unknown_key, wrong_command_hint
from map_core.commands.plain_yaml import read_document, read_texts
from map_core.commands.recipes import Layer, nested, recipe_layers
from map_core.commands.settings import (
    REQUIRED,
    Setting,
    fill,
    flatten,
    instantiate,
    merge,
    nest,
    settings,
    to_plain,
)
from map_core.commands.values import MismatchError, convert, convert_arguments, shown, to_text
from map_core.errors import UserError
from map_core.paths import expanded, is_file

Config = TypeVar("Config")
log = logging.getLogger(__name__)


def load_recipe(package: str, name: str, config_class: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Resolve a packaged recipe (or a file) as a command would; ``out`` need not be given.

    Args:
        package: The package that holds the recipes.
        name: A recipe's name or a file's path.
        config_class: The command's configuration.
        overrides: As on the command line, such as ``["--training.epochs=1"]``.

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
    """Turn a command's arguments into an instance of its configuration, whose ranges are not checked yet.

    Args:
        program: As the usage line shows it.
        command: What is to run.
        commands: All of the program, to recognise another one's recipe.
        recipes: The package that holds the recipes.
        arguments: What follows the command's name.

    Raises:
        UserError: an unknown recipe, option or key, a missing setting, or a value of the wrong type.
        SystemExit: the arguments asked for help or for the resolved configuration, which is printed.
    """
    known_names = settings_of_all_forms(command.config_class)
    asked = sort_arguments(with_names(arguments, command.positional), known_names)
    return resolve(program, command, commands, recipes, asked)


def resolve(
    program: str, command: Command, commands: Sequence[Command], recipes: str, asked: Arguments
) -> Any:
    """Make a command's configuration of what is asked for, on a command line or in Python; see :func:`parse`."""
    layers = [layer for name in asked.recipes for layer in recipe_layers(recipes, name)]
    above = command_line(asked, forms_of(command.config_class))
    config_class, layers = choose_forms(command.config_class, layers, above)
    known = settings(config_class)

    tree: dict[str, Any] = {}
    for layer in layers:
        hint = wrong_command_hint(layer.source, command, commands)
        tree = merge(tree, convert_layer(layer, known, hint))
    named = named_texts(layers) | {name: values[0] for name, values in asked.settings}
    given = {name: to_text(value) for name, value in named.items() if isinstance(value, str)}
    settled = convert_defaults(command.settled_values(given), known)
    tell_what_gives_way(tree, settled)
    tree = merge(tree, settled)
    for name, values in asked.settings:
        tree = merge(tree, convert_option(known[name], values, known))

    filled = fill(config_class, merge(convert_defaults(command.other_defaults(given), known), tree))
    if asked.request is not None:
        show_and_exit(asked.request, program, command, known, filled)
    if missing := [f"--{name}" for name, value in flatten(filled).items() if value is REQUIRED]:
        raise UserError(f"missing {', '.join(missing)}; add {missing[0]} VALUE")
    return instantiate(config_class, filled)


def with_names(arguments: Sequence[str], positional: str | None) -> Sequence[str]:
    """Put the name before a first argument that is given without."""
    if positional is None or not arguments or arguments[0].startswith("-"):
        return arguments
    return [f"--{positional}", *arguments]


def convert_layer(
    layer: Layer, known: Mapping[str, Setting], hint: str = "", prefix: str = ""
) -> dict[str, Any]:
    """Convert the nested values of a recipe; an empty section says nothing.

    Args:
        layer: Its source and values, or those of one of its sections.
        known: All settings.
        hint: What to add to a message.
        prefix: Of the section, such as ``training.``.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    if layer.values is None:
        return {}
    if not isinstance(layer.values, dict):
        raise UserError(no_mapping(layer, prefix) + hint)
    converted = {}
    for key, value in layer.values.items():
        name = f"{prefix}{key}"
        if name not in known:
            raise UserError(unknown_key(name, layer.source, known) + hint)
        if known[name].is_section:
            converted[key] = convert_layer(Layer(layer.source, value), known, hint, f"{name}.")
            continue
        try:
            converted[key] = convert(value, known[name].kind)
        except MismatchError as error:
            raise UserError(misfit(f"{name} in {layer.source}", value, error, known[name].kind)) from error
    return converted


def convert_option(setting: Setting, values: list[Any], known: Mapping[str, Setting]) -> dict[str, Any]:
    """Convert what the command line says of a setting; a whole section is a file or a mapping, ``{epochs: 3}``.

    Raises:
        UserError: a value of the wrong type.
    """
    place = f"--{setting.name}"
    if setting.is_section:
        return nest(
            setting.name, convert_layer(read_section(place, values[0]), known, "", f"{setting.name}.")
        )
    try:
        return nest(setting.name, convert_arguments(values, setting.kind))
    except MismatchError as error:
        value = values if len(values) > 1 else values[0]
        raise UserError(misfit(place, value, error, setting.kind)) from error


def command_line(asked: Arguments, sections: Collection[str]) -> Layer:
    """What the command line says of some sections, not converted yet; messages show its settings with dashes."""
    tree: dict[str, Any] = {}
    for name, values in asked.settings:
        if name in sections:
            tree = merge(tree, {name: read_section(f"--{name}", values[0]).values})
        elif name.partition(".")[0] in sections:
            tree = merge(tree, nest(name, values[0]))
    return Layer("", tree)


def read_section(place: str, text: str) -> Layer:
    """Read a section that the command line gives as a whole.

    Raises:
        UserError: it is neither a file nor a mapping.
    """
    file = expanded(text)
    if is_file(file):
        return Layer(text, nested(read_texts(file), text))
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(values := read_document(text), dict):
            return Layer(place, nested(values, place))
    raise UserError(f"{place} must be a YAML file or a mapping such as {{key: value}}; got {shown(text)}")


def convert_defaults(values: Mapping[str, Any], known: Mapping[str, Setting]) -> dict[str, Any]:
    """Convert a command's other defaults, by dotted name."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        try:
            tree = merge(tree, nest(name, convert(value, known[name].kind)))
        except MismatchError as error:
            place = f"{name} of what --init names"
            raise UserError(misfit(place, value, error, known[name].kind)) from error
    return tree


def tell_what_gives_way(recipes: dict[str, Any], settled: dict[str, Any]) -> None:
    """Warn of settings of recipes that those of ``--init`` replace."""
    said = flatten(recipes)
    for name, value in flatten(settled).items():
        if name in said and said[name] != value:
            theirs = "the default" if value is None else shown(value)
            log.warning(
                "%s: %s of the weights that --init names goes before %s of the recipe",
                name,
                theirs,
                shown(said[name]),
            )


def named_texts(layers: Sequence[Layer]) -> dict[str, str]:
    """What recipes say as text, by dotted name."""
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = merge(tree, layer.values or {})
    return {name: value for name, value in flatten(tree).items() if isinstance(value, str)}


def show_and_exit(
    request: str, program: str, command: Command, known: Mapping[str, Setting], filled: dict[str, Any]
) -> None:
    """Print help or the resolved configuration, and end."""
    if request == "--print_config":
        print(yaml.safe_dump(to_plain(filled), sort_keys=False), end="")
    else:
        print(help_text(program, command, known, flatten(filled), everything=request not in HELP))
    raise SystemExit(0)
