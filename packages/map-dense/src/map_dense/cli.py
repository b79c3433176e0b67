"""The command line: ``map-dense list``, ``map-dense config-path NAME``, ``map-dense layer-decay CONFIG``."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from map_core.commands.output import while_somebody_reads
from map_core.commands.program import EXIT_USER_ERROR
from map_core.errors import UserError
from map_dense import catalogue
from map_dense.layer_decay import layer_decay_groups, render_groups

EPILOG = """train and test with OpenMMLab's own launcher:
  mim train onedl-mmsegmentation $(map-dense config-path NAME) --gpus 1 --cfg-options data_root=PATH
  mim test  onedl-mmsegmentation $(map-dense config-path NAME) --checkpoint FILE --gpus 1 --cfg-options data_root=PATH
(onedl-mmdetection for the configs of Cascade Mask R-CNN)"""


def list_configs() -> None:
    """Print every packaged config with the parameters of its whole model, its title and its status."""
    for name in catalogue.config_names():
        path = catalogue.config_path(name)
        header = catalogue.read_header(path)
        try:
            model = catalogue.build_model(catalogue.read_config(path))
            size = f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"
        except UserError as error:
            size = f"size not known: {error}"
        print(f"{name}\n  {header['Title']}\n  {size}\n  {header.get('Status', 'no status')}")


def print_config_path(name: str) -> None:
    """Print where a packaged config lies."""
    print(catalogue.config_path(name))


def print_layer_decay(name_or_path: str) -> None:
    """Print the parameter groups that a config trains with."""
    config = catalogue.read_config(catalogue.find_config(name_or_path))
    options = dict(config.optim_wrapper.get("paramwise_cfg") or {"decay_rate": 1.0})
    weight_decay = config.optim_wrapper.optimizer.get("weight_decay", 0.0)
    print(
        render_groups(layer_decay_groups(catalogue.build_model(config), weight_decay=weight_decay, **options))
    )


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; ``run`` and its arguments are in the namespace."""
    top = argparse.ArgumentParser(
        prog="map-dense",
        description="Packaged OpenMMLab configs of map-dense.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="configs, with model size and status")
    path = commands.add_parser("config-path", help="where a packaged config lies")
    path.add_argument("name", metavar="NAME", help="as `map-dense list` shows it")
    decay = commands.add_parser("layer-decay", help="parameter groups of a config: depth, rate, weight decay")
    decay.add_argument("config", metavar="CONFIG", help="a packaged config's name, or a file")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 with one sentence on stderr if the user erred."""
    warnings.simplefilter("ignore", UserWarning)  # OpenMMLab's, about models that are only counted
    return while_somebody_reads(lambda: run_command(argv))


def run_command(argv: Sequence[str] | None) -> int:
    """Do what the command line asks for and return the exit status; see :func:`main`."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "list":
            list_configs()
        elif arguments.command == "config-path":
            print_config_path(arguments.name)
        else:
            print_layer_decay(arguments.config)
    except UserError as error:
        if os.environ.get("MAP_DEBUG"):
            raise
        print(f"map-dense: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
