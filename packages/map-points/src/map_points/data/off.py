"""OFF files: the vertices of a mesh."""

from itertools import chain
from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.files import looks_like, read_text


def read_off(path: Path) -> np.ndarray:
    """Read the vertices (n, 3), float64; faces are left out.

    The counts may follow the word OFF on its line, as in ModelNet. A cloud consists of its vertices: sample the
    surface first where they are few.

    Raises:
        UserError: it is not an OFF file, or is cut off.
    """
    lines = iter([line for row in read_text(path).splitlines() if (line := row.split("#")[0].strip())])
    first = next(lines, "")
    if not first.startswith("OFF"):
        raise UserError(f"{path} is not an OFF file: it does not begin with OFF{looks_like(path)}")
    counts = next(chain([rest] if (rest := first[3:].strip()) else [], lines), "")
    word = (counts.split() or [""])[0]
    if not (word.isascii() and word.isdigit() and len(word) < 12):
        raise UserError(
            f"{path} has the counts {in_one_line(counts, 40)!r}; expected vertices, faces and edges"
        )
    rows = [row for row, _ in zip(lines, range(int(word)), strict=False)]
    try:
        if len(rows) < int(word):
            raise ValueError(f"{len(rows)} of {word} vertices")
        vertices = np.array([[float(value) for value in row.split()[:3]] for row in rows], dtype=np.float64)
        return vertices.reshape(len(rows), 3)
    except ValueError as error:
        raise UserError(
            f"{path}: its vertices cannot be read ({in_one_line(str(error), 60)}); is it cut off?"
        ) from error
