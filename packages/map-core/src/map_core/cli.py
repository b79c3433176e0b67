"""The plumbing of a domain's command line: commands, packaged recipes, overrides, errors in one sentence."""

import contextlib
import dataclasses
import importlib.resources
import json
import logging
import os
import re
import select
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from map_core.errors import UserError, near_matches

Config = TypeVar("Config")
log = logging.getLogger(__name__)
EXIT_READER_GONE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        name: as typed, such as ``pretrain``.
        help: one line for the list of commands.
        config: a dataclass; fields that are dataclasses become sections (``--training.epochs``).
        run: what to do with an instance of ``config``.
        defaults: from the given options (dotted key to value) to other defaults, by dotted key, such as those
            that a run named by ``--init`` was made with; a recipe and the command line go before them.
        settled: likewise, settings that go before a recipe's, such as those that the weights named by ``--init``
            are tied to; only the command line goes before them.
    """

    name: str
    help: str
    config: type
    run: Callable[[Any], None]
    defaults: Callable[[dict[str, str]], dict[str, Any]] | None = None
    settled: Callable[[dict[str, str]], dict[str, Any]] | None = None


def main(program: str, commands: Sequence[Command], recipes: str, argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 with one sentence on stderr if the user erred.

    Other errors, and the user's too where MAP_DEBUG is set in the environment, keep their traceback. Where whoever
    reads the output stops reading, as in ``info | head -1``, the command ends there without a word.

    Args:
        program: the program's name.
        commands: what it can do.
        recipes: the package that holds its recipes (``*.yaml``).
        argv: the arguments; those of the process if None.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return while_somebody_reads(lambda: run_command(program, commands, recipes, arguments))


def while_somebody_reads(run: Callable[[], int]) -> int:
    """Return the exit status that ``run`` returns, or EXIT_READER_GONE where whoever reads its output stops reading."""
    try:
        try:
            status = run()
        except SystemExit:  # of --help
            flush_output()
            raise
        flush_output()
        return status
    except BrokenPipeError:
        if os.environ.get("MAP_DEBUG") or not reader_gone():
            raise
        # Python flushes once more as it exits: what it still holds goes nowhere, as Python's documentation of
        # SIGPIPE recommends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE


def flush_output() -> None:
    """Write what waits for stdout now: as Python exits it would be too late to catch what this raises."""
    if sys.stdout is not None:  # it is None where the process started without one
        sys.stdout.flush()


def reader_gone() -> bool:
    """Whether it is stdout's pipe that broke, not one of a worker or a socket."""
    if sys.stdout is None:
        return False
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in watch.poll(0))


