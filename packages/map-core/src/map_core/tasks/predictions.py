"""Class probabilities of samples as a table."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from map_core.errors import visible
from map_core.runs.files import replacing
from map_core.runs.notes import tell_of

# a spreadsheet runs a cell that begins with one of these, plain or full-width
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def cell(text: str) -> str:
    """A name as a cell that neither a spreadsheet nor a terminal runs.

    Control characters are written out (``\\x1b``), and what would be a formula gets a leading ``'``, which makes
    spreadsheets take it for text (OWASP, CSV injection).
    """
    escaped = visible(text, keep="")
    return f"'{escaped}" if escaped.lstrip()[:1] in tuple(FORMULA) else escaped


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

    It is UTF-8; names that are not UTF-8 keep their bytes. See :func:`cell` for how names are escaped.

    Args:
        out: File to write.
        kind: Title of the column of names, such as "image".
        names: Names of the samples.
        classes: In the order of the columns of ``probabilities``.
        probabilities: Probability of every sample's classes, in consecutive chunks of samples.
        top: Classes per row, most probable first; all of them where there are fewer.
    """
    top = min(top, len(classes))
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        columns = (f"{field}_{i + 1}" for i in range(top) for field in ("class", "probability"))
        writer.writerow([kind, *columns])
        rows = (
            row
            for chunk in probabilities
            for row in zip(np.argsort(-chunk, axis=1, kind="stable")[:, :top], chunk, strict=True)
        )
        for name, (top_classes, values) in zip(names, rows, strict=True):
            cells = (text for i in top_classes for text in (cell(classes[i]), f"{values[i]:.6f}"))
            writer.writerow([cell(name), *cells])
    tell_of(out, f"{len(names)} {kind}s -> {out}")
