"""The commands of the toy domain as a program: ``python toy_program.py pretrain --out OUT ...``."""

import sys

from toy_domain import DOMAIN

from map_core.commands.listing import standard_commands
from map_core.commands.program import main

if __name__ == "__main__":
    sys.exit(main(DOMAIN.program, standard_commands(DOMAIN, sample="toy"), DOMAIN.recipes))
