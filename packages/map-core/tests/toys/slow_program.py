"""The toy program on a slow machine, so that it can be killed between two batches."""

import sys
import time
from dataclasses import replace

import toy_domain
from toy_domain import DOMAIN

from map_core.commands.listing import standard_commands
from map_core.commands.program import main


def slow_collate(samples):
    time.sleep(0.3)
    return DOMAIN.collate(samples)


if __name__ == "__main__":
    slow = replace(DOMAIN, collate=slow_collate)
    sys.exit(main(slow.program, standard_commands(slow, sample="toy"), toy_domain.DOMAIN.recipes))
