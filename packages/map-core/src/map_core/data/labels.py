"""Labels from a CSV file: which file of a folder is of which class, and in which split."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from map_core.errors import UserError, near_matches, visible
from map_core.paths import expanded
from map_core.reading import read_small

EVALUATION = ("val", "validation", "test")
SPLITS = ("train", *EVALUATION)
EVERYTHING = "."  # as of folders: all that there is
MOST = 2**30  # bytes of a table
LONGEST = 60  # characters of a cell that are worth showing


@dataclass(frozen=True)
class LabelTable:
    """The rows of a CSV file of labels.

    Attributes:
        file: The CSV file.
        paths: Of the files, below their folder, in the order of the rows.
        classes: Every label of the file once, sorted: whole numbers by value, else as text; () where ``unlabelled``.
        labels: Places in ``classes`` [n], int64; zeros where there are none.
        splits: Of each row; () without such a column.
        unlabelled: What row has no label, in words; None where every one has.
    """

    file: Path
    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    unlabelled: str | None

    def require_labels(self) -> None:
        """Raise a :class:`UserError` where a row has no label."""
        if self.unlabelled is not None:
            raise UserError(
                f"{self.unlabelled}: give every row one, or leave the row out (pretraining needs none)"
            )

    def train_rows(self, split: str | None = None) -> np.ndarray:
        """Rows of a training split: the one that is named, else ``train``, else all where there is no column.

        Raises:
            UserError: no row is in it.
        """
        if not self.splits and split is None:
            return np.arange(len(self.paths))
        return self._rows(split or "train", "train_split")

    def evaluation_split(self, split: str | None = None) -> str | None:
        """The split to evaluate on: the one that is named, else the first of val, validation and test, if any.

        Raises:
            UserError: no row is in the one that is named.
        """
        if split is None:
            return next((name for name in EVALUATION if name in self.splits), None)
        self._rows(split, "eval_split")
        return split

    def evaluation_rows(self, split: str | None = None) -> np.ndarray:
        """Rows of :meth:`evaluation_split`.

        Raises:
            UserError: there is no such split.
        """
        name = self.evaluation_split(split)
        if name is None:
            raise UserError(
                f"{self.file} has no rows of split {', '.join(EVALUATION)} to evaluate on: add a column split, or set "
                "a part of the training rows aside with --data.holdout 0.1"
            )
        return self._rows(name, "eval_split")

    def require_classes_to_train(self, split: str | None = None) -> None:
        """Raise a :class:`UserError` where a row has no label, or a class no row of the training split."""
        self.require_labels()
        trained = np.bincount(self.labels[self.train_rows(split)], minlength=len(self.classes))
        missing = [visible(name) for name, count in zip(self.classes, trained, strict=True) if not count]
        if missing:
            more = ", ..." if len(missing) > 4 else ""
            raise UserError(
                f"{self.file} has classes without a training row: {', '.join(missing[:4])}{more}; add rows, or take "
                "these classes out of the other splits"
            )

    def _rows(self, split: str, argument: str) -> np.ndarray:
        if split == EVERYTHING:
            return np.arange(len(self.paths))
        rows = np.flatnonzero(np.array(self.splits) == split) if self.splits else np.array([], dtype=np.int64)
        if not len(rows):
            known = sorted(set(self.splits))
            hint = near_matches(split, known) if known else "it has no column split"
            raise UserError(f"{self.file} has no row of split '{split}' ({argument}): {hint}")
        return rows


def read_labels(file: str | Path, root: Path, *, endings: Sequence[str]) -> LabelTable:
    """Read a CSV file whose first line names its columns: ``path``, ``label`` and, if there are splits, ``split``.

    Further columns are left out. Paths lie below ``root``; splits are train, val, validation or test.

    Args:
        file: UTF-8, separated by commas, semicolons or tabs, whichever the first line has.
        root: Folder of the files.
        endings: Of the files that can be read, lower case with their dot.

    Raises:
        UserError: the file, its header or a row is wrong, saying which.
    """
    file = _existing(expanded(file), root)
    names, rows = _table(file)
    path_column, label_column, split_column = (_column(names, name) for name in ("path", "label", "split"))
    if path_column is None:
        raise UserError(
            f"{file}: the first line must name the columns, path and label among them (and split, if any); "
            f"it is {_shown(','.join(names))}"
        )
    paths: dict[str, int] = {}
    texts, splits = list[str](), list[str]()
    unlabelled = None if label_column is not None else f"{file} has no column label"
    for number, row in rows:
        where = f"{file}, line {number},"
        if len(row) != len(names):
            raise UserError(f"{where} has {len(row)} cells, the first line {len(names)}; is a path unquoted?")
        path = _inside(root, row[path_column], where, endings)
        if path in paths:
            raise UserError(
                f"{where} names {_shown(path)} again, after line {paths[path]}; name every file once"
            )
        paths[path] = number
        text = "" if label_column is None else row[label_column].strip()
        texts.append(text)
        unlabelled = unlabelled or (f"{where} has no label" if not text else None)
        if split_column is not None:
            splits.append(_split(row[split_column].strip(), where))
    if not paths:
        raise UserError(f"{file} has no rows below its first line; add one a file")
    classes = () if unlabelled else _sorted(set(texts))
    place = {name: i for i, name in enumerate(classes)}
    labels = np.array([place.get(text, 0) for text in texts], dtype=np.int64)
    return LabelTable(file, tuple(root / path for path in paths), classes, labels, tuple(splits), unlabelled)


def _existing(file: Path, root: Path) -> Path:
    if file.is_file():
        return file
    beside = root / file
    hint = f"; {beside} does: give that" if beside.is_file() else ": correct --data.labels"
    raise UserError(f"--data.labels {file} is no file{hint}")


def _table(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Names of the columns, then the rows that are not blank with the lines that they end on."""
    try:
        text = read_small(file, MOST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"cannot read {file} ({reason}): save it as CSV in UTF-8") from error
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
        except csv.Error as error:
            raise UserError(
                f"{file}, line {reader.line_num}, is no CSV ({error}): correct its quotes"
            ) from error

    content = rows()
    _, header = next(content, (0, list[str]()))
    return [name.strip().lower() for name in header], content


def _column(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _inside(root: Path, name: str, where: str, endings: Sequence[str]) -> str:
    """A path of a row below ``root``, without ``.`` in it."""
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    if not parts:
        raise UserError(f"{where} has no path; name a file below {root}")
    if ".." in parts or parts[0].endswith(("/", ":")):
        raise UserError(
            f"{where} names {_shown(name)}, which leads out of {root}; name files by their path below it"
        )
    path = os.sep.join(parts)
    if os.path.splitext(path)[1].lower() not in endings:
        raise UserError(
            f"{where} names {_shown(name)}; files that are read end in {' '.join(sorted(endings))}"
        )
    try:
        there = os.path.isfile(root / path)
    except ValueError:  # a null character
        there = False
    if not there:
        raise UserError(
            f"{where} names {_shown(name)}, which is no file in {root}; correct the row or --data.root"
        )
    return path


def _split(name: str, where: str) -> str:
    if name not in SPLITS:
        raise UserError(f"{where} has split {_shown(name)}; it must be one of {', '.join(SPLITS)}")
    return name


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Whole numbers by value, so that 10 comes after 9; anything else as text."""
    whole = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if whole else (0, name)))


def _shown(text: str) -> str:
    return repr(visible(text[:LONGEST], keep="")) + ("..." if len(text) > LONGEST else "")
