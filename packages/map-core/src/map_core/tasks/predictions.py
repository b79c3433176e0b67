"""Class probabilities of samples as a table."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from map_core.errors import visible
from map_core.runs.files import replacing
from map_core.runs.notes import tell

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # plain and full-width: what a spreadsheet runs a cell for that begins with it


def cell(text: str) -> str:
    """A name as a cell that neither a spreadsheet nor a terminal runs.

    Control characters are written out (``\\x1b``), and ``'`` is put before what would be a formula, as spreadsheets
    take it for text then (OWASP, CSV injection).
    """
    shown = visible(text, keep="")
    return f"'{shown}" if shown.lstrip()[:1] in tuple(FORMULA) else shown


def write_predictions(
    out: Path,
    kind: str,
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Iterable[Float[np.ndarray, "r c"]],
    *,
    top: int,
) -> None:
    """Write a CSV with the most probable classes of each sample and their probabilities.

    It is UTF-8; names that are not keep their bytes. See :func:`cell` for what is done to names.

    Args:
        out: File to write.
        kind: Title of the column of names, such as "image".
        names: Of the samples.
        classes: In the order of the columns of ``probabilities``.
        probabilities: Of every sample and class, some samples after the other.
        top: Classes a row, most probable first; all of them where there are fewer.
    """
    top = min(top, len(classes))
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([kind, *(f"{what}_{i + 1}" for i in range(top) for what in ("class", "probability"))])
        rows = (
            row
            for some in probabilities
            for row in zip(np.argsort(-some, axis=1, kind="stable")[:, :top], some, strict=True)
        )
        for name, (best, values) in zip(names, rows, strict=True):
            best_of_row = (part for i in best for part in (cell(classes[i]), f"{values[i]:.6f}"))
            writer.writerow([cell(name), *best_of_row])
    tell(f"{len(names)} {kind}s -> {out}")
