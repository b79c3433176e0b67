"""A domain's command line as a program: find the command, run it, say what the user did wrong."""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

import torch

from map_core.commands.command import Command
from map_core.commands.output import while_somebody_reads
from map_core.commands.parser import parse
from map_core.commands.recipes import recipe_names
from map_core.errors import UserError, near_matches

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


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
