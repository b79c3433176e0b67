"""The command line: ``map-vision COMMAND --config RECIPE --section.key value ...``."""

import map_core.commands.program
from map_core.commands.standard import standard_commands
from map_vision.domain import DOMAIN


def main() -> int:
    """Run the command line of this process."""
    return map_core.commands.program.main(DOMAIN.program, standard_commands(DOMAIN), DOMAIN.recipes)
