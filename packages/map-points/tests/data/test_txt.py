"""Clouds as text, as programs of all kinds write them."""

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data.txt import NO_CLOUD, read_named_txt, read_txt

ROWS = np.array([[0.5, 1.0, -2.0], [3.0, 4.0, 5e-3]])


@pytest.mark.parametrize(
    "text",
    [
        b"0.5 1 -2\n3 4 5e-3\n",
        b"0.5,1,-2\n3,4,5e-3",
        b"0.5, 1, -2\r\n3, 4, 5e-3\r\n",
        b"0.5;1;-2\n3;4;5e-3\n",
        b"0.5\t1\t-2\n\n3  4  5e-3\n",
        b"0.5,1,-2,\n3,4,5e-3,\n",
        b"0.5;1;-2;\r3;4;5e-3;\r",
        b"\xef\xbb\xbf0.5 1 -2\n3 4 5e-3\n",
        "0.5 1 -2\n3 4 5e-3\n".encode("utf-16"),
        b"2\n0.5 1 -2\n3 4 5e-3\n",
        b"x y z\n0.5 1 -2\n3 4 5e-3\n",
        b'"X";"Y";"Z"\n2\n0.5;1;-2\n3;4;5e-3\n',
        b"z,x,y\n-2,0.5,1\n5e-3,3,4\n",
        b"x,y,z\n0.5 1 -2\n3 4 5e-3\n",
        b"x y z\n0.5,1,-2\n3,4,5e-3\n",
        b"# by hand, with commas; K\xf6ln\n//X Y Z\n0.5 1 -2 # first\n3 4 5e-3\n",
    ],
)
def test_forms_of_the_same_cloud(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    read = read_txt(tmp_path / "a.txt")
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, ROWS)


def test_columns_that_a_header_names_keep_their_order_behind_the_coordinates(tmp_path):
    (tmp_path / "a.txt").write_text("id x y z nx\n9 1 2 3 4\n")
    np.testing.assert_array_equal(read_txt(tmp_path / "a.txt"), [[1, 2, 3, 9, 4]])


@pytest.mark.parametrize("header", ["x, y, z, point id", '"x" , "y" , "z" , "point id",', "X;Y;Z;Point ID"])
def test_a_column_may_have_a_name_of_several_words(tmp_path, header):
    separator = ";" if ";" in header else ","
    (tmp_path / "a.csv").write_text(f"{header}\n1,2,3,4\n".replace(",", separator))
    names, table = read_named_txt(tmp_path / "a.csv")
    assert (names, table.tolist()) == (["x", "y", "z", "point id"], [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no points"),
        ("# nothing\n\n", "holds no points"),
        ("x y z\n", "holds no points"),
        ("1 2 3\n1 2 x\n", "line 2 has 'x', no number$"),
        ("# c\n\n1 2 3\n4 5\n", "line 4 has 2 values, the lines before it 3; is it cut off"),
        ("1,5;2,5;3,5\n", "line 1 has '1,5', no number; is the decimal sign a comma"),
        ("1,5 2,5 3,5\n", "line 1 has '5 2', no number; is the decimal sign a comma"),
        ("1, 2, not a cloud\n", f"line 1 has 'not a cloud', no number; {NO_CLOUD}"),
        ("1,2,,3\n", "line 1 has '', no number"),
        ("1;2;3\n;\n", "line 2 has '', no number"),
        ("1 2 1_0\n", "line 1 has '1_0', no number"),
        (
            "East North Height\n1 2 3\n",
            "line 1 has 'East North Height', no numbers; name the columns, x, y and z",
        ),
        ("x y z w\n1 2 3\n", "the first line names 4 columns, the rows have 3"),
        ("x y z x\n1 2 3 4\n", "the first line names 3 columns, the rows have 4"),
        ("3\n1 2 3\n4 5 6\n", "line 1 announces 3 points, 2 follow; is it cut off"),
        ("1000000000000\n1 2 3\n", "line 1 announces 1000000000000 points, 1 follow"),
        ("<html>\n", "line 1 has '<html>', no numbers"),
        ("chair_0001\nchair_0002\n", f"line 1 has 'chair_0001', no numbers; .*; {NO_CLOUD}$"),
        ("Chair 03001627\n", f"line 1 has 'Chair', no number; {NO_CLOUD}$"),
        ("1 2 3\n4 \x1b[2J 6\n", r"line 2 has '\?\[2J', no number"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message) as excinfo:
        read_txt(tmp_path / "a.txt")
    assert "a.txt" in str(excinfo.value)
