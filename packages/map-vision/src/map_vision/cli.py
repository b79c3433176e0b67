"""The command line: ``map-vision COMMAND --config RECIPE --section.key value ...``."""

import map_core.commands.program
from map_core.commands.command import Command
from map_core.commands.listing import (
    convert_command,
    export_command,
    sharing_commands,
    standard_commands,
    study_commands,
    tables_command,
)

DOMAIN, COMMANDS_MODULE = "map_vision.domain:DOMAIN", "map_vision.commands"
STATISTICS = Command(
    "statistics",
    "mean and deviation of every channel of images",
    f"{COMMANDS_MODULE}:StatisticsConfig",
    f"{COMMANDS_MODULE}:statistics",
    essential=("data.root", "data.source", "data.subset", "data.pixels"),
)
SHARD = Command(
    "shard",
    "tar shards of a folder of images, or their index",
    f"{COMMANDS_MODULE}:ShardConfig",
    f"{COMMANDS_MODULE}:shard",
    essential=("data.root", "data.labels", "size", "index"),
)
COMMANDS = [
    *standard_commands(DOMAIN, sample="image"),
    convert_command(DOMAIN),
    export_command(DOMAIN),
    *study_commands(DOMAIN),
    tables_command(DOMAIN),
    STATISTICS,
    SHARD,
    *sharing_commands(DOMAIN),
]


def main() -> int:
    """Run the command line of this process."""
    return map_core.commands.program.main("map-vision", COMMANDS, "map_vision.recipes")
