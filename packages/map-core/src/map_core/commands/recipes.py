"""Recipes: packaged settings by name, or files."""

import contextlib
import dataclasses
import importlib.resources
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from map_core.errors import UserError, near_matches


def recipe_names(package: str) -> list[str]:
    """Return the names of the recipes in ``package``."""
    folder = importlib.resources.files(package)
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@contextlib.contextmanager
def find_recipe(package: str, name: str) -> Iterator[Path]:
    """Give the path of a packaged recipe or of a file.

    Raises:
        UserError: ``name`` is neither.
    """
    if name in recipe_names(package):
        with importlib.resources.as_file(importlib.resources.files(package) / f"{name}.yaml") as path:
            yield path
    elif Path(name).is_file():
        yield Path(name)
    elif name.endswith((".yaml", ".yml")) or os.sep in name:
        raise UserError(f"--config {name}: there is no such file; give a file or one of the packaged recipes")
    else:
        raise UserError(f"unknown recipe {name!r}; {near_matches(name, recipe_names(package))}")


def read_yaml(path: Path) -> Any:
    """Read YAML, plain values only.

    Raises:
        UserError: it is no YAML, or asks for more than plain values.
    """
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not plain YAML: {reason}; correct the file") from error


def check_keys(values: Any, config_class: type, source: str, hint: str, prefix: str = "") -> None:
    """Raise a :class:`UserError` for the first key that ``config_class`` does not have."""
    if values is None and not prefix:
        return
    if not isinstance(values, dict):
        place = f"section {prefix[:-1]} of {source}" if prefix else source
        raise UserError(f"{place} must be a mapping of keys to values; got {values!r}{hint}")
    types = typing.get_type_hints(config_class)
    known = [entry.name for entry in dataclasses.fields(config_class)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {prefix}{key} in {source}; {near_matches(str(key), known)}{hint}")
        if dataclasses.is_dataclass(types[key]) and value is not None:
            check_keys(value, typing.cast(type, types[key]), source, hint, f"{prefix}{key}.")
