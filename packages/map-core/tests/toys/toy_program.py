"""The commands of the toy domain as a program: ``python toy_program.py pretrain --out OUT ...``."""

import sys

from toy_domain import DOMAIN

from map_core.commands.program import main
from map_core.commands.standard import standard_commands

if __name__ == "__main__":
    sys.exit(main(DOMAIN.program, standard_commands(DOMAIN), DOMAIN.recipes))
