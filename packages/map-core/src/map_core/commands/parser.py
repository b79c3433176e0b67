"""From a command's arguments to its configuration: defaults, then recipes in order, then the command line.

Between the recipes and the command line come the settings inherited from the weights that ``--init`` names.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml

from map_core.commands.arguments import HELP, PRINT_CONFIG, Arguments, sort_arguments
from map_core.commands.command import OVERRULED_BY, Command, OtherSettings
from map_core.commands.forms import choose_forms, forms_of, settings_of_all_forms
from map_core.commands.help import help_text
from map_core.commands.messages import misfit, not_a_mapping, unknown_key, wrong_command_hint
from map_core.commands.plain_yaml import read_document, read_texts
from map_core.commands.recipes import Layer, nest_dotted_keys, recipe_layers
from map_core.commands.settings import (
    REQUIRED,
    Setting,
    collect_settings,
    fill,
    flatten,
    instantiate,
    merge,
    nest,
    yaml_values,
)
from map_core.commands.values import MismatchError, convert, convert_arguments, short_repr
from map_core.errors import UserError
from map_core.paths import expand_user, is_file

Config = TypeVar("Config")
log = logging.getLogger(__name__)


def load_recipe(
    package: str,
    name: str,
    config_class: type[Config],
    overrides: Sequence[str] = (),
    *,
    defaults: OtherSettings | None = None,
    pinned: OtherSettings | None = None,
) -> Config:
    """Resolve a packaged recipe (or a file) as a command would; ``out`` may be left out.

    Args:
        package: The package that holds the recipes.
        name: A recipe's name or a file's path.
        config_class: The command's configuration.
        overrides: Options as on the command line, such as ``["--training.epochs=1"]``.
        defaults, pinned: As those of a :class:`~map_core.commands.command.Command`.

    Raises:
        UserError: there is no such recipe, or it does not fit ``config_class``.
    """
    command = Command(
        name="recipe", help="", config=config_class, run=lambda config: None, defaults=defaults, pinned=pinned
    )
    arguments = ["--config", name, *overrides]
    names = {entry.name for entry in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    if "out" in names and not any(argument.split("=")[0] == "--out" for argument in overrides):
        arguments += ["--out", f"runs/{Path(name).stem}"]
    return parse(f"recipe {name}", command, (), package, arguments)


def parse(
    program: str, command: Command, commands: Sequence[Command], recipes: str, arguments: Sequence[str]
) -> Any:
    """Turn a command's arguments into an instance of its configuration, without checking ranges yet.

    Args:
        program: As the usage line shows it.
        command: The command to run.
        commands: All commands of the program, to recognise a recipe of another one.
        recipes: The package that holds the recipes.
        arguments: What follows the command's name.

    Raises:
        UserError: an unknown recipe, option or key, a missing setting, or a value of the wrong type.
        SystemExit: the arguments asked for help or for the resolved configuration, which is printed.
    """
    settings = settings_of_all_forms(command.config_class)
    sorted_arguments = sort_arguments(name_positional(arguments, command.positional), settings)
    return resolve(program, command, commands, recipes, sorted_arguments)


def resolve(
    program: str, command: Command, commands: Sequence[Command], recipes: str, arguments: Arguments
) -> Any:
    """Make a command's configuration from the arguments of a command line or a Python call; see :func:`parse`."""
    layers = [layer for name in arguments.recipes for layer in recipe_layers(recipes, name)]
    top_layer = command_line_layer(arguments, forms_of(command.config_class))
    config_class, layers = choose_forms(command.config_class, layers, top_layer)
    settings = collect_settings(config_class)

    recipe_tree: dict[str, Any] = {}
    for layer in layers:
        hint = wrong_command_hint((*arguments.recipes, layer.source), command, commands)
        recipe_tree = merge(recipe_tree, convert_layer(layer, settings, hint))

    command_line: dict[str, Any] = {}
    for name, values in arguments.settings:
        command_line = merge(command_line, convert_option(settings[name], values, settings))

    explicit = texts_of(merge(recipe_tree, command_line))
    pinned, defaults = inherited(command, explicit, settings, arguments.request)
    warn_of_overridden_recipes(recipe_tree, pinned, command_line)
    # the later ones win
    tree = reduce(merge, (defaults, recipe_tree, pinned, command_line))
    config_values = fill(config_class, tree)
    if arguments.request is not None:
        show_and_exit(arguments.request, program, command, settings, config_values)
    refuse_overruled(recipe_tree, command_line)
    if missing := [f"--{name}" for name, value in flatten(config_values).items() if value is REQUIRED]:
        raise UserError(f"missing {', '.join(missing)}; add {missing[0]} VALUE")
    return instantiate(config_class, config_values)


def name_positional(arguments: Sequence[str], positional: str | None) -> Sequence[str]:
    """Put its name before a first argument that comes without one."""
    if positional is None or not arguments or arguments[0].startswith("-"):
        return arguments
    return [f"--{positional}", *arguments]