def run_command(program: str, commands: Sequence[Command], recipes: str, arguments: Sequence[str]) -> int:
    """Do what ``arguments`` ask for and return the exit status; see :func:`main`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(program, commands, recipes))
        return 0 if arguments else EXIT_USER_ERROR
    try:
        command = find_command(arguments[0], commands)
        command.run(parse(f"{program} {command.name}", command, commands, recipes, arguments[1:]))
    except UserError as error:
        if os.environ.get("MAP_DEBUG"):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            with contextlib.suppress(Exception):  # the error that ended the run is the one to show
                torch.distributed.destroy_process_group()
    return 0


def find_command(name: str, commands: Sequence[Command]) -> Command:
    """Return the command called ``name``.

    Raises:
        UserError: there is none.
    """
    by_name = {command.name: command for command in commands}
    if name.startswith("-"):
        raise UserError(
            f"a command comes first, its settings after it; got {name!r}; commands: {', '.join(by_name)}"
        )
    if name not in by_name:
        raise UserError(f"unknown command {name!r}; {near_matches(name, by_name)}")
    return by_name[name]


def overview(program: str, commands: Sequence[Command], recipes: str) -> str:
    """Return the text that ``program --help`` prints."""
    width = max(len(command.name) for command in commands)
    lines = [f"usage: {program} COMMAND [--config RECIPE] [--section.key value ...]", "", "commands:"]
    lines += [f"  {command.name:<{width}}  {command.help}" for command in commands]
    lines += ["", "recipes:", *(f"  {name}" for name in recipe_names(recipes))]
    lines += ["", f"{program} COMMAND --help lists a command's settings; --print_config shows them resolved."]
    return "\n".join(lines)


def recipe_names(package: str) -> list[str]:
    """Return the names of the recipes in ``package``."""
    folder = importlib.resources.files(package)
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


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
    settled = {} if command.settled is None else command.settled(given_options(others))
    with contextlib.ExitStack() as stack:
        given: list[str] = []
        if config_file is not None:
            path = stack.enter_context(find_recipe(recipes, config_file))
            hint = wrong_command_hint(config_file, command, commands)
            recipe = read_yaml(path)
            check_keys(recipe, command.config, config_file, hint)
            tell_what_gives_way(recipe or {}, settled, config_file)
            given = ["--config", str(path)]
        try:
            namespace = parser.parse_args([*given, *as_options(settled), *others])  # the last one wins
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


def given_options(arguments: Sequence[str]) -> dict[str, str]:
    """Map the options of a command line, without their dashes, to their values."""
    given = {}
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            given[name] = value if equals else following
    return given


def section_of_run(given: Mapping[str, str], section: str) -> dict[str, Any]:
    """The settings in a section of the run that ``--init`` names (or that its weights file lies in).

    Empty without ``--init`` or where that run left no configuration.
    """
    if "init" not in given:
        return {}
    path = Path(given["init"])
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    return dict(read_yaml(config).get(section, {})) if config.is_file() else {}


def as_defaults(section: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a section by dotted key, as :attr:`Command.defaults` gives them; what ``kind`` lacks is left out."""
    known = {entry.name for entry in dataclasses.fields(kind)}
    return {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known
    }


def tell_what_gives_way(recipe: Mapping[str, Any], settled: Mapping[str, Any], source: str) -> None:
    """Warn of the recipe's settings that others go before."""
    for key, value in settled.items():
        section, name = key.split(".")
        said = (recipe.get(section) or {}).get(name, value)
        if said != value:
            log.warning("%s of %s (%s) gives way to that of --init (%s)", key, source, said, value)


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Write settings by dotted key as a command line has them."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    ]


@contextlib.contextmanager
def find_recipe(package: str, name: str) -> Iterator[Path]:
    """Give the path of a packaged recipe or of a file.

    Raises:
        UserError: ``name`` is neither.
    """
    if name in recipe_names(package):
        with importlib.resources.as_file(importlib.resources.files(package) / f"{name}.yaml") as path:
            yield path
    elif Path(name).is_file():
        yield Path(name)
    elif name.endswith((".yaml", ".yml")) or os.sep in name:
        raise UserError(f"--config {name}: there is no such file; give a file or one of the packaged recipes")
    else:
        raise UserError(f"unknown recipe {name!r}; {near_matches(name, recipe_names(package))}")


def read_yaml(path: Path) -> Any:
    """Read YAML, plain values only.

    Raises:
        UserError: it is no YAML, or asks for more than plain values.
    """
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {one_line(str(error))}; correct the file") from error


def check_keys(values: Any, config_class: type, source: str, hint: str, prefix: str = "") -> None:
    """Raise a :class:`UserError` for the first key that ``config_class`` does not have."""
    if values is None and not prefix:
        return
    if not isinstance(values, dict):
        place = f"section {prefix[:-1]} of {source}" if prefix else source
        raise UserError(f"{place} must be a mapping of keys to values; got {values!r}{hint}")
    types = typing.get_type_hints(config_class)
    known = [entry.name for entry in dataclasses.fields(config_class)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {prefix}{key} in {source}; {near_matches(str(key), known)}{hint}")
        if dataclasses.is_dataclass(types[key]) and value is not None:
            check_keys(value, typing.cast(type, types[key]), source, hint, f"{prefix}{key}.")


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
