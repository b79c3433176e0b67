"""Recipes: packaged settings by name, or files; one may build on another with ``base``."""

import contextlib
import importlib.resources
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from map_core.commands.plain_yaml import DEEPEST, read_texts
from map_core.errors import UserError, near_matches
from map_core.paths import expand_user, is_file

BASE = "base"  # the key for the recipe to build on


@dataclass(frozen=True)
class Layer:
    """Settings of one source; later layers override earlier ones.

    Attributes:
        source: Its name in messages.
        values: Nested mappings.
    """

    source: str
    values: Any


def recipe_names(package: str) -> list[str]:
    """Return the names of the recipes in ``package``."""
    folder = importlib.resources.files(package)
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@contextlib.contextmanager
def find_recipe(package: str, name: str, *, kind: str = "recipe", option: str = "--config") -> Iterator[Path]:
    """Yield the path of a packaged recipe or of a file; ``kind`` and ``option`` are for the message.

    Raises:
        UserError: ``name`` is neither.
    """
    file = expand_user(name)
    if name in recipe_names(package):
        with importlib.resources.as_file(importlib.resources.files(package) / f"{name}.yaml") as path:
            yield path
    elif is_file(file):
        yield file
    elif name.endswith((".yaml", ".yml")) or os.sep in name:
        raise UserError(
            f"{option} {name}: there is no such file; give a file or the name of a packaged {kind}"
        )
    else:
        raise UserError(f"unknown {kind} {name!r}; {near_matches(name, recipe_names(package))}")


def recipe_layers(package: str, name: str) -> list[Layer]:
    """Read a recipe and the recipes that it builds on, the lowest base first.

    Args:
        package: The package that holds the recipes.
        name: A recipe's name or a file's path.

    Raises:
        UserError: a recipe that does not exist or is not plain YAML, or a base that leads back to its recipe.
    """
    layers: list[Layer] = []
    chain: list[str] = []
    current: str | None = name
    while current is not None:
        if current in chain:
            raise UserError(
                f"recipe {current} builds on itself: {' -> '.join([*chain, current])}; remove one {BASE}"
            )
        chain.append(current)
        with find_recipe(package, current) as path:
            values = read_texts(path)
        base = values.pop(BASE, None) if isinstance(values, dict) else None
        layers.insert(0, Layer(current, nest_dotted_keys(values, current)))
        current = None if base is None else find_base(package, base, current, path)
    return layers


def nest_dotted_keys(values: Any, source: str) -> Any:
    """Move the values of dotted keys, such as ``training.epochs``, into their sections.

    Raises:
        UserError: a setting appears twice.
    """
    if not isinstance(values, dict):
        return values
    tree: dict[str, Any] = {}
    for key, value in values.items():
        branch = nest_dotted_keys(value, source)
        for part in reversed(key.split(".", DEEPEST)):
            branch = {part: branch}
        tree = merge_distinct(tree, branch, source)
    return tree


def merge_distinct(
    one: dict[str, Any], other: dict[str, Any], source: str, prefix: str = ""
) -> dict[str, Any]:
    """Merge nested values of one source that have no setting in common; see :func:`nest_dotted_keys`."""
    tree = dict(one)
    for name, value in other.items():
        existing = tree.get(name)
        if isinstance(existing, dict) and isinstance(value, dict):
            tree[name] = merge_distinct(existing, value, source, f"{prefix}{name}.")
        elif name in tree:
            raise UserError(f"{source} names {prefix}{name} twice, once by a dotted key; name it once")
        else:
            tree[name] = value
    return tree


def find_base(package: str, base: Any, name: str, path: Path) -> str:
    """Return the name or path by which :func:`find_recipe` finds the base of a recipe.

    Args:
        package: The package that holds the recipes.
        base: As written in the recipe: a packaged recipe, or a path relative to the recipe's folder.
        name: The recipe's name in messages.
        path: The recipe's file.

    Raises:
        UserError: there is no such base.
    """
    if not isinstance(base, str):
        raise UserError(f"{BASE} in {name} must be a recipe's name or a path; got {base!r}")
    if base in recipe_names(package):
        return base
    file = path.parent / expand_user(base)
    if not is_file(file):
        raise UserError(
            f"{BASE} {base} in {name} is neither a packaged recipe nor a file in {path.parent}; "
            f"{near_matches(base, recipe_names(package))}"
        )
    return os.path.normpath(file)
