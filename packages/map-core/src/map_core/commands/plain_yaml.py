"""YAML of plain values, read with bounded work.

Settings are read as texts: the type of a setting decides what its text means, since a folder called 2012, no or 1e3
is a folder.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from map_core.errors import UserError, in_one_line
from map_core.reading import read_small

LARGEST_FILE = 1 << 20  # bytes
MOST_VALUES = 100_000  # an alias counts each time it is used
DEEPEST = 50
STANDARD = "tag:yaml.org,2002:"
MERGE = STANDARD + "merge"


class PlainReader:
    """Turns the nodes of a document into None, lists, mappings, and texts or the values that YAML makes of them.

    Args:
        typed: Convert scalars that look like numbers, truth values or dates to these.
    """

    def __init__(self, *, typed: bool) -> None:
        self.values = 0
        self.constructor = yaml.SafeLoader("") if typed else None

    def read(self, node: yaml.Node | None, depth: int = 0) -> Any:
        """Return a node's value.

        Raises:
            yaml.YAMLError: it has more than plain values, or too many of them.
        """
        self.values += 1
        if self.values > MOST_VALUES or depth > DEEPEST:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values or {DEEPEST} levels")
        if node is None:
            return None
        if not node.tag.startswith(STANDARD) or "/" in node.tag:
            raise yaml.YAMLError(f"{node.tag} in line {node.start_mark.line + 1} is not a plain value")
        if isinstance(node, yaml.ScalarNode):
            return self.read_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(entry, depth + 1) for entry in node.value]
        return self.read_mapping(node, depth)

    def read_scalar(self, node: yaml.ScalarNode) -> Any:
        """Return a value that is neither a list nor a mapping."""
        if self.constructor is None:
            return None if node.tag == STANDARD + "null" else node.value
        try:
            return self.constructor.construct_object(node)
        except ValueError as error:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {error}") from error

    def read_mapping(self, node: yaml.Node, depth: int) -> dict[Any, Any]:
        """Return a mapping; ``<<`` takes over the keys that the mapping itself does not have."""
        values: dict[Any, Any] = {}
        inherited: dict[Any, Any] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                merged = self.read(value, depth + 1)
                for mapping in merged if isinstance(merged, list) else [merged]:
                    if not isinstance(mapping, dict):
                        raise yaml.YAMLError(f"<< in line {key.start_mark.line + 1} does not name a mapping")
                    inherited = mapping | inherited
                continue
            name = self.read_scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None or name in values:
                fault = "is not a name" if name is None else f"names {name} again"
                raise yaml.YAMLError(f"the key in line {key.start_mark.line + 1} {fault}")
            values[name] = self.read(value, depth + 1)
        return inherited | values


def read_document(text: str, *, typed: bool = False) -> Any:
    """Read a document.

    Args:
        text: The document.
        typed: As for :class:`PlainReader`.

    Raises:
        yaml.YAMLError: it is not YAML, or has more than plain values, or too many of them.
    """
    try:
        return PlainReader(typed=typed).read(nodes_of(text))
    except RecursionError as error:
        raise yaml.YAMLError(f"more than {DEEPEST} levels") from error


@lru_cache(maxsize=128)
def nodes_of(text: str) -> yaml.Node | None:
    """The nodes of a document, which no caller changes: recipes build on the same few files, and each takes 3 ms."""
    return yaml.compose(text, Loader=yaml.SafeLoader)


def read_texts(path: Path) -> Any:
    """Read a file whose scalars stay texts; null is None.

    Raises:
        UserError: it cannot be read, is not YAML, or has more than plain values.
    """
    return read_file(path, typed=False)


def read_yaml(path: Path) -> Any:
    """Read a file whose scalars become numbers, truth values and the like, as in any YAML.

    Raises:
        UserError: it cannot be read, is not YAML, or has more than plain values.
    """
    return read_file(path, typed=True)


def read_file(path: Path, *, typed: bool) -> Any:
    """Read a file; see :func:`read_texts` and :func:`read_yaml`."""
    try:
        return read_document(read_small(path, LARGEST_FILE).decode(), typed=typed)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; choose another file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not plain YAML: {in_one_line(str(error), limit=600)}; correct the file"
        ) from error