def convert_layer(
    layer: Layer, settings: Mapping[str, Setting], hint: str = "", prefix: str = ""
) -> dict[str, Any]:
    """Convert the nested values of a recipe; an empty section sets nothing.

    Args:
        layer: Its source and values, or those of one of its sections.
        settings: All settings.
        hint: Appended to error messages.
        prefix: Prefix of the section's names, such as ``training.``.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    if layer.values is None:
        return {}
    if not isinstance(layer.values, dict):
        raise UserError(not_a_mapping(layer, prefix) + hint)
    values = {}
    for key, value in layer.values.items():
        name = f"{prefix}{key}"
        if name not in settings:
            raise UserError(unknown_key(name, layer.source, settings) + hint)
        if settings[name].is_section:
            values[key] = convert_layer(Layer(layer.source, value), settings, hint, f"{name}.")
            continue
        try:
            values[key] = convert(value, settings[name].kind)
        except MismatchError as error:
            raise UserError(misfit(f"{name} in {layer.source}", value, error, settings[name].kind)) from error
    return values


def convert_option(setting: Setting, values: list[Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Convert a setting of the command line; a whole section is a file or a mapping, ``{epochs: 3}``.

    Raises:
        UserError: a value of the wrong type.
    """
    place = f"--{setting.name}"
    if setting.is_section:
        return nest(
            setting.name, convert_layer(read_section(place, values[0]), settings, "", f"{setting.name}.")
        )
    try:
        return nest(setting.name, convert_arguments(values, setting.kind))
    except MismatchError as error:
        value = values if len(values) > 1 else values[0]
        raise UserError(misfit(place, value, error, setting.kind)) from error


def command_line_layer(arguments: Arguments, sections: Collection[str]) -> Layer:
    """The command line's settings in some sections, not converted yet; messages show them with dashes."""
    tree: dict[str, Any] = {}
    for name, values in arguments.settings:
        if name in sections:
            tree = merge(tree, {name: read_section(f"--{name}", values[0]).values})
        elif name.partition(".")[0] in sections:
            tree = merge(tree, nest(name, values[0]))
    return Layer("", tree)


def read_section(place: str, text: str) -> Layer:
    """Read a whole section from the command line.

    Raises:
        UserError: it is neither a file nor a mapping.
    """
    file = expand_user(text)
    if is_file(file):
        return Layer(text, nest_dotted_keys(read_texts(file), text))
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(values := read_document(text), dict):
            return Layer(place, nest_dotted_keys(values, place))
    raise UserError(
        f"{place} must be a YAML file or a mapping such as {{key: value}}; got {short_repr(text)}"
    )


def inherited(
    command: Command, explicit: dict[str, str], settings: Mapping[str, Setting], request: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A command's pinned settings and its other defaults; none where help is asked for and they cannot be had.

    Raises:
        UserError: what ``--init`` names cannot be read, or does not fit the command.
    """
    try:
        return (
            convert_defaults(command.pinned_settings(explicit), settings),
            convert_defaults(command.other_defaults(explicit), settings),
        )
    except UserError:
        if request in (None, PRINT_CONFIG):
            raise
        return {}, {}


def convert_defaults(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Convert a command's other defaults, by dotted name."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        try:
            tree = merge(tree, nest(name, convert(value, settings[name].kind)))
        except MismatchError as error:
            place = f"{name} of what --init names"
            raise UserError(misfit(place, value, error, settings[name].kind)) from error
    return tree


def refuse_overruled(recipes: dict[str, Any], command_line: dict[str, Any]) -> None:
    """Refuse a setting of the command line that a recipe would overrule by another one.

    Raises:
        UserError: naming both.
    """
    recipe_values, given = flatten(recipes), flatten(command_line)
    for name, overruling in OVERRULED_BY.items():
        value = recipe_values.get(overruling)
        if name in given and overruling not in given and value is not None:
            raise UserError(
                f"{name} {given[name]} has no effect beside {overruling} {value} of the recipe, which sets it: add "
                f"--{overruling} null, or leave --{name} out"
            )


def warn_of_overridden_recipes(
    recipes: dict[str, Any], pinned: dict[str, Any], command_line: dict[str, Any]
) -> None:
    """Warn of settings of recipes that those of ``--init`` override, unless the command line sets them too."""
    recipe_values = flatten(recipes)
    given = flatten(command_line)
    for name, value in flatten(pinned).items():
        if name in recipe_values and name not in given and recipe_values[name] != value:
            weights_value = "the default" if value is None else short_repr(value)
            log.warning(
                "%s: %s of the weights that --init names overrides %s of the recipe",
                name,
                weights_value,
                short_repr(recipe_values[name]),
            )


def texts_of(tree: dict[str, Any]) -> dict[str, str]:
    """Nested values as texts, by dotted name; those that are null are left out."""
    return {name: str(value) for name, value in flatten(tree).items() if value is not None}


def show_and_exit(
    request: str,
    program: str,
    command: Command,
    settings: Mapping[str, Setting],
    config_values: dict[str, Any],
) -> None:
    """Print help or the resolved configuration, and end."""
    if request == PRINT_CONFIG:
        print(yaml.safe_dump(yaml_values(config_values), sort_keys=False), end="")
    else:
        everything = request not in HELP
        print(help_text(program, command, settings, flatten(config_values), everything=everything))
    raise SystemExit(0)
