"""The command line: ``map-points COMMAND --config RECIPE --section.key value ...``."""

import map_core.commands.program
from map_core.commands.command import Command
from map_core.commands.listing import (
    convert_command,
    export_command,
    sharing_commands,
    standard_commands,
    starting_from_run,
    study_commands,
    tables_command,
)

DOMAIN, COMMANDS_MODULE = "map_points.domain:DOMAIN", "map_points.commands"
FEWSHOT = Command(
    "fewshot",
    "train a classifier on few-shot folds",
    "map_points.fewshot:FewShotConfig",
    f"{COMMANDS_MODULE}:fewshot",
)
SEGMENT = Command(
    "segment",
    "train a part segmenter",
    "map_points.segmentation.task:SegmentConfig",
    f"{COMMANDS_MODULE}:segment",
)
PART_SHAPES = Command(
    "write-part-shapes",
    "make two-part shapes in ShapeNetPart's layout",
    f"{COMMANDS_MODULE}:PartShapesConfig",
    f"{COMMANDS_MODULE}:part_shapes",
)
STATISTICS = Command(
    "statistics",
    "mean and deviation of the channels of points",
    f"{COMMANDS_MODULE}:StatisticsConfig",
    f"{COMMANDS_MODULE}:statistics",
    essential=("data.root", "data.source", "data.channels", "data.columns", "data.subset"),
)
COMMANDS = [
    *standard_commands(DOMAIN, sample="cloud"),
    convert_command(DOMAIN),
    export_command(DOMAIN),
    *study_commands(DOMAIN),
    tables_command(DOMAIN),
    *sharing_commands(DOMAIN),
    *(starting_from_run(DOMAIN, command) for command in (FEWSHOT, SEGMENT)),
    PART_SHAPES,
    STATISTICS,
]


def main() -> int:
    """Run the command line of this process."""
    return map_core.commands.program.main("map-points", COMMANDS, "map_points.recipes")
