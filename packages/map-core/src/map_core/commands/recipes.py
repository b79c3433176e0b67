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
from map_core.paths import expanded, is_file

BASE = "base"  # the key that names the recipe to build on


@dataclass(frozen=True)
class Layer:
    """Settings of one source; later layers replace what earlier ones say.

    Attributes:
        source: What messages call it.
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
    """Give the path of a packaged recipe or of a file; ``kind`` and ``option`` are for the message.

    Raises:
        UserError: ``name`` is neither.
    """
    file = expanded(name)
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
    """Read a recipe and what it builds on, the last base first.

    Args:
        package: The package that holds the recipes.
        name: A recipe's name or a file's path.

    Raises:
        UserError: a recipe that does not exist or is not plain YAML, or a base that leads back to its recipe.
    """
    layers: list[Layer] = []
    chain: list[str] = []
    following: str | None = name
    while following is not None:
        if following in chain:
            raise UserError(
                f"recipe {following} builds on itself: {' -> '.join([*chain, following])}; remove one {BASE}"
            )
        chain.append(following)
        with find_recipe(package, following) as path:
            values = read_texts(path)
        base = values.pop(BASE, None) if isinstance(values, dict) else None
        layers.insert(0, Layer(following, nested(values, following)))
        following = None if base is None else find_base(package, base, following, path)
    return layers


def nested(values: Any, source: str) -> Any:
    """Put what dotted keys say, such as ``training.epochs``, into its section.

    Raises:
        UserError: a setting is named twice.
    """
    if not isinstance(values, dict):
        return values
    tree: dict[str, Any] = {}
    for key, value in values.items():
        inner = nested(value, source)
        for part in reversed(key.split(".", DEEPEST)):
            inner = {part: inner}
        tree = joined(tree, inner, source)
    return tree


def joined(one: dict[str, Any], other: dict[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Nested values of one source; see :func:`nested`."""
    tree = dict(one)
    for name, value in other.items():
        before = tree.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            tree[name] = joined(before, value, source, f"{prefix}{name}.")
        elif name in tree:
            raise UserError(f"{source} names {prefix}{name} twice, once by a dotted key; name it once")
        else:
            tree[name] = value
    return tree


def find_base(package: str, base: Any, name: str, path: Path) -> str:
    """Return what :func:`find_recipe` finds the base of a recipe by.

    Args:
        package: The package that holds the recipes.
        base: As the recipe names it: a packaged recipe, or a path relative to the recipe's folder.
        name: Of the recipe, as messages call it.
        path: Of the recipe.

    Raises:
        UserError: there is no such base.
    """
    if not isinstance(base, str):
        raise UserError(f"{BASE} in {name} must be a recipe's name or a path; got {base!r}")
    if base in recipe_names(package):
        return base
    file = path.parent / expanded(base)
    if not is_file(file):
        raise UserError(
            f"{BASE} {base} in {name} is neither a packaged recipe nor a file in {path.parent}; "
            f"{near_matches(base, recipe_names(package))}"
        )
    return os.path.normpath(file)
