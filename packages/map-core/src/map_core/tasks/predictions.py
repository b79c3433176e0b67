"""Class probabilities of samples as a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float


def write_predictions(
    out: Path,
    kind: str,
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n c"],
    *,
    top: int,
) -> None:
    """Write a CSV with the most probable classes of each sample and their probabilities.

    Args:
        out: File to write.
        kind: Title of the column of names, such as "image".
        names: Of the samples.
        classes: In the order of the columns of ``probabilities``.
        probabilities: Of every sample and class.
        top: Classes a row, most probable first; all of them where there are fewer.
    """
    top = min(top, len(classes))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([kind, *(f"{what}_{i + 1}" for i in range(top) for what in ("class", "probability"))])
        for name, row, values in zip(names, best, probabilities, strict=True):
            writer.writerow([name, *(cell for i in row for cell in (classes[i], f"{values[i]:.6f}"))])
    print(f"{len(names)} {kind}s -> {out}")
