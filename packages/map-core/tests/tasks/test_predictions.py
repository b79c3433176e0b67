"""The table of predictions."""

import csv
import os

import numpy as np
import pytest

from map_core.tasks.predictions import write_predictions


@pytest.mark.parametrize(("top", "columns"), [(1, 1), (2, 2), (9, 3)])
def test_a_row_holds_the_most_probable_classes_first(tmp_path, capsys, top, columns):
    """All of them where there are fewer; equal ones in the order of the classes."""
    out = tmp_path / "new/predictions.csv"
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    write_predictions(
        out, "toy", ["a, b", "c"], ["x", "y", "z"], [probabilities[:1], probabilities[1:]], top=top
    )
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "toy",
        *(f"{field}_{i + 1}" for i in range(columns) for field in ("class", "probability")),
    ]
    first = ["y", "0.500000", "z", "0.300000", "x", "0.200000"]
    second = ["x", "0.400000", "z", "0.400000", "y", "0.200000"]
    assert rows == [["a, b", *first[: 2 * columns]], ["c", *second[: 2 * columns]]]
    assert capsys.readouterr().out == f"2 toys -> {out}\n"


HOSTILE = [
    ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
    ("+1", "'+1"),
    ("-2+3", "'-2+3"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("  =1", "'  =1"),
    ("\t=1", r"\t=1"),
    ("\r=1", r"\r=1"),
    ("\uff1d1", "'\uff1d1"),
    ("a\x1b]0;x\x07b", r"a\x1b]0;x\x07b"),
    ("a\x9bb", r"a\x9bb"),
    ("a\nb", r"a\nb"),
    ("gpj\u202e.exe", r"gpj\u202e.exe"),
    ("../../etc/x", "../../etc/x"),
    ("a=b, c-d@e", "a=b, c-d@e"),
    ("", ""),
    ("größe", "größe"),
]


@pytest.mark.parametrize(("text", "escaped"), HOSTILE, ids=[ascii(text) for text, _ in HOSTILE])
def test_names_are_written_so_that_nothing_runs_them(tmp_path, text, escaped):
    """Names of samples and of classes; neither becomes a path."""
    out = tmp_path / "a/out.csv"
    write_predictions(out, "toy", [text], [text, "x"], [np.array([[0.75, 0.25]])], top=1)
    with out.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == [escaped, escaped, "0.750000"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    name = b"\xe9t\xe9.png"
    write_predictions(tmp_path / "out.csv", "toy", [os.fsdecode(name)], ["x"], [np.ones((1, 1))], top=1)
    assert (tmp_path / "out.csv").read_bytes().splitlines()[1] == name + b",x,1.000000"
