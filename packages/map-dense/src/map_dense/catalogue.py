"""The packaged configs: their paths, headers and models."""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from map_core.errors import UserError, reason, unknown_name
from map_core.paths import expand_user

CONFIGS = Path(__file__).parent / "configs"
_FIELD = re.compile(r"^([A-Z][a-z]+): +(.*)$")


def config_names() -> list[str]:
    """Names of the packaged configs, without ``.py``."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def config_path(name: str) -> Path:
    """The path of a packaged config.

    Raises:
        UserError: there is no config of that name.
    """
    names = config_names()
    if name.removesuffix(".py") not in names:
        raise unknown_name("config", name, names)
    return CONFIGS / f"{name.removesuffix('.py')}.py"


def find_config(name_or_path: str) -> Path:
    """The file of that path if there is one, else the packaged config of that name."""
    path = expand_user(name_or_path)
    return path if path.is_file() else config_path(name_or_path)


def read_header(path: Path) -> dict[str, str]:
    """The fields of a config's docstring (Command, Hardware, Time, ...), and its first line as Title."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines() or [""]
    header, field = {"Title": lines[0]}, None
    for line in lines[1:]:
        match = _FIELD.match(line)
        if match:
            field = match[1]
            header[field] = match[2]
        elif field and line.startswith(" "):
            header[field] += " " + line.strip()
        else:
            field = None
    return header


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what OpenMMLab raises for a mistake in a config into a :class:`UserError` that begins with ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a config is code, which can raise anything
        raise UserError(f"{what} ({type(error).__name__}: {reason(error)})") from error


def read_config(path: Path) -> Any:
    """Read a config with its bases; this imports the toolbox that the config is for.

    Raises:
        UserError: the toolbox is not installed, or installed wrongly; the file is not a config, or its code fails.
    """
    try:
        from mmengine.config import Config
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path.name} needs OpenMMLab ({error}): in the repository, pip install -c "
            "constraints.txt './packages/map-dense[mmseg]' (or mmdet)"
        ) from error
    # toolboxes print while they are imported, and standard output is for what the command answers
    with refusing(f"{path} cannot be read as a config of OpenMMLab's"), redirect_stdout(sys.stderr):
        return Config.fromfile(str(path))


def merge_options(config: Any, options: Sequence[str]) -> None:
    """Change a config by ``key=value`` options, in place, as OpenMMLab's ``--cfg-options`` does.

    Raises:
        UserError: an option without ``=``, or one that does not fit the config.
    """
    changes = read_options(options)
    with refusing(f"{' '.join(options)} cannot be merged into the config"):
        config.merge_from_dict(changes)


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` options as OpenMMLab's ``--cfg-options`` does.

    Raises:
        UserError: an option without ``=``, or with a value that does not parse.
    """
    from mmengine.config import DictAction

    for option in options:
        if "=" not in option:
            raise UserError(f"option {option!r} has no '='; give KEY=VALUE, such as data_root=PATH")
    reader = argparse.ArgumentParser()
    reader.add_argument("options", nargs="*", action=DictAction)
    with refusing(f"{' '.join(options)} cannot be read as KEY=VALUE"):
        return reader.parse_args(["--", *options]).options if options else {}


def build_model(config: Any) -> nn.Module:
    """Build the whole model of a config on the meta device, without memory for its parameters.

    Raises:
        UserError: the config describes no model that can be built.
    """
    from mmengine.registry import MODELS, DefaultScope

    with (
        refusing(f"{config.filename} makes no model"),
        DefaultScope.overwrite_default_scope(config.default_scope),
        torch.device("meta"),
    ):
        return MODELS.build(config.model)
