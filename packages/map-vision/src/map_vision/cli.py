"""The command line: ``map-vision COMMAND --config RECIPE --section.key value ...``."""

import map_core.commands.program
from map_core.commands.command import Command
from map_core.commands.convert import convert_command
from map_core.commands.standard import standard_commands
from map_core.study.command import study_commands
from map_vision.domain import DOMAIN


def commands() -> list[Command]:
    """All commands, in the order in which ``--help`` lists them."""
    return [*standard_commands(DOMAIN), convert_command(DOMAIN), *study_commands(DOMAIN)]


def main() -> int:
    """Run the command line of this process."""
    return map_core.commands.program.main(DOMAIN.program, commands(), DOMAIN.recipes)
