"""A domain's command line as a program: find the command, run it, report the user's mistakes."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from map_core.commands.command import Command
from map_core.commands.output import open_missing_output, show_any_text, while_somebody_reads
from map_core.commands.parser import parse
from map_core.commands.recipes import recipe_names
from map_core.errors import RunStopped, UserError, near_matches, visible
from map_core.runs.notes import is_main_process

EXIT_USER_ERROR = UserError.status
EXIT_INTERRUPTED = 130
REPORTED_PACKAGES = ("map-core", "torch", "timm")  # whose versions --version prints besides the program's


def main(program: str, commands: Sequence[Command], recipes: str, argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    It is 0 on success, 2 with one sentence on stderr if the user erred, 3 where training diverged, or 130 or 143
    where a signal stopped a run early.

    Other errors keep their traceback, and so do the user's where MAP_DEBUG is set in the environment. Where the reader
    of the output goes away, as in ``info | head -1``, the command ends there silently.

    Args:
        program: The program's name, which is also its distribution's.
        commands: Its commands.
        recipes: The package that holds its recipes (``*.yaml``).
        argv: The arguments; those of the process if None.
    """
    open_missing_output()
    # all processes give the same warnings: those of the first are enough
    level = logging.WARNING if is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    show_any_text()
    # PyTorch reads this at its first large allocation: huge pages spare most page faults (docs/performance.md)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return while_somebody_reads(lambda: run_command(program, commands, recipes, arguments))


def run_command(program: str, commands: Sequence[Command], recipes: str, arguments: Sequence[str]) -> int:
    """Run the command in ``arguments`` and return the exit status; see :func:`main`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(program, commands, recipes))
        return 0 if arguments else EXIT_USER_ERROR
    if "--version" in arguments[:2]:  # before or after a command
        print(version_report(program))
        return 0
    try:
        command = find_command(arguments[0], commands)
        config = parse(f"{program} {command.name}", command, commands, recipes, arguments[1:])
        validate(config)
        command.execute(config)
    except UserError as error:
        if os.environ.get("MAP_DEBUG"):
            raise
        print(f"{program}: error: {visible(str(error))}", file=sys.stderr)
        return error.status
    except RunStopped as stop:
        return stop.status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        leave_process_group()
    return 0


def validate(config: Any) -> None:
    """Call ``validate()`` of a configuration and its sections, where they have it.

    Raises:
        UserError: a value that no run can have.
    """
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            validate(value)
    if callable(check := getattr(config, "validate", None)):
        check()


def leave_process_group() -> None:
    """Leave the process group of a command that ran in several processes; this does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        with contextlib.suppress(Exception):  # the error that ended the run is the one to show
            torch.distributed.destroy_process_group()


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
    lines = [f"usage: {program} COMMAND [--config RECIPE ...] [--section.key value ...]", "", "commands:"]
    lines += [f"  {command.name:<{width}}  {command.help}" for command in commands]
    lines += ["", "recipes:", *(f"  {name}" for name in recipe_names(recipes))]
    lines += [
        "",
        f"{program} COMMAND --help lists the settings of a command that matter most, --help-all every one;",
    ]
    lines += ["--print_config shows them resolved; --version prints versions."]
    return "\n".join(lines)


def version_report(program: str) -> str:
    """Return what ``program --version`` prints: its version and those of the packages it builds on."""
    lines = []
    for package in (program, *REPORTED_PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{package} {importlib.metadata.version(package)}")
    return "\n".join(lines)
