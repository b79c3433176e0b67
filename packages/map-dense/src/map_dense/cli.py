"""The command line: ``map-dense list``, ``config-path NAME``, ``write-config CONFIG FILE``, ``layer-decay CONFIG``."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from map_core.commands.output import while_somebody_reads
from map_core.commands.program import EXIT_USER_ERROR
from map_core.errors import UserError
from map_core.paths import expand_user
from map_dense import catalogue
from map_dense.layer_decay import render_groups

EPILOG = """train and test with OpenMMLab's own launcher:
  mim train onedl-mmsegmentation $(map-dense config-path NAME) --gpus 1 --cfg-options data_root=PATH
  mim test  onedl-mmsegmentation $(map-dense config-path NAME) --checkpoint FILE --gpus 1 --cfg-options data_root=PATH
(onedl-mmdetection for the configs of Cascade Mask R-CNN); the toolboxes' other tools read a config that is written out:
  map-dense write-config NAME FILE.py data_root=PATH
  mim run onedl-mmsegmentation browse_dataset FILE.py --not-show --output-dir PICTURES
  mim run onedl-mmsegmentation confusion_matrix FILE.py PREDICTIONS PICTURES
  mim run onedl-mmsegmentation benchmark FILE.py CHECKPOINT
  mim run onedl-mmsegmentation get_flops FILE.py --shape 512 512"""


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
    """Print the path of a packaged config."""
    print(catalogue.config_path(name))


def write_config(name_or_path: str, file: str, options: Sequence[str]) -> None:
    """Write a config and its bases as one file, with ``data_root`` filled in wherever data are read.

    Args:
        name_or_path: A packaged config, or a file.
        file: The file to write, ``*.py``.
        options: ``key=value`` as ``--cfg-options`` takes them.

    Raises:
        UserError: a file that is not ``*.py``, exists already or cannot be written, an option without ``=`` or that
            does not fit the config, no ``data_root``.
    """
    if not file.endswith(".py"):
        raise UserError(
            f"{file} must end in .py, as OpenMMLab's tools read configs; got {Path(file).suffix!r}"
        )
    path = expand_user(file)
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: remove it, or choose another name")
    config = catalogue.read_config(catalogue.find_config(name_or_path))
    catalogue.merge_options(config, options)
    from map_dense.data_root import with_data_root_everywhere

    with catalogue.refusing(f"data_root cannot be filled into {name_or_path}"):
        with_data_root_everywhere(config)
    try:
        config.dump(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    print(path)


def print_layer_decay(name_or_path: str) -> None:
    """Print the parameter groups that a config trains with.

    Raises:
        UserError: the config trains without layer decay, or with options that training refuses.
    """
    config = catalogue.read_config(catalogue.find_config(name_or_path))
    from map_dense.optim import HybridLayerDecayOptimWrapperConstructor

    settings = config.get("optim_wrapper") or {}
    if (name := settings.get("constructor")) != HybridLayerDecayOptimWrapperConstructor.__name__:
        raise UserError(
            f"{name_or_path} trains without layer decay: its optim_wrapper.constructor is {name}, not "
            f"{HybridLayerDecayOptimWrapperConstructor.__name__}"
        )
    with catalogue.refusing(f"optim_wrapper of {name_or_path} makes no optimizer"):
        constructor = HybridLayerDecayOptimWrapperConstructor(settings, settings.get("paramwise_cfg"))
        groups = constructor.groups(catalogue.build_model(config))
    print(render_groups(groups))


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
    path = commands.add_parser("config-path", help="path of a packaged config")
    path.add_argument("name", metavar="NAME", help="as `map-dense list` shows it")
    write = commands.add_parser(
        "write-config", help="write a config in one file, with data_root in every data set"
    )
    write.add_argument("config", metavar="CONFIG", help="a packaged config's name, or a file")
    write.add_argument("file", metavar="FILE", help="what to write, *.py")
    write.add_argument(
        "options", metavar="KEY=VALUE", nargs="*", help="as mim's --cfg-options: data_root=PATH, ..."
    )
    decay = commands.add_parser("layer-decay", help="parameter groups of a config: depth, rate, weight decay")
    decay.add_argument("config", metavar="CONFIG", help="a packaged config's name, or a file")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 with one sentence on stderr if the user erred."""
    warnings.simplefilter("ignore", UserWarning)  # from OpenMMLab, about models that are never trained
    return while_somebody_reads(lambda: run_command(argv))


def run_command(argv: Sequence[str] | None) -> int:
    """Run the command on the command line and return the exit status; see :func:`main`."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "list":
            list_configs()
        elif arguments.command == "config-path":
            print_config_path(arguments.name)
        elif arguments.command == "write-config":
            write_config(arguments.config, arguments.file, arguments.options)
        else:
            print_layer_decay(arguments.config)
    except UserError as error:
        if os.environ.get("MAP_DEBUG"):
            raise
        print(f"map-dense: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
