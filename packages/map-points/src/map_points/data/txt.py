"""Clouds as text: one point per line, as programs of all kinds write them."""

import re
from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.files import read_text, reading

COMMENT = re.compile(r"(?:#|//).*")
COUNT = re.compile(r"\d{1,18}")
SEPARATORS = (";", ",")
NO_CLOUD = "if this is not a cloud, move it away or give the folder of the clouds"


def read_txt(path: Path) -> np.ndarray:
    """Read columns separated by commas, semicolons or blanks (rows, columns), float64, x y z first.

    Comments (# or //), blank lines, a byte order mark and a separator at the end of lines are ignored. A first line
    may name the columns, with x, y and z among them, which then come first; a first line of one whole number says how
    many rows follow.

    Raises:
        UserError: a line cannot be read; the message names it.
    """
    names, table = read_named_txt(path)
    if names is None:
        return table
    order = [names.index(axis) for axis in "xyz"]
    return table[:, order + [i for i in range(len(names)) if i not in order]]


def read_named_txt(path: Path) -> tuple[list[str] | None, np.ndarray]:
    """Read what :func:`read_txt` reads, with the names of its columns in order, or None where it has none.

    Raises:
        UserError: a line cannot be read; the message names it.
    """
    with reading(path):
        return _parse(_content(read_text(path)), path)


def begins_like_a_cloud(path: Path) -> bool:
    """Whether a text begins with a row of three or more numbers or the names of columns, after a count if there is one.

    Raises:
        UserError: it cannot be read.
    """
    lines = list(_content(read_text(path)).values())[:2]
    if len(lines) == 2 and COUNT.fullmatch(lines[0]):
        del lines[0]
    words = _words(lines[0]) if lines else []
    return {"x", "y", "z"} <= {*words} or (len(words) >= 3 and all(map(_is_number, words)))


def _content(text: str) -> dict[int, str]:
    """The lines that are not blank, without comments, by their numbers from 1."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stripped = {number: COMMENT.sub("", line).strip() for number, line in enumerate(lines, start=1)}
    return {number: line for number, line in stripped.items() if line}


def _parse(lines: dict[int, str], path: Path) -> tuple[list[str] | None, np.ndarray]:
    header = _take_header(lines, path)
    _check_count(lines, path)
    if not lines:
        raise UserError(f"{path} holds no points; each line must have x, y and z")
    separator = _separator(lines)
    table = _table(lines, separator, path)
    if header is None:
        return None, table
    names = _words(header, separator)
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise UserError(
            f"{path}: the first line names {len(set(names))} columns, the rows have {table.shape[1]}; correct it"
        )
    return names, table


def _take_header(lines: dict[int, str], path: Path) -> str | None:
    """Remove the line that names the columns, if there is one, and return it.

    Raises:
        UserError: x, y and z are not among them.
    """
    number = next(iter(lines), 0)
    words = _words(lines.get(number, ""))
    if not words or any(map(_is_number, words)):
        return None
    if not {"x", "y", "z"} <= set(words):
        raise UserError(
            f"{path}: line {number} has {in_one_line(lines[number], 60)!r}, no numbers; name the columns, x, y and z "
            f"among them, or take the line out; {NO_CLOUD}"
        )
    return lines.pop(number)


def _check_count(lines: dict[int, str], path: Path) -> None:
    """Remove the line that says how many rows follow, if there is one.

    Raises:
        UserError: another number follows.
    """
    number = next(iter(lines), 0)
    if not COUNT.fullmatch(lines.get(number, "")):
        return
    count = int(lines.pop(number))
    if count != len(lines):
        raise UserError(
            f"{path}: line {number} announces {count} points, {len(lines)} follow; is it cut off?"
        )


def _separator(lines: dict[int, str]) -> str | None:
    """What separates the numbers of the rows; None for blanks."""
    return next((mark for mark in SEPARATORS if mark in next(iter(lines.values()))), None)


def _table(lines: dict[int, str], separator: str | None, path: Path) -> np.ndarray:
    """Rows of numbers."""
    rows = list(lines.values())
    if separator is not None:
        rows = [row.removesuffix(separator) for row in rows]
    try:
        table = np.loadtxt(rows, delimiter=separator, dtype=np.float64, ndmin=2, comments=None)
        if len(table) != len(rows):  # numpy skips lines without values
            raise ValueError("a line without values")
        return table
    except ValueError as error:
        raise UserError(_broken_line(dict(zip(lines, rows, strict=True)), separator, path)) from error


def _broken_line(rows: dict[int, str], separator: str | None, path: Path) -> str:
    """Say which line cannot be read, and why."""
    columns = len(next(iter(rows.values())).split(separator))
    for number, row in rows.items():
        fields = row.split(separator)
        bad_field = next((field for field in fields if not _is_number(field)), None)
        if bad_field is not None:
            hint = f"; {NO_CLOUD}" if number == min(rows) else ""
            words = bad_field.split()
            # blanks may separate the numbers: 1,5 2,5 3,5
            if "," in bad_field or (separator == "," and len(words) > 1 and all(map(_is_number, words))):
                hint = "; is the decimal sign a comma?"
            return f"{path}: line {number} has {in_one_line(bad_field, 40)!r}, no number{hint}"
        if len(fields) != columns:
            return f"{path}: line {number} has {len(fields)} values, the lines before it {columns}; is it cut off?"
    return f"{path}: its numbers cannot be read; write plain numbers separated by commas or blanks"


def _words(line: str, separator: str | None = None) -> list[str]:
    """Split a line at a separator, or at any where it has none of these; in lower case, without quotes."""
    words = line.split(separator) if separator and separator in line else re.split(r"[;,\s]+", line)
    return [word.strip().strip("\"'").lower() for word in words if word.strip()]


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
