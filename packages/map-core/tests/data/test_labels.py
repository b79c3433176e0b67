"""CSV files of labels: the meaning of rows, and a one-sentence error for each mistake."""

from pathlib import Path

import pytest

from map_core.data.labels import LabelTable, read_labels
from map_core.errors import UserError

FILES = ("a.png", "b.png", "deep/c.png", "deep/d.PNG", "d,e.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "images"


def read_table(root: Path, text: str | bytes) -> LabelTable:
    file = root.parent / "labels.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(file, root, endings=[".png"])


def labelled_rows(table: LabelTable) -> list[tuple[str, str]]:
    return [(path.name, table.classes[i]) for path, i in zip(table.paths, table.labels, strict=True)]


def test_rows_keep_their_order_and_classes_are_sorted(root: Path) -> None:
    table = read_table(root, "path,label\nb.png,dog\na.png,cat\ndeep/c.png,dog\n")
    assert table.classes == ("cat", "dog")
    assert labelled_rows(table) == [("b.png", "dog"), ("a.png", "cat"), ("c.png", "dog")]
    assert table.paths[2] == root / "deep" / "c.png"
    reordered = read_table(root, "path,label\ndeep/c.png,dog\na.png,cat\nb.png,dog\n")
    # the order of rows does not change the classes
    assert sorted(labelled_rows(reordered)) == sorted(labelled_rows(table))


def test_whole_numbers_are_sorted_by_value(root: Path) -> None:
    table = read_table(root, "path,label\na.png,10\nb.png,9\n")
    assert table.classes == ("9", "10")
    assert labelled_rows(table) == [("a.png", "10"), ("b.png", "9")]
    assert read_table(root, "path,label\na.png,10\nb.png,x9\n").classes == ("10", "x9")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath,label\r\na.png,cat\r\nb.png,dog\r\n",
        "Path; Label\na.png;cat\nb.png;dog\n",
        "path\tlabel\na.png\tcat\nb.png\tdog",
        "label,comment,path\ncat,,a.png\n\ndog,1,./b.png\n",
        "path,label\na.png,cat\n.//b.png, dog \n",
    ],
    ids=["byte order mark", "semicolons", "tabs", "other columns", "blanks and dots"],
)
def test_spellings_of_the_same_table(root: Path, text: str) -> None:
    table = read_table(root, text)
    assert labelled_rows(table) == [("a.png", "cat"), ("b.png", "dog")]
    assert table.paths == (root / "a.png", root / "b.png")


def test_quoted_commas_and_endings_in_capitals(root: Path) -> None:
    assert labelled_rows(read_table(root, 'path,label\n"d,e.png",x\ndeep/d.PNG,y\n')) == [
        ("d,e.png", "x"),
        ("d.PNG", "y"),
    ]


def test_splits_choose_rows(root: Path) -> None:
    table = read_table(
        root, "path,label,split\na.png,x,train\nb.png,x,test\ndeep/c.png,y,train\ndeep/d.PNG,y,val\n"
    )
    assert table.train_rows().tolist() == [0, 2]
    assert (table.evaluation_split(), table.evaluation_rows().tolist()) == ("val", [3])
    assert table.evaluation_rows("test").tolist() == [1]
    assert table.train_rows(".").tolist() == [0, 1, 2, 3]
    with pytest.raises(
        UserError, match=r"labels.csv has no row of split 'tset' \(eval_split\): did you mean test"
    ):
        table.evaluation_rows("tset")


def test_without_a_column_of_splits_every_row_trains(root: Path) -> None:
    table = read_table(root, "path,label\na.png,x\nb.png,y\n")
    assert table.train_rows().tolist() == [0, 1]
    assert table.evaluation_split() is None
    with pytest.raises(
        UserError, match=r"no rows of split val, .*add a column split, or .*--data.holdout 0.1"
    ):
        table.evaluation_rows()
    with pytest.raises(UserError, match=r"no row of split 'train' \(train_split\): it has no column split"):
        table.train_rows("train")


