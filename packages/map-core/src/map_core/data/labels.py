"""Labels from a CSV file: the class and split of each file in a folder."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from map_core.errors import UserError, near_matches, visible
from map_core.paths import expand_user, fault_of_name, is_file
from map_core.reading import read_small

EVALUATION_SPLITS = ("val", "validation", "test")  # in the order in which they are looked for
SPLITS = ("train", *EVALUATION_SPLITS)
EVERYTHING = "."  # the split that holds all rows, as "." stands for a whole folder
MAX_BYTES = 2**30  # of a CSV file
MAX_SHOWN = 60  # characters of a cell in a message


@dataclass(frozen=True)
class LabelTable:
    """The rows of a label file (CSV).

    Attributes:
        file: The CSV file.
        paths: Paths of the files, folder included, in the order of the rows.
        classes: The distinct labels, sorted: whole numbers by value, else as text; () where ``unlabelled``.
        labels: Indices into ``classes`` [n], int64; zeros where there are none.
        splits: The split of each row; () without such a column.
        unlabelled: What has no label, in words: the first such row, or a file without the column; None where every
            row has one.
    """

    file: Path
    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    unlabelled: str | None

    def require_labels(self) -> None:
        """Raise a :class:`UserError` if a row has no label."""
        if self.unlabelled is not None:
            raise UserError(
                f"{self.unlabelled}: give every row one, or leave the row out (pretraining needs none)"
            )

    def train_rows(self, split: str | None = None) -> np.ndarray:
        """Rows of the training split: the named one, else ``train``, else all rows if there is no split column.

        Raises:
            UserError: the split has no rows.
        """
        if not self.splits and split is None:
            return np.arange(len(self.paths))
        if split is None and "train" not in self.splits:
            known = ", ".join(sorted(set(self.splits)))
            raise UserError(f"{self.file} has no row to train on, only of {known}: give rows split train")
        return self._rows(split or "train", "train_split")

    def evaluation_split(self, split: str | None = None) -> str | None:
        """The split to evaluate on: the named one, else the first of val, validation and test, if any.

        Raises:
            UserError: the named split has no rows.
        """
        if split is None:
            return next((name for name in EVALUATION_SPLITS if name in self.splits), None)
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
                f"{self.file} has no rows of split {', '.join(EVALUATION_SPLITS)} to evaluate on: add a column split, "
                "or set a part of the training rows aside with --data.holdout 0.1"
            )
        return self._rows(name, "eval_split")

    def require_classes_to_train(self, split: str | None = None) -> None:
        """Raise a :class:`UserError` if a row has no label, or a class has no row in the training split."""
        self.require_labels()
        counts = np.bincount(self.labels[self.train_rows(split)], minlength=len(self.classes))
        missing = [visible(name) for name, count in zip(self.classes, counts, strict=True) if not count]
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

    Other columns are ignored. Paths are relative to ``root``; splits are train, val, validation or test.

    Args:
        file: CSV file in UTF-8, separated by commas, semicolons or tabs, whichever the first line has most of.
        root: Folder of the files.
        endings: File endings that can be read, in lower case and with their dot.

    Raises:
        UserError: naming what is wrong: the file, its header or a row.
    """
    file = _require_file(expand_user(file), root)
    names, rows = _read_table(file)
    path_column, label_column, split_column = (
        _column_index(names, name) for name in ("path", "label", "split")
    )
    if path_column is None:
        raise UserError(
            f"{file}: the first line must name the columns, path and label among them (and split, if any); "
            f"it is {_quoted(','.join(names))}"
        )
    paths: dict[str, int] = {}
    texts, splits = list[str](), list[str]()
    unlabelled = None if label_column is not None else f"{file} has no column label"
    for number, row in rows:
        where = f"{file}, line {number},"
        if len(row) != len(names):
            raise UserError(f"{where} has {len(row)} cells, the first line {len(names)}; is a path unquoted?")
        path = _relative_path(root, row[path_column], where, endings)
        if path in paths:
            raise UserError(
                f"{where} names {_quoted(path)} again, after line {paths[path]}; name every file once"
            )
        paths[path] = number
        text = "" if label_column is None else row[label_column].strip()
        texts.append(text)
        unlabelled = unlabelled or (f"{where} has no label" if not text else None)
        if split_column is not None:
            splits.append(_require_split(row[split_column].strip(), where))
    if not paths:
        raise UserError(f"{file} has no rows below its first line; add one per file")
    classes = () if unlabelled else _sorted_classes(set(texts))
    label_of = {name: i for i, name in enumerate(classes)}
    labels = np.array([label_of.get(text, 0) for text in texts], dtype=np.int64)
    return LabelTable(file, tuple(root / path for path in paths), classes, labels, tuple(splits), unlabelled)


def _require_file(file: Path, root: Path) -> Path:
    if (reason := fault_of_name(file)) is not None:
        raise UserError(f"cannot read --data.labels {file} ({reason}): make it readable, or correct it")
    if file.is_file():
        return file
    in_root = root / file
    hint = f"; {in_root} does: give that" if is_file(in_root) else ": correct --data.labels"
    raise UserError(f"--data.labels {file} is not a file{hint}")


def _read_table(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Names of the columns; and the rows that are not blank, each with the number of its last line."""
    try:
        text = read_small(file, MAX_BYTES).decode("utf-8-sig")
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
                f"{file}, line {reader.line_num}, is not valid CSV ({error}): correct its quotes"
            ) from error

    content = rows()
    _, header = next(content, (0, list[str]()))
    return [name.strip().lower() for name in header], content


def _column_index(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _relative_path(root: Path, name: str, where: str, endings: Sequence[str]) -> str:
    """The checked path of a row, relative to ``root`` and without ``.`` parts."""
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    if not parts:
        raise UserError(f"{where} has no path; name a file below {root}")
    if ".." in parts or parts[0].endswith(("/", ":")):
        raise UserError(
            f"{where} names {_quoted(name)}, which leads out of {root}; name files by their path below it"
        )
    path = os.sep.join(parts)
    if os.path.splitext(path)[1].lower() not in endings:
        raise UserError(
            f"{where} names {_quoted(name)}; files that are read end in {' '.join(sorted(endings))}"
        )
    try:
        exists = os.path.isfile(root / path)
    except ValueError:  # a null character
        exists = False
    if not exists:
        raise UserError(
            f"{where} names {_quoted(name)}, which is not a file in {root}; correct the row or --data.root"
        )
    return path


def _require_split(name: str, where: str) -> str:
    if name not in SPLITS:
        raise UserError(f"{where} has split {_quoted(name)}; it must be one of {', '.join(SPLITS)}")
    return name


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Sort whole numbers by value, so that 10 comes after 9, and anything else as text."""
    whole = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if whole else (0, name)))


def _quoted(text: str) -> str:
    return repr(visible(text[:MAX_SHOWN], keep="")) + ("..." if len(text) > MAX_SHOWN else "")
