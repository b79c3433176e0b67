"""The table of predictions."""

import csv

import numpy as np
import pytest

from map_core.tasks.predictions import write_predictions


@pytest.mark.parametrize(("top", "columns"), [(1, 1), (2, 2), (9, 3)])
def test_a_row_holds_the_most_probable_classes_first(tmp_path, capsys, top, columns):
    """As many as there are, where fewer are there; equal ones in the order of the classes."""
    out = tmp_path / "new/predictions.csv"
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    write_predictions(out, "toy", ["a, b", "c"], ["x", "y", "z"], probabilities, top=top)
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "toy",
        *(f"{what}_{i + 1}" for i in range(columns) for what in ("class", "probability")),
    ]
    first = ["y", "0.500000", "z", "0.300000", "x", "0.200000"]
    second = ["x", "0.400000", "z", "0.400000", "y", "0.200000"]
    assert rows == [["a, b", *first[: 2 * columns]], ["c", *second[: 2 * columns]]]
    assert capsys.readouterr().out == f"2 toys -> {out}\n"
