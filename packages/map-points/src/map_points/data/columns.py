"""The columns of a cloud's file by name: coordinates first, then the channels that are asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line, near_matches

AXES = ("x", "y", "z")
COLORS = ("red", "green", "blue")
# what files call them: n with an axis, or an array (points, 3) of the name before the axis
ALIASES = {
    **{f"normal_{axis}": (f"n{axis}", f"normals_{axis}") for axis in AXES},
    **{f"velocity_{axis}": (f"v{axis}", f"velocities_{axis}") for axis in AXES},
    **{
        color: (color[0], *(f"{array}_{axis}" for array in ("color", "colors", "rgb")))
        for color, axis in zip(COLORS, AXES, strict=True)
    },
}
FULL_NAMES = {other: name for name, others in ALIASES.items() for other in others}
SCALED = (*COLORS, "intensity")
Columns = Mapping[str, np.ndarray]  # each [n]


def choose_columns(
    table: np.ndarray | Columns, channels: Sequence[str], columns: Sequence[str] | None, path: Path
) -> np.ndarray:
    """Choose coordinates and channels (n, 3 + channels), float64.

    Colours and intensities that a file holds as unsigned integers are scaled to 0..1, by their type's largest value.

    Args:
        table: A file's columns, by name or in their order: x y z first, unless ``columns`` names them.
        channels: Names of the channels to take beside the coordinates.
        columns: Names of the columns, for files that do not name them.
        path: The file.

    Raises:
        UserError: a column is missing, or has no name.
    """
    if isinstance(table, np.ndarray):
        if not channels and columns is None:
            return table
        table = _named(table, columns, path)
    return np.stack([_column(table, name, path) for name in (*AXES, *channels)], axis=1)


def _named(table: np.ndarray, columns: Sequence[str] | None, path: Path) -> Columns:
    if columns is None:
        raise UserError(
            f"{path} does not name its columns: say what they are, such as --data.columns '[x, y, z, intensity]'"
        )
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise UserError(
            f"{path} has shape {table.shape}, and data.columns names {len(columns)} columns: name every one, in their "
            "order"
        )
    return {name: table[:, i] for i, name in enumerate(columns)}


def _column(columns: Columns, name: str, path: Path) -> np.ndarray:
    key = next((alias for alias in (name, *ALIASES.get(name, ())) if alias in columns), None)
    if key is None:
        names = in_one_line(", ".join(columns))
        raise UserError(f"{path} has no {name!r}, only {names}: {in_one_line(near_matches(name, columns))}")
    values = columns[key]
    if values.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name!r} holds {values.dtype}, no numbers")
    if name in SCALED and values.dtype.kind == "u":
        return values / np.iinfo(values.dtype).max
    with np.errstate(invalid="ignore"):  # NaN of every kind is reported when the cloud is checked
        return values.astype(np.float64)


def vectors(channels: Sequence[str], kind: str) -> list[int] | None:
    """Columns of a cloud that hold the three components of a vector, such as ``normal``; None without it."""
    names = [f"{kind}_{axis}" for axis in AXES]
    return [3 + channels.index(name) for name in names] if set(names) <= set(channels) else None


def check_channels(channels: Sequence[str]) -> None:
    """Check the names of channels.

    Raises:
        UserError: one is a coordinate, has another name here or appears twice, or a vector lacks a component.
    """
    for name in channels:
        if name in AXES or not name.strip():
            raise UserError(
                f"data.channels has {name!r}: name what files hold beside x, y and z, such as intensity"
            )
        if name in FULL_NAMES:  # by which vectors turn and colours are scaled
            raise UserError(
                f"data.channels has {name!r}: say {FULL_NAMES[name]}, which also finds what files call {name}"
            )
        if list(channels).count(name) > 1:
            raise UserError(f"data.channels has {name!r} twice; name every channel once")
    for kind in ("normal", "velocity"):
        parts = [name for name in channels if name in {f"{kind}_{axis}" for axis in AXES}]
        if len(parts) in (1, 2):
            raise UserError(
                f"data.channels has {', '.join(parts)} alone; a vector turns with its cloud: name {kind}_x, {kind}_y "
                f"and {kind}_z"
            )