def test_rows_to_train_on_are_asked_for_by_their_split(root: Path) -> None:
    table = read_table(root, "path,label,split\na.png,x,val\nb.png,y,test\n")
    message = r"labels.csv has no row to train on, only of test, val: give rows split train$"
    with pytest.raises(UserError, match=message):
        table.train_rows()
    with pytest.raises(UserError, match=r"no row of split 'train' \(train_split\)"):
        table.train_rows("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\nb.png,\n", r"line 3, has no label: give every row one"),
        ("path\na.png\n", r"labels.csv has no column label: give every row one"),
    ],
)
def test_rows_without_a_label_serve_where_none_is_needed(root: Path, text: str, message: str) -> None:
    table = read_table(root, text)
    assert (table.classes, set(table.labels.tolist())) == ((), {0})
    with pytest.raises(UserError, match=message):
        table.require_labels()


def test_a_class_that_is_never_trained_on_is_named(root: Path) -> None:
    table = read_table(root, "path,label,split\na.png,x,train\nb.png,y,val\n")
    with pytest.raises(UserError, match=r"classes without a training row: y; add rows"):
        table.require_classes_to_train()
    table.require_classes_to_train(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,x\nb.png,y\n", r"the first line must name the columns, path and label .*; it is 'a.png,x'"),
        ("", r"the first line must name the columns"),
        ("path,label\n", r"has no rows below its first line"),
        (
            "path,label\nnone.png,x\n",
            r"line 2, names 'none.png', which is not a file in .*images; correct the row",
        ),
        ("path,label\ndeep,x\n", r"line 2, names 'deep'; files that are read end in .png"),
        ("path,label\na.png,x\nb.tex,y\n", r"line 3, names 'b.tex'; files that are read end in .png"),
        (
            "path,label\na.png,x\n./a.png,y\n",
            r"line 3, names 'a.png' again, after line 2; name every file once",
        ),
        ("path,label\n../images/a.png,x\n", r"names '../images/a.png', which leads out of .*images"),
        ("path,label\n/etc/a.png,x\n", r"names '/etc/a.png', which leads out of"),
        ("path,label\nC:\\a.png,x\n", r"which leads out of"),
        ("path,label\ndeep\\..\\..\\a.png,x\n", r"which leads out of"),
        ("path,label\n ,x\n", r"line 2, has no path; name a file below"),
        ("path,label\na\0.png,x\n", r"names 'a\\\\x00.png', which is not a file"),
        (
            "path,label,split\na.png,x,training\n",
            r"has split 'training'; it must be one of train, val, validation",
        ),
        ("path,label,split\na.png,x,\n", r"line 2, has split ''; it must be one of"),
        ("path,label\nd,e.png,x\n", r"line 2, has 3 cells, the first line 2; is a path unquoted"),
        ('path,label\n"a.png,x\n', r"is not valid CSV \(unexpected end of data\): correct its quotes"),
        (
            b"path,label\n\xff.png,x\n",
            r"cannot read .*labels.csv \(it is not UTF-8\): save it as CSV in UTF-8",
        ),
    ],
)
def test_a_wrong_table_is_reported_in_one_sentence(root: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_table(root, text)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(root: Path) -> None:
    with pytest.raises(UserError, match=r"--data.labels nowhere.csv is not a file: correct --data.labels"):
        read_labels("nowhere.csv", root, endings=[".png"])
    (root / "labels.csv").write_text("path,label\na.png,x\n")
    with pytest.raises(UserError, match=r"labels.csv is not a file; .*images.labels.csv does: give that"):
        read_labels("labels.csv", root, endings=[".png"])


def test_a_name_that_the_system_does_not_follow_is_named(root: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"cannot read --data.labels a+ \(File name too long\): make it readable, or correct it",
    ):
        read_labels("a" * 300, root, endings=[".png"])
